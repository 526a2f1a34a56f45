"""Tables and comparisons hold what the runs gave, with the right intervals; pictures show what they are given."""
import importlib
import json
import os
import re
import shutil
import signal
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("matplotlib")
from conftest import MAIN, ROOT, run_quickly  # noqa: E402

sys.path.insert(0, str(ROOT / "figures"))
import compare_runs  # noqa: E402
import drawing  # noqa: E402
import paper_tables  # noqa: E402
import run_figures  # noqa: E402
import run_results  # noqa: E402
from utils import UserError  # noqa: E402


def made_up_run(folder, correct, fingerprint="d", **options):
    """The folder of a training with --runs and three checks; correct [seeds, videos]: correct ones of 10 segments."""
    runs = []
    for seed, video_correct in enumerate(correct, start=1):
        test = np.mean(video_correct) / 10
        runs.append({"seed": seed, "best_epoch": 2, "val": 0.7, "test": test, "best_test": 0.9,
                     "test_correct": video_correct, "best_test_correct": [9] * len(video_correct)})
        checks = [{"epoch": e, "loss": 1.0, "val_accuracy": (5 + e) / 10, "test_accuracy": test} for e in range(3)]
        log = folder / f"seed{seed}" / "PSP_fully.jsonl"
        log.parent.mkdir(parents=True)
        header = {"run": {"options": {**options, "seed": seed}}}
        log.write_text("\n".join(map(json.dumps, [header, *checks, {"result": {"best": checks[2]}}])))
    content = {"options": options, "segments": 10, "revisions": ["abc1"], "processors": ["a CPU"],
               "test_fingerprint": fingerprint, "runs": runs}
    (folder / "PSP_fully_runs.json").write_text(json.dumps(content))
    return folder


def test_results_on_other_data_are_not_compared(tmp_path):
    one, other = (run_results.read_result(made_up_run(tmp_path / fingerprint, [[8, 6]], fingerprint))[0]
                  for fingerprint in ("one", "other"))
    with pytest.raises(UserError, match="other, .*one: differ in test videos"):
        run_results.difference(other, one)


def test_results_and_logs_of_different_runs_are_not_joined(tmp_path):
    folder = made_up_run(tmp_path, [[8, 6], [6, 4]])
    log = folder / "seed2" / "PSP_fully.jsonl"
    log.write_text(log.read_text().replace('"test_accuracy": 0.5', '"test_accuracy": 0.4'))
    with pytest.raises(UserError, match="PSP_fully_runs.json: seed 2 has another log"):
        run_results.read_result(folder)


def test_p_agrees_with_the_interval_and_is_adjusted_as_by_hand():
    values = np.random.default_rng(1).normal(size=(10, 40))
    low = run_results.estimate(values)["low"]
    assert run_results.p_value(values - low + 0.01) < 0.05 < run_results.p_value(values - low - 0.01) < 0.1
    family = run_results.adjust([{"p": p} for p in (0.012, 0.04, 0.03, 0.001, 0.9)])
    assert [found["adjusted_p"] for found in family] == pytest.approx([4 * 0.012, 3 * 0.03, 3 * 0.03, 5 * 0.001, 0.9])


def test_a_training_is_called_rising_if_its_gain_is_above_zero():
    # Of seven checks, the first counts nowhere: 35 - 5 and 44 - 42.
    found = run_results.gain({"validation": [[99, 9, 0, 10, 0, 35, 35], [99, 9, 42, 42, 42, 40, 48]]})
    assert found == {"mean": pytest.approx(16), "low": pytest.approx(2), "high": pytest.approx(30), "rising": True}
    assert not run_results.gain({"validation": [[0, 10, 20], [0, 20, 10]]})["rising"]


def test_a_table_holds_what_its_rows_gave(monkeypatch, tmp_path):
    monkeypatch.setattr(paper_tables, "TABLES", {"threshold": ("Pruning threshold", [
        paper_tables.Row("PSP", "fully", value=0.099),
        paper_tables.Row("threshold 0.5", "fully", "--threshold 0.5", 0.5),
        paper_tables.Row("chosen on test", "fully", metric="best_test")])})
    made_up_run(tmp_path / "rows" / "fully", [[8, 6], [6, 4]])
    made_up_run(tmp_path / "rows" / "fully_threshold_0p5", [[9, 8], [7, 4]])
    out = run_quickly("paper_tables.py", "--output_dir", tmp_path).stdout
    assert "0 rows to do" in out and "(2 fully)" in out and "note: 2 seeds;" in out
    assert (tmp_path / "threshold.png").is_file()
    for line in ("| PSP | fully | 2 | 60.0 ± 14.1 (40.0 to 80.0) | - | +10.0 (+10.0 to +10.0), rising |",
                 "| threshold 0.5 | fully | 2 | 70.0 ± 21.2 (40.0 to 90.0) | +10.0 (",
                 "| chosen on test | fully | 2 | 90.0 ± 0.0 (90.0 to 90.0) | **+30.0 (+10.0 to +50.0)**, p 0.0004 | ",
                 "revision abc1, on a CPU\n"):
        assert line in (tmp_path / "tables.md").read_text()


def test_the_stored_results_of_an_earlier_revision_give_the_committed_table(tmp_path):
    committed = ROOT / "figures" / "rehearsal"
    shutil.copy(committed / "results.json.gz", tmp_path)
    run_quickly("paper_tables.py", "--report_only", "--output_dir", tmp_path)
    number = r"[-+]?\d+\.\d(?!\d)"      # the last digit of a tie is not the same on each processor
    found, expected = ((folder / "tables.md").read_text() for folder in (tmp_path, committed))
    assert re.split(number, found) == re.split(number, expected)
    values = [float(value) for value in re.findall(number, expected)]
    assert [float(value) for value in re.findall(number, found)] == pytest.approx(values, abs=0.101)


def test_a_stopped_table_is_continued_and_a_failed_row_reported(monkeypatch, tiny_folder, tmp_path):
    options = ("--data_dir", tiny_folder, "--runs", 2, "--nb_epoch", 10, "--batch_size", 12, "--device", "cpu",
               "--jobs", 2, "--output_dir", tmp_path)
    impossible = paper_tables.Row("threshold 7", "fully", "--threshold 7")
    monkeypatch.setattr(paper_tables, "TABLES", {"main": ("Title", [paper_tables.Row("PSP", "fully"), impossible])})

    def stop_this_process():
        while not list(tmp_path.glob("rows/fully/seed*/*_state.pt")):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)
    threading.Thread(target=stop_this_process, daemon=True).start()
    run_quickly("paper_tables.py", *options, code=128 + signal.SIGTERM)

    done = run_quickly("paper_tables.py", *options, code=2)
    assert "fully: done" in done.stdout and "fully_threshold_7: failed, see " in done.stdout
    assert "continuing the run" in (tmp_path / "rows" / "fully" / "output.txt").read_text()
    assert not (tmp_path / "tables.md").exists()


def test_each_row_has_a_command_of_its_own():
    args = SimpleNamespace(data_dir="data", runs=10, seed=123, nb_epoch=20, avel_epochs=60, check_epoch=None,
                           batch_size=None, device=None, precision=None)
    commands = {row.name: " ".join(paper_tables.row_command(row, args))
                for _, rows in paper_tables.TABLES.values() for row in rows}
    options = "--data_dir data --runs 10 --seed 123 --nb_epoch"
    assert commands["weakly"] == f"weakly_supervised_main.py --train {options} 20"
    assert commands["weakly_AVEL"] == f"model/avel.py --setting weakly --train {options} 60"
    assert commands["fully_released_quirks_stale_avps_LAMBDA_10"] == (
        f"model/released_training.py --setting fully --train --quirks stale_avps --LAMBDA 10 {options} 20")
    assert commands["weakly_once_more"] == commands["weakly"].replace("123", "1123")
    assert len(set(commands.values())) == len(commands)


def test_compared_runs_are_printed_and_different_losses_not_drawn(monkeypatch, tmp_path):
    figures = []
    monkeypatch.setattr(drawing, "save_figure", lambda figure, path: figures.append(figure))
    folders = [made_up_run(tmp_path / "a", [[8, 6], [6, 4]], LAMBDA=100),
               made_up_run(tmp_path / "b", [[9, 7], [7, 5]], LAMBDA=100),
               made_up_run(tmp_path / "c", [[9, 7], [7, 5]], LAMBDA=1)]
    out = run_quickly("compare_runs.py", *folders[:2], "--names", "$x_{", "changed").stdout
    assert "| changed | 70.0 ± 0.0 | 2 | 70.0 ± 14.1 (" in out and "**+10.0 (+10.0 to +10.0)**, p 0.0002 | " in out
    assert [axes.get_ylabel() for axes in figures[0].axes] == list(drawing.PANELS.values())
    out = run_quickly("compare_runs.py", *folders[1:]).stdout
    assert "training losses are not drawn" in out and "LAMBDA: 100 / 1\n" in out and len(figures[1].axes) == 2
    (folders[1] / "PSP_weakly_runs.json").touch()
    assert "has 2 files *_runs.json" in run_quickly("compare_runs.py", *folders[:2], code=2).stderr
    out = run_quickly("compare_runs.py", folders[0], folders[1] / "PSP_fully_runs.json").stdout
    assert "| PSP_fully | 70.0 ± 0.0 | 2 | 70.0 ± 14.1 (" in out


@pytest.mark.parametrize("name, options, other_options, same", [
    ("PSP_fully", {"lr": 0.1, "second_normalisation": "on"}, {"lr": 0.2, "second_normalisation": "off"}, True),
    ("PSP_fully", {"quirks": ["stale_avps"]}, {"quirks": ["released_order"]}, False),
    ("PSP_fully", {"fusion_weight": 1}, {}, False),      # an option of other code
    ("PSP_weakly", {"weak_labels": "tag"}, {"weak_labels": "share"}, False),
    ("AVEL_weakly", {"batch_size": 32}, {"batch_size": 64}, True)])
def test_losses_are_the_same_unless_an_option_changes_them(name, options, other_options, same):
    one, other = (compare_runs.loss_options({"name": name, "options": given}) for given in (options, other_options))
    assert (one == other) == same


def test_curves_are_drawn_at_the_epochs_that_all_runs_have():
    epochs, mean, low, high = drawing.common_curve([{0: 2, 1: 4}, {0: 4, 1: 8, 2: 9}])
    assert epochs == [0, 1] and mean.tolist() == [3, 6]
    assert low == pytest.approx([3 - 2 ** 0.5, 6 - 8 ** 0.5]) and high == pytest.approx([3 + 2 ** 0.5, 6 + 8 ** 0.5])
    _, mean, low, _ = drawing.common_curve([{0: 1e-3}, {0: 1e1}], logarithmic=True)
    assert mean == pytest.approx([1e-1]) and low == pytest.approx([1e-1 / 10 ** (4 / 2 ** 0.5)])


@pytest.mark.parametrize("script", [[MAIN["fully"]], ["model/avel.py", "--setting", "fully"]], ids=["PSP", "AVEL"])
def test_a_video_is_drawn_with_frames_and_sound(data_folder, tmp_path, script):
    """With names that matplotlib would take for formulas."""
    films = pytest.importorskip("films")
    annotations, picture, data = data_folder / "Annotations.txt", tmp_path / "a.png", ("--data_dir", data_folder)
    annotations.write_text(annotations.read_text().replace("category 1", "cash $x_{ $"))
    run_quickly(*script, "--train", "--nb_epoch", 1, "--batch_size", 12, *data, "--output_dir", tmp_path)
    path, = tmp_path.glob("*_fully.pt")
    recording = films.film(tmp_path / "film.mkv", seconds=6, rate=4, sound=films.tone(6))
    run_quickly("run_figures.py", "video", path, *data, "--video_file", recording, "--output", picture)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_curves_of_different_trainings_are_not_averaged(tmp_path):
    one, other = (made_up_run(tmp_path / name, [[8, 6], [6, 4]], LAMBDA=len(name)) for name in ("one", "other"))
    seeds, picture = sorted(one.glob("*/*.jsonl")), tmp_path / "a.png"
    done = run_quickly("run_figures.py", "curves", *seeds, *other.glob("*/*.jsonl"), "--output", picture, code=2)
    assert "are not seeds of one training" in done.stderr and not picture.exists()
    assert str(picture) in run_quickly("run_figures.py", "curves", *seeds, "--output", picture).stdout
    done = run_quickly("run_figures.py", "curves", *seeds, "--output", tmp_path / "a.doc", code=2)
    assert "Format 'doc' is not supported" in done.stderr and done.stderr.count("\n") == 1


def test_frames_are_in_the_middle_of_the_seconds_and_sound_is_at_its_time(tmp_path):
    films = pytest.importorskip("films")
    sound = np.pad(films.tone(1, strength=0.5), ((16000, 48000), (0, 0)))
    path = films.film(tmp_path / "film.mkv", seconds=5, rate=10, sound=sound)
    frames, loudness = run_figures.read_recording(path, 5)
    assert [films.number_of(frame) for frame in frames] == [5, 15, 25, 35, 45]
    assert loudness.reshape(5, -1).max(axis=1) == pytest.approx([0, 0.5, 0, 0, 0], abs=0.01)


def test_without_a_package_the_error_says_how_to_install_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "av", None)
    monkeypatch.setattr("data.video", sys.modules["data.video"])      # set back afterwards
    for name in ("data.video", "run_figures"):      # imported again, without it
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(UserError, match="pip install av=="):
        importlib.import_module("run_figures").read_recording(tmp_path / "film.mp4", 10)
