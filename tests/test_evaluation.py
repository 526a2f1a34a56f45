"""Evaluation of a checkpoint as a user runs it: scores, predictions, and files that do not fit."""
import json
import re
import shutil

import numpy as np
import pytest

from conftest import MAIN, ROOT, read, read_log, rewrite, run_main
from model.checkpoint import save_tensors
from psp_model import FULLY_SUPERVISED, PSPNetwork


@pytest.fixture
def evaluate(trained, quick_script, tiny_folder):
    """Evaluates the checkpoint of the trained run; options that are given take precedence."""
    setting, folder, _ = trained

    def run(*options, script=MAIN[setting], code=0):
        return quick_script(script, "--trained_model_path", folder / f"PSP_{setting}.pt", "--data_dir", tiny_folder,
                            *options, code=code)
    return run


@pytest.fixture
def bare_folder(tiny_folder, tmp_path):
    """Nothing but features."""
    for name in ("audio_feature.h5", "visual_feature.h5"):
        shutil.copy(tiny_folder / name, tmp_path)
    return tmp_path


def test_figures_of_training_printed_figures_and_predictions_agree(trained, evaluate, tiny_folder, tmp_path):
    """Without any option of the training repeated."""
    setting, folder, _ = trained
    out = evaluate("--save_predictions", tmp_path / "predictions.json").stdout
    best = read_log(folder, setting)[2]["best"]
    for split in ("val", "test"):
        assert f"{split} accuracy: {100 * best[f'{split}_accuracy']:.2f} %" in out
    saved = json.loads((tmp_path / "predictions.json").read_text())
    labels = read(tiny_folder / "right_labels.h5").argmax(-1)
    ids = [line.split("&")[1] for line in (tiny_folder / "Annotations.txt").read_text().splitlines()]
    test_videos = [video for video in saved["videos"] if video["split"] == "test"]
    assert len(test_videos) == 7 and len(saved["videos"]) == 16
    right = {label: [] for label in range(5)}
    for video in test_videos:
        assert video["id"] == ids[video["video"]] and all(0.2 <= p <= 1 for p in video["probabilities"])
        for predicted, true in zip(video["labels"], labels[video["video"]], strict=True):
            right[true].append(predicted == true)
    assert np.mean(sum(right.values(), [])) == pytest.approx(best["test_accuracy"])
    for label, name in enumerate(["category 0", "category 1", "category 2", "category 3", "background"]):
        assert saved["label_names"][label] == name
        row = next(line for line in out.splitlines() if line.startswith(name))
        count, accuracy = re.findall(r"(\d+)\s+([\d.]+ %|-)", row[len(name):])[-1]
        assert int(count) == len(right[label])
        assert accuracy == (f"{100 * np.mean(right[label]):.2f} %" if right[label] else "-")


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
        unscored = bare[video["video"]]
        assert unscored["split"] == "all" and unscored["labels"] == video["labels"]
        assert unscored["probabilities"] == pytest.approx(video["probabilities"], abs=1e-5)


def test_a_folder_that_lacks_only_the_labels_is_not_taken_for_one_without(evaluate, bare_folder, tiny_folder):
    shutil.copy(tiny_folder / "val_order.h5", bare_folder)
    assert "right_labels.h5" in evaluate("--data_dir", bare_folder, code=2).stderr


def test_class_names_come_from_the_checkpoint_if_there_are_no_annotations(train, quick_script, data_folder, tmp_path):
    annotations = data_folder / "Annotations.txt"
    annotations.write_text(annotations.read_text().replace("category 2", "Dog, barking"))
    train("fully", "--nb_epoch", 1, "--data_dir", data_folder)
    annotations.unlink()
    out = quick_script(MAIN["fully"], "--trained_model_path", tmp_path / "PSP_fully.pt",
                       "--data_dir", data_folder).stdout
    assert "\nDog, barking " in out


def reverse_rows(folder):
    """Reverses the rows of a folder, so that its categories, numbered as they appear, get other numbers."""
    rows = np.arange(40)[::-1]
    for name in ("audio_feature", "visual_feature", "right_labels", "mil_labels", "prob_label"):
        rewrite(folder / f"{name}.h5", read(folder / f"{name}.h5")[rows])
    for split in ("train", "val", "test"):
        order = read(folder / f"{split}_order.h5", "order")
        rewrite(folder / f"{split}_order.h5", 39 - order, "order")
    lines = (folder / "Annotations.txt").read_text().splitlines()
    (folder / "Annotations.txt").write_text("\n".join(lines[row] for row in rows) + "\n")
    run_main("data/prepare_labels.py", "--annotations", folder / "Annotations.txt", "--output_dir", folder,
             "--segments", 6, "--background_videos", 5, "--overwrite")


def test_classes_in_another_order_are_matched_by_name(train, quick_script, data_folder, tmp_path):
    """Not by number, which would give other scores and other names in the predictions."""
    def scores(out):
        return re.findall(r"(?:val|test) accuracy: [\d.]+ %", out)

    annotations = data_folder / "Annotations.txt"
    for number, name in enumerate(("Dog", "Cat meow", "Owl", "Bee")):
        annotations.write_text(annotations.read_text().replace(f"category {number}", name))
    train("fully", "--nb_epoch", 3, "--data_dir", data_folder)
    evaluation = (MAIN["fully"], "--trained_model_path", tmp_path / "PSP_fully.pt", "--data_dir", data_folder,
                  "--save_predictions", tmp_path / "a.json")
    before, found = quick_script(*evaluation).stdout, json.loads((tmp_path / "a.json").read_text())
    reverse_rows(data_folder)
    after, again = quick_script(*evaluation).stdout, json.loads((tmp_path / "a.json").read_text())
    assert len(scores(before)) == 2 and scores(before) == scores(after)
    assert again["label_names"] == found["label_names"] == ["Dog", "Cat meow", "Owl", "Bee", "background"]
    assert {(video["id"], *video["labels"]) for video in again["videos"]} == {
        (video["id"], *video["labels"]) for video in found["videos"]}
    error = train("fully", "--nb_epoch", 3, "--data_dir", data_folder, "--resume", code=2).stderr
    assert "has other " in error
    annotations.write_text(annotations.read_text().replace("Owl", "Bat"))
    error = quick_script(*evaluation, code=2).stderr
    assert "was trained on other classes: only there Owl; only in the data Bat" in error and error.count("\n") == 1


def test_classes_without_names_are_matched_by_number_with_a_note(evaluate):
    assert "matched by number" in evaluate().stdout


def test_a_checkpoint_of_the_other_setting_is_refused(trained, evaluate):
    other = MAIN["weakly" if trained[0] == "fully" else "fully"]
    error = evaluate(script=other, code=2).stderr
    assert f"is a {trained[0]} supervised checkpoint" in error and error.count("\n") == 1


@pytest.mark.parametrize("visual_dim, scale, expected", [
    (21, 1, "was trained with visual_dim 21, but the data has 20"), (20, 3e37, "the network's output for video row")])
def test_a_checkpoint_that_does_not_fit_gives_no_figures(quick_script, tiny_folder, tmp_path, visual_dim, scale,
                                                         expected):
    arguments = dict(audio_dim=12, visual_dim=visual_dim, map_size=(3, 3), num_classes=5, threshold=0.1,
                     **FULLY_SUPERVISED)
    network = PSPNetwork(**arguments)
    network.classifier[2].weight.data *= scale
    network.classifier[0].weight.data *= scale
    save_tensors(tmp_path / "PSP.pt", {"setting": "fully", "model_name": "PSP", "network_args": arguments,
                               "weights": network.state_dict()})
    done = quick_script(MAIN["fully"], "--trained_model_path", tmp_path / "PSP.pt", "--data_dir", tiny_folder, code=2)
    assert expected in done.stderr and done.stderr.count("\n") == 1 and "accuracy" not in done.stdout


@pytest.mark.parametrize("orders, splits", [((), ["all"]), (("test",), ["test"]), (("val", "test"), ["val", "test"])])
def test_own_videos_are_scored_without_order_files(evaluate, data_folder, orders, splits):
    for split in {"train", "val", "test"} - {*orders}:
        (data_folder / f"{split}_order.h5").unlink()
    out = evaluate("--data_dir", data_folder).stdout
    assert re.findall(r"\n(\w+) accuracy: [\d.]+ % of (\d+)", out) == [
        (split, str(6 * {"all": 40, "val": 9, "test": 7}[split])) for split in splits]


def test_predictions_are_written_through_a_link_and_into_an_empty_file(evaluate, tmp_path):
    (tmp_path / "real.json").touch()
    (tmp_path / "link.json").symlink_to(tmp_path / "real.json")
    evaluate("--save_predictions", tmp_path / "link.json")
    assert (tmp_path / "link.json").is_symlink() and json.loads((tmp_path / "real.json").read_text())["videos"]


def test_predictions_replace_nothing_but_predictions(evaluate, tmp_path):
    (tmp_path / "notes.txt").write_text("precious")
    assert "exists already" in evaluate("--save_predictions", tmp_path / "notes.txt", code=2).stderr
    assert (tmp_path / "notes.txt").read_text() == "precious"


def test_runs_print_the_interval_of_the_tables_and_write_what_made_them_but_no_folder(train, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(ROOT / "figures")
    from run_results import accuracies, estimate, read_result
    out = train("fully", "--nb_epoch", 1, "--runs", 2).stdout
    result, _ = read_result(tmp_path)
    found = estimate(accuracies(result))
    low, high = map(float, re.search(r"7 test videos \(bootstrap\): ([\d.]+) to ([\d.]+) %", out).groups())
    assert [low, high] == pytest.approx([found["low"], found["high"]], abs=0.006) and "note: 2 seeds;" in out
    assert len(result["revisions"]) == len(result["processors"]) == 1
    assert tmp_path.name not in (tmp_path / "PSP_fully_runs.json").read_text()
