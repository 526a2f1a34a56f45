"""Changes that a reader makes to the code, in a copy of it: what is recorded, chosen and reported stays right."""
import re
import runpy
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from conftest import MAIN, ROOT, SHORT, evaluate_run, read, read_log, rewrite
from fully_supervised_main import options
from model.checkpoint import load_checkpoint
from model.options import parse_options
from model.run import code_checksum
from psp_model import PUBLISHED, PSPNetwork
from utils import InPrecision


@pytest.fixture
def edited(tmp_path, tiny_folder, monkeypatch, capsys):
    """Trains by a main script in which texts are replaced, for four epochs of two steps, into tmp_path: its output."""
    def run(*replaced, options=()):
        text = (ROOT / MAIN["fully"]).read_text()
        for old, new in replaced:
            assert old in text
            text = text.replace(old, new)
        (tmp_path / "edited.py").write_text(text)
        options = (*SHORT, "--check_epoch", 1, "--data_dir", tiny_folder, "--output_dir", tmp_path, *options)
        monkeypatch.setattr(sys, "argv", ["edited.py", *map(str, options)])
        runpy.run_path(str(tmp_path / "edited.py"), run_name="__main__")
        return capsys.readouterr().out
    return run


SCORE = "score = val.accuracy "


def test_a_custom_score_chooses_and_is_what_the_report_names(edited, tmp_path):
    out = edited((SCORE, 'score = np.float64(-val.metrics(data["val"].sizes.background)["event_f1"]) '),
                 ("import torch\n", "import numpy as np\nimport torch\n"))
    _, epochs, result = read_log(tmp_path, "fully")
    chosen = max(epochs[1:], key=lambda epoch: epoch["score"])
    assert result["best"] == chosen
    checkpoint = load_checkpoint(tmp_path / "PSP_fully.pt")
    assert (checkpoint["score"], checkpoint["epoch"]) == (chosen["score"], chosen["epoch"])
    assert f"best score: {chosen['score']} (epoch {chosen['epoch']})" in out and "best validation accuracy" not in out


def test_what_else_a_run_needs_continues_with_it(edited, tmp_path):
    """Here an average of the weights."""
    average = (("with Run(", "average = AveragedModel(network)\n    with Run("),
               ("schedule, batches.steps)", "schedule, batches.steps, average=average)"),
               ("run.add(loss)", "run.add(loss)\n                average.update_parameters(network)"),
               ("import torch\n", "import torch\nfrom torch.optim.swa_utils import AveragedModel\n"))
    edited(*average, options=["--output_dir", tmp_path / "whole"])
    with pytest.raises(AssertionError):
        edited(*average, ("run.end_epoch(record)", "run.end_epoch(record)\n            assert epoch < 2"))
    edited(*average, options=["--resume"])
    whole, resumed = (torch.load(folder / "PSP_fully_state.pt", weights_only=True)["average"]
                      for folder in (tmp_path / "whole", tmp_path))
    assert whole["n_averaged"] == 8 and all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.parametrize("scores, chosen", [("[0, None, None, None]", 3), ("[0, None, 0.2, None]", 2),
                                            ("[0, 0.2, None, 0.1]", 1)])
def test_a_score_of_none_never_beats_a_number(edited, tmp_path, scores, chosen):
    edited((SCORE, f"score = {scores}[epoch] "))
    assert load_checkpoint(tmp_path / "PSP_fully.pt")["epoch"] == chosen
    assert read_log(tmp_path, "fully")[2]["best"]["epoch"] == chosen


def test_a_part_of_the_loss_is_logged_as_it_was_in_its_step(edited, tmp_path):
    edited(("run.add(loss)", "total = total + 1 if 'total' in locals() else 0 * loss.detach()\n"
            "                run.add(loss, total=total)\n                total += 1"))
    assert [epoch["total"] for epoch in read_log(tmp_path, "fully")[1]] == [1, 5, 9, 13]      # 0 2 4 6 8 10 12 14


def test_a_score_that_is_the_accuracy_at_times_is_not_reported_as_the_best_accuracy(edited):
    out = edited((SCORE, "score = val.accuracy if epoch > 2 else None "))
    assert "best score: " in out and "best validation accuracy" not in out


def test_an_option_with_a_dash_is_refused_in_evaluation(monkeypatch, capsys):
    parser = options()
    parser.loss.add_argument("--bidir-weight", type=float, default=1)
    monkeypatch.setattr(sys, "argv", ["edited.py", "--trained_model_path", "PSP_fully.pt", "--bidir-weight=2"])
    with pytest.raises(SystemExit):
        parse_options(parser)
    assert "--bidir-weight needs --train" in capsys.readouterr().err


def test_parts_of_the_loss_and_the_rate_of_the_last_step_are_logged(edited, tmp_path):
    edited(("run.add(loss)", "schedule.step()\n                run.add(loss, twice=2 * loss)"),
           ("            schedule.step()\n\n", "\n"), ("milestones=[60, 120]", "milestones=[2]"),
           options=["--log_steps"])
    for epoch in read_log(tmp_path, "fully")[1]:
        assert epoch["loss"] == pytest.approx(np.mean(epoch["losses"]), rel=1e-6)
        assert epoch["twice"] == pytest.approx(2 * epoch["loss"], rel=1e-6)
        assert epoch["lr"] == (1e-3 if epoch["epoch"] == 0 else 8e-4)


def test_a_part_of_the_loss_overwrites_nothing(edited):
    with pytest.raises(ValueError, match="cannot be named 'test_accuracy'"):
        edited(("run.add(loss)", "run.add(loss, test_accuracy=loss)"))


def test_a_score_that_is_nan_ends_the_run_in_one_line(edited, capsys):
    with pytest.raises(SystemExit):
        edited((SCORE, "score = float('nan') "))
    assert "the score of epoch 1 is NaN" in capsys.readouterr().err


def test_evaluation_on_other_features_is_noted(trained, tiny_folder, data_folder):
    setting, folder, _ = trained
    assert "has other features" not in evaluate_run(folder, setting, tiny_folder).stdout
    rewrite(data_folder / "audio_feature.h5", 2 * read(data_folder / "audio_feature.h5"))
    assert evaluate_run(folder, setting, data_folder).stdout.count("has other features, labels or videos") == 2


OPTION = ("    parser.set_defaults(nb_epoch", "    parser.loss.add_argument('--bidir_weight', type=float, default=1)\n"
          "    parser.set_defaults(nb_epoch")


def test_an_option_of_any_name_is_recorded_and_compared(edited, tmp_path, tiny_folder, capsys):
    edited(OPTION, options=["--nb_epoch", 1])
    header = read_log(tmp_path, "fully")[0]
    assert header["options"]["bidir_weight"] == 1 and header["paths"] == {"data_dir": str(tiny_folder)}
    with pytest.raises(SystemExit):
        edited(OPTION, options=["--nb_epoch", 1, "--resume", "--bidir_weight", 2])
    assert "is another one (bidir_weight: 1 -> 2.0)" in capsys.readouterr().err


def test_evaluation_says_if_other_code_trained_the_checkpoint(edited, train, tiny_folder, tmp_path):
    edited(("gamma=0.8", "gamma=0.8 + 0"), options=["--nb_epoch", 1])
    assert "note: this checkpoint was trained by other code" in evaluate_run(tmp_path, "fully", tiny_folder).stdout
    train("fully", "--nb_epoch", 1)
    assert "other code" not in evaluate_run(tmp_path, "fully", tiny_folder).stdout


@pytest.fixture
def code_copy(tmp_path):
    return shutil.copytree(ROOT, tmp_path / "copy", ignore=shutil.ignore_patterns(".git", "*.h5", "*.pt", "figures"))


def test_the_checksum_covers_the_modules_that_training_imports_and_no_others(code_copy, monkeypatch):
    before = code_checksum(ROOT / MAIN["fully"])
    monkeypatch.setattr("model.run.ROOT", code_copy)
    assert code_checksum(code_copy / MAIN["fully"]) == before
    for name, counts in (("data/check.py", False), (MAIN["weakly"], False), ("model/avel.py", False),
                         ("psp_model.py", True), ("model/metrics.py", True), (MAIN["fully"], True)):
        text = (code_copy / name).read_text()
        (code_copy / name).write_text(text + "\n# changed\n")
        assert (code_checksum(code_copy / MAIN["fully"]) != before) == counts, name
        (code_copy / name).write_text(text)


def test_all_that_a_network_returns_comes_out_in_float32_under_bf16():
    network = PSPNetwork(12, 20, (3, 3), 5, **PUBLISHED["fully"])
    output = InPrecision(network, "bf16")(torch.rand(2, 6, 12), torch.rand(2, 6, 3, 3, 20).bfloat16())
    assert {value.dtype for value in (*output[:3], *output.psp)} == {torch.float32}


def test_one_more_feature_file_reaches_training_checks_and_evaluation(code_copy, data_folder, tmp_path):
    """Three edits: its name, its file, and the network that takes it."""
    for name, old, new in (
            ("dataset.py", 'FEATURES = ("audio", "visual")', 'FEATURES = ("audio", "visual", "flow")'),
            ("dataset.py", "AVE_FILES = {", 'AVE_FILES = {"flow": AVEFile(("flow_feature.h5",), "flow", ""),'),
            ("psp_model.py", "def forward(self, audio, visual):\n        \"\"\"audio [B, T, Da], visual [B, T, h",
             "def forward(self, audio, visual, flow):\n        audio = audio + flow.mean()\n        \"\"\"")):
        text = (code_copy / name).read_text()
        assert old in text
        (code_copy / name).write_text(text.replace(old, new))
    rewrite(data_folder / "flow_feature.h5", np.random.default_rng(0).random((40, 6, 5)))
    command = [sys.executable, MAIN["fully"], "--data_dir", data_folder, "--output_dir", tmp_path]
    for options in (SHORT, ["--trained_model_path", tmp_path / "PSP_fully.pt"]):
        done = subprocess.run([*command, *options], cwd=code_copy, capture_output=True, text=True)
        assert done.returncode == 0 and "test accuracy" in done.stdout, done.stderr


def test_the_python_of_the_readmes_runs_and_its_checkpoint_is_evaluated(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()

    def values_of(readme):
        block, = re.findall(r"```python\n(.*?)```", (ROOT / readme).read_text(), re.DOTALL)
        values = {}
        exec(block.replace("data/synthetic", str(tiny_folder)).replace("batch_size=32", "batch_size=8"), values)
        return values

    assert values_of("README.md")["output"].logits.shape == (4, 10, 29)
    accuracy = values_of("model/README.md")["accuracy"]
    (tmp_path / "model" / "notebook.pt").rename(tmp_path / "PSP_fully.pt")
    assert f"val accuracy: {100 * accuracy:.2f} %" in evaluate_run(tmp_path, "fully", tiny_folder).stdout
