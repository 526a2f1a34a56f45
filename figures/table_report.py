"""What the rows of figures/paper_tables.py say: differences with their intervals, whether training was over, tables.md.

All of it is computed from plain values. A result is what a main script writes to <model>_runs.json with --runs; an
entry is what tables.json holds of a row; `markdown` needs nothing but the content of tables.json.
"""
import sys
import textwrap
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from model.metrics import bootstrap_interval  # noqa: E402

BASELINE, NOISE_FLOOR = "PSP", "PSP once more"      # the row that others are compared with, and its repetition
METRICS = {"event_or_background": "event or background", "video_category": "video category",
           "segment_f1": "segment F1", "event_f1": "event F1"}
CORRECT = {"test": "test_correct", "best_test": "best_test_correct"}      # keys: correct segments of each test video


# ------------------------------------------------------------------------------------------- numbers of a row

def figures_of(metric, result, psp):
    """Mean, spread, interval over test videos and difference to PSP, in % and points.

    metric: 'test' or 'best_test'; psp: the result of PSP, None for that row itself or where it is missing.
    """
    values = np.array([100 * run[metric] for run in result["runs"]])
    found = {"n": len(values), "mean": values.mean(), "std": values.std(ddof=1), "values": values.tolist(),
             "seeds": [run["seed"] for run in result["runs"]],
             "interval": bootstrap_interval(100 * by_video(result, metric).mean(axis=0)),
             "difference": None if psp is None else difference(metric, result, psp)}
    if metric == "test":      # of the best test accuracy there is no checkpoint to measure more on
        found["metrics"] = {name: mean_of([run["metrics"][name] for run in result["runs"]]) for name in METRICS}
    return found


def mean_of(values):
    """In %; None where a value is missing."""
    return None if None in values else 100 * sum(values) / len(values)


def by_video(result, metric):
    """[runs, videos]: accuracy on each test video, in 0..1."""
    return np.array([run[CORRECT[metric]] for run in result["runs"]]) / result["segments"]


def difference(metric, result, psp):
    """Of a row to PSP, in points, the i-th seed of the one with the i-th seed of the other."""
    by_seed = np.array([100 * (run[metric] - other["test"]) for run, other in zip(result["runs"], psp["runs"])])
    margin = t_quantile(len(by_seed) - 1) * by_seed.std(ddof=1) / len(by_seed) ** 0.5
    over_videos = 100 * (by_video(result, metric) - by_video(psp, "test")).mean(axis=0)
    intervals = {"t_interval": [by_seed.mean() - margin, by_seed.mean() + margin],
                 "video_interval": bootstrap_interval(over_videos)}
    return {"mean": by_seed.mean(), "std": by_seed.std(ddof=1), **intervals,
            "measurable": bool(all(low > 0 or high < 0 for low, high in intervals.values()))}


def t_quantile(degrees, coverage=0.95):
    """The t for which Student's t with so many degrees of freedom lies in -t..t with probability `coverage`.

    With t = sqrt(degrees) tan(angle), the density over the angle is proportional to cos(angle) ** (degrees - 1).
    """
    angle = np.linspace(0, np.pi / 2, 10**6 + 1)
    probability = np.cumsum(np.cos((angle[:-1] + angle[1:]) / 2) ** (degrees - 1))
    return degrees ** 0.5 * np.tan(np.interp(coverage * probability[-1], probability, angle[1:]))


def last_third(accuracies):
    """Whether training was over, from the validation accuracies of all checks, [seeds, checks] in %.

    gain: mean of the last third of the checks minus mean of the third before; scatter: sample standard deviation of the
    checks of the last third; both are means over the seeds. None where a third has fewer than two checks.
    """
    accuracies = np.array(accuracies)
    third = accuracies.shape[1] // 3
    if third < 2:
        return None
    middle, last = accuracies[:, -2 * third:-third], accuracies[:, -third:]
    gain, scatter = (last.mean(axis=1) - middle.mean(axis=1)).mean(), last.std(axis=1, ddof=1).mean()
    return {"gain": gain, "scatter": scatter, "rising": bool(gain > scatter)}


def by_size(entries):
    """Each setting's entries: PSP, PSP once more, then by the size of the difference; those without one at the end."""
    settings = list(dict.fromkeys(entry["setting"] for entry in entries))

    def rank(entry):
        found = entry.get("difference")
        size = abs(found["mean"]) if found else -1
        return settings.index(entry["setting"]), entry["label"] != BASELINE, entry["label"] != NOISE_FLOOR, -size
    return sorted(entries, key=rank)


# ------------------------------------------------------------------------------------------- tables.md

HEAD = """\
Data: {data}. Segment-level test accuracy in % at the best validation epoch ('chosen on test': the best test accuracy):
mean ± sample standard deviation over n seeds, all seeds, 95 % bootstrap interval over the test videos.

- **difference** to PSP of the same setting: mean ± sample standard deviation of the differences seed by seed. Bold is
  what can be measured: zero lies neither in the 95 % t-interval over seeds nor in the 95 % bootstrap interval over test
  videos. Rows stand in the order of its size. Paired are runs of the same seed: with the same initial weights where the
  layers are the same, and the same batches where they are shuffled.
- **PSP once more** is PSP with other seeds: what two trainings that differ by nothing but the seeds differ by.
- **last third**: mean validation accuracy of the last third of the checks minus that of the third before, ± standard
  deviation of the checks of the last third. 'Rising': by more than that deviation, so training was not over.
- The other metrics are explained in model/README.md; means over seeds.
"""


def markdown(content):
    """The text of tables.md, from the content of tables.json."""
    return "\n".join([HEAD.format(data=content["data"]), *map(table_text, content["tables"].values())])


def table_text(table):
    """A title, the rows and their commands."""
    published = any(entry["published"] for entry in table["rows"])
    heads = ["", "setting", *(["published on AVE"] if published else []), "n", "mean ± std", "all", "interval",
             "difference", "last third", *METRICS.values()]
    rows = ["| " + " | ".join(cells_of(entry, published)) + " |" for entry in table["rows"]]
    commands = dict.fromkeys(entry["command"] for entry in table["rows"])
    return "\n".join([f"### {table['title']}", "", "| " + " | ".join(heads) + " |", "|---" * len(heads) + "|", *rows,
                      "", "Commands:", "", "```bash", *commands, "```", ""])


def cells_of(entry, published):
    cells = [entry["label"], entry["setting"], *([str(entry["published"] or "-")] if published else [])]
    if "error" in entry:
        return [*cells, "-", f"failed: {entry['error']}", *["-"] * (4 + len(METRICS))]
    metrics = [entry.get("metrics", {}).get(name) for name in METRICS]
    return [*cells, str(entry["n"]), f"{entry['mean']:.1f} ± {entry['std']:.1f}",
            ", ".join(f"{value:.1f}" for value in entry["values"]),
            "{:.1f} to {:.1f}".format(*entry["interval"]),
            format_difference(entry["difference"]), format_last_third(entry["last_third"]),
            *("-" if value is None else f"{value:.1f}" for value in metrics)]


def format_difference(found):
    if found is None:
        return "-"
    text = f"{found['mean']:+.1f} ± {found['std']:.1f}"
    return f"**{text}**" if found["measurable"] else text


def format_last_third(found):
    if found is None:
        return "-"
    return f"{found['gain']:+.1f} ± {found['scatter']:.1f}" + (", rising" if found["rising"] else "")


# ------------------------------------------------------------------------------------------- curves of the sweeps

def draw_sweep(path, label, entries, data):
    """Test accuracy over the option that a table sweeps, as a curve with a band of one standard deviation."""
    from drawing import BLUE, ORANGE, pyplot, save      # here: the tables alone need no matplotlib
    points = sorted((entry["value"], entry["mean"], entry["std"])
                    for entry in entries if entry["value"] is not None and "error" not in entry)
    if len(points) < 2:
        return
    value, mean, std = map(np.array, zip(*points))
    of_psp = next(entry["value"] for entry in entries if entry["label"] == BASELINE)
    figure, axes = pyplot.subplots(figsize=(4.5, 3), constrained_layout=True)
    axes.plot(value, mean, "o-", color=BLUE, markersize=4, clip_on=False, label="mean of the seeds")
    axes.fill_between(value, mean - std, mean + std, color=BLUE, alpha=0.2, linewidth=0,
                      label="± standard deviation")
    axes.axvline(of_psp, color=ORANGE, linestyle="--", label=f"the paper's {of_psp}")
    if max(value) > 10:
        axes.set_xscale("symlog")
        axes.set_xlim(left=0)
    axes.set(xlabel=label, ylabel="test accuracy, %")
    axes.set_title(textwrap.fill(data, 60))
    axes.legend()
    save(figure, path)
