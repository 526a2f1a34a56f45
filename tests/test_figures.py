"""Tables hold what their commands gave and survive a kill; pictures show what they are given, and all of it."""
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib")
from conftest import ROOT, in_process  # noqa: E402

sys.path.insert(0, str(ROOT / "figures"))
import compare_runs  # noqa: E402
import paper_tables  # noqa: E402
import run_figures  # noqa: E402
import run_logs  # noqa: E402
import table_report  # noqa: E402
import video_figure  # noqa: E402
from data.files import UserError  # noqa: E402
from dataset import AVEDataset, find_files, required_files  # noqa: E402
from drawing import pyplot  # noqa: E402
from matplotlib.text import Text  # noqa: E402
from model.checkpoint import load, rebuild  # noqa: E402
from model.metrics import Predictions  # noqa: E402

RUN = ("--train", "--nb_epoch", 3, "--check_epoch", 1, "--batch_size", 8)
SEEDS = (123, 124)
TABLES = {"threshold": ("Pruning threshold", [
    paper_tables.PSP["fully"]._replace(value=0.099),
    paper_tables.Row("threshold 0.5", "fully", ("--threshold", "0.5"), value=0.5),
    paper_tables.Row("chosen on test", "fully", metric="best_test")])}


def table_options(data_folder, output_folder, jobs=1):
    return list(map(str, ("threshold", "--data_dir", data_folder, "--runs", len(SEEDS), "--nb_epoch", 7,
                          "--check_epoch", 1, "--batch_size", 12, "--device", "cpu",
                          "--output_dir", output_folder, "--jobs", jobs)))


@pytest.fixture(scope="module")
def table_folder(tiny_folder, tmp_path_factory):
    """What paper_tables.py makes of TABLES with --jobs 1; not to be changed."""
    folder = tmp_path_factory.mktemp("table")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paper_tables, "TABLES", TABLES)
        patch.setattr(sys, "argv", ["paper_tables.py", *table_options(tiny_folder, folder)])
        paper_tables.main()
    return folder


@pytest.fixture
def figure_script(monkeypatch, capsys):
    """Runs the main function of a script of figures/ in this process: (exit code, stdout, stderr)."""
    run = in_process(monkeypatch, capsys)
    return lambda module, *options: run(f"{module.__name__}.py", *options)


def test_a_table_holds_what_its_commands_gave(table_folder, tiny_folder, main_in_process, tmp_path):
    content = json.loads((table_folder / "tables.json").read_text())
    entries = {entry["label"]: entry for entry in content["tables"]["threshold"]["rows"]}
    psp, pruned, on_test = (entries[row.label] for row in TABLES["threshold"][1])
    assert (table_folder / "threshold.png").stat().st_size > 1000
    assert (table_folder / "tables.md").read_text() == table_report.markdown(content)

    # Recomputed from the logs of the single seeds.
    def logs_of(name):
        logs = [table_folder / "rows" / name / f"seed{seed}" / "PSP_fully.jsonl" for seed in SEEDS]
        return [[json.loads(line) for line in log.read_text().splitlines()] for log in logs]

    def of_seeds(name, which):
        return np.array([100 * log[-1]["result"][which]["test_accuracy"] for log in logs_of(name)])
    expected = of_seeds("fully_threshold_0p5", "best_validation")
    assert pruned["values"] == pytest.approx(expected) and pruned["n"] == 2
    assert pruned["mean"] == pytest.approx(expected.mean()) and pruned["std"] == pytest.approx(expected.std(ddof=1))
    gap = expected - of_seeds("fully", "best_validation")
    margin = 12.7062 * gap.std(ddof=1) / 2 ** 0.5
    assert pruned["difference"]["mean"] == pytest.approx(gap.mean())
    assert pruned["difference"]["t_interval"] == pytest.approx([gap.mean() - margin, gap.mean() + margin], abs=1e-3)
    assert psp["difference"] is None
    assert on_test["values"] == pytest.approx(of_seeds("fully", "best_test"))
    assert on_test["interval"][0] <= on_test["mean"] <= on_test["interval"][1]
    runs = json.loads((table_folder / "rows" / "fully" / "PSP_runs.json").read_text())["runs"]
    correct = [run[table_report.CORRECT["best_test"]] for run in runs]
    assert [100 * np.mean(videos) / 6 for videos in correct] == pytest.approx(on_test["values"])      # 6 segments
    checks = [[100 * record["val_accuracy"] for record in log if "val_accuracy" in record] for log in logs_of("fully")]
    gains = [(seed[4] + seed[5] - seed[2] - seed[3]) / 2 for seed in checks]      # epochs 1 to 6
    assert psp["last_third"]["gain"] == pytest.approx(sum(gains) / 2)

    # Recomputed from the predictions of the kept checkpoints.
    with h5py.File(tiny_folder / "right_labels.h5") as file:
        labels = file["avadataset"][:].argmax(axis=-1)
    shares = []
    for seed in SEEDS:
        checkpoint = table_folder / "rows" / "fully" / f"seed{seed}" / "PSP_fully.pt"
        predictions = tmp_path / f"{seed}.json"
        assert main_in_process("fully_supervised_main.py", "--data_dir", tiny_folder,
                               "--trained_model_path", checkpoint, "--save_predictions", predictions)[0] == 0
        videos = [video for video in json.loads(predictions.read_text())["videos"] if video["split"] == "test"]
        agree = [(predicted == labels.max()) == (true == labels.max()) for video in videos
                 for predicted, true in zip(video["labels"], labels[video["video"]])]
        shares.append(100 * np.mean(agree))
    assert psp["metrics"]["event_or_background"] == pytest.approx(np.mean(shares))


DRIVER = """
import sys
sys.path.insert(0, {tests!r})
import conftest, test_figures
from utils import one_line_errors
test_figures.paper_tables.TABLES = test_figures.TABLES
with one_line_errors():
    test_figures.paper_tables.main()
"""


def test_jobs_change_no_digit_and_a_signal_stops_them_all(figure_script, monkeypatch, table_folder, tiny_folder,
                                                          tmp_path):
    """A table with --jobs 2, stopped while two rows are under way and started again, is the one made with --jobs 1."""
    def records(row):
        """The log lines of its latest seed behind the first, which is written before the first epoch."""
        logs = sorted(row.glob("seed*/*.jsonl"))
        return [json.loads(line) for line in logs[-1].read_text().splitlines()[1:]] if logs else []

    driver = [sys.executable, "-c", DRIVER.format(tests=str(ROOT / "tests"))]
    options = table_options(tiny_folder, tmp_path, jobs=2)
    table = subprocess.Popen([*driver, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    rows = [tmp_path / "rows" / name for name in ("fully", "fully_threshold_0p5")]
    started = time.monotonic()
    while not all(map(records, rows)) and time.monotonic() - started < 100:
        time.sleep(0.05)
    table.terminate()
    _, error = table.communicate(timeout=60)
    assert table.returncode == 128 + signal.SIGTERM and "the same command goes on from here" in error
    for row in rows:      # was stopped in a run, which says so, or between the runs of two seeds
        assert "stopped in epoch" in (row / "errors.txt").read_text() or "result" in records(row)[-1]
    assert not list(tmp_path.glob("rows/*/*_runs.json")) and not (tmp_path / "tables.json").exists()

    monkeypatch.setattr(paper_tables, "TABLES", TABLES)
    monkeypatch.setitem(os.environ, "OMP_NUM_THREADS", "2")      # of which the rows must take no notice
    code, out, error = figure_script(paper_tables, *options)
    assert code == 0, error
    assert "2 rows of 2 runs to do, 2 at a time" in out and "[1/2]" in out and "min left" in out
    minutes = float(re.search(r"with all earlier calls ([\d.]+) min", out)[1])
    assert minutes == pytest.approx(float((tmp_path / "rows" / "seconds.txt").read_text()) / 60, abs=0.06)
    assert "[2/2]" in out
    assert all("going on with the run" in (row / "output.txt").read_text() for row in rows)
    for name in ("tables.json", "tables.md"):
        assert (tmp_path / name).read_text() == (table_folder / name).read_text()

    (rows[0] / "PSP_runs.json").write_text("{")      # damaged: it is written again
    code, out, error = figure_script(paper_tables, *options)
    assert code == 0 and "1 rows of 2 runs to do" in out
    assert (tmp_path / "tables.json").read_text() == (table_folder / "tables.json").read_text()


def test_rows_that_fail_or_are_of_other_data_are_reported(figure_script, monkeypatch, table_folder, tiny_folder,
                                                          tmp_path):
    folder = shutil.copytree(table_folder, tmp_path / "table")
    title, rows = TABLES["threshold"]
    impossible = paper_tables.Row("threshold 7", "fully", ("--threshold", "7"), value=7)
    monkeypatch.setattr(paper_tables, "TABLES", {"threshold": (title, [*rows, impossible])})
    command = folder / "rows" / "fully_threshold_0p5" / "command.txt"
    command.write_text("of other options")
    runs_path = folder / "rows" / "fully" / "PSP_runs.json"
    runs_path.write_text(json.dumps({**json.loads(runs_path.read_text()), "test_digest": ["of other data"]}))
    code, out, error = figure_script(paper_tables, *table_options(tiny_folder, folder))
    assert code == 2 and "2 of the rows failed" in error and "'7' is not a number in 0..1" in out
    assert (folder / "rows" / "fully_threshold_0p5.1" / "seed123").is_dir() and "threshold 0.5" in command.read_text()
    entries = json.loads((folder / "tables.json").read_text())["tables"]["threshold"]["rows"]
    errors = {entry["label"]: entry["error"] for entry in entries if "error" in entry}
    assert errors.keys() == {"threshold 0.5", "threshold 7"}
    assert "other data than the row of PSP" in errors["threshold 0.5"]


def test_compared_runs_show_the_loss_and_similarity_of_their_checkpoints(figure_script, main_in_process, table_folder,
                                                                         tiny_folder, tmp_path):
    folders = [table_folder / "rows" / name for name in ("fully", "fully_threshold_0p5")]
    picture = tmp_path / "compare.png"
    code, out, error = figure_script(compare_runs, *folders, "--names", "PSP", "pruned", "--data_dir", tiny_folder,
                                     "--output", picture)
    assert code == 0, error
    assert picture.stat().st_size > 1000
    of_psp = re.findall(r"^\| PSP \| (.*) \|$", out, re.MULTILINE)      # accuracies, and what was measured
    printed = [float(cell.split(" ")[0]) for cell in of_psp[1].split(" | ")]

    expected = []      # worked out in NumPy, in float64
    for split in ("train", "test"):
        dataset = AVEDataset(find_files(tiny_folder, required_files([split])), split)
        batch = dataset[torch.arange(len(dataset))]
        labels = batch["labels"].numpy()
        of_seeds = []
        for seed in SEEDS:
            path = folders[0] / f"seed{seed}" / "PSP_fully.pt"
            with torch.inference_mode():
                output = rebuild(load(path), path).eval()(batch["audio"], batch["visual"])
            logits, visual, audio = (value.double().numpy()
                                     for value in (output.logits, output.psp.visual, output.psp.audio))
            probability = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
            of_label = np.take_along_axis(probability, labels[..., None], axis=-1)
            cosine = (visual * audio).sum(-1) / np.linalg.norm(visual, axis=-1) / np.linalg.norm(audio, axis=-1)
            event = labels != labels.max()
            of_seeds.append([-np.log(of_label).mean(), cosine[event].mean(), cosine[~event].mean()])
        expected += np.mean(of_seeds, axis=0).tolist()
    assert printed == pytest.approx(expected, abs=6e-4)      # three decimals are printed

    of_pruned = re.findall(r"^\| pruned \| (.*) \|$", out, re.MULTILINE)
    cells = of_pruned[0].split(" | ")
    val, test, psp = (np.array([100 * run[split] for run in json.loads((folder / "PSP_runs.json").read_text())["runs"]])
                      for folder, split in ((folders[1], "val"), (folders[1], "test"), (folders[0], "test")))
    gap = test - psp
    margin = 12.7062 * gap.std(ddof=1) / 2 ** 0.5
    assert [float(cell.split(" ")[0]) for cell in cells[:2]] == pytest.approx([val.mean(), test.mean()], abs=6e-3)
    assert cells[2].strip("*") == f"{gap.mean():+.1f} ± {gap.std(ddof=1):.1f}"
    interval = list(map(float, cells[3].split(" to ")))
    assert interval == pytest.approx([gap.mean() - margin, gap.mean() + margin], abs=0.01)

    def copy(name, change):
        """A copy of the first folder's results, with their JSON changed."""
        folder = shutil.copytree(folders[0], tmp_path / name, ignore=shutil.ignore_patterns("*_state.pt"))
        results = json.loads((folder / "PSP_runs.json").read_text())
        (folder / "PSP_runs.json").write_text(change(results))
        return folder

    def with_other_data(results):
        return json.dumps({**results, "test_digest": "0"})
    stopped, empty, avel = tmp_path / "stopped", tmp_path / "empty", tmp_path / "avel"
    assert main_in_process("fully_supervised_main.py", *RUN, "--model_name", "AVEL", "--runs", 2, "--data_dir",
                           tiny_folder, "--output_dir", avel)[0] == 0
    shutil.copytree(folders[0], stopped, ignore=shutil.ignore_patterns("*_runs.json"))
    empty.mkdir()
    no_log, two_logs = copy("no_log", json.dumps), copy("two_logs", json.dumps)
    logs = [next(folder.glob("seed*/PSP_fully.jsonl")) for folder in (no_log, two_logs)]
    logs[0].unlink()
    shutil.copy(logs[1], logs[1].with_name("PSP_weakly.jsonl"))
    for options, wrong in (
            (folders[:1] * 5, "too many"), ([*folders, "--names", "PSP"], "1 names for 2"),
            ([empty], "holds 0 *_runs.json"), ([stopped], "holds 0 *_runs.json"),
            ([no_log], "holds 0 logs"), ([two_logs], "holds 2 logs"),
            ([copy("cut", lambda results: json.dumps(results)[:-9])], "is no result"),
            ([copy("nothing", lambda results: "{}")], "is no result"),
            ([copy("no_runs", lambda results: json.dumps({**results, "runs": []}))], "is no result"),
            ([copy("no_digest", lambda results: json.dumps({name: value for name, value in results.items()
                                                            if name != "test_digest"}))], "is no result"),
            ([avel], "a network without L_avps"),
            ([copy("text", lambda results: json.dumps({**results, "segments": "six"}))], "is no result"),
            ([folders[0], copy("fewer", lambda results: json.dumps({**results, "runs": results["runs"][1:]}))],
             "the same number"),
            ([copy("other", with_other_data)], "is not the data that"),
            ([folders[0], copy("another", with_other_data)], "the same test videos")):
        code, out, error = figure_script(compare_runs, *options, "--data_dir", tiny_folder)
        assert code == 2 and wrong in error and error.count("\n") == 1, error


def test_the_title_of_a_sweep_is_not_cut_off(monkeypatch, tmp_path):
    figures = []
    monkeypatch.setattr("drawing.save", lambda figure, path: figures.append(figure))
    entries = [{"label": label, "value": value, "mean": 80.0, "std": 1.0}
               for label, value in (("PSP", 0.1), ("threshold 0.2", 0.2))]
    table_report.draw_sweep(tmp_path / "sweep.png", "threshold", entries, "what the data is, " * 6)
    figure, = figures
    figure.canvas.draw()
    title = figure.axes[0].title.get_window_extent()
    assert title.width > 100 and figure.bbox.x0 <= title.x0 and title.x1 <= figure.bbox.x1


def test_the_commands_of_the_rows(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["paper_tables.py", "--nb_epoch", "20", "--avel_epochs", "60"])
    args, tables = paper_tables.options(), paper_tables.TABLES
    rows = {(name, row.label, row.setting): paper_tables.command_of(row, args)
            for name in tables for row in tables[name][1]}
    psp, avel = rows["main", "PSP", "weakly"], rows["main", "AVEL", "weakly"]
    assert psp[:2] == ["weakly_supervised_main.py", "--train"] and "--runs 10 --seed 123 --nb_epoch 20" in " ".join(psp)
    assert "--model_name AVEL" in " ".join(avel) and "--nb_epoch 60" in " ".join(avel)
    for name, (_, of_table) in tables.items():
        for setting in {row.setting for row in of_table}:      # the noise floor: PSP with seeds that PSP has not
            assert rows[name, "PSP once more", setting] == [
                "1123" if option == "123" else option for option in rows[name, "PSP", setting]]
    all_pairs = rows["propagation", "all pairs, not pruned", "fully"]
    assert rows["threshold", "threshold 0 (all pairs)", "fully"] == all_pairs


@pytest.mark.parametrize("degrees, published", [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (5, 2.571),
                                                (8, 2.306), (9, 2.262), (10, 2.228), (20, 2.086), (30, 2.042),
                                                (100, 1.984), (999, 1.962)])
def test_the_t_quantile_is_that_of_published_tables(degrees, published):
    assert table_report.t_quantile(degrees) == pytest.approx(published, abs=5e-4)


def test_a_row_is_called_rising_if_it_gains_more_than_it_scatters():
    # Seed by seed: 30 - 20 and 44 - 42; scatter of (29, 31) is sqrt 2, of (40, 48) sqrt 32. The first counts nowhere.
    found = table_report.last_third([[99, 0, 0, 10, 30, 29, 31], [99, 0, 0, 42, 42, 40, 48]])
    assert found == {"gain": pytest.approx(6), "scatter": pytest.approx((2 ** 0.5 + 32 ** 0.5) / 2), "rising": True}
    assert not table_report.last_third([[0, 0, 20, 22, 21, 23]])["rising"]      # 1 against sqrt 2
    assert table_report.last_third([[1, 2, 3, 4, 5]]) is None


def test_rows_stand_by_size_and_what_is_measurable_is_bold():
    def entry(label, mean, measurable=False, setting="fully"):
        return {"label": label, "setting": setting,
                "difference": None if mean is None else {"mean": mean, "std": 1.0, "measurable": measurable}}
    entries = [entry("small", -1), entry("PSP", None, setting="weakly"),
               {"label": "failed", "setting": "fully", "error": "why"},
               entry("large", -5, True), entry("PSP once more", 0.5), entry("middle", 3), entry("PSP", None)]
    assert [(one["setting"], one["label"]) for one in table_report.by_size(entries)] == [
        *(("fully", label) for label in ("PSP", "PSP once more", "large", "middle", "small", "failed")),
        ("weakly", "PSP")]
    texts = [table_report.format_difference(entries[i]["difference"]) for i in (3, 5, 6)]
    assert texts == ["**-5.0 ± 1.0**", "+3.0 ± 1.0", "-"]


@pytest.mark.parametrize("by_seed, by_video, measurable", [
    ([1, 1.5, 2], [2, 2, 2, 2], True), ([-1, 1.5, 4], [2, 2, 2, 2], False), ([1, 1.5, 2], [9, -5, 3, -2], False)])
def test_measurable_is_what_neither_seeds_nor_videos_explain(by_seed, by_video, measurable):
    """Four videos of 10 segments; three seeds whose accuracy is set apart from what the videos say."""
    def result(accuracies, correct):
        metrics = dict.fromkeys(("event_or_background", "video_category", "segment_f1", "event_f1"), 0.5)
        return {"segments": 10, "runs": [{"seed": seed, "test": accuracy, "test_correct": correct, "metrics": metrics}
                                         for seed, accuracy in enumerate(accuracies)]}
    psp = result([0.5] * 3, [5, 5, 5, 5])
    row = result([0.5 + points / 100 for points in by_seed], [5 + points / 10 for points in by_video])
    found = table_report.figures_of("test", row, psp)["difference"]
    assert found["mean"] == pytest.approx(sum(by_seed) / 3) and found["measurable"] == measurable


def test_every_figure_is_drawn(figure_script, main_in_process, tiny_folder, tmp_path):
    main = ("fully_supervised_main.py", *RUN, "--data_dir", tiny_folder, "--output_dir", tmp_path)
    assert main_in_process(*main)[0] == 0
    for figure, file in (("curves", "PSP_fully.jsonl"), ("video", "PSP_fully.pt"), ("categories", "PSP_fully.pt"),
                         ("confusion", "PSP_fully.pt"), ("boundaries", "PSP_fully.pt"), ("attention", "PSP_fully.pt")):
        output = tmp_path / f"{figure}.png"
        code, _, error = figure_script(run_figures, figure, tmp_path / file, "--data_dir", tiny_folder,
                                       "--output", output)
        assert code == 0, error
        assert output.read_bytes().startswith(b"\x89PNG")
    (tmp_path / "none").mkdir()
    broken, not_a_log = tmp_path / "broken", tmp_path / "list.jsonl"
    broken.mkdir()
    for i in range(6):
        (broken / f"{i}.png").write_text("no picture")
    not_a_log.write_text("[1]\n")
    other_cells = shutil.copytree(tiny_folder, tmp_path / "other_cells")
    with h5py.File(other_cells / "true_cells.h5", "w") as file:
        file["avadataset"] = np.zeros((2, 6, 3, 3), np.uint8)
    bad_cells = shutil.copytree(tiny_folder, tmp_path / "bad_cells")
    (bad_cells / "true_cells.h5").write_text("no cells")
    no_cells = shutil.copytree(tiny_folder, tmp_path / "no_cells", ignore=shutil.ignore_patterns("true_cells.h5"))
    model = tmp_path / "PSP_fully.pt"
    log = tmp_path / "PSP_fully.jsonl"
    for figure, files, options, reason in (
            ("curves", [model], [], "is no log of a run"),
            ("curves", [log, not_a_log], [], "list.jsonl: is no log of a run"),
            ("categories", [model, model], [], "only curves are drawn from several files"),
            ("video", [model], ["--video", 99], "--video 99: is in none of the splits"),
            ("video", [model], ["--frames", tmp_path / "none"], "one for each of the 6 segments"),
            ("video", [model], ["--frames", broken], "0.png cannot be read"),
            ("video", [model], ["--frames", broken, "--video_file", broken], "not allowed with"),
            ("attention", [model], ["--data_dir", no_cells], "true_cells.h5: does not exist; only synthetic data"),
            ("attention", [model], ["--data_dir", bad_cells], "true_cells.h5: cannot be read as HDF5"),
            ("attention", [model], ["--data_dir", other_cells], "true_cells.h5: has shape (2, 6, 3, 3)")):
        code, _, error = figure_script(run_figures, figure, *files, "--data_dir", tiny_folder, *options)
        assert code == 2 and reason in error and error.strip().count("\n") == 0


def test_curves_of_several_runs_stand_at_the_epochs_that_all_have():
    epochs, mean, low, high = run_logs.common_curve([{0: 2, 1: 4}, {0: 4, 1: 8, 2: 9}])
    assert epochs == [0, 1] and mean.tolist() == [3, 6]
    assert low == pytest.approx([3 - 2 ** 0.5, 6 - 8 ** 0.5]) and high == pytest.approx([3 + 2 ** 0.5, 6 + 8 ** 0.5])
    assert [values.tolist() for values in run_logs.common_curve([{5: 1, 10: 2}])[1:]] == [[1, 2]] * 3


def test_on_a_logarithmic_axis_a_band_is_of_logarithms_and_stays_above_zero():
    _, mean, low, high = run_logs.common_curve([{0: 1e-3}, {0: 1e1}], logarithmic=True)
    spread = 10 ** (4 / 2 ** 0.5)      # of two values that are 4 decades apart: 4 / sqrt(2) decades
    assert mean == pytest.approx([1e-1])
    assert low == pytest.approx([1e-1 / spread]) and high == pytest.approx([1e-1 * spread])


NAMES = ["Fixed-wing aircraft, airplane", "Acoustic guitar", "background"]


def made_up_output(propagation=True, segments=10):
    """What a network might say of a video: its first half is an aircraft."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.zeros(1, segments, 3)
    logits[:, :segments // 2, 0], logits[:, segments // 2:, 2] = 3, 3
    matrices = torch.rand(4, 1, segments, segments, generator=generator) * torch.tensor([1, 2, 3, 4]).view(4, 1, 1, 1)
    psp = SimpleNamespace(**dict(zip(("beta_va", "gamma_va", "beta_av", "gamma_av"), matrices)))
    return SimpleNamespace(logits=logits, attention=torch.rand(1, segments, 7, 7, generator=generator),
                           psp=psp if propagation else None)


def rows_named(figure):
    return [label.get_text() for axes in figure.axes if axes.axison
            for label in axes.get_yticklabels() if label.get_text()[:1].isalpha()]


@pytest.mark.parametrize("segments", [10, 6])
def test_a_picture_of_a_video_can_be_read_and_nothing_is_cut_off(segments):
    recording = video_figure.Recording([np.zeros((90, 160, 3), np.uint8)] * segments, np.zeros((50, 2)))
    true = torch.tensor([1, *[2] * (segments - 1)])
    figure = video_figure.draw_video(made_up_output(segments=segments), NAMES, "title", true,
                                     np.ones((segments, 7, 7), bool), recording)
    figure.canvas.draw()
    whole = figure.bbox
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text()]
    for text in texts:
        box = text.get_window_extent()
        assert text.get_fontsize() >= 7
        assert box.x0 >= whole.x0 and box.x1 <= whole.x1 and box.y0 >= whole.y0 and box.y1 <= whole.y1, text
    assert rows_named(figure) == ["predicted\nhatched:\nwrong", "true", "frames", "attention", "sound"]
    scales = [image.get_clim() for axes in figure.axes for image in axes.images if "pruning" in axes.get_title()]
    highest = max(float(matrix.max()) for matrix in vars(made_up_output(segments=segments).psp).values())
    assert scales == [pytest.approx((0, highest))] * 4
    pyplot.close(figure)


def test_a_video_without_labels_or_a_network_without_propagation_leaves_their_rows_out():
    figure = video_figure.draw_video(made_up_output(propagation=False), NAMES, "title")
    assert rows_named(figure) == ["predicted", "attention"]
    assert not any("pruning" in axes.get_title() for axes in figure.axes)
    shown = [text.get_text() for text in figure.axes[0].texts]
    assert [text for text in shown if "%" not in text] == ["Fixed-wing aircraft", "background"]
    pyplot.close(figure)


def test_frames_are_those_in_the_middle_of_the_seconds_and_sound_lies_where_it_is(tmp_path, capsys):
    """Of a film whose frame at t seconds has the grey 40 t, in which the third second alone is loud."""
    av, _ = pytest.importorskip("av"), pytest.importorskip("cv2")
    path = tmp_path / "film.mkv"
    with av.open(str(path), "w") as film:
        pictures, sounds = film.add_stream("ffv1", rate=10), film.add_stream("pcm_s16le", rate=8000, layout="mono")
        pictures.width, pictures.height, pictures.pix_fmt = 32, 16, "bgr0"
        for i in range(50):
            frame = av.VideoFrame.from_ndarray(np.full((16, 32, 3), 4 * i, np.uint8), format="rgb24")
            film.mux(pictures.encode(frame.reformat(format="bgr0")))
        samples = np.zeros((1, 40000), np.int16)
        samples[0, 16000:24000:2], samples[0, 16001:24000:2] = 16384, -16384
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
        frame.sample_rate = 8000
        film.mux([*pictures.encode(), *sounds.encode(frame), *sounds.encode()])
    frames, sound = video_figure.recording_of_file(path, 5)
    assert [set(frame.ravel().tolist()) for frame in frames] == [{20}, {60}, {100}, {140}, {180}]
    loud = np.repeat([0, 0, 1, 0, 0], len(sound) // 5)
    assert sound == pytest.approx(np.stack([-loud / 2, loud / 2], axis=1), abs=1e-3)
    frames, sound = video_figure.recording_of_file(path, 6)      # one second more than there is
    assert "the last frame fills 1.0 s" in capsys.readouterr().err
    assert set(frames[5].ravel().tolist()) == {196} and not sound[5 * len(sound) // 6:].any()
    path.write_text("no film")
    with pytest.raises(UserError, match="cannot be read as a video"):
        video_figure.recording_of_file(path, 5)


@pytest.mark.parametrize("name", ["run_figures", "compare_runs", "readme_figures"])
def test_without_matplotlib_one_line_says_how_to_install_it(name, tmp_path):
    (tmp_path / "matplotlib.py").write_text("raise ModuleNotFoundError")
    found = subprocess.run([sys.executable, ROOT / "figures" / f"{name}.py", "--help"], text=True, capture_output=True,
                           env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert found.returncode == 2 and "pip install matplotlib==" in found.stderr and found.stderr.count("\n") == 1


def test_without_pyav_one_line_says_how_to_install_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "av", None)
    monkeypatch.delitem(sys.modules, "data.video", raising=False)
    with pytest.raises(UserError, match="pip install av=="):
        video_figure.recording_of_file(tmp_path / "film.mp4", 10)


def test_attention_is_scored_by_where_the_event_truly_is(tiny_folder):
    """Made-up networks that look at the cell with the largest, or the smallest, feature sum are scored as by hand."""
    dataset = AVEDataset(find_files(tiny_folder, required_files(["test"])), "test", features="disk")
    with h5py.File(tiny_folder / "true_cells.h5") as file:
        cells = file["avadataset"][:]
    seen = set()
    for sign in (1, -1):
        expected = []
        for position in range(len(dataset)):
            item = dataset[position]
            for t, label in enumerate(item["labels"].tolist()):
                if label != dataset.sizes.background:
                    brightness = sign * item["visual"][t].sum(dim=-1).numpy()
                    y, x = np.unravel_index(brightness.argmax(), brightness.shape)
                    true = cells[item["video"], t]
                    expected.append((label, bool(true[y, x]), true.sum() / true.size))

        def network(audio, visual, sign=sign):
            return SimpleNamespace(attention=sign * visual.sum(dim=-1))
        found = run_figures.attention_hits(network, dataset, tiny_folder / "true_cells.h5")
        assert list(zip(*(values.tolist() for values in found))) == expected
        seen |= set(found[1].tolist())
    assert seen == {True, False}


def test_boundary_errors_worked_by_hand():
    labels = np.array([[9, 1, 1, 1, 9, 9], [2, 2, 2, 2, 2, 2], [9, 9, 3, 3, 9, 9]])
    predicted = np.array([[1, 1, 1, 9, 9, 9], [2, 9, 9, 2, 2, 2], [9, 9, 4, 4, 9, 9]])
    result = Predictions(np.arange(3), labels, predicted, np.ones(labels.shape))
    # Video 0: 0..3 for 1..4. Video 1: of the two predicted events, 3..6 overlaps more. Video 2: another category.
    assert run_figures.boundary_errors(result, 9) == ([-1, 3], [-1, 0], 1)
