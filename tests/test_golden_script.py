"""make_golden.py computes the committed numbers from stand-ins of the authors' files, and shows faults in these."""
from pathlib import Path

import pytest

from conftest import TESTS, assert_close_json
from golden import make_golden

STAND_IN = (TESTS / "golden" / "stand_in_networks.py").read_text()


@pytest.fixture
def remake(quick_script, tmp_path, monkeypatch):
    """Runs the script on the stand-ins, with faults {file: (text, its replacement)}; {group: difference}."""
    def run(faults):
        monkeypatch.chdir(tmp_path)
        for file in ("PSP_CVPR_2021/fully_model.py", "PSP_CVPR_2021/weakly_model.py", "AVE-ECCV18/models.py"):
            text, replacement = faults.get(Path(file).name, ("class", "class"))
            assert text in STAND_IN
            Path(file).parent.mkdir(exist_ok=True)
            Path(file).write_text(STAND_IN.replace(text, replacement))
        lines = quick_script("golden/make_golden.py").stdout.splitlines()
        assert "golden_again: File exists" in quick_script("golden/make_golden.py", code=2).stderr
        return {tuple(group): float(number) for *group, number in map(str.split, lines)}
    return run


def test_the_committed_numbers_are_made_again(remake, tmp_path):
    differences = remake({})
    for name in ("released.json", "avel.json"):
        assert_close_json(tmp_path / "golden_again" / name, TESTS / "golden" / name, rel=1e-9, abs=1e-12)
    assert len(differences) == 53 and max(differences.values()) < 1e-9


def test_faults_show_in_all_that_is_computed_after_them(remake, monkeypatch):
    monkeypatch.setattr(make_golden, "STEPS", 1)      # faster, and itself a fault
    differences = remake({"fully_model.py": ("threshold = threshold", "threshold = 0"),      # no pruning
                          "weakly_model.py": ("PUBLISHED[SETTING])", '{**PUBLISHED[SETTING], "renormalise": True})'),
                          "models.py": (".softmax(dim=-1)", "")})      # of the fully supervised output
    right = {"threshold", "lam", "attended_visual", "audio_lstm", "visual_lstm", "accuracy"}
    for (file, setting, name), difference in differences.items():
        wrong = name.removesuffix("_norm") not in right if file == "released.json" else (
            name == "adam_losses" or setting == "fully" and name in ("segment_output", "loss", "grad_norms"))
        assert name == "accuracy" or (difference > 1e-6) == wrong, (file, setting, name)
