"""The audit says what is true of a folder: counts on the real files, and each kind of damage by file and remedy."""
import re
import warnings

import h5py
import numpy as np
import pytest

from conftest import change, read, rewrite, with_value


@pytest.fixture
def audit(main_in_process):
    """(exit code, what is worth knowing, what is wrong, all output) of a folder's audit."""
    def run(folder, *options):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            code, out, error = main_in_process("data.check", "--data_dir", folder, *options)
        assert error == "" and ("cannot be" in out) == bool(code)
        rest, _, wrong = out.partition("\nWrong:")
        return code, rest.partition("\nWorth knowing:")[2], wrong, out
    return run


def test_a_good_folder(audit, tiny_folder):
    code, notes, wrong, out = audit(tiny_folder)
    assert (code, notes, wrong) == (0, "", "") and "can be trained on (fully and weakly supervised)" in out
    visual = read(tiny_folder / "visual_feature.h5")
    row = next(line for line in out.splitlines() if line.startswith("visual_feature.h5"))
    assert "40 x 6 x 3 x 3 x 20" in row and "float64" in row
    assert f"{100 * (visual == 0).mean():.1f} %" in row and f"{visual.max():.4g}" in row
    train = read(tiny_folder / "right_labels.h5")[read(tiny_folder / "train_order.h5", "order")]
    assert re.search(rf"hold the event +{100 * (train[..., -1] == 0).mean():.1f} %", out)


def test_the_real_labels_and_splits(audit, quick_script, real_ave, tmp_path):
    quick_script("data/synthetic.py", "--output_dir", tmp_path, "--annotations", real_ave / "Annotations.txt",
                 "--orders", real_ave, *"--audio_dim 3 --map_size 1 --visual_dim 2 --background 178".split())
    for name in ("mil_labels.h5", "labels_noisy.h5"):      # the published ones
        (tmp_path / name).write_bytes((real_ave / name).read_bytes())
    code, notes, _, out = audit(tmp_path)
    assert code == 0
    for text in ("45 ids occur more than once in the annotations: 46 rows too many", "8 ids are in both train and test",
                 "10 ids are in both train and val", "rows 26"):
        assert text in notes
    assert re.search(r"all videos +3339 +402 +402", out)
    assert re.search(r"hold the event +83.1 % +81.8 % +82.2 %", out)
    assert re.search(r"in all segments +66.8 % +64.2 % +64.9 %", out)


def attribute(name, value_of):
    def apply(folder):
        with h5py.File(folder / "visual_feature.h5", "a", locking=False) as file:
            file["avadataset"].attrs[name] = value_of(folder)
    return apply


def rows_of_test(folder):
    return read(folder / "test_order.h5", "order")


def without_maps_of_test(folder):
    change("visual_feature.h5", lambda a: with_value(a, rows_of_test(folder), 0))(folder)


WRONG = {
    "missing": (lambda folder: (folder / "prob_label.h5").unlink(), "prob_label.h5: missing.*prepare_labels.py"),
    "NaN": (change("audio_feature.h5", lambda a: with_value(a, (3, 2, 1), np.nan)), "audio_feature.h5: 1 values are"),
    "share": (change("prob_label.h5", lambda a: with_value(a, 7, [0, 0, 0.5, 0, 0.5])), "prob_label.h5: 1 vid.*row 7"),
    "category": (change("mil_labels.h5", lambda a: np.roll(a, 1, axis=1)), "mil_labels.h5: .* another category"),
    "background": (change("labels_noisy.h5", lambda a: a[:, ::-1]), "labels_noisy.h5: has videos that are not"),
    "other rows": (change("right_labels.h5", lambda a: a[::-1]), "right_labels.h5: .* do not belong together"),
    "overlap": (lambda folder: rewrite(folder / "test_order.h5", read(folder / "train_order.h5", "order")[:3], "order"),
                "train_order.h5: shares 3 rows with the test split"),
    "no maps": (without_maps_of_test, "7 of 7 videos of test have no features"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said_by_file_with_the_remedy(audit, data_folder, case):
    apply, expected = WRONG[case]
    apply(data_folder)
    code, _, wrong, out = audit(data_folder)
    assert code == 2 and re.search(expected, wrong) and "labels_noisy.h5" in out      # the other files are audited too


NOTES = {
    "a label": (change("right_labels.h5", lambda a: with_value(a, (4, 1), [0, 0, 0, 1, 0])),
                r"right_labels.h5: 1 of 40 videos .* row 4\); keep"),
    "negative": (change("audio_feature.h5", lambda a: a - 0.5), "audio_feature.h5: has negative values"),
    "scaled": (change("audio_feature.h5", lambda a: a / 300), "times that of published features"),
    "few zeros": (change("audio_feature.h5", lambda a: a + 0.1), "of its values are zeros"),
    "random": (attribute("random_weights", lambda folder: True), "made with --random_weights"),
    "one video": (attribute("rows_without_video", lambda folder: rows_of_test(folder)[:1]), "1 of 7 videos of test"),
    "unused": (change("val_order.h5", lambda a: a[:4], "order"), "5 videos are in no split"),
    "twice": (lambda folder: (folder / "Annotations.txt").write_text(
        (folder / "Annotations.txt").read_text().replace("synthetic00001", "synthetic00000")), "1 ids occur more than"),
}


@pytest.mark.parametrize("case", NOTES)
def test_what_is_worth_knowing_is_noted(audit, data_folder, case):
    apply, expected = NOTES[case]
    apply(data_folder)
    code, notes, wrong, _ = audit(data_folder, "--setting", "fully")
    assert code == 0 and re.search(expected, notes), notes + wrong


def test_weak_files_are_not_asked_for_if_only_the_full_setting_is_wanted(audit, data_folder):
    (data_folder / "visual_feature_noisy.h5").unlink()
    assert audit(data_folder)[0] == 2
    code, _, _, out = audit(data_folder, "--setting", "fully")
    assert code == 0 and "can be trained on (fully supervised)" in out


def test_a_folder_of_features_alone(audit, data_folder):
    for path in data_folder.iterdir():
        if path.name not in ("audio_feature.h5", "visual_feature.h5"):
            path.unlink()
    change("visual_feature.h5", lambda a: with_value(a, 3, 0))(data_folder)
    code, notes, _, out = audit(data_folder)
    assert code == 0 and "can be labelled by a trained network" in out and "MISSING" not in out
    assert "1 of 40 videos" in notes


def test_of_a_folder_without_files_all_are_asked_for(audit, tmp_path):
    code, _, _, out = audit(tmp_path)
    assert code == 2 and out.count("MISSING") == 11
