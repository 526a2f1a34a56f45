"""Tables hold what their commands gave and survive a kill; every figure is drawn; boundary errors are those worked by hand."""
import importlib
import json
import shutil
from types import SimpleNamespace

import h5py
import numpy as np
import pytest

pytest.importorskip("matplotlib")
from conftest import ROOT, in_process  # noqa: E402

from dataset import AVEDataset, find_files, required_files  # noqa: E402
from model.metrics import Predictions  # noqa: E402

RUN = ("--train", "--nb_epoch", 3, "--check_epoch", 1, "--batch_size", 8)


@pytest.fixture
def figure_script(monkeypatch, capsys):
    """Runs a script of figures/ in this process: (exit code, stdout, stderr)."""
    monkeypatch.syspath_prepend(str(ROOT / "figures"))
    return in_process(monkeypatch, capsys)


def test_a_table_holds_what_its_commands_gave_and_goes_on_after_a_kill(figure_script, main_in_process, monkeypatch, tiny_folder, tmp_path):
    tables = importlib.import_module("paper_tables")
    monkeypatch.setattr(tables, "TABLES", {"threshold": ("Pruning threshold", [
        tables.PSP["fully"], tables.Row("threshold 0.5", "fully", ("--threshold", "0.5")),
        tables.Row("threshold 7", "fully", ("--threshold", "7")), tables.Row("chosen on test", "fully", figure="best_test")])})
    options = ("threshold", "--data_dir", tiny_folder, "--runs", 2, "--nb_epoch", 3, "--check_epoch", 1, "--batch_size", 8,
               "--output_dir", tmp_path)
    code, out, error = figure_script("paper_tables", *options)
    assert code == 2 and "1 of the rows failed" in error and "'7' is not a number in 0..1" in out
    first = (tmp_path / "tables.json").read_text()
    psp, pruned, failed, on_test = json.loads(first)["threshold"]["rows"]
    assert "error" in failed and (tmp_path / "threshold.png").stat().st_size > 1000

    # Recomputed from the logs of the single seeds.
    def of_seeds(row, which):
        name = {"PSP, fully": "fully", "threshold 0.5": "fully_threshold_0p5"}[row]
        logs = [(tmp_path / "rows" / name / f"seed{seed}" / "PSP_fully.jsonl").read_text().splitlines() for seed in (123, 124)]
        return np.array([100 * json.loads(log[-1])["result"][which]["test_accuracy"] for log in logs])
    expected = of_seeds("threshold 0.5", "best_validation")
    assert pruned["values"] == pytest.approx(expected) and pruned["n"] == 2
    assert pruned["mean"] == pytest.approx(expected.mean()) and pruned["std"] == pytest.approx(expected.std(ddof=1))
    gap = expected - of_seeds("PSP, fully", "best_validation")
    assert pruned["difference"]["mean"] == pytest.approx(gap.mean())
    assert pruned["difference"]["t_interval"] == pytest.approx([gap.mean() - 12.71 * gap.std(ddof=1) / 2 ** 0.5,
                                                                gap.mean() + 12.71 * gap.std(ddof=1) / 2 ** 0.5])
    assert psp["difference"] is None
    assert on_test["values"] == pytest.approx(of_seeds("PSP, fully", "best_test"))
    assert on_test["interval"][0] <= on_test["mean"] <= on_test["interval"][1]
    runs = json.loads((tmp_path / "rows" / "fully" / "PSP_runs.json").read_text())["runs"]
    assert [100 * np.mean(one["best_test_correct"]) / 6 for one in runs] == pytest.approx(on_test["values"])      # 6 segments

    # Recomputed from the predictions of the kept checkpoints.
    with h5py.File(tiny_folder / "right_labels.h5") as file:
        labels = file["avadataset"][:].argmax(axis=-1)
    shares = []
    for seed in (123, 124):
        checkpoint = tmp_path / "rows" / "fully" / f"seed{seed}" / "PSP_fully.pt"
        assert main_in_process("fully_supervised_main.py", "--data_dir", tiny_folder, "--trained_model_path", checkpoint,
                               "--save_predictions", tmp_path / "predictions.json")[0] == 0
        videos = [video for video in json.loads((tmp_path / "predictions.json").read_text())["videos"] if video["split"] == "test"]
        agree = [(predicted == labels.max()) == (true == labels.max()) for video in videos
                 for predicted, true in zip(video["labels"], labels[video["video"]])]
        shares.append(100 * np.mean(agree))
        (tmp_path / "predictions.json").unlink()
    assert psp["metrics"]["event_or_background"] == pytest.approx(np.mean(shares))

    # As a kill in the second seed leaves it.
    (tmp_path / "rows" / "fully" / "PSP_runs.json").unlink()
    for path in (tmp_path / "rows" / "fully" / "seed124").iterdir():
        path.unlink()
    code, out, _ = figure_script("paper_tables", *options)
    assert "2 rows of 2 runs to do" in out      # that one and the failed one
    assert (tmp_path / "tables.json").read_text() == first

    # What is left of other options is put aside; rows of other data than that of PSP are not compared with it.
    command = tmp_path / "rows" / "fully_threshold_0p5" / "command.txt"
    command.write_text("of other options")
    runs_path = tmp_path / "rows" / "fully" / "PSP_runs.json"
    runs_path.write_text(json.dumps({**json.loads(runs_path.read_text()), "test_digest": "of other data"}))
    code, _, error = figure_script("paper_tables", *options)
    assert code == 2 and "2 of the rows failed" in error
    assert (tmp_path / "rows" / "fully_threshold_0p5.1" / "seed123").is_dir() and "threshold 0.5" in command.read_text()
    again = json.loads((tmp_path / "tables.json").read_text())["threshold"]["rows"][1]
    assert "other data than the row of PSP" in again["error"] and "mean" not in again


def test_every_figure_is_drawn(figure_script, main_in_process, tiny_folder, tmp_path):
    assert main_in_process("fully_supervised_main.py", *RUN, "--data_dir", tiny_folder, "--output_dir", tmp_path)[0] == 0
    for figure, file in (("curves", "PSP_fully.jsonl"), ("video", "PSP_fully.pt"), ("categories", "PSP_fully.pt"),
                         ("confusion", "PSP_fully.pt"), ("boundaries", "PSP_fully.pt"), ("attention", "PSP_fully.pt")):
        output = tmp_path / f"{figure}.png"
        code, _, error = figure_script("run_figures", figure, tmp_path / file, "--data_dir", tiny_folder, "--output", output)
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
    no_cells = shutil.copytree(tiny_folder, tmp_path / "no_cells", ignore=shutil.ignore_patterns("true_cells.h5"))
    for options, reason in ((("curves", tmp_path / "PSP_fully.pt"), "is no log of a run"),
                            (("video", tmp_path / "PSP_fully.pt", "--video", 99), "--video 99: is in none of the splits"),
                            (("video", tmp_path / "PSP_fully.pt", "--frames", tmp_path / "none"), "one for each of the 6 segments"),
                            (("attention", tmp_path / "PSP_fully.pt", "--data_dir", no_cells), "true_cells.h5: holds no true cells"),
                            (("attention", tmp_path / "PSP_fully.pt", "--data_dir", other_cells), "true_cells.h5: has shape (2, 6, 3, 3)"),
                            (("video", tmp_path / "PSP_fully.pt", "--frames", broken), "0.png cannot be read"),
                            (("curves", not_a_log), "is no log of a run")):
        code, _, error = figure_script("run_figures", options[0], options[1], "--data_dir", tiny_folder, *options[2:])
        assert code == 2 and reason in error and error.strip().count("\n") == 0


def test_attention_is_scored_by_where_the_event_truly_is(figure_script, tiny_folder):
    """Made-up networks that look at the cell with the largest, or the smallest, feature sum are scored as by hand."""
    attention_hits = importlib.import_module("run_figures").attention_hits
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
        found = attention_hits(network, dataset, tiny_folder / "true_cells.h5", batch_size=2)
        assert list(zip(*(values.tolist() for values in found))) == expected
        seen |= set(found[1].tolist())
    assert seen == {True, False}


def test_boundary_errors_worked_by_hand(figure_script):
    boundary_errors = importlib.import_module("run_figures").boundary_errors
    labels = np.array([[9, 1, 1, 1, 9, 9], [2, 2, 2, 2, 2, 2], [9, 9, 3, 3, 9, 9]])
    predicted = np.array([[1, 1, 1, 9, 9, 9], [2, 9, 9, 2, 2, 2], [9, 9, 4, 4, 9, 9]])
    result = Predictions(np.arange(3), labels, predicted, np.ones(labels.shape))
    # Video 0: 0..3 for 1..4. Video 1: of the two predicted events, 3..6 overlaps more of 0..6. Video 2: another category.
    assert boundary_errors(result, 9) == ([-1, 3], [-1, 0], 1)
