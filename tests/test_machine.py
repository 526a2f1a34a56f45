"""Results depend neither on where features lie, nor on the number of processes; and little on the precision."""
import json
import subprocess
import sys

import numpy as np
import pytest
import torch

import utils
from conftest import MAIN, ROOT
from data import memory
from data.batches import read_ahead
from dataset import AVEDataset, find_files, required_files
from psp_model import FULLY_SUPERVISED, AudioGuidedVisualAttention, PSPNetwork

RUN = ("--train", "--nb_epoch", 4, "--check_epoch", 2, "--batch_size", 8)


def epochs_of(folder, setting):
    return [json.loads(line) for line in (folder / f"PSP_{setting}.jsonl").read_text().splitlines()][1:]


@pytest.mark.parametrize("setting", ["fully", "weakly"])
def test_memory_and_disk_train_to_the_same_bits(main_in_process, tiny_folder, tmp_path, setting):
    for features in ("memory", "disk"):
        assert main_in_process(MAIN[setting], *RUN, "--data_dir", tiny_folder, "--output_dir", tmp_path / features,
                               "--features", features)[0] == 0
    assert epochs_of(tmp_path / "memory", setting) == epochs_of(tmp_path / "disk", setting)
    weights = [torch.load(tmp_path / features / f"PSP_{setting}.pt", weights_only=True)["weights"]
               for features in ("memory", "disk")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_run_may_go_on_with_its_features_elsewhere(main_in_process, tiny_folder, tmp_path):
    options = (*RUN, "--data_dir", tiny_folder, "--output_dir", tmp_path)
    assert main_in_process(MAIN["fully"], *options, "--features", "memory")[0] == 0
    assert main_in_process(MAIN["fully"], *options, "--features", "disk", "--resume")[0] == 0


def test_auto_takes_memory_where_there_is_room_and_else_the_disk(monkeypatch):
    for available, expected in ((100e9, "memory"), (5e9, "disk")):
        monkeypatch.setattr(memory, "available_memory", lambda: available)
        assert memory.choose_place(4e9, torch.device("cpu")) == (expected, torch.device("cpu"))


def test_batches_read_ahead_are_those_asked_for(tiny_folder):
    files = find_files(tiny_folder, required_files(["train"]))
    held, read_anew = AVEDataset(files, "train"), AVEDataset(files, "train", features="disk")
    asked_for = [torch.tensor(positions) for positions in ([3, 1, 2], [0, 23, 9], [4, 4, 4], [7])]
    for dataset in (held, read_anew):
        got = 0
        for positions, batch in zip(asked_for, read_ahead(dataset, asked_for, torch.device("cpu"))):
            assert all(torch.equal(value, held[positions][name]) for name, value in batch.items())
            got += 1
        assert got == 4
        assert list(read_ahead(dataset, [], torch.device("cpu"))) == []


def test_an_error_while_reading_ahead_ends_in_one_line(main_in_process, data_folder, tmp_path):
    import h5py
    with h5py.File(data_folder / "visual_feature.h5", "a") as file:
        file["avadataset"][13, 2, 1, 1, 5] = np.nan
    code, _, error = main_in_process(MAIN["fully"], *RUN, "--data_dir", data_folder, "--output_dir", tmp_path,
                                     "--features", "disk")
    assert code == 2 and "visual_feature.h5: contains NaN" in error.splitlines()[-1] and "video row 13" in error


def test_attention_on_a_few_videos_at_once_is_that_on_all(monkeypatch):
    torch.manual_seed(0)
    attention = AudioGuidedVisualAttention(6, 10, num_regions=9)
    audio, visual = torch.randn(7, 4, 6), torch.randn(7, 4, 9, 10)
    whole = attention(audio, visual)
    monkeypatch.setattr("psp_model.CACHED_VALUES", 3 * 4 * 9 * 512)      # three videos
    for part, expected in zip(attention(audio, visual), whole):
        torch.testing.assert_close(part, expected)


def test_bf16_is_near_fp32_and_is_kept_with_the_checkpoint(main_in_process, tiny_folder, tmp_path):
    results = {}
    for precision in ("fp32", "bf16"):
        output = tmp_path / precision
        assert main_in_process(MAIN["fully"], *RUN, "--data_dir", tiny_folder, "--output_dir", output,
                               "--precision", precision)[0] == 0
        results[precision] = epochs_of(output, "fully")
    assert results["bf16"][0]["loss"] != results["fp32"][0]["loss"]
    assert results["bf16"][0]["loss"] == pytest.approx(results["fp32"][0]["loss"], rel=0.02)
    code, out, _ = main_in_process(MAIN["fully"], "--trained_model_path", tmp_path / "bf16" / "PSP_fully.pt",
                                   "--data_dir", tiny_folder)
    best = results["bf16"][-1]["result"]["best_validation"]
    assert code == 0 and f"test accuracy: {100 * best['test_accuracy']:.2f} %" in out


def test_fp64_trains_in_float64_and_nothing_of_it_is_left_for_the_next_run(main_in_process, tiny_folder, tmp_path):
    logs = {}
    for number, precision in enumerate(("fp64", "fp32", "fp64")):
        output = tmp_path / f"{number}"
        assert main_in_process(MAIN["fully"], *RUN, "--data_dir", tiny_folder, "--output_dir", output,
                               "--features", ["memory", "memory", "disk"][number], "--precision", precision)[0] == 0
        logs[number] = (output / "PSP_fully.jsonl").read_text().splitlines()
        weights = torch.load(output / "PSP_fully.pt", weights_only=True)["weights"]
        assert {weight.dtype for weight in weights.values()} == {
            {"fp64": torch.float64, "fp32": torch.float32}[precision]}
    assert logs[0][1:] == logs[2][1:] != logs[1][1:]
    headers = [json.loads(logs[number][0])["run"]["data"] for number in range(3)]
    assert headers[0] == headers[1] == headers[2]      # the digest of the data, too


@pytest.mark.parametrize("trained, evaluated", [("fp64", "fp32"), ("fp32", "fp64"), ("fp64", "fp64")])
def test_a_checkpoint_of_either_dtype_is_evaluated_in_either(main_in_process, tiny_folder, tmp_path, trained,
                                                             evaluated):
    assert main_in_process(MAIN["weakly"], *RUN, "--data_dir", tiny_folder, "--output_dir", tmp_path,
                           "--precision", trained)[0] == 0
    best = epochs_of(tmp_path, "weakly")[-1]["result"]["best_validation"]
    code, out, error = main_in_process(MAIN["weakly"], "--trained_model_path", tmp_path / "PSP_weakly.pt",
                                       "--data_dir", tiny_folder, "--precision", evaluated)
    assert code == 0 and f"test accuracy: {100 * best['test_accuracy']:.2f} %" in out, error


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_tf32_is_refused_on_a_cpu(main_in_process, tiny_folder):
    code, _, error = main_in_process(MAIN["fully"], *RUN, "--data_dir", tiny_folder, "--precision", "tf32")
    assert code == 2 and "tf32" in error and error.count("\n") == 1


def launch(script, processes, *options):
    """The script under PyTorch's launcher."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}",
               str(ROOT / MAIN["fully" if "fully" in script else "weakly"]), *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, timeout=200)


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this PyTorch has no distributed package")
@pytest.mark.parametrize("setting", ["fully", "weakly"])
def test_two_processes_give_the_losses_of_one(main_in_process, tiny_folder, tmp_path, setting):
    options = (*RUN, "--data_dir", tiny_folder, "--output_dir")
    assert main_in_process(MAIN[setting], *options, tmp_path / "one")[0] == 0
    done = launch(setting, 2, *options, tmp_path / "two")
    assert done.returncode == 0, done.stderr
    one, two = epochs_of(tmp_path / "one", setting), epochs_of(tmp_path / "two", setting)
    assert len(two) == len(one) == 5
    for expected, got in zip(one[:4], two[:4]):
        assert got["loss"] == pytest.approx(expected["loss"], rel=1e-4)
    assert done.stdout.count("best validation accuracy") == 1      # one process prints and saves
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == [
        f"PSP_{setting}.jsonl", f"PSP_{setting}.pt", f"PSP_{setting}_state.pt"]


def test_a_batch_that_does_not_divide_is_refused(tiny_folder, tmp_path):
    done = launch("fully", 2, *RUN, "--batch_size", 7, "--data_dir", tiny_folder, "--output_dir", tmp_path)
    assert done.returncode != 0 and "--batch_size 7 is not divisible by the number of processes, 2" in done.stderr


def test_world_size_without_torchrun_ends_in_one_line(main_in_process, tiny_folder, monkeypatch):
    for value in ("2", "x"):
        monkeypatch.setenv("WORLD_SIZE", value)
        code, _, error = main_in_process(MAIN["fully"], *RUN, "--data_dir", tiny_folder)
        assert code == 2 and "not a process of torchrun" in error and error.count("\n") == 1


def test_network_output_in_float32_whatever_the_precision():
    network = PSPNetwork(4, 6, (2, 2), 3, threshold=0.1, **FULLY_SUPERVISED).eval()
    batch = {"audio": torch.rand(2, 3, 4), "visual": torch.rand(2, 3, 2, 2, 6).bfloat16()}
    output = utils.forward(network, batch, "bf16")
    assert output.logits.dtype == output.similarity.dtype == torch.float32
