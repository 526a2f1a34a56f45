"""Evaluation of a checkpoint as a user runs it: scores, predictions, and files that do not fit."""
import json
import re
import shutil
from functools import partial

import pytest
import torch

from conftest import MAIN, accuracy_line, evaluate_run, read, read_log


@pytest.fixture
def evaluate(trained, tiny_folder):
    """Evaluates the checkpoint of the trained run; options that are given take precedence."""
    setting, folder, _ = trained
    return partial(evaluate_run, folder, setting, tiny_folder)


def test_figures_of_training_printed_figures_and_predictions_agree(trained, evaluate, tiny_folder, tmp_path):
    """Without any option of the training repeated."""
    setting, folder, _ = trained
    out = evaluate("--save_predictions", tmp_path / "new" / "predictions.json").stdout
    best = read_log(folder, setting)[2]["best"]
    assert f"{setting} supervised PSP, saved after epoch {best['epoch']}\n" in out
    for split in ("val", "test"):
        assert f"{split} accuracy: {100 * best[f'{split}_accuracy']:.2f} %" in out
    saved = json.loads((tmp_path / "new" / "predictions.json").read_text())
    labels = read(tiny_folder / "right_labels.h5").argmax(-1)
    ids = [line.split("&")[1] for line in (tiny_folder / "Annotations.txt").read_text().splitlines()]
    for video in saved["videos"]:
        assert video["id"] == ids[video["video"]] and all(0.2 <= p <= 1 for p in video["probabilities"])
    assert len(saved["videos"]) == 16
    test_videos = [video for video in saved["videos"] if video["split"] == "test"]
    true = labels[[video["video"] for video in test_videos]]
    right = true == [video["labels"] for video in test_videos]
    assert right.mean() == pytest.approx(best["test_accuracy"])
    assert saved["label_names"] == ["category 0", "category 1", "category 2", "category 3", "background"]
    for label, name in enumerate(saved["label_names"]):
        row = next(line for line in out.splitlines() if line.startswith(name))
        of_label = right[true == label]
        accuracy = f"{100 * of_label.mean():.2f} %" if of_label.size else "-"
        assert " ".join(row.split()).endswith(f" {of_label.size} {accuracy}")


def test_any_batch_size_evaluates_all_videos(evaluate):
    assert evaluate("--batch_size", 1000).stdout == evaluate("--batch_size", 4).stdout


def test_another_threshold_is_used_and_named(evaluate):
    out = evaluate("--threshold", 1).stdout
    assert "threshold 1.0" in out and out != evaluate().stdout


def test_features_without_labels_are_labelled_and_not_scored(evaluate, bare_folder, tmp_path):
    """The scored evaluation gives the same videos the same labels."""
    evaluate("--save_predictions", tmp_path / "scored.json")
    (bare_folder / "videos.txt").write_text("".join(f"clip {row}.mp4\n" for row in range(40)))
    out = evaluate("--data_dir", bare_folder, "--save_predictions", tmp_path / "bare.json").stdout
    assert "accuracy" not in out and "its 40 videos are labelled and not scored" in out
    scored, bare = (json.loads((tmp_path / f"{name}.json").read_text())["videos"] for name in ("scored", "bare"))
    assert [video["id"] for video in bare] == [f"clip {row}.mp4" for row in range(40)]
    for video in scored:
        assert bare[video["video"]]["split"] == "all" and bare[video["video"]]["labels"] == video["labels"]


def test_a_folder_that_lacks_only_the_labels_is_not_taken_for_one_without(evaluate, bare_folder, tiny_folder):
    shutil.copy(tiny_folder / "val_order.h5", bare_folder)
    assert "right_labels.h5" in evaluate("--data_dir", bare_folder, code=2).stderr


NAMES = ["Dog, barking", "Cat", "Owl", "Bee", "background"]


@pytest.fixture
def named_folder(data_folder):
    """A data folder whose categories have names."""
    path = data_folder / "Annotations.txt"
    path.write_text(re.sub("category (.)", lambda found: NAMES[int(found[1])], path.read_text()))
    return data_folder


def test_class_names_come_from_the_checkpoint_if_there_are_no_annotations(train, named_folder, tmp_path):
    train("fully", "--nb_epoch", 1, "--data_dir", named_folder)
    (named_folder / "Annotations.txt").unlink()
    assert "\nDog, barking " in evaluate_run(tmp_path, "fully", named_folder).stdout


def test_classes_in_another_order_are_matched_by_name(train, named_folder, tmp_path):
    """Not by number, which would give other scores."""
    train("fully", "--data_dir", named_folder)
    expected = evaluate_run(tmp_path, "fully", named_folder).stdout
    assert accuracy_line(tmp_path, "fully") in expected
    checkpoint, order = torch.load(tmp_path / "PSP_fully.pt", weights_only=True), [2, 0, 3, 1, 4]
    checkpoint["class_names"] = [NAMES[label] for label in order]
    checkpoint["weights"]["classifier.2.weight"] = checkpoint["weights"]["classifier.2.weight"][order]
    torch.save(checkpoint, tmp_path / "PSP_fully.pt")
    out = evaluate_run(tmp_path, "fully", named_folder).stdout
    assert out != expected and sorted(out.splitlines()) == sorted(expected.splitlines())


def test_other_classes_are_refused_in_evaluation_and_resuming(train, named_folder, tmp_path):
    train("fully", "--nb_epoch", 1, "--data_dir", named_folder)
    annotations = named_folder / "Annotations.txt"
    annotations.write_text(annotations.read_text().replace("Owl", "Bat"))
    error = evaluate_run(tmp_path, "fully", named_folder, code=2).stderr
    assert "was trained on other classes: only there Owl; only in the data Bat" in error and error.count("\n") == 1
    error = train("fully", "--nb_epoch", 1, "--data_dir", named_folder, "--resume", code=2).stderr
    assert "is another one (class 2: Owl -> Bat)" in error


def test_classes_without_names_are_matched_by_number_with_a_note(evaluate):
    assert "matched by number" in evaluate().stdout


def test_a_checkpoint_of_another_setting_or_network_is_refused(trained, quick_script, tiny_folder):
    setting, folder, _ = trained
    other = "weakly" if setting == "fully" else "fully"
    for script, expected in (([MAIN[other]], f"is a {setting} supervised checkpoint"),
                             (["model/avel.py", "--setting", setting], "is a checkpoint of PSP, not of AVEL")):
        error = quick_script(*script, "--trained_model_path", folder / f"PSP_{setting}.pt", "--data_dir", tiny_folder,
                             code=2).stderr
        assert expected in error and error.count("\n") == 1


@pytest.mark.parametrize("changed, scale, expected", [
    ({"visual_dim": 21}, 1, "was trained with visual_dim 21, but the data has 20"),
    ({"map_size": (9, 1)}, 1, "was trained with map_size (9, 1), but the data has (3, 3)"),
    ({}, 3e37, "the network's output for video row")])
def test_a_checkpoint_that_does_not_fit_gives_no_figures(trained, tiny_folder, tmp_path, changed, scale, expected):
    setting, folder, _ = trained
    checkpoint = torch.load(folder / f"PSP_{setting}.pt", weights_only=True)
    checkpoint["network_args"] |= changed
    checkpoint["weights"]["classifier.0.weight"] *= scale
    checkpoint["weights"]["classifier.2.weight"] *= scale
    torch.save(checkpoint, tmp_path / f"PSP_{setting}.pt")
    done = evaluate_run(tmp_path, setting, tiny_folder, code=2)
    assert expected in done.stderr and done.stderr.count("\n") == 1 and "accuracy" not in done.stdout


@pytest.mark.parametrize("orders, splits", [((), ["all"]), (("test",), ["test"]), (("val", "test"), ["val", "test"])])
def test_own_videos_are_scored_without_order_files(evaluate, data_folder, orders, splits):
    for split in {"train", "val", "test"} - {*orders}:
        (data_folder / f"{split}_order.h5").unlink()
    out = evaluate("--data_dir", data_folder).stdout
    assert re.findall(r"\n(\w+) accuracy: [\d.]+ % of (\d+)", out) == [
        (split, str(6 * {"all": 40, "val": 9, "test": 7}[split])) for split in splits]


def test_all_videos_are_not_scored_if_some_were_for_training(evaluate, data_folder):
    (data_folder / "val_order.h5").unlink()
    (data_folder / "test_order.h5").unlink()
    assert "test_order.h5: missing" in evaluate("--data_dir", data_folder, code=2).stderr


def test_another_accuracy_than_in_training_is_noted(trained, tiny_folder, tmp_path):
    setting, folder, _ = trained
    assert "in its training" not in evaluate_run(folder, setting, tiny_folder).stdout
    checkpoint = torch.load(folder / f"PSP_{setting}.pt", weights_only=True)
    torch.save({**checkpoint, "val_accuracy": 0.123}, tmp_path / f"PSP_{setting}.pt")
    assert "in its training, the accuracy on val was 12.30 %" in evaluate_run(tmp_path, setting, tiny_folder).stdout


def test_what_is_assumed_of_weights_alone_is_said(trained, tiny_folder, tmp_path):
    setting, folder, _ = trained
    weights = torch.load(folder / f"PSP_{setting}.pt", weights_only=True)["weights"]
    torch.save(weights, tmp_path / f"PSP_{setting}.pt")
    assert "holds weights alone; threshold and switches" in evaluate_run(tmp_path, setting, tiny_folder).stdout


def test_predictions_replace_nothing_but_predictions(evaluate, tmp_path):
    (tmp_path / "notes.txt").write_text("precious")
    assert "exists already" in evaluate("--save_predictions", tmp_path / "notes.txt", code=2).stderr
    assert (tmp_path / "notes.txt").read_text() == "precious"


def test_predictions_are_written_through_a_link_and_into_an_empty_file(evaluate, tmp_path):
    (tmp_path / "empty.json").touch()
    (tmp_path / "link.json").symlink_to(tmp_path / "empty.json")
    evaluate("--save_predictions", tmp_path / "link.json")
    assert (tmp_path / "link.json").is_symlink() and "videos" in (tmp_path / "empty.json").read_text()
