"""Results do not depend on where features lie or on the number of processes; memory, precision and the surroundings."""
import fcntl
import io
import os
import runpy
import shutil
import subprocess
import sys
from functools import partial

import pytest
import torch

import utils
from conftest import MAIN, ROOT, assert_same_run, read_log
from dataset import progress_bar
from model.checkpoint import load
from psp_model import PSPNetwork

# -------------------------------------------------------------------------------------- place of the features


@pytest.mark.parametrize("setting", MAIN)
def test_memory_and_disk_train_to_the_same_bits(train, tmp_path, setting):
    for features in ("memory", "disk"):
        train(setting, "--features", features, "--output_dir", tmp_path / features)
    assert_same_run(tmp_path / "memory", tmp_path / "disk", setting)


@pytest.mark.parametrize("available, expected", [(100e9, "held in memory (cpu)"), (1e9, "read from disk")])
def test_auto_takes_memory_if_there_is_room_and_else_the_disk(train, monkeypatch, available, expected):
    monkeypatch.setattr(utils, "main_memory", lambda: (200e9, available))
    assert expected in train("fully", "--nb_epoch", 1).stdout


def test_features_that_no_memory_can_hold_are_refused_before_they_are_read(train, monkeypatch):
    monkeypatch.setattr(utils, "main_memory", lambda: (1000, 1000))
    error = train("fully", "--features", "memory", code=2).stderr
    assert "--features memory: the features need" in error and error.count("\n") == 1


def failing_network(monkeypatch, error):
    """A network whose forward pass raises the error, as a student's own change may do."""
    def fail(*_):
        raise error
    monkeypatch.setattr(PSPNetwork, "forward", fail)


@pytest.mark.parametrize("error", [
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
    RuntimeError("could not create a primitive"), torch.OutOfMemoryError("CUDA out of memory."), MemoryError()])
def test_too_little_memory_for_a_step_ends_in_one_line(train, monkeypatch, error):
    failing_network(monkeypatch, error)
    last_line = train("fully", code=2).stderr.splitlines()[-1]
    assert "error: not enough memory (" in last_line and "try --features disk, or a smaller --batch_size" in last_line


@pytest.mark.parametrize("error", [
    RuntimeError("mat1 and mat2 shapes cannot be multiplied"), AttributeError("no attribute 'lstm_visul'")])
def test_a_bug_keeps_its_traceback_in_training_and_evaluation(trained, train, quick_script, tiny_folder, monkeypatch,
                                                              error):
    setting, folder, _ = trained
    failing_network(monkeypatch, error)
    with pytest.raises(type(error), match=str(error)):
        train(setting)
    with pytest.raises(type(error), match=str(error)):
        quick_script(MAIN[setting], "--trained_model_path", folder / f"PSP_{setting}.pt", "--data_dir", tiny_folder)


# -------------------------------------------------------------------------------------------- precision

def accuracy_line(folder, setting):
    return f"test accuracy: {100 * read_log(folder, setting)[2]['best_validation']['test_accuracy']:.2f} %"


def test_bf16_is_near_fp32_and_is_kept_with_the_checkpoint(train, quick_script, tiny_folder, tmp_path):
    for precision in ("fp32", "bf16"):
        train("fully", "--precision", precision, "--output_dir", tmp_path / precision)
    fp32, bf16 = (read_log(tmp_path / precision, "fully")[1][0]["loss"] for precision in ("fp32", "bf16"))
    assert bf16 != fp32 and bf16 == pytest.approx(fp32, rel=0.02)
    done = quick_script(MAIN["fully"], "--trained_model_path", tmp_path / "bf16" / "PSP_fully.pt",
                        "--data_dir", tiny_folder)
    assert accuracy_line(tmp_path / "bf16", "fully") in done.stdout


def test_a_processor_without_bf16_is_recognised(tmp_path):
    flags = tmp_path / "cpuinfo"
    assert utils.has_bf16(flags)      # the system does not say
    for text, expected in (("flags : avx2 avx512_bf16 amx_tile", True), ("Features : asimd bf16", True),
                           ("flags : avx2 avx512f", False)):
        flags.write_text(text)
        assert utils.has_bf16(flags) == expected


def test_bf16_on_a_processor_without_it_is_noted(train, monkeypatch):
    monkeypatch.setattr(utils, "has_bf16", lambda cpuinfo: False)
    assert "note: this processor does not multiply bfloat16" in train(
        "fully", "--nb_epoch", 1, "--precision", "bf16").stdout


def test_fp64_trains_in_float64_and_leaves_nothing_behind_for_the_next_run(train, tmp_path):
    for folder, precision in (("first", "fp32"), ("double", "fp64"), ("second", "fp32")):
        train("fully", "--precision", precision, "--output_dir", tmp_path / folder)
    dtypes = {weight.dtype for weight in load(tmp_path / "double" / "PSP_fully.pt")["weights"].values()}
    assert dtypes == {torch.float64}
    assert_same_run(tmp_path / "first", tmp_path / "second", "fully")
    assert read_log(tmp_path / "double", "fully")[0]["data"] == read_log(tmp_path / "first", "fully")[0]["data"]


@pytest.mark.parametrize("trained_in, evaluated_in", [("fp64", "fp32"), ("fp32", "fp64")])
def test_a_checkpoint_of_either_dtype_is_evaluated_in_either(train, quick_script, tiny_folder, tmp_path, trained_in,
                                                             evaluated_in):
    train("weakly", "--precision", trained_in)
    done = quick_script(MAIN["weakly"], "--trained_model_path", tmp_path / "PSP_weakly.pt", "--data_dir", tiny_folder,
                        "--precision", evaluated_in)
    assert accuracy_line(tmp_path, "weakly") in done.stdout


def test_tf32_is_refused_on_a_cpu(train):
    error = train("fully", "--precision", "tf32", "--device", "cpu", code=2).stderr
    assert "--precision tf32: only NVIDIA GPUs have it" in error and error.count("\n") == 1


# -------------------------------------------------------------------------------------- notes on the threshold

@pytest.mark.parametrize("setting, scaled", [("fully", "0.165"), ("weakly", "0.158")])
def test_the_threshold_for_another_number_of_segments_is_noted(train, quick_script, tiny_folder, tmp_path, setting,
                                                               scaled):
    trained = train(setting, "--nb_epoch", 1)
    evaluated = quick_script(MAIN[setting], "--trained_model_path", tmp_path / f"PSP_{setting}.pt",
                             "--data_dir", tiny_folder)
    for out in (trained.stdout, evaluated.stdout):
        assert "note: these videos have 6 segments" in out and f"corresponds to --threshold {scaled}" in out


@pytest.mark.parametrize("threshold, expected", [(0.9, "nearly no pair"), (0.01, "nearly every pair"), (0, None),
                                                 (1, None)])
def test_pruning_of_nearly_no_or_nearly_all_pairs_is_noted_once_unless_asked_for(train, threshold, expected):
    out = train("fully", "--check_epoch", 1, "--threshold", threshold).stdout
    assert out.count("pruning leaves") == (expected is not None) and (expected or "") in out


# --------------------------------------------------------------------------------------------- surroundings

def test_progress_in_a_log_file_is_a_line_now_and_then(capsys):
    """Three states of a bar are three whole lines, without carriage returns."""
    with progress_bar(total=3, desc="work", unit="step") as bar:
        bar.update()      # too soon after the first line
        bar.mininterval = 0
        bar.update()
        bar.update()
    error = capsys.readouterr().err
    assert "\r" not in error
    lines = error.splitlines()
    assert 2 <= len(lines) <= 4 and "0/3" in lines[0] and "3/3" in lines[-1] and "1/3" not in error


def run_as_in_a_notebook(monkeypatch, tiny_folder, output, stdout, stderr):
    """What `%run` does: the script in this process, with other streams."""
    monkeypatch.setattr(sys, "argv", [
        MAIN["fully"], "--train", "--nb_epoch", "2", "--batch_size", "8", "--check_epoch", "1", "--data_dir",
        str(tiny_folder), "--output_dir", str(output)])
    monkeypatch.setattr(sys, "stdout", stdout)
    monkeypatch.setattr(sys, "stderr", stderr)
    runpy.run_path(str(ROOT / MAIN["fully"]), run_name="__main__")


def test_a_run_in_a_notebook_prints_into_its_streams(monkeypatch, tiny_folder, tmp_path):
    out, error = io.StringIO(), io.StringIO()
    run_as_in_a_notebook(monkeypatch, tiny_folder, tmp_path, out, error)
    assert "epoch 1: loss" in out.getvalue() and "checkpoint:" in out.getvalue() and "batch" in error.getvalue()


def test_a_run_works_with_closed_streams(monkeypatch, tiny_folder, tmp_path):
    """Python has None for a stream that was closed, as by `>&- 2>&-`."""
    run_as_in_a_notebook(monkeypatch, tiny_folder, tmp_path, None, None)
    assert len(read_log(tmp_path, "fully")[1]) == 2


def test_variables_of_a_cluster_without_torchrun_are_ignored(train, tmp_path, monkeypatch):
    train("fully", "--nb_epoch", 1, "--output_dir", tmp_path / "plain")
    for name, value in (("WORLD_SIZE", "4"), ("RANK", "3"), ("LOCAL_RANK", "3"), ("MASTER_ADDR", "10.0.0.1")):
        monkeypatch.setenv(name, value)
    train("fully", "--nb_epoch", 1, "--output_dir", tmp_path / "cluster")
    assert_same_run(tmp_path / "plain", tmp_path / "cluster", "fully")


def test_an_output_folder_without_file_locks_is_fine(train, monkeypatch):
    def refuse(*_):
        raise OSError(37, "No locks available")
    for name in ("flock", "lockf"):
        monkeypatch.setattr(fcntl, name, refuse)
    train("fully", "--nb_epoch", 1)


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_the_revision_in_the_log_is_of_this_code_and_not_of_a_repository_around_it(tmp_path):
    def git(folder, *command):
        who = ("-c", "user.name=x", "-c", "user.email=x", "-c", "commit.gpgsign=false")
        return subprocess.run(["git", "-C", folder, *who, *command], check=True, capture_output=True, text=True).stdout

    copy = tmp_path / "code" / "model" / "run.py"
    copy.parent.mkdir(parents=True)
    shutil.copy(ROOT / "model" / "run.py", copy)
    for folder, expected in ((tmp_path, False), (tmp_path / "code", True)):
        git(folder, "init")
        git(folder, "add", ".")
        git(folder, "commit", "-m", "x")
        revision = git(folder, "rev-parse", "HEAD").strip()
        assert (runpy.run_path(str(copy))["versions"]()["git"] == revision) == expected


PROGRAM = f"""
import sys
from functools import partial
sys.path.insert(0, {str(ROOT)!r})
import fully_supervised_main, utils
fully_supervised_main.PSPNetwork = partial(fully_supervised_main.PSPNetwork, dropout=0)
with utils.one_line_errors():
    fully_supervised_main.main()
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this PyTorch has no distributed package")
def test_two_processes_train_as_one(train, tiny_folder, tmp_path, monkeypatch):
    """Without dropout, since each process draws its own. Each process keeps stale targets of its rows of a batch."""
    options = ("--nb_epoch", 3, "--check_epoch", 1, "--released_quirks", "stale_avps")
    monkeypatch.setattr("fully_supervised_main.PSPNetwork", partial(PSPNetwork, dropout=0))
    train("fully", *options, "--output_dir", tmp_path / "one")
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
               tmp_path / "program.py", "--train", "--batch_size", 12, *options, "--data_dir", tiny_folder,
               "--output_dir", tmp_path / "two"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    for one, two in zip(read_log(tmp_path / "one", "fully")[1], read_log(tmp_path / "two", "fully")[1], strict=True):
        assert two == pytest.approx(one, rel=1e-4)
    assert done.stdout.count("features:") == done.stdout.count("checkpoint:") == 1      # one process prints
    assert sorted(os.listdir(tmp_path / "two")) == ["PSP_fully.jsonl", "PSP_fully.pt", "PSP_fully_state.pt"]
