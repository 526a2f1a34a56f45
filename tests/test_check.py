"""The audit says of a folder what is so: counts on the real files, and each kind of damage by file and remedy."""
import re

import h5py
import numpy as np
import pytest

from conftest import change, read, rewrite, with_value


def test_a_good_folder(quick_script, tiny_folder):
    done = quick_script("data/check.py", "--data_dir", tiny_folder)
    assert "can be trained on (fully and weakly supervised)" in done.stdout and "Wrong" not in done.stdout
    visual = read(tiny_folder / "visual_feature.h5")
    row = next(line for line in done.stdout.splitlines() if line.startswith("visual_feature.h5"))
    assert "40 x 6 x 3 x 3 x 20" in row and "float64" in row and "contiguous" in row
    assert f"{100 * (visual == 0).mean():.1f} %" in row and f"{visual.max():.4g}" in row


def test_the_real_labels_and_splits(quick_script, real_ave, tmp_path):
    quick_script("data/synthetic.py", "--output_dir", tmp_path, "--annotations", real_ave / "Annotations.txt",
                 "--orders", real_ave,
           *"--audio_dim 3 --map_size 1 --visual_dim 2 --background 178".split())
    for name in ("mil_labels.h5", "labels_noisy.h5"):      # the published ones
        (tmp_path / name).write_bytes((real_ave / name).read_bytes())
    out = quick_script("data/check.py", "--data_dir", tmp_path).stdout
    for text in ("45 ids stand more than once in the annotations: 46 rows too many", "8 ids are in both train and test",
                 "10 ids are in both train and val", "rows 26", "can be trained on"):
        assert text in out
    assert re.search(r"all videos +3339 +402 +402", out)
    assert re.search(r"hold the event +83.1 % +81.8 % +82.2 %", out)
    assert re.search(r"in all segments +66.8 % +64.2 % +64.9 %", out)


def overlap(folder):
    train = read(folder / "train_order.h5", "order")
    rewrite(folder / "test_order.h5", train[:3], "order")


DAMAGE = {
    "missing": (lambda folder: (folder / "prob_label.h5").unlink(), "prob_label.h5: missing", "prepare_labels.py"),
    "truncated": (lambda folder: (folder / "visual_feature.h5").write_bytes(
        (folder / "visual_feature.h5").read_bytes()[:-9]), "visual_feature.h5: cannot be read", "download"),
    "NaN": (change("audio_feature.h5", lambda a: with_value(a, (3, 2, 1), np.nan)),
            "audio_feature.h5: 1 values are NaN", "again"),
    "too large": (change("audio_feature.h5", lambda a: with_value(a, (3, 2, 1), 1e300)), "1 values are NaN", "again"),
    "one value": (lambda folder: rewrite(folder / "mil_labels.h5", 1.0),
                  "mil_labels.h5: 'avadataset' is a single value", ""),
    "wrong axes": (change("mil_labels.h5", lambda a: a[:, None]), "mil_labels.h5: has shape", ""),
    "empty": (change("val_order.h5", lambda a: a[:0], "order"), "val_order.h5: is empty", ""),
    "count": (change("audio_feature.h5", lambda a: a[1:]), "audio_feature.h5: has shape", "right_labels.h5"),
    "share": (change("prob_label.h5", lambda a: with_value(a, 7, [0, 0, 0.5, 0, 0.5])), "prob_label.h5: 1 videos",
              "row 7"),
    "category": (change("mil_labels.h5", lambda a: np.roll(a, 1, axis=1)), "mil_labels.h5:", "prepare_labels.py"),
    "background": (change("labels_noisy.h5", lambda a: a[:, ::-1]), "labels_noisy.h5: has videos that are not",
                   "prepare"),
    "labels": (change("right_labels.h5", lambda a: with_value(a, (4, 1), [0, 0, 0, 1, 0])), "annotated", "row 4"),
    "overlap": (overlap, "train_order.h5: shares 3 rows with the test split", "order files"),
    "twice": (change("val_order.h5", lambda a: np.r_[a, a[:2]], "order"), "val_order.h5: names 2 rows more than once",
              ""),
    "annotations": (lambda folder: (folder / "Annotations.txt").write_text("a&b&good&0&3\n"), "has 1 lines",
                    "40 videos"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_what_is_wrong_is_said_by_file_with_the_remedy(main_in_process, data_folder, case):
    apply, what, remedy = DAMAGE[case]
    apply(data_folder)
    code, out, error = main_in_process("data.check", "--data_dir", data_folder)
    assert code == 2, out
    wrong = out[out.index("Wrong:"):]
    assert what in wrong and remedy in wrong
    assert "cannot be trained on" in wrong and not error.count("Traceback")


def test_weak_files_are_not_asked_for_where_only_the_full_setting_is_wanted(main_in_process, data_folder):
    (data_folder / "visual_feature_noisy.h5").unlink()
    assert main_in_process("data.check", "--data_dir", data_folder)[0] == 2
    code, out, _ = main_in_process("data.check", "--data_dir", data_folder, "--setting", "fully")
    assert code == 0 and "can be trained on (fully supervised)" in out


def test_a_damaged_file_is_named_and_the_audit_goes_on(main_in_process, data_folder):
    """Bytes are changed in many places of a compressed file with checksums; the other files are audited as well."""
    path = data_folder / "visual_feature.h5"
    rewrite(path, read(path), chunks=True, compression="gzip", fletcher32=True)
    whole = path.read_bytes()
    noticed = 0
    for place in np.linspace(600, len(whole) - 100, 12).astype(int):
        path.write_bytes(whole[:place] + bytes(64) + whole[place + 64:])
        code, out, error = main_in_process("data.check", "--data_dir", data_folder)
        assert "right_labels.h5" in out and "val_order.h5" in out and error == ""
        if code:
            noticed += 1
            assert code == 2 and f"{path}: " in out[out.index("Wrong:"):]
    assert noticed >= 8


def test_compressed_files_are_fine(main_in_process, data_folder):
    rewrite(data_folder / "visual_feature.h5", read(data_folder / "visual_feature.h5"), chunks=True, compression="gzip")
    with h5py.File(data_folder / "visual_feature.h5") as file:
        assert file["avadataset"].compression == "gzip"
    code, out, _ = main_in_process("data.check", "--data_dir", data_folder)
    assert code == 0 and "gzip" in out


@pytest.mark.parametrize("function, expected", [
    (lambda a: a - 0.5, "audio_feature.h5: has negative values"),
    (lambda a: a / 300, "times that of published features"),
    (lambda a: a + 0.1, "of its values are zeros"),
    (lambda a: np.zeros((len(a), 6, 6, 4, 512)), "maps of VGGish's last pooling layer")], ids=range(4))
def test_features_of_another_kind_are_noted(main_in_process, data_folder, function, expected):
    assert "Worth knowing" not in main_in_process("data.check", "--data_dir", data_folder)[1]
    change("audio_feature.h5", function)(data_folder)
    code, out, _ = main_in_process("data.check", "--data_dir", data_folder)
    assert expected in out[out.index("Worth knowing"):]


def test_a_folder_of_features_alone_and_of_random_weights(main_in_process, data_folder):
    for path in data_folder.iterdir():
        if path.name not in ("audio_feature.h5", "visual_feature.h5"):
            path.unlink()
    code, out, _ = main_in_process("data.check", "--data_dir", data_folder)
    assert code == 0 and "can be labelled by a trained network" in out and "MISSING" not in out
    with h5py.File(data_folder / "visual_feature.h5", "a") as file:
        file["avadataset"].attrs["random_weights"] = True
    code, out, _ = main_in_process("data.check", "--data_dir", data_folder)
    assert code == 0 and "visual_feature.h5: was made with --random_weights" in out
    (data_folder / "audio_feature.h5").write_bytes(b"no")
    assert main_in_process("data.check", "--data_dir", data_folder)[0] == 2


def test_a_third_feature_file_is_audited_as_well(main_in_process, data_folder, monkeypatch):
    import dataset
    import data.check
    monkeypatch.setitem(dataset.AVE_FILES, "flow", dataset.AVEFile(("flow_feature.h5",), "flow", "nowhere"))
    for module in (dataset, data.check):
        monkeypatch.setattr(module, "FEATURES", ("audio", "visual", "flow"))
    rewrite(data_folder / "flow_feature.h5", np.ones((40, 6, 5)))
    code, out, _ = main_in_process("data.check", "--data_dir", data_folder)
    assert code == 0 and "flow_feature.h5" in out
    rewrite(data_folder / "flow_feature.h5", np.ones((39, 6, 5)))
    code, out, _ = main_in_process("data.check", "--data_dir", data_folder)
    assert code == 2 and "flow_feature.h5: has shape (39, 6, 5)" in out


@pytest.mark.parametrize("name", ["empty", "nowhere"])
def test_of_a_folder_without_files_all_are_asked_for(main_in_process, tmp_path, name):
    (tmp_path / "empty").mkdir()
    code, out, _ = main_in_process("data.check", "--data_dir", tmp_path / name)
    assert code == 2 and out.count("MISSING") == 11 and "cannot be trained on" in out
