"""Every path that a GPU takes, on a pretended one: the same bits from all places of the features, and no waits."""
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch.nn.modules.module import register_module_forward_pre_hook

from conftest import MAIN, QUIRKS, SHORT, accuracy_line, assert_same_run, evaluate_run, read_log, rewrite
from model.feature_networks import convolutions
from pretended_gpu import pretended_gpu

pytestmark = pytest.mark.filterwarnings("ignore:PyTorch was compiled without cuDNN")
ON_GPU = ("--device", "cuda", "--nb_epoch", 2, "--check_epoch", 1, "--save_epoch", 1)
PLACES = {"cuda:0": (80e9, "auto"), "cpu": (1e9, "auto"), "disk": (80e9, "disk")}      # of the features


@pytest.fixture
def gpu_train(train):
    def run(setting, *options, free=80e9, code=0):
        with pretended_gpu(free) as gpu:
            return gpu.waits, train(setting, *ON_GPU, *options, code=code).stdout
    return run


def test_the_pretended_gpu_refuses_what_cuda_refuses():
    with pretended_gpu() as gpu:
        on_gpu, on_cpu = torch.ones(3, device="cuda"), torch.ones(3)
        for refused in (lambda: on_gpu + on_cpu, lambda: on_cpu.add_(on_gpu), lambda: on_cpu[on_gpu.long()],
                        lambda: torch.cuda.set_device(torch.device("cuda")), on_gpu.numpy):
            with pytest.raises((RuntimeError, ValueError, TypeError)):
                refused()
        source = torch.ones(3, pin_memory=True)
        copied = source.to("cuda", non_blocking=True)
        assert not gpu.waits
        copied.cpu(), on_gpu[on_cpu.long()], on_cpu.to("cuda")
        assert gpu.waits == {"_to_copy": 1, "copy to the GPU": 2}
        source.to("cuda", non_blocking=True)
        source.zero_()
        with pytest.raises(AssertionError, match="written while"):
            copied.cpu()
        gpu.under_way.clear()


@pytest.mark.parametrize("setting", MAIN)
def test_the_bits_are_the_same_wherever_the_features_are(gpu_train, tiny_folder, tmp_path, setting):
    printed, devices = set(), set()
    names = tmp_path / "Annotations.txt"      # of classes that are matched by name
    names.write_text((tiny_folder / "Annotations.txt").read_text().replace("category", "kind"))
    for place, (free, features) in PLACES.items():
        options = ("--features", features, "--output_dir", tmp_path / place, "--annotations", names)
        _, out = gpu_train(setting, *options, free=free)
        assert place in out.splitlines()[0]
        with pretended_gpu(free), register_module_forward_pre_hook(
                lambda _, inputs: devices.add(inputs[0].device.type)):
            out = evaluate_run(tmp_path / place, setting, tiny_folder, *options).stdout
        printed.add(out.partition("\n")[2].replace(str(tmp_path / place), "FOLDER"))
        assert_same_run(tmp_path / "cuda:0", tmp_path / place, setting)
    assert len(printed) == 1 and devices == {"cuda"}
    assert accuracy_line(tmp_path / "cuda:0", setting) in printed.pop()


@pytest.mark.parametrize("setting, options", [
    ("fully", ("--quirks", QUIRKS["fully"])), ("weakly", ("--quirks", QUIRKS["weakly"], "--features", "memory")),
    ("fully", ("--precision", "fp64", "--features", "disk", "--modality", "audio"))], ids=["fully", "weakly", "fp64"])
def test_a_stopped_run_continues_with_the_random_numbers_of_the_gpu(gpu_train, tmp_path, monkeypatch, setting, options):
    options += ("--check_epoch", 9)
    gpu_train(setting, *options, "--output_dir", tmp_path / "whole")
    with monkeypatch.context() as patch:      # no room for the checkpoint, after the state of epoch 0
        patch.setattr(f"{MAIN[setting][:-3]}.save_checkpoint", Mock(side_effect=OSError(28, "full")))
        gpu_train(setting, *options, "--output_dir", tmp_path / "stopped", code=2)
    assert "with epoch 1" in gpu_train(setting, *options, "--output_dir", tmp_path / "stopped", "--resume")[1]
    assert_same_run(tmp_path / "whole", tmp_path / "stopped", setting)


@pytest.mark.parametrize("setting, features", [("fully", "memory"), ("weakly", "auto")])
def test_ten_times_the_steps_wait_for_the_gpu_as_often(gpu_train, tmp_path, setting, features):
    rewrite(tmp_path / "order.h5", np.arange(30), "order")
    options = ("--dir_order_train", tmp_path / "order.h5", "--features", features, "--log_steps", "--nb_epoch", 1)
    options += ("--background_videos", "off") if setting == "weakly" else ("--quirks", "stale_avps")
    few, many = (gpu_train(setting, *options, "--batch_size", size)[0] for size in (10, 1))
    assert len(read_log(tmp_path, setting)[1][0]["losses"]) == 30 and few == many and few


@pytest.mark.parametrize("setting", MAIN)
def test_avel_trains_resumes_and_evaluates(quick_script, tiny_folder, tmp_path, setting):
    with pretended_gpu():
        options = ("model/avel.py", "--setting", setting, "--data_dir", tiny_folder, "--output_dir", tmp_path)
        quick_script(*options, *SHORT, "--nb_epoch", 1)
        assert "with epoch 1" in quick_script(*options, *SHORT, "--nb_epoch", 1, "--resume").stdout
        out = quick_script(*options, "--trained_model_path", tmp_path / f"AVEL_{setting}.pt").stdout
    assert accuracy_line(tmp_path, setting, "AVEL") in out


def test_files_of_the_gpu_are_used_on_the_cpu_and_back(gpu_train, train, tmp_path):
    gpu_train("fully", "--nb_epoch", 1, "--check_epoch", 2)
    for name in ("PSP_fully.pt", "PSP_fully_state.pt"):
        assert (b"cuda:0" in (tmp_path / name).read_bytes()) == ("state" in name)      # the state keeps its devices
    weights = torch.load(tmp_path / "PSP_fully.pt", weights_only=True)["weights"]      # as a user without a GPU does
    assert {weight.device.type for weight in weights.values()} == {"cpu"}
    assert "with epoch 1" in train("fully", "--nb_epoch", 1, "--resume").stdout
    train("fully", "--nb_epoch", 1)
    with pretended_gpu():
        assert "with epoch 1" in train("fully", "--nb_epoch", 1, "--resume", "--device", "cuda").stdout


def test_a_run_on_the_cpu_leaves_the_gpu_alone(train, tiny_folder, tmp_path):
    with pretended_gpu() as gpu:
        for more in ((), ("--resume",)):
            train("fully", "--nb_epoch", 1, "--device", "cpu", *more)
        evaluate_run(tmp_path, "fully", tiny_folder, "--device", "cpu")
    assert not gpu.touched


def test_features_are_extracted_as_on_the_cpu(quick_script, tmp_path, monkeypatch):
    """With random weights, and fewer channels than the real networks have."""
    pytest.importorskip("av"), pytest.importorskip("cv2"), pytest.importorskip("resampy")
    from films import film, tone
    film(tmp_path / "film.mkv", seconds=1, rate=16, sound=tone(1))
    monkeypatch.setattr("model.feature_networks.convolutions", lambda channels, blocks: convolutions(
        channels, [(width if width == blocks[-1][0] else 4, 1) for width, _ in blocks]))
    options = ("data/extract_features.py", "--videos", tmp_path / "film.mkv", "--segments", 1, "--random_weights")
    quick_script(*options, "--device", "cpu", "--output_dir", tmp_path / "cpu")
    with pretended_gpu():
        quick_script(*options, "--output_dir", tmp_path / "cuda")
    for name in ("visual_feature.h5", "audio_feature.h5"):
        assert (tmp_path / "cpu" / name).read_bytes() == (tmp_path / "cuda" / name).read_bytes()
