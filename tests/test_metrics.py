"""Metrics beside segment accuracy, and figures over several seeds, on cases worked by hand or in another way."""
import json

import numpy as np
import pytest

from model.metrics import Predictions, bootstrap_interval, events_of, matched_events

B = 9      # background


def predictions(labels, predicted):
    labels, predicted = np.array(labels), np.array(predicted)
    return Predictions(np.arange(len(labels)), labels, predicted, np.ones(labels.shape))


def test_a_case_worked_by_hand():
    result = predictions(
        [[1, 1, 1, 1, B, B], [2, 2, 2, 2, 2, 2], [B, B, B, B, B, B], [B, 3, 3, B, 3, 3]],
        [[1, 1, 1, B, B, B], [2, 2, 4, 4, 4, 4], [B, B, B, B, B, 5], [B, 3, 3, 3, 3, 3]])
    metrics = result.metrics(B)
    # Wrong on event or background: one in the first video, one in the third, one in the fourth; of 24.
    assert metrics["event_or_background"] == 21 / 24
    # Three videos have an event; the second one's most frequent label is 4.
    assert metrics["video_category"] == 2 / 3
    # Right event labels 3 + 2 + 0 + 4 = 9; true ones 4 + 6 + 4 = 14, predicted ones 3 + 6 + 1 + 5 = 15.
    assert metrics["segment_f1"] == 2 * 9 / (14 + 15)
    # Events: 1 (3 of 4 shared: right), 2 (2 of 6: wrong), 4 wrong, 5 wrong, and one 3 that covers two true ones, each
    # with 2 of 5: wrong. Hits 1; true 1 + 1 + 2 = 4, predicted 1 + 2 + 1 + 1 = 5.
    assert metrics["event_f1"] == 2 * 1 / (4 + 5)
    # Per video, segments: 1: 6/7. 2: category 2 has 2 hits of 6 and 2, 4 has none: (4/8 + 0) / 2. 3: 5 has none: 0.
    # 4: 8/9. Events: 1: 1; 2: 0; 3: 0; 4: 0.
    assert metrics["segment_f1_per_video"] == pytest.approx((6 / 7 + 1 / 4 + 0 + 8 / 9) / 4)
    assert metrics["event_f1_per_video"] == pytest.approx((1 + 0 + 0 + 0) / 4)
    # Background 2 + 0 + 6 + 2 of 24; category everywhere right on 4 + 6 + 6 (a video without event) + 4.
    assert result.references(B) == {"always_background": 10 / 24, "category_everywhere": 20 / 24}


def test_nothing_to_count_is_told_apart_from_zero():
    nothing = predictions([[B, B]], [[B, B]]).metrics(B)
    assert nothing["video_category"] is None and nothing["segment_f1"] is None and nothing["event_f1"] is None
    assert nothing["segment_f1_per_video"] == nothing["event_f1_per_video"] == 1      # nothing true, nothing predicted
    assert predictions([[1, B]], [[B, B]]).metrics(B)["video_category"] == 0


@pytest.mark.parametrize("labels, expected", [
    ([1, 1, 2, B, 2], [(1, 0, 2), (2, 2, 3), (2, 4, 5)]), ([B, B], []), ([3], [(3, 0, 1)])])
def test_events_are_the_runs_of_one_category(labels, expected):
    assert events_of(np.array(labels), B) == expected


def test_half_an_overlap_is_enough_and_a_true_event_counts_once():
    assert matched_events([(1, 0, 4)], [(1, 0, 2)]) == 1            # 2 of 4
    assert matched_events([(1, 0, 4)], [(1, 3, 7)]) == 0            # 1 of 7
    assert matched_events([(1, 0, 4)], [(2, 0, 4)]) == 0            # another category
    assert matched_events([(1, 0, 4)], [(1, 0, 2), (1, 2, 4)]) == 1


def test_reference_points_of_the_real_test_split(real_ave):
    import h5py

    from data.prepare_labels import segment_labels
    from data.annotations import read_annotations
    labels = segment_labels(read_annotations(real_ave / "Annotations.txt"), 10)[0].argmax(-1)
    with h5py.File(real_ave / "test_order.h5") as file:
        labels = labels[file["order"][:]]
    references = predictions(labels, labels).references(28)
    assert round(100 * references["always_background"], 1) == 17.8
    assert round(100 * references["category_everywhere"], 1) == 82.2


def test_the_bootstrap_interval_is_that_of_the_mean():
    values = np.random.default_rng(1).random(400)
    low, high = bootstrap_interval(values)
    error = 1.96 * values.std() / 20      # of the normal approximation, good for 400 values
    assert low == pytest.approx(values.mean() - error, abs=0.1 * error)
    assert high == pytest.approx(values.mean() + error, abs=0.1 * error)


def test_runs_are_those_of_single_seeds_and_go_on_where_they_were_stopped(main_in_process, tiny_folder, tmp_path):
    options = ("--train", "--nb_epoch", 3, "--check_epoch", 1, "--batch_size", 8, "--data_dir", tiny_folder)
    code, out, error = main_in_process("fully_supervised_main.py", *options, "--seed", 5, "--runs", 3,
                                       "--output_dir", tmp_path / "runs")
    assert code == 0, error
    saved = json.loads((tmp_path / "runs" / "PSP_runs.json").read_text())
    assert [run["seed"] for run in saved["runs"]] == [5, 6, 7]
    for run in saved["runs"]:
        assert main_in_process("fully_supervised_main.py", *options, "--seed", run["seed"],
                               "--output_dir", tmp_path / "one")[0] == 0
        log = (tmp_path / "one" / "PSP_fully.jsonl").read_text().splitlines()
        best = json.loads(log[-1])["result"]["best_validation"]
        assert run["best_epoch"] == best["epoch"]
        assert (run["val"], run["test"]) == (best["val_accuracy"], best["test_accuracy"])
        assert sum(run["test_correct"]) / (7 * 6) == pytest.approx(run["test"])
    test = [run["test"] for run in saved["runs"]]
    assert saved["summary"]["mean"] == pytest.approx(np.mean(test))
    assert saved["summary"]["std"] == pytest.approx(np.std(test, ddof=1))
    assert f"{100 * np.mean(test):.2f} ± {100 * np.std(test, ddof=1):.2f} %" in out

    before = {path: path.read_bytes() for path in (tmp_path / "runs").rglob("*.pt")}
    (tmp_path / "runs" / "PSP_runs.json").unlink()
    for path in (tmp_path / "runs" / "seed6").iterdir():
        path.unlink()
    assert main_in_process("fully_supervised_main.py", *options, "--seed", 5, "--runs", 3, "--resume",
                           "--output_dir", tmp_path / "runs")[0] == 0
    assert json.loads((tmp_path / "runs" / "PSP_runs.json").read_text()) == saved
    assert all(path.read_bytes() == content for path, content in before.items() if path.name == "PSP_fully.pt")

    once_more = ("--train", "--lr", 1e9, "--batch_size", 8, "--runs", 2, "--data_dir", tiny_folder)      # that fails
    assert main_in_process("weakly_supervised_main.py", *once_more, "--output_dir", tmp_path / "runs")[0] == 2
    assert [path.name for path in (tmp_path / "runs").glob("*.json")] == ["PSP_runs.1.json"]
    assert json.loads((tmp_path / "runs" / "PSP_runs.1.json").read_text()) == saved
