"""make_golden.py computes the committed numbers from stand-ins of the authors' files, and shows faults in these."""
import json

import pytest

from conftest import TESTS, close
from golden import make_golden

STAND_IN = (TESTS / "golden" / "stand_in_networks.py").read_text()


@pytest.fixture
def remake(quick_script, tmp_path):
    """Runs the script on the stand-ins, with faults {file: (text, its replacement)}: ({group: difference}, folder)."""
    def run(faults):
        for file in ("fully_model.py", "weakly_model.py", "models.py"):
            text, replacement = faults.get(file, ("FULLY", "FULLY"))
            assert text in STAND_IN
            (tmp_path / file).write_text(STAND_IN.replace(text, replacement))
        options = ("--psp_dir", tmp_path, "--ave_dir", tmp_path, "--output_dir", tmp_path / "new")
        lines = quick_script("golden/make_golden.py", *options).stdout.splitlines()
        assert "exists already" in quick_script("golden/make_golden.py", *options, code=2).stderr
        return {tuple(group): float(number) for *group, number in map(str.split, lines)}, tmp_path / "new"
    return run


def assert_same(made, committed):
    if isinstance(committed, dict):
        assert made.keys() == committed.keys()
        for name in committed:
            assert_same(made[name], committed[name])
    elif committed is None:
        assert made is None
    else:
        close(made, committed, 1e-9)


def test_the_committed_numbers_are_made_again(remake):
    differences, folder = remake({})
    for name in ("released.json", "avel.json"):
        assert_same(json.loads((folder / name).read_text()), json.loads((TESTS / "golden" / name).read_text()))
    assert len(differences) == 53 and max(differences.values()) < 1e-9


def test_faults_show_in_all_that_is_computed_after_them(remake, monkeypatch):
    """And a weakly supervised class of AVEL is used if NETWORKS names one."""
    monkeypatch.setattr(make_golden, "STEPS", 1)      # faster, and itself a fault
    monkeypatch.setitem(make_golden.NETWORKS, ("avel", "weakly"),
                        ("ave_dir", "models.py", "weak_att_Net", (128, 128, 512, 29)))
    differences, _ = remake({"fully_model.py": ("beta > threshold", "beta > 0"),      # no pruning
                             "weakly_model.py": (" if FULLY else beta\n", "\n"),      # a second normalisation
                             "models.py": ("scores.max(dim=1)[0]", "scores.mean(dim=1)")})
    right = {"threshold", "lam", "attended_visual", "audio_lstm", "visual_lstm", "accuracy"}
    for (file, setting, name), difference in differences.items():
        wrong = name.removesuffix("_norm") not in right if file == "released.json" else (
            name == "adam_losses" or setting == "weakly" and name in ("video_prob", "loss", "grad_norms"))
        assert name == "accuracy" or (difference > 1e-6) == wrong, (file, setting, name)
