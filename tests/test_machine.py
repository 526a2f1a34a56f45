"""Results do not depend on where features lie or on the number of processes; memory, precision and the surroundings."""
import io
import re
import subprocess
import sys
from functools import partial
from unittest.mock import Mock

import pytest
import torch

import utils
from conftest import ROOT, SHORT, accuracy_line, assert_same_run, evaluate_run, read, read_log, rewrite
from model import data
from model.avel import AVELNetwork
from model.checkpoint import load_checkpoint
from pretended_gpu import pretended_gpu
from psp_model import FULLY_SUPERVISED, PSPNetwork


# -------------------------------------------------------------------------------------- place of the features

@pytest.mark.parametrize("available, expected", [(100e9, "memory"), (1e9, "disk")])
def test_auto_takes_memory_if_there_is_room_and_else_the_disk(monkeypatch, available, expected):
    monkeypatch.setattr(data, "main_memory", lambda: (200e9, available))
    assert data.choose_place("auto", 1e6, 1e5, torch.device("cpu"))[0] == expected


@pytest.mark.parametrize("free, value_bytes, expected", [
    (5.6e9, 2, "cuda:0"), (7.5e9, 4, "cuda:0"), (3e9, 2, "cpu"), (5.6e9, 4, "cpu")])
def test_cards_of_6_and_8_gb_hold_the_features_of_ave(free, value_bytes, expected):
    video = 10 * 7 * 7 * 512
    with pretended_gpu(free):
        place = data.choose_place("auto", (4143 + 178) * video * value_bytes, 128 * video * 4, torch.device("cuda:0"))
    assert str(place[1]) == expected


def test_chunks_of_many_videos_are_noted_on_disk_with_the_command_for_another_file(train, data_folder):
    path, new_path = data_folder / "visual_feature.h5", data_folder / "visual_feature.contiguous.h5"
    rewrite(path, read(path), compression="gzip", chunks=(20, 1, 3, 3, 5))
    options = ("--nb_epoch", 1, "--data_dir", data_folder, "--features", "disk")
    command = train("fully", *options).stdout.split("write one: ")[1].splitlines()[0]
    subprocess.run(command.replace("python", sys.executable, 1), shell=True, check=True)
    assert (read(path) == read(new_path)).all()
    assert "its chunks" not in train("fully", *options, "--dir_video", new_path).stdout


def test_features_that_no_memory_can_hold_are_refused_before_they_are_read(train, monkeypatch):
    monkeypatch.setattr(data, "main_memory", lambda: (1000, 1000))
    error = train("fully", "--features", "memory", code=2).stderr
    assert "--features memory: the features need" in error and error.count("\n") == 1


def test_the_smallest_limit_of_a_control_group_counts_and_droppable_files_do_not(tmp_path):
    def write(name, text):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    write("proc/meminfo", "MemTotal: 1000 kB\nMemAvailable: 900 kB\n")
    assert data.main_memory(tmp_path) == (1024000, 921600)
    write("proc/self/cgroup", "0::/job/step\n")
    for folder, limit in (("job", 600000), ("job/step", "max"), ("", 800000)):
        write(f"sys/fs/cgroup/{folder}/memory.max", f"{limit}\n")
        write(f"sys/fs/cgroup/{folder}/memory.current", "500000\n")
        write(f"sys/fs/cgroup/{folder}/memory.stat", "anon 1\ninactive_file 300000\n")
    assert data.main_memory(tmp_path) == (600000, 400000)
    write("proc/self/cgroup", "5:cpu,memory:/slurm\n1:name=systemd:/\n")
    write("sys/fs/cgroup/memory/slurm/memory.limit_in_bytes", "700000\n")
    write("sys/fs/cgroup/memory/slurm/memory.usage_in_bytes", "650000\n")
    write("sys/fs/cgroup/memory/slurm/memory.stat", "inactive_file 9\ntotal_inactive_file 50000\n")
    assert data.main_memory(tmp_path) == (700000, 100000)


@pytest.mark.parametrize("error", [
    RuntimeError("DefaultCPUAllocator: can't allocate memory"), torch.OutOfMemoryError("CUDA out of memory."),
    MemoryError()])
def test_too_little_memory_for_a_step_ends_in_one_line(train, monkeypatch, error):
    monkeypatch.setattr(PSPNetwork, "forward", Mock(side_effect=error))
    last_line = train("fully", code=2).stderr.splitlines()[-1]
    assert "error: not enough memory (" in last_line and "try --features disk, or a smaller --batch_size" in last_line


def test_a_bug_keeps_its_traceback_in_training_and_evaluation(trained, train, tiny_folder, monkeypatch):
    """As a student's own change may have one."""
    setting, folder, _ = trained
    monkeypatch.setattr(PSPNetwork, "forward", Mock(side_effect=RuntimeError("shapes cannot be multiplied")))
    for run in (partial(train, setting), partial(evaluate_run, folder, setting, tiny_folder)):
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            run()


# -------------------------------------------------------------------------------------------- precision

def test_bf16_is_near_fp32_and_is_kept_with_the_checkpoint(train, tiny_folder, tmp_path):
    for precision in ("fp32", "bf16"):
        train("fully", "--precision", precision, "--output_dir", tmp_path / precision)
    fp32, bf16 = (read_log(tmp_path / precision, "fully")[1][0]["loss"] for precision in ("fp32", "bf16"))
    assert bf16 != fp32 and bf16 == pytest.approx(fp32, rel=0.02)
    assert accuracy_line(tmp_path / "bf16", "fully") in evaluate_run(tmp_path / "bf16", "fully", tiny_folder).stdout


def test_fp64_trains_in_float64_and_leaves_nothing_behind_for_the_next_run(train, tmp_path):
    for folder, precision in (("first", "fp32"), ("double", "fp64"), ("second", "fp32")):
        train("fully", "--precision", precision, "--output_dir", tmp_path / folder)
    weights = load_checkpoint(tmp_path / "double" / "PSP_fully.pt")["weights"].values()
    assert all(weight.dtype == torch.float64 for weight in weights)
    assert_same_run(tmp_path / "first", tmp_path / "second", "fully")
    assert read_log(tmp_path / "double", "fully")[0]["data"] == read_log(tmp_path / "first", "fully")[0]["data"]


@pytest.mark.parametrize("one, other", [("fp64", "fp32"), ("fp32", "fp64")])
def test_a_checkpoint_of_either_dtype_is_evaluated_in_either(train, tiny_folder, tmp_path, one, other):
    train("weakly", "--precision", one)
    out = evaluate_run(tmp_path, "weakly", tiny_folder, "--precision", other).stdout
    assert accuracy_line(tmp_path, "weakly") in out


@pytest.mark.parametrize("device, given, inside", [
    ("cuda", torch.bfloat16, torch.float32), ("cpu", torch.float32, torch.bfloat16)])
@pytest.mark.parametrize("network", [PSPNetwork(12, 20, (3, 3), 5, threshold=0.1, **FULLY_SUPERVISED),
                                     AVELNetwork(12, 20, (3, 3), 5)], ids=["PSP", "AVEL"])
def test_lstms_compute_in_float32_on_cuda(network, device, given, inside, monkeypatch):
    """Under autocast, cuDNN would take float16. A CPU loses 6 to 8 % of a step by float32, so there bf16 stays."""
    seen = []
    monkeypatch.setattr(torch.nn.LSTM, "forward", lambda _, features: seen.append(
        (features.dtype, torch.is_autocast_enabled(device))))
    with pretended_gpu():
        torch.set_autocast_enabled(device, True)      # torch.autocast refuses a pretended GPU
        try:
            for lstm in (network.lstm_audio, network.lstm_visual):
                lstm(torch.ones(2, 6, lstm.input_size, dtype=given, device=device))
        finally:
            torch.set_autocast_enabled(device, False)
    assert seen == [(inside, device == "cpu")] * 2


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_a_precision_that_an_old_gpu_lacks_is_noted(capsys, precision):
    for capability in ((7, 5), (8, 0)):
        with pretended_gpu(capability=capability):
            utils.set_up_device("cuda", precision)
        assert (f"it has no {precision}" in capsys.readouterr().out) == (capability == (7, 5))


@pytest.mark.parametrize("cuda, expected", [("13.0", "built for CUDA 13.0"), (None, "built for CPUs")])
def test_a_gpu_that_pytorch_cannot_use_is_noted(train, tmp_path, monkeypatch, cuda, expected):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert not utils.gpu_is_unusable(tmp_path)
    (tmp_path / "nvidia0").touch()
    assert utils.gpu_is_unusable(tmp_path)
    monkeypatch.setattr(utils, "gpu_is_unusable", lambda _: True)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    assert expected in train("fully", "--nb_epoch", 1).stdout.splitlines()[0]


# --------------------------------------------------------------- notes, surroundings, several processes

@pytest.mark.parametrize("setting, scaled", [("fully", "0.165"), ("weakly", "0.158")])
def test_the_threshold_for_another_number_of_segments_is_noted(train, setting, scaled):
    out = train(setting, "--nb_epoch", 1).stdout
    assert "note: these videos have 6 segments" in out and f"corresponds to --threshold {scaled}" in out


@pytest.mark.parametrize("threshold, expected", [(0.9, "nearly no pair"), (0.01, "nearly every pair"), (1, None)])
def test_pruning_of_nearly_no_or_nearly_all_pairs_is_noted_once_unless_asked_for(train, threshold, expected):
    out = train("fully", "--nb_epoch", 2, "--check_epoch", 1, "--threshold", threshold).stdout
    assert out.count("note: pruning") == (expected is not None) and (expected or "") in out


def test_progress_comes_in_lines_where_there_is_no_terminal(train):
    done = train("fully")
    assert "0/8" in done.stderr.splitlines()[0] and "\r" not in done.stderr + done.stdout
    assert re.search("^epoch 3: loss", done.stdout, re.MULTILINE)


def test_a_terminal_without_a_character_ends_no_run(monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    with utils.one_line_errors():
        print("80 ± 1 %")
    out.seek(0)
    assert out.read() == "80 \\xb1 1 %\n"


def test_an_explicit_gpu_is_refused_with_several_processes(monkeypatch, train):
    monkeypatch.setattr(utils, "rank_and_world_size", lambda: (0, 2))
    assert "--device cuda:0: with torchrun" in train("fully", "--device", "cuda:0", code=2).stderr


def test_variables_of_a_cluster_without_torchrun_are_ignored(train, tmp_path, monkeypatch):
    for name, value in (("WORLD_SIZE", "4"), ("RANK", "3"), ("LOCAL_RANK", "3"), ("MASTER_ADDR", "10.0.0.1")):
        monkeypatch.setenv(name, value)
    train("fully")
    assert len(read_log(tmp_path, "fully")[1]) == 4


PROGRAM = """
from functools import partial
import fully_supervised_main, utils
from model import released_training
fully_supervised_main.PSPNetwork = partial(fully_supervised_main.PSPNetwork, dropout=0)
with utils.one_line_errors():
    released_training.main()
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this PyTorch has no distributed package")
def test_two_processes_train_as_one(train, tiny_folder, tmp_path, monkeypatch):
    """Without dropout, since each process draws its own. Each process keeps stale targets of its rows of a batch."""
    options = ("--quirks", "stale_avps", "--nb_epoch", 3, "--check_epoch", 1, "--device", "cpu")
    monkeypatch.setattr("fully_supervised_main.PSPNetwork", partial(PSPNetwork, dropout=0))
    train("fully", *options, "--output_dir", tmp_path / "one")
    (tmp_path / "program.py").write_text(PROGRAM)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
               tmp_path / "program.py", "--setting", "fully", *SHORT, *options, "--data_dir", tiny_folder,
               "--output_dir", tmp_path / "two"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    for one, two in zip(read_log(tmp_path / "one", "fully")[1], read_log(tmp_path / "two", "fully")[1], strict=True):
        assert two == pytest.approx(one, rel=1e-4)
    assert done.stdout.count("features:") == done.stdout.count("checkpoint:") == 1      # one process prints
