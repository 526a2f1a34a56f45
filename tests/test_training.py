"""Both commands as a user runs them: training, checkpoints, evaluation, determinism, stopping and going on."""
import importlib
import json
import multiprocessing
import os
import re
import shutil
import signal
import sys
import time
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch

import utils
from conftest import MAIN, read, rewrite
from data.batches import shuffled_batches
from data.files import UserError, lock, write_atomically
from dataset import AVEDataset, find_files, required_files
from model.checkpoint import load, network_sizes, rebuild, save
from model.metrics import Predictions
from model.released import read_file
from model.run import Run
from psp_model import FULLY_SUPERVISED, WEAKLY_SUPERVISED, PSPNetwork, fully_supervised_loss

RUN = ("--train", "--nb_epoch", 8, "--check_epoch", 2, "--save_epoch", 3, "--batch_size", 8)


def log_of(folder, setting):
    return [json.loads(line) for line in (folder / f"PSP_{setting}.jsonl").read_text().splitlines()]


def percent(text, pattern):
    return float(re.search(pattern + r"[^\d\n]*([\d.]+) %", text).group(1))


@pytest.fixture(scope="module", params=["fully", "weakly"])
def trained(request, script, tiny_folder, tmp_path_factory):
    """(setting, output folder, what was printed) of a short uninterrupted run."""
    folder = tmp_path_factory.mktemp(request.param)
    done = script(MAIN[request.param], *RUN, "--data_dir", tiny_folder, "--output_dir", folder)
    return request.param, folder, done


_FILES = {"--dir_video": "visual_feature", "--dir_audio": "audio_feature", "--dir_order_train": "train_order",
          "--dir_order_val": "val_order", "--dir_order_test": "test_order"}
FILE_OPTIONS = {
    "fully": {**_FILES, "--dir_labels": "right_labels"},
    "weakly": {**_FILES, "--dir_labels": "mil_labels", "--prob_dir_labels": "prob_label",
               "--dir_labels_gt": "right_labels", "--dir_video_bg": "visual_feature_noisy",
               "--dir_audio_bg": "audio_feature_noisy", "--dir_labels_bg": "labels_noisy"},
}


def test_each_file_option_names_its_file(trained, main_in_process, tiny_folder, tmp_path):
    """A run whose files have other names, in a folder of their own, is the run with --data_dir."""
    setting, folder, _ = trained
    options = []
    for number, (option, name) in enumerate(FILE_OPTIONS[setting].items()):
        shutil.copy(tiny_folder / f"{name}.h5", tmp_path / f"file{number}")
        options += [option, tmp_path / f"file{number}"]
    code, _, error = main_in_process(MAIN[setting], *RUN, "--data_dir", tmp_path / "nothing", *options,
                                     "--output_dir", tmp_path)
    assert code == 0, error
    assert log_of(tmp_path, setting)[1:] == log_of(folder, setting)[1:]


def test_log_checkpoint_and_printed_figures_agree(trained, tiny_folder):
    setting, folder, done = trained
    first, *epochs, result = log_of(folder, setting)
    about = first["run"]
    assert about["setting"] == setting and about["settings"]["seed"] == 123 and about["device"] == "cpu"
    assert about["versions"]["torch"] == torch.__version__
    assert about["data"]["train"] == (24 if setting == "fully" else 29) and about["data"]["map_size"] == [3, 3]
    assert [epoch["epoch"] for epoch in epochs] == list(range(8))
    # Checks at 2, 4, 6; the last epoch, 7, is scored too, but does not take part in the choice.
    assert [epoch["epoch"] for epoch in epochs if "val_accuracy" in epoch] == [2, 4, 6, 7]
    best = max(epochs[2:7:2], key=lambda epoch: epoch["val_accuracy"])
    best_test = max(epochs[2:7:2], key=lambda epoch: epoch["test_accuracy"])
    assert result["result"]["best_validation"] == best
    assert result["result"]["best_test"]["test_accuracy"] == best_test["test_accuracy"]
    assert result["result"]["last"] == epochs[7]
    assert percent(done.stdout, "best validation accuracy") == round(100 * best["val_accuracy"], 2)
    assert percent(done.stdout, "test accuracy at the best validation epoch") == round(100 * best["test_accuracy"], 2)
    assert percent(done.stdout, "best test accuracy over all 3 checks") == round(100 * best_test["test_accuracy"], 2)
    checkpoint = torch.load(folder / f"PSP_{setting}.pt", weights_only=True)
    assert checkpoint["epoch"] == best["epoch"]


def test_evaluation_gives_the_figures_of_training_without_repeated_options(trained, tiny_folder, script, tmp_path):
    setting, folder, _ = trained
    done = script(MAIN[setting], "--trained_model_path", folder / f"PSP_{setting}.pt", "--data_dir", tiny_folder,
                  "--save_predictions", tmp_path / "predictions.json")
    best = log_of(folder, setting)[-1]["result"]["best_validation"]
    for split in ("val", "test"):
        assert percent(done.stdout, f"{split} accuracy") == round(100 * best[f"{split}_accuracy"], 2)

    # The prediction file, scored by hand against the label file, says the same, label by label.
    saved = json.loads((tmp_path / "predictions.json").read_text())
    with h5py.File(tiny_folder / "right_labels.h5") as file:
        labels = file["avadataset"][:].argmax(-1)
    ids = [line.split("&")[1] for line in (tiny_folder / "Annotations.txt").read_text().splitlines()]
    test_videos = [video for video in saved["videos"] if video["split"] == "test"]
    assert len(test_videos) == 7 and saved["label_names"][-1] == "background"
    right = {label: [] for label in range(5)}
    for video in test_videos:
        assert video["id"] == ids[video["video"]]
        assert len(video["labels"]) == len(video["probabilities"]) == 6
        assert all(0.2 <= p <= 1 for p in video["probabilities"])
        for predicted, true in zip(video["labels"], labels[video["video"]]):
            right[true].append(predicted == true)
    everything = sum(right.values(), [])
    assert np.mean(everything) == pytest.approx(best["test_accuracy"], abs=1e-12)
    for label, name in enumerate(saved["label_names"]):
        row = next(line for line in done.stdout.splitlines() if line.startswith(name))
        count, accuracy = re.findall(r"(\d+)\s+([\d.]+ %|-)", row[len(name):])[-1]
        assert int(count) == len(right[label])
        assert accuracy == (f"{100 * np.mean(right[label]):.2f} %" if right[label] else "-")


def test_any_batch_size_evaluates_all_videos(trained, tiny_folder, main_in_process):
    setting, folder, _ = trained
    options = ("--trained_model_path", folder / f"PSP_{setting}.pt", "--data_dir", tiny_folder)
    outputs = [main_in_process(MAIN[setting], *options, "--batch_size", size)[1] for size in (1000, 4)]
    assert outputs[0] == outputs[1] and "val accuracy" in outputs[0]


def test_checkpoint_of_the_other_setting_is_refused(trained, tiny_folder, main_in_process):
    setting, folder, _ = trained
    other = {"fully": "weakly", "weakly": "fully"}[setting]
    code, _, error = main_in_process(MAIN[other], "--trained_model_path", folder / f"PSP_{setting}.pt",
                                     "--data_dir", tiny_folder)
    assert code == 2 and f"{setting} supervised checkpoint" in error and error.count("\n") == 1


def same_run(folder, other, setting):
    """True if two output folders hold the same weights and the same log, bit for bit."""
    weights = [torch.load(place / f"PSP_{setting}{part}.pt", weights_only=True)["weights"]
               for part in ("", "_state") for place in (folder, other)]
    for one, two in (weights[:2], weights[2:]):
        assert one.keys() == two.keys()
        assert all(torch.equal(one[name], two[name]) for name in one)
    assert (folder / f"PSP_{setting}.jsonl").read_bytes() == (other / f"PSP_{setting}.jsonl").read_bytes()


def test_same_seed_same_bits_and_another_seed_others(trained, tiny_folder, main_in_process, tmp_path):
    setting, folder, done = trained
    code, out, _ = main_in_process(MAIN[setting], *RUN, "--data_dir", tiny_folder, "--output_dir", tmp_path / "again")
    assert code == 0
    same_run(folder, tmp_path / "again", setting)
    assert out.splitlines()[:-1] == done.stdout.splitlines()[:-1]
    main_in_process(MAIN[setting], *RUN, "--nb_epoch", 1, "--data_dir", tiny_folder,
                    "--output_dir", tmp_path / "other", "--seed", 124)
    assert log_of(tmp_path / "other", setting)[1]["loss"] != log_of(folder, setting)[1]["loss"]


def run_with_slow_checks(name, options, error_path):
    """Runs a main script, in a process that was forked for it; its checks take a while, so that a signal finds them."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = [name, *map(str, options)]
    predict = utils.predict

    def slow(*arguments):
        time.sleep(0.3)
        return predict(*arguments)
    utils.predict = slow
    with open(error_path, "w", buffering=1) as sys.stderr, open(os.devnull, "w") as sys.stdout, utils.one_line_errors():
        importlib.import_module(name.removesuffix(".py")).main()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda how: how.name)
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(trained, tiny_folder, main_in_process, tmp_path, how):
    """Stopped twice, in the checks of epochs 2 and 7; the state is saved after three and six epochs."""
    setting, folder, _ = trained
    output = tmp_path / "out"
    options = (*RUN, "--data_dir", tiny_folder, "--output_dir", output, "--resume")
    log = output / f"PSP_{setting}.jsonl"
    for lines, saved in ((3, 0), (8, 6)):      # stop once the log has that many lines; to be resumed from there
        process = multiprocessing.get_context("fork").Process(
            target=run_with_slow_checks, args=(MAIN[setting], options, tmp_path / "error.txt"))
        process.start()
        while process.is_alive() and (not log.exists() or log.read_text().count("\n") < lines):
            time.sleep(0.002)
        os.kill(process.pid, how)
        process.join(60)
        error = (tmp_path / "error.txt").read_text()
        assert process.exitcode == (-how if how == signal.SIGKILL else 128 + how), error
        assert log.read_text().count("\n") < 10      # of the run, eight epochs and the result
        if how != signal.SIGKILL:
            last_words = [line for line in error.splitlines() if "--resume" in line]
            assert len(last_words) == 1 and f"to go on from epoch {saved}" in last_words[0]
            assert "Traceback" not in error
    code, out, error = main_in_process(MAIN[setting], *options)
    assert code == 0 and "from epoch 6" in out, error
    same_run(folder, output, setting)


def test_the_state_is_saved_when_a_minute_has_passed(main_in_process, tiny_folder, tmp_path, monkeypatch):
    minutes = iter(range(0, 10**6, 61))
    monkeypatch.setattr("model.run.time", SimpleNamespace(monotonic=lambda: next(minutes)))
    options = ("--train", "--nb_epoch", 3, "--save_epoch", 100, "--batch_size", 8, "--data_dir", tiny_folder)
    saved = []
    save_state = Run._save_state

    def note_and_save(run):
        saved.append(run.epoch)
        save_state(run)
    monkeypatch.setattr(Run, "_save_state", note_and_save)
    assert main_in_process(MAIN["fully"], *options, "--output_dir", tmp_path)[0] == 0
    assert saved == [0, 1, 2, 3]


def test_of_two_equal_checks_the_earlier_one_is_kept(main_in_process, tiny_folder, tmp_path):
    """With a learning rate of 0 every check has the same accuracy."""
    options = ("--train", "--nb_epoch", 4, "--check_epoch", 1, "--batch_size", 8, "--lr", 0, "--data_dir", tiny_folder)
    assert main_in_process(MAIN["fully"], *options, "--output_dir", tmp_path)[0] == 0
    result = log_of(tmp_path, "fully")[-1]["result"]
    assert result["checks"] == 3
    assert result["best_validation"]["epoch"] == result["best_test"]["epoch"] == 1
    assert torch.load(tmp_path / "PSP_fully.pt", weights_only=True)["epoch"] == 1


def test_the_score_that_is_handed_in_chooses_the_checkpoint(tmp_path):
    """And its name is printed; None is the lowest score, and of equal scores the first one counts."""
    network = torch.nn.Linear(1, 1)
    optimizer = torch.optim.Adam(network.parameters())
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [9])

    class Split:
        sizes, digest, random_weights = SimpleNamespace(_asdict=dict, background=1), "", False

        def __len__(self):
            return 1
    data = {split: Split() for split in ("train", "val", "test")}
    args = SimpleNamespace(model_name="PSP", nb_epoch=7, check_epoch=1, save_epoch=1, resume=False, seed=1,
                           output_dir=tmp_path)
    labels = np.zeros((1, 2), int)
    result = Predictions(np.zeros(1), labels, labels, np.ones((1, 2)))
    with Run(args, "fully", {}, network, optimizer, schedule, data, steps=1) as run:
        for epoch, score in zip(run.epochs(), (None, None, 0.2, 0.5, 0.5, 0.4, None)):
            optimizer.step()
            run.add(torch.ones(()))
            run.end_steps()
            if run.is_check(epoch):
                run.keep_best(result, result, score=score, name="event F1")
            schedule.step()
            run.end_epoch()
        assert run.report()["best_epoch"] == 3
    with pytest.raises(UserError, match="chosen by event F1, not by accuracy"):
        run.keep_best(result, result, score=1, name="accuracy")


def test_weak_training_uses_the_label_shares_as_they_are(main_in_process, data_folder, tmp_path):
    """The first loss, computed here from the files, of shares that any rounding would change."""
    share = np.random.default_rng(0).dirichlet(np.ones(5), 40)
    rewrite(data_folder / "prob_label.h5", share)
    options = ("--train", "--nb_epoch", 1, "--batch_size", 24, "--lr", 0, "--background_videos", "off")
    assert main_in_process(MAIN["weakly"], *options, "--data_dir", data_folder, "--output_dir", tmp_path)[0] == 0
    rows = read(data_folder / "train_order.h5", "order")[shuffled_batches(24, 24, 123, 0)[0].numpy()]
    audio, visual = (torch.from_numpy(read(data_folder / f"{name}_feature.h5")[rows]).float()
                     for name in ("audio", "visual"))
    torch.manual_seed(123)
    network = PSPNetwork(12, 20, (3, 3), 5, threshold=0.095, **WEAKLY_SUPERVISED)
    logits = network(audio, visual).logits      # with the first dropout that is drawn
    probability = logits.mean(dim=1).softmax(dim=-1).detach().double().numpy()
    expected = -(share[rows] * np.log(probability) + (1 - share[rows]) * np.log(1 - probability)).mean()
    assert log_of(tmp_path, "weakly")[1]["loss"] == pytest.approx(expected, rel=1e-5)


def test_resume_with_other_options_is_refused_and_changes_nothing(trained, tiny_folder, main_in_process):
    setting, folder, _ = trained
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    code, _, error = main_in_process(MAIN[setting], *RUN, "--data_dir", tiny_folder, "--output_dir", folder,
                                     "--resume", "--lr", 0.5)
    assert code == 2 and "lr: 0.001 -> 0.5" in error
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("damage, expected", [
    (lambda folder: (folder / "PSP_fully.jsonl").unlink(), "PSP_fully.jsonl: is missing"),
    (lambda folder: (folder / "PSP_fully.pt").unlink(), "PSP_fully.pt: is missing"),
    (lambda folder: (folder / "PSP_fully_state.pt").write_bytes((folder / "PSP_fully.pt").read_bytes()),
     "not the state of a run"),
    (lambda folder: change_state(folder, epoch=-5), "position is impossible"),
    (lambda folder: change_state(folder, optimizer={}), "cannot be resumed from"),
    (lambda folder: change_state(folder, random="x"), "cannot be resumed from"),
    (lambda folder: change_state(folder, epoch=1.5), "position is impossible"),
    (lambda folder: change_state(folder, checks="x"), "position is impossible"),
    (lambda folder: change_state(folder, best={}), "its best is incomplete"),
    (lambda folder: change_state(folder, last="x"), "cannot be resumed from"),
    (lambda folder: change_state(folder, schedule={"milestones": None}), "cannot be resumed from"),
    (lambda folder: change_state(folder, config=[]), "cannot be resumed from"),
], ids=["no log", "no checkpoint", "a checkpoint as state", "position", "optimiser", "random", "epoch", "checks",
        "best", "last", "schedule", "config"])
def test_a_damaged_run_is_not_resumed(main_in_process, tiny_folder, tmp_path, damage, expected):
    options = ("--train", "--nb_epoch", 2, "--batch_size", 8, "--data_dir", tiny_folder, "--output_dir", tmp_path)
    assert main_in_process(MAIN["fully"], *options)[0] == 0
    damage(tmp_path)
    code, _, error = main_in_process(MAIN["fully"], *options, "--resume")
    assert code == 2 and expected in error and error.strip().count("\n") == 0


def change_state(folder, **changes):
    save(folder / "PSP_fully_state.pt", {**read_file(folder / "PSP_fully_state.pt"), **changes})


def test_files_of_an_earlier_run_are_kept_aside(main_in_process, tiny_folder, tmp_path):
    (tmp_path / "PSP_fully.pt").write_bytes(b"the authors' checkpoint")
    options = ("--train", "--nb_epoch", 1, "--batch_size", 8, "--data_dir", tiny_folder, "--output_dir", tmp_path)
    for _ in range(2):
        assert main_in_process(MAIN["fully"], *options)[0] == 0
    assert (tmp_path / "PSP_fully.1.pt").read_bytes() == b"the authors' checkpoint"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "PSP_fully.1.pt", "PSP_fully.2.jsonl", "PSP_fully.2.pt", "PSP_fully.jsonl", "PSP_fully.pt",
        "PSP_fully_state.2.pt", "PSP_fully_state.pt"]


def test_a_second_run_into_the_same_folder_is_refused(main_in_process, tiny_folder, tmp_path):
    log = tmp_path / "PSP_fully.jsonl"
    log.write_text("of a run under way\n")
    with lock(log.open("ab"), log):
        code, _, error = main_in_process(MAIN["fully"], "--train", "--nb_epoch", 1, "--batch_size", 8,
                                         "--data_dir", tiny_folder, "--output_dir", tmp_path)
    assert code == 2 and "another run" in error
    assert log.read_text() == "of a run under way\n"


def test_a_failed_write_leaves_the_former_file(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.pt"
    save(path, {"weights": torch.ones(3)})

    def disk_full(descriptor):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr("os.fsync", disk_full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, b"half")
    assert torch.equal(read_file(path)["weights"], torch.ones(3))
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_each_epoch_draws_every_video_once_in_another_order_and_drops_the_short_batch():
    epochs = [shuffled_batches(23, 5, seed, epoch) for seed, epoch in ((1, 0), (1, 1), (2, 0))]
    for batches in epochs:
        assert batches.shape == (4, 5)
        assert len(set(batches.flatten().tolist())) == 20 and set(batches.flatten().tolist()) <= set(range(23))
    assert len({tuple(batches.flatten().tolist()) for batches in epochs}) == 3
    assert torch.equal(shuffled_batches(23, 5, 1, 1), epochs[1])
    left_out = [set(range(23)) - set(shuffled_batches(23, 5, 1, epoch).flatten().tolist()) for epoch in range(60)]
    assert set.union(*left_out) == set(range(23))       # nobody is left out for good, nor always in


@pytest.mark.parametrize("setting, milestones", [("fully", (60, 120)), ("weakly", (80, 160))])
def test_the_learning_rate_falls_after_the_epochs_of_the_paper(main_in_process, tiny_folder, tmp_path, monkeypatch,
                                                               setting, milestones):
    monkeypatch.setattr("data.batches.TrainingBatches.epoch", lambda batches, epoch: [])      # epochs without a step
    options = ("--train", "--nb_epoch", 162, "--check_epoch", 1000, "--save_epoch", 1000, "--batch_size", 8)
    assert main_in_process(MAIN[setting], *options, "--data_dir", tiny_folder, "--output_dir", tmp_path)[0] == 0
    rates = [epoch["lr"] for epoch in log_of(tmp_path, setting)[1:-1]]
    expected = [1e-3 * 0.8 ** sum(epoch >= milestone for milestone in milestones) for epoch in range(162)]
    assert rates == pytest.approx(expected, rel=1e-12)


def test_the_network_learns_eight_videos_by_heart(tiny_folder):
    torch.manual_seed(0)
    dataset = AVEDataset(find_files(tiny_folder, required_files(["train"])), "train")
    batch = dataset[list(range(0, 24, 3))]
    sizes = dataset.sizes
    network = PSPNetwork(**network_sizes(sizes), threshold=0.099, **FULLY_SUPERVISED)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    for _ in range(80):
        loss = fully_supervised_loss(network(batch["audio"], batch["visual"]), batch["labels"], 100)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network.eval()
    predicted = network(batch["audio"], batch["visual"]).logits.argmax(-1)
    assert (predicted == batch["labels"]).double().mean() > 0.95


@pytest.mark.parametrize("name, value", [
    ("threshold", float("nan")), ("threshold", "0.1"), ("threshold", 10**5000), ("audio_dim", 10**12),
    ("num_classes", -1),
    ("map_size", [3]), ("audio_dim", torch.ones(3)), ("map_size", [[[]] * 9] * 9), ("weighting", torch.ones(3)),
    ("attention", "none"), ("modality", [1]), ("propagation", "none"), ("dropout", "x"), ("renormalise", torch.ones(0)),
    ("dropout", float("nan")), ("modality", "a" * 10**6)], ids=range(16))
def test_impossible_options_in_a_checkpoint_are_refused(tmp_path, name, value):
    options = dict(audio_dim=12, visual_dim=20, map_size=(3, 3), num_classes=5, threshold=0.1, **FULLY_SUPERVISED)
    save(tmp_path / "PSP.pt", {"setting": "fully", "model_name": "PSP", "network": {**options, name: value},
                                             "weights": PSPNetwork(**options).state_dict()})
    with pytest.raises(UserError, match=r"impossible|broken|two numbers|does not hold|dropout of its own"):
        rebuild(load(tmp_path / "PSP.pt"), tmp_path / "PSP.pt")


def test_weights_that_overflow_give_no_figures(main_in_process, tiny_folder, tmp_path):
    options = dict(audio_dim=12, visual_dim=20, map_size=(3, 3), num_classes=5, threshold=0.1, **FULLY_SUPERVISED)
    weights = {name: weight * 3e37 if "classifier" in name else weight
               for name, weight in PSPNetwork(**options).state_dict().items()}
    save(tmp_path / "PSP.pt", {"setting": "fully", "model_name": "PSP", "network": options, "weights": weights})
    code, out, error = main_in_process(MAIN["fully"], "--trained_model_path", tmp_path / "PSP.pt",
                                       "--data_dir", tiny_folder)
    assert code == 2 and "NaN or infinite" in error and "accuracy" not in out


@pytest.mark.parametrize("name, expected", [("nowhere/p.json", "no folder"), ("notes.txt", "exists already"),
                                            ("PSP.pt", "exists already")])
def test_predictions_replace_nothing_but_predictions(main_in_process, tiny_folder, tmp_path, monkeypatch, name,
                                                     expected):
    monkeypatch.chdir(tmp_path)
    for file in ("PSP.pt", "notes.txt"):
        (tmp_path / file).write_text("precious")
    code, _, error = main_in_process(MAIN["fully"], "--trained_model_path", "PSP.pt", "--save_predictions", name,
                                     "--data_dir", tiny_folder)
    assert code == 2 and expected in error
    assert (tmp_path / "PSP.pt").read_text() == (tmp_path / "notes.txt").read_text() == "precious"


BAD_OPTIONS = {
    "nothing to do": ([], "--train"),
    "both": (["--train", "--trained_model_path", "x.pt"], "either"),
    "no such folder": (["--train", "--data_dir", "nowhere"], "nowhere/visual_feature.h5"),
    "negative threshold": (["--train", "--threshold", "-0.1"], "--threshold"),
    "threshold over 1": (["--train", "--threshold", "1.5"], "--threshold"),
    "threshold is no number": (["--train", "--threshold", "nan"], "--threshold"),
    "unknown model": (["--train", "--model_name", "XYZ"], "--model_name"),
    "unknown option": (["--train", "--treshold", "0.1"], "--treshold"),
    "batch size 0": (["--train", "--batch_size", "0"], "--batch_size"),
    "batch too large": (["--train", "--batch_size", "25"], "25 is larger than the training set (24 videos)"),
    "an endless number": (["--train", "--nb_epoch", "1" + 400 * "0"], "--nb_epoch"),
    "a device without numbers": (["--train", "--device", "meta"], "--device meta"),
    "no epochs": (["--train", "--nb_epoch", "0"], "--nb_epoch"),
    "infinite weight": (["--train", "--LAMBDA", "inf"], "--LAMBDA"),
    "unknown device": (["--train", "--device", "abacus"], "--device abacus"),
    "no such checkpoint": (["--trained_model_path", "none.pt"], "none.pt: not found"),
    "a folder as checkpoint": (["--trained_model_path", "."], "folder"),
    "a folder as file": (["--train", "--dir_video", "."], "is a folder"),
    "wrong annotations": (["--trained_model_path", "CHECKPOINT", "--annotations", "short.txt"],
                          "short.txt: has 1 lines"),
    "other data": (["--trained_model_path", "WIDE"], "visual_dim"),
    "resume without training": (["--trained_model_path", "x.pt", "--resume"], "--resume"),
    "an ablation in evaluation": (["--trained_model_path", "CHECKPOINT", "--attention", "mean"], "goes with --train"),
    "another model": (["--trained_model_path", "CHECKPOINT", "--model_name", "AVEL"], "is a checkpoint of PSP"),
    "a seed too large": (["--train", "--seed", "4294967295", "--runs", "2"], "2^32"),
    "AVEL with LAMBDA": (["--train", "--model_name", "AVEL", "--LAMBDA", "5"], "AVEL has no"),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_bad_options_end_in_one_clear_line(main_in_process, tiny_folder, tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "short.txt").write_text("Bark&id&good&0&6\n")
    for name, visual_dim in (("CHECKPOINT", 20), ("WIDE", 21)):
        options = dict(audio_dim=12, visual_dim=visual_dim, map_size=(3, 3), num_classes=5, threshold=0.1,
                       **FULLY_SUPERVISED)
        save(tmp_path / name, {"setting": "fully", "model_name": "PSP", "network": options,
                                             "weights": PSPNetwork(**options).state_dict()})
    options, expected = BAD_OPTIONS[case]
    data = [] if "--data_dir" in options else ["--data_dir", tiny_folder]
    code, _, error = main_in_process(MAIN["fully"], *options, *data)
    assert code == 2
    assert expected in error
    assert "Traceback" not in error
    assert case == "no such folder" or case == "a folder as file" or error.strip().count("\n") == 0


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n" + bytes(99), b"PK\x03\x04" + bytes(50)],
                         ids=["empty", "PNG", "broken zip"])
def test_what_is_no_checkpoint_is_refused(main_in_process, tiny_folder, tmp_path, content):
    path = tmp_path / "PSP_fully.pt"
    path.write_bytes(content)
    code, _, error = main_in_process(MAIN["fully"], "--trained_model_path", path, "--data_dir", tiny_folder)
    assert code == 2 and str(path) in error and error.strip().count("\n") == 0


@pytest.mark.parametrize("setting", ["fully", "weakly"])
def test_a_loss_that_is_not_finite_stops_the_run_and_says_where(main_in_process, tiny_folder, tmp_path, setting):
    code, _, error = main_in_process(MAIN[setting], "--train", "--lr", "1e9", "--nb_epoch", 5, "--batch_size", 8,
                                     "--data_dir", tiny_folder, "--output_dir", tmp_path)
    assert code == 2 and re.search(r"the loss of epoch \d is (nan|inf)", error)


def test_resume_takes_the_same_options_however_they_are_written(main_in_process, tiny_folder, tmp_path, monkeypatch):
    options = ("--train", "--nb_epoch", 2, "--batch_size", 8, "--output_dir", tmp_path)
    assert main_in_process(MAIN["fully"], *options, "--data_dir", tiny_folder)[0] == 0
    monkeypatch.chdir(tiny_folder)
    code, out, error = main_in_process(MAIN["fully"], *options, "--data_dir", ".", "--threshold=0.099", "--resume")
    assert code == 0, error
    code, _, error = main_in_process(MAIN["fully"], *options, "--data_dir", ".", "--threshold=0.2", "--resume")
    assert code == 2 and "threshold: 0.099 -> 0.2" in error


def test_features_without_labels_are_labelled_and_not_scored(trained, tiny_folder, main_in_process, tmp_path):
    """On a folder with nothing but features: the labels that the scored evaluation gives the same videos."""
    setting, folder, _ = trained
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("audio_feature.h5", "visual_feature.h5"):
        shutil.copy(tiny_folder / name, bare)
    (bare / "videos.txt").write_text("".join(f"clip {row}.mp4\n" for row in range(40)))
    saved = {}
    for data in (tiny_folder, bare):
        code, out, error = main_in_process(MAIN[setting], "--trained_model_path", folder / f"PSP_{setting}.pt",
                                           "--data_dir", data, "--save_predictions", tmp_path / "predictions.json")
        assert code == 0, error
        saved[data] = json.loads((tmp_path / "predictions.json").read_text())["videos"]
    assert "accuracy" not in out and "its 40 videos are labelled and not scored" in out
    assert [video["id"] for video in saved[bare]] == [f"clip {row}.mp4" for row in range(40)]
    for video in saved[tiny_folder]:
        unscored = saved[bare][video["video"]]
        assert unscored["split"] == "all" and unscored["labels"] == video["labels"]
        assert unscored["probabilities"] == pytest.approx(video["probabilities"], abs=1e-5)
    with_event = sum(any(label != 4 for label in video["labels"]) for video in saved[bare])
    videos_of_category = [int(re.search(rf"^category {label} +(\d+) videos", out, re.M)[1])
                          for label in {label for video in saved[bare] for label in video["labels"]} - {4}]
    assert sum(videos_of_category) >= with_event
    (bare / "val_order.h5").write_bytes((tiny_folder / "val_order.h5").read_bytes())
    code, _, error = main_in_process(MAIN[setting], "--trained_model_path", folder / f"PSP_{setting}.pt",
                                     "--data_dir", bare)
    assert code == 2 and "right_labels.h5" in error      # a folder that is not whole is not one without labels


def test_features_of_random_weights_are_marked_in_every_log(main_in_process, data_folder, tmp_path):
    with h5py.File(data_folder / "audio_feature.h5", "a") as file:
        file["avadataset"].attrs["random_weights"] = True
    code, _, error = main_in_process(MAIN["fully"], "--train", "--nb_epoch", 1, "--batch_size", 8,
                                     "--data_dir", data_folder,
                                     "--output_dir", tmp_path)
    assert code == 0 and "WARNING" in error and "--random_weights" in error
    assert log_of(tmp_path, "fully")[0]["run"]["data"]["random_weights"] is True


def test_a_checkpoint_with_the_first_names_is_read(tmp_path):
    """Checkpoints of this repository before num_classes was called so."""
    network = PSPNetwork(12, 20, (3, 3), 5, threshold=0.1, **WEAKLY_SUPERVISED)
    config = dict(audio_dim=12, visual_dim=20, map_size=(3, 3), labels=5, threshold=0.1, **WEAKLY_SUPERVISED,
                  attention="audio-guided", propagation="psp", modality="both")
    save(tmp_path / "PSP.pt", {"setting": "weakly", "model_name": "PSP", "network": config,
                               "weights": network.state_dict()})
    again = rebuild(load(tmp_path / "PSP.pt"), tmp_path / "PSP.pt")
    assert torch.equal(again.classifier[2].weight, network.classifier[2].weight)
