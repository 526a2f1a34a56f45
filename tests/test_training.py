"""Both training commands as a user runs them: results, checkpoints, several seeds, stopping and resuming."""
import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from unittest.mock import DEFAULT, Mock

import h5py
import numpy as np
import pytest
import torch

from conftest import (MAIN, QUIRKS, ROOT, SHORT, accuracy_line, assert_same_run, evaluate_run, read, read_log, rewrite,
                      set_attributes)
from dataset import TrainingBatches
from model.checkpoint import load_checkpoint
from model.evaluate import predict
from model.metrics import bootstrap_interval
from utils import UserError


# -------------------------------------------------------------------------------------- what a run gives

def test_log_checkpoint_and_printed_figures_agree(trained):
    setting, folder, out = trained
    header, epochs, result = read_log(folder, setting)
    assert header["setting"] == setting and header["options"]["seed"] == 123
    system = f": {torch.cuda.get_device_name()}\n" if torch.cuda.is_available() else Path("/proc/cpuinfo").read_text()
    assert f": {header['processor']}\n" in system
    assert header["data"]["train"] == (24 if setting == "fully" else 29) and header["data"]["map_size"] == [3, 3]
    assert [epoch["epoch"] for epoch in epochs] == list(range(8))
    # Checks at 2, 4, 6; the last epoch, 7, is scored too, but does not take part in the choice.
    assert [epoch["epoch"] for epoch in epochs if "val_accuracy" in epoch] == [2, 4, 6, 7]
    best = max(epochs[2:7:2], key=lambda epoch: epoch["val_accuracy"])
    best_test = max(epochs[2:7:2], key=lambda epoch: epoch["test_accuracy"])
    assert result == {"best": best, "best_test": best_test, "last": epochs[7], "checks": 3}
    for text, accuracy in (("best validation accuracy", best["val_accuracy"]),
                           ("test accuracy at the best validation epoch", best["test_accuracy"]),
                           ("test accuracy after the last epoch", epochs[7]["test_accuracy"]),
                           ("best test accuracy over all 3 checks", best_test["test_accuracy"])):
        assert f"{text}: {100 * accuracy:.2f} %" in out
    checkpoint = load_checkpoint(folder / f"PSP_{setting}.pt", setting)
    assert checkpoint["epoch"] == best["epoch"] and checkpoint["val_accuracy"] == best["val_accuracy"]


def test_of_equal_checks_the_earlier_one_is_kept(train, tmp_path):
    train("fully", "--check_epoch", 1, "--lr", 0)      # so every check has the same accuracy
    result = read_log(tmp_path, "fully")[2]
    assert result["checks"] == 3 and result["best"]["epoch"] == result["best_test"]["epoch"] == 1


def test_another_seed_gives_another_run(trained, train, tmp_path):
    setting, folder, _ = trained
    train(setting, "--nb_epoch", 1, "--seed", 124)
    assert read_log(tmp_path, setting)[1][0]["loss"] != read_log(folder, setting)[1][0]["loss"]


@pytest.mark.parametrize("setting, first, second", [("fully", 60, 120), ("weakly", 80, 160)])
def test_the_learning_rate_falls_after_the_epochs_of_the_paper(train, data_folder, tmp_path, setting, first, second):
    rewrite(data_folder / "train_order.h5", np.array([3]))
    more = ("--background_videos", "off") if setting == "weakly" else ()
    train(setting, "--nb_epoch", 162, "--check_epoch", 1000, "--save_epoch", 1000, "--batch_size", 1,
          "--data_dir", data_folder, *more)
    rates = [epoch["lr"] for epoch in read_log(tmp_path, setting)[1]]
    assert rates == pytest.approx(first * [1e-3] + (second - first) * [8e-4] + (162 - second) * [6.4e-4], rel=1e-12)


@pytest.mark.parametrize("setting, option, argument, value", [
    ("fully", "attention=mean", "attention", "mean"), ("fully", "second_normalisation=off", "renormalise", False),
    ("weakly", "weighting=off", "weighting", False), ("weakly", "modality=audio", "modality", "audio")])
def test_the_checkpoint_records_what_was_left_out(train, tiny_folder, tmp_path, setting, option, argument, value):
    """And evaluation names what is not the published network."""
    train(setting, "--nb_epoch", 1, f"--{option}")
    assert load_checkpoint(tmp_path / f"PSP_{setting}.pt")["network_args"][argument] == value
    out = evaluate_run(tmp_path, setting, tiny_folder).stdout
    assert accuracy_line(tmp_path, setting) in out and f"after epoch 0, {argument} {value}\n" in out


def test_features_of_random_weights_are_marked_in_the_log(train, data_folder, tmp_path):
    set_attributes(data_folder / "audio_feature.h5", random_weights=True)
    assert "results on them are meaningless" in train("fully", "--nb_epoch", 1, "--data_dir", data_folder).stderr
    assert read_log(tmp_path, "fully")[0]["data"]["random_weights"] is True


def test_splits_that_share_videos_are_noted(train, tiny_folder):
    out = train("fully", "--nb_epoch", 1, "--dir_order_val", tiny_folder / "test_order.h5").stdout
    assert "note: 7 videos are in more than one split" in out


@pytest.mark.parametrize("setting", MAIN)
def test_a_loss_that_is_not_finite_ends_the_run_in_one_line(train, setting):
    assert "the loss of epoch 0 is nan" in train(setting, "--lr", 1e9, code=2).stderr.splitlines()[-1]


# ---------------------------------------------------------------------------------------- several seeds

def test_runs_equal_runs_of_single_seeds_and_name_no_folder(train, tmp_path):
    out = train("fully", "--seed", 5, "--runs", 2, "--output_dir", tmp_path / "runs").stdout
    text = (tmp_path / "runs" / "PSP_fully_runs.json").read_text()
    saved = json.loads(text)
    assert tmp_path.name not in text and len(saved["revisions"]) == len(saved["processors"]) == 1
    assert [run["seed"] for run in saved["runs"]] == [5, 6]
    for run in saved["runs"]:
        train("fully", "--seed", run["seed"], "--output_dir", tmp_path / f"{run['seed']}")
        assert_same_run(tmp_path / "runs" / f"seed{run['seed']}", tmp_path / f"{run['seed']}", "fully")
        best = read_log(tmp_path / f"{run['seed']}", "fully")[2]["best"]
        assert (run["best_epoch"], run["val"], run["test"]) == (
            best["epoch"], best["val_accuracy"], best["test_accuracy"])
        assert sum(run["test_correct"]) / (7 * 6) == pytest.approx(run["test"])
    test = [run["test"] for run in saved["runs"]]
    low, high = bootstrap_interval(np.array([run["test_correct"] for run in saved["runs"]]) / 6)
    assert saved["summary"] == pytest.approx(
        {"n": 2, "mean": np.mean(test), "std": np.std(test, ddof=1), "low": low, "high": high})
    assert f"{100 * np.mean(test):.2f} ± {100 * np.std(test, ddof=1):.2f} %" in out and "note: 2 seeds;" in out
    assert f"7 test videos (bootstrap): {100 * low:.2f} to {100 * high:.2f} %" in out


def test_runs_of_both_settings_are_kept_apart_and_resumed(train, tmp_path):
    options = ("--nb_epoch", 1, "--runs", 2)
    for setting in MAIN:
        train(setting, *options)
    results = [tmp_path / f"PSP_{setting}_runs.json" for setting in MAIN]
    before = [path.read_text() for path in results]
    shutil.rmtree(tmp_path / "seed124")
    train("fully", *options, "--resume")
    assert [path.read_text() for path in results] == before
    train("fully", *options, "--seed", 124, "--resume")      # drops seed 123
    assert (tmp_path / "PSP_fully_runs.1.json").read_text() == before[0]


# ------------------------------------------------------------------------------------ stopping and resuming

def test_a_run_that_was_killed_continues_as_if_it_had_not_been(tiny_folder, tmp_path):
    command = [sys.executable, ROOT / MAIN["fully"], *SHORT, "--nb_epoch", "24", "--save_epoch", "4", "--resume",
               "--data_dir", tiny_folder, "--output_dir"]
    subprocess.run([*command, tmp_path / "whole"], check=True)
    process, log = subprocess.Popen([*command, tmp_path]), tmp_path / "PSP_fully.jsonl"
    while process.poll() is None and (not log.exists() or log.read_text().count("\n") <= 5):
        time.sleep(0.01)
    process.kill()
    assert process.wait() < 0      # by the signal: it was not over yet
    subprocess.run([*command, tmp_path], check=True)
    assert_same_run(tmp_path / "whole", tmp_path, "fully")


@pytest.mark.parametrize("setting, quirks", [*QUIRKS.items(), ("fully", ""), ("weakly", "")])
def test_a_run_that_a_full_disk_ended_continues_where_it_was_saved(train, tmp_path, monkeypatch, setting, quirks):
    options = ("--nb_epoch", 6, "--check_epoch", 10, "--save_epoch", 2, "--quirks", quirks)
    train(setting, *options, "--output_dir", tmp_path / "whole")
    with monkeypatch.context() as patch:
        full = OSError(errno.ENOSPC, "No space left on device")
        patch.setattr(os, "replace", Mock(wraps=os.replace, side_effect=[DEFAULT, DEFAULT, full]))
        *_, stopped, error = train(setting, *options, code=2).stderr.splitlines()
    assert "with --resume to continue with epoch 2" in stopped
    assert f"PSP_{setting}_state.pt: No space left on device; free some space" in error
    assert "with epoch 2" in train(setting, *options, "--resume").stdout
    assert_same_run(tmp_path / "whole", tmp_path, setting)


def test_a_run_that_a_lost_share_ended_says_how_to_continue(train, monkeypatch):
    left, getitem = iter(range(250)), h5py.Dataset.__getitem__

    def read_while_it_lasts(self, rows):
        if next(left, None) is None:
            raise OSError("Can't synchronously read data (file read failed: errno = 116)")
        return getitem(self, rows)

    monkeypatch.setattr(h5py.Dataset, "__getitem__", read_while_it_lasts)
    *_, stopped, error = train("fully", "--nb_epoch", 50, "--features", "disk", code=2).stderr.splitlines()
    assert "repeat the command with --resume to continue with epoch" in stopped and "Stale file handle" in error


@pytest.fixture
def finished(trained, train, tmp_path):
    """(setting, folder, function that resumes it) of a copy of the finished run."""
    setting, folder, _ = trained
    copy = shutil.copytree(folder, tmp_path / "copy")
    return setting, copy, partial(train, setting, "--nb_epoch", 8, "--save_epoch", 3, "--output_dir", copy, "--resume")


def change_state(folder, setting, function):
    path = folder / f"PSP_{setting}_state.pt"
    state = torch.load(path, weights_only=True)
    function(state)
    torch.save(state, path)


def test_a_log_with_a_line_cut_short_is_whole_after_resuming(finished, trained):
    setting, folder, resume = finished
    with open(folder / f"PSP_{setting}.jsonl", "a") as log:
        log.write('{"epo')
    resume()
    assert_same_run(trained[1], folder, setting)


def test_resuming_with_another_version_of_a_library_is_noted(finished):
    setting, folder, resume = finished
    assert "since the run began" not in resume().stdout
    change_state(folder, setting, lambda state: state["header"]["versions"].update(torch="0.4"))
    assert "since the run began, torch changed" in resume().stdout
    versions = read_log(folder, setting)[0]
    assert versions["versions"]["torch"] == "0.4" and versions["resumed_with"]["torch"] == torch.__version__


def test_a_finished_run_may_be_resumed_from_elsewhere(finished, trained, tiny_folder, monkeypatch):
    """Paths, the device's features and defaults that are spelled out do not make another run."""
    setting, folder, resume = finished
    monkeypatch.chdir(tiny_folder)
    default = {"fully": "off", "weakly": "on"}[setting]
    resume("--data_dir", ".", "--features", "disk", "--weighting", default, "--save_epoch", 5)
    assert_same_run(trained[1], folder, setting)


@pytest.mark.parametrize("options, expected", [
    (("--lr", 0.5), "another one (lr: 0.001 -> 0.5)"), (("--threshold", 0.2), "another one (threshold: "),
    (("--dir_video", "other.h5"), "another one (fingerprint_test: ")])
def test_resuming_another_run_is_refused_and_changes_nothing(finished, tiny_folder, monkeypatch, options, expected):
    _, folder, resume = finished
    monkeypatch.chdir(folder)
    rewrite(folder / "other.h5", 1.5 * read(tiny_folder / "visual_feature.h5"))
    before = {path: path.read_bytes() for path in folder.iterdir()}
    error = resume(*options, code=2).stderr
    assert expected in error and error.count("\n") == 1
    assert before == {path: path.read_bytes() for path in folder.iterdir()}


def test_a_state_of_other_code_is_refused_in_one_line(finished):
    setting, folder, resume = finished
    change_state(folder, setting, lambda state: state.pop("best_test"))
    error = resume(code=2).stderr
    assert "is not the state of a run of this code; start again without --resume" in error and error.count("\n") == 1


def test_the_state_does_not_lag_behind_the_checkpoint(train, tmp_path, monkeypatch):
    """Stopped in the second check, where the state would not be saved for long."""
    stopped = Mock(wraps=predict, side_effect=[DEFAULT, DEFAULT, KeyboardInterrupt])      # two in each check
    monkeypatch.setattr("fully_supervised_main.predict", stopped)
    error = train("fully", "--check_epoch", 1, "--save_epoch", 100, code=130).stderr
    assert "with --resume to continue with epoch 2" in error and "Traceback" not in error
    state = torch.load(tmp_path / "PSP_fully_state.pt", weights_only=True)
    assert state["best"]["record"]["epoch"] == load_checkpoint(tmp_path / "PSP_fully.pt")["epoch"]


def test_resuming_without_the_log_is_refused(finished):
    setting, folder, resume = finished
    (folder / f"PSP_{setting}.jsonl").unlink()
    assert "the log or the checkpoint" in resume(code=2).stderr


def test_files_of_an_earlier_run_are_kept_under_a_number(train, tmp_path):
    (tmp_path / "PSP_fully.pt").write_bytes(b"the authors' checkpoint")
    for _ in range(2):
        train("fully", "--nb_epoch", 1)
    assert (tmp_path / "PSP_fully.1.pt").read_bytes() == b"the authors' checkpoint"
    assert sorted(os.listdir(tmp_path)) == [
        "PSP_fully.1.pt", "PSP_fully.2.jsonl", "PSP_fully.2.pt", "PSP_fully.jsonl", "PSP_fully.lock", "PSP_fully.pt",
        "PSP_fully_state.2.pt", "PSP_fully_state.pt"]


@pytest.mark.parametrize("folder, options", [
    ("", ()), ("", ("--resume",)), ("", ("--runs", 2)), ("seed123", ("--runs", 2))])
def test_a_second_run_in_the_same_folder_is_refused_and_changes_nothing(train, tmp_path, folder, options):
    train("fully", "--nb_epoch", 1, *options)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with open(tmp_path / folder / "PSP_fully.lock") as other:      # a lock belongs to an open file, not to a process
        fcntl.flock(other, fcntl.LOCK_EX)
        error = train("fully", "--nb_epoch", 1, *options, code=2).stderr
    assert f"{tmp_path / folder}: another run is writing there" in error and error.count("\n") == 1
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_a_file_system_without_locks_is_fine(train, monkeypatch):
    monkeypatch.setattr("fcntl.flock", Mock(side_effect=OSError(errno.ENOLCK, "No locks available")))
    train("fully", "--nb_epoch", 1)


# --------------------------------------------------------------------------------------------- options

FILES = {"--dir_video": "visual_feature", "--dir_audio": "audio_feature", "--dir_order_train": "train_order",
         "--dir_order_val": "val_order", "--dir_order_test": "test_order"}
RELEASED_OPTIONS = {
    "fully": ({**FILES, "--dir_labels": "right_labels"}, ("--LAMBDA", 100, "--threshold=0.099")),
    "weakly": ({**FILES, "--dir_labels": "mil_labels", "--prob_dir_labels": "prob_label",
                "--dir_labels_gt": "right_labels", "--dir_video_bg": "visual_feature_noisy",
                "--dir_audio_bg": "audio_feature_noisy", "--dir_labels_bg": "labels_noisy"}, ("--threshold=0.095",)),
}


def test_the_options_of_the_released_scripts(trained, train, tiny_folder, tmp_path):
    """Each file has another name here, in a folder of its own; the run is the same."""
    setting, folder, _ = trained
    files, options = RELEASED_OPTIONS[setting]
    for option, name in files.items():
        options += (option, shutil.copy(tiny_folder / f"{name}.h5", tmp_path / option))
    train(setting, "--model_name", "PSP", "--nb_epoch", 8, "--save_epoch", 3, *options, "--data_dir", tmp_path)
    assert read_log(tmp_path, setting)[1:] == read_log(folder, setting)[1:]


@pytest.mark.parametrize("options, expected", [
    ([], "give either --train"),
    (["--trained_model_path", "x.pt", "--attention", "mean"], "--attention needs --train"),
    (["--train", "--save_predictions", "x.json"], "--save_predictions needs --trained_model_path"),
    (["--trained_model_path", "x.pt", "--nb_epoch", "1"], "--nb_epoch needs --train"),
    (["--train", "--batch_size", "1.5"], "--batch_size: '1.5' is not a whole number"),
    (["--train", "--lr", "-1e-3"], "write a value that begins with a dash as --option=value"),
    (["--train", "--model_name", "AVEL"], "AVEL has a script of its own, model/avel.py"),
    (["--train", "--thresh", "0.1"], "unrecognized arguments: --thresh"),
    (["--train", "--batch_size", "25"], "--batch_size 25 is larger than the training set (24 videos)"),
    (["--train", "--precision", "tf32", "--device", "cpu"], "--precision tf32: only NVIDIA GPUs have it"),
    (["--train", "--device", "abacus"], "--device abacus: cannot be used here")])
def test_options_that_cannot_be_used_are_refused_in_one_line(quick_script, tiny_folder, tmp_path, options, expected):
    error = quick_script(MAIN["fully"], "--output_dir", tmp_path, "--data_dir", tiny_folder, *options, code=2).stderr
    assert expected in error and error.count("\n") == 1


def test_a_batch_that_does_not_divide_among_processes_is_refused(monkeypatch):
    monkeypatch.setattr("dataset.rank_and_world_size", lambda: (1, 2))
    with pytest.raises(UserError, match="--batch_size 7 is not divisible by the number of processes, 2"):
        TrainingBatches(range(24), 7, 123, torch.device("cpu"))
