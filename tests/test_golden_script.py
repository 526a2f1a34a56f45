"""make_golden.py computes the committed numbers from stand-ins of the authors' files, and shows a fault in these."""
from pathlib import Path

import pytest

from conftest import TESTS, assert_close_json
from golden import make_golden

STAND_IN = (TESTS / "golden" / "stand_in_networks.py").read_text()


@pytest.fixture
def remake(quick_script, tmp_path, monkeypatch):
    """Runs the script on files of this text; {(file, setting, name): difference}."""
    def run(text):
        monkeypatch.chdir(tmp_path)
        for file in ("PSP_CVPR_2021/fully_model.py", "PSP_CVPR_2021/weakly_model.py", "AVE-ECCV18/models.py"):
            Path(file).parent.mkdir(exist_ok=True)
            Path(file).write_text(text)
        lines = quick_script("golden/make_golden.py").stdout.splitlines()
        assert "golden_again: File exists" in quick_script("golden/make_golden.py", code=2).stderr
        return {tuple(group): float(number) for *group, number in map(str.split, lines)}
    return run


def test_the_committed_numbers_are_made_again(remake, tmp_path):
    differences = remake(STAND_IN)
    for name in ("released.json", "avel.json"):
        assert_close_json(tmp_path / "golden_again" / name, TESTS / "golden" / name, rel=1e-9, abs=1e-12)
    assert len(differences) == 53 and max(differences.values()) < 1e-9


def test_a_fault_shows_in_all_that_is_computed_after_it(remake, monkeypatch):
    monkeypatch.setattr(make_golden, "STEPS", 1)      # faster, and itself a fault
    differences = remake(STAND_IN.replace("threshold = threshold", "threshold = 0"))      # no pruning
    right = {"threshold", "lam", "attended_visual", "audio_lstm", "visual_lstm", "accuracy"}
    for (file, setting, name), difference in differences.items():
        wrong = name == "adam_losses" or file == "released.json" and name.removesuffix("_norm") not in right
        assert name == "accuracy" or (difference > 1e-6) == wrong, (file, setting, name)
