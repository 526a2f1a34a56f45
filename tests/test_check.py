"""The audit says what is true of a folder: counts, each kind of damage, and the command that helps."""
import re
import shlex
import shutil
import subprocess
import sys
import warnings

import h5py
import numpy as np
import pytest

from conftest import change, read, rewrite, set_attributes, with_value
from test_dataset import unknown_filter


@pytest.fixture
def audit(main_in_process):
    """(exit code, what is worth knowing, what is wrong, all output) of a folder's audit."""
    def run(folder, *options):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            code, out, error = main_in_process("data.check", "--data_dir", folder, *options)
        assert error == "" and "says more" not in out
        assert bool(re.search(": cannot be (trained|labelled)", out)) == (code == 2)
        assert ("can be trained" in out and "but see what is doubtful" in out) == (code == 1)
        rest, _, wrong = out.replace("\nDoubtful:", "\nWrong:").partition("\nWrong:")
        return code, rest.partition("\nWorth knowing:")[2], wrong, out
    return run


def test_a_good_folder(audit, tiny_folder):
    code, notes, wrong, out = audit(tiny_folder)
    assert (code, notes, wrong) == (0, "", "") and "can be trained on (fully and weakly supervised)" in out
    visual = read(tiny_folder / "visual_feature.h5")
    row = next(line for line in out.splitlines() if line.startswith("visual_feature.h5"))
    assert "40 x 6 x 3 x 3 x 20" in row and "float64" in row
    assert f"{(visual == 0).mean():.1%}" in row and f"{visual.max():.4g}" in row
    train = read(tiny_folder / "right_labels.h5")[read(tiny_folder / "train_order.h5")]
    assert re.search(rf"hold the event +{(train[..., -1] == 0).mean():.1%}", out)


def test_the_real_labels_and_splits(audit, quick_script, real_ave, tmp_path):
    quick_script("data/synthetic.py", "--output_dir", tmp_path, "--annotations", real_ave / "Annotations.txt",
                 "--orders", real_ave, *"--audio_dim 3 --map_size 1 --visual_dim 2 --background 178".split())
    for name in ("mil_labels.h5", "labels_noisy.h5"):      # the published ones
        (tmp_path / name).write_bytes((real_ave / name).read_bytes())
    code, notes, _, out = audit(tmp_path)
    assert code == 0
    for text in ("45 ids occur more than once: 46 rows too many", "8 ids are in both train and test",
                 "10 ids are in both train and val", "rows 26"):
        assert text in notes
    assert re.search(r"all videos +3339 +402 +402", out)
    assert re.search(r"hold the event +83.1% +81.8% +82.2%", out)
    assert re.search(r"in all segments +66.8% +64.2% +64.9%", out)


def attribute(name, value_in):
    return lambda folder: set_attributes(folder / "visual_feature.h5", **{name: value_in(folder)})


def rows_in_test(folder):
    return read(folder / "test_order.h5")


WRONG = {
    "missing": (lambda folder: (folder / "prob_label.h5").unlink(), "prob_label.h5: missing.*prepare_labels.py"),
    "NaN": (change("audio_feature.h5", lambda a: with_value(a, (3, 2, 1), np.nan)),
            r"audio_feature.h5: 1 videos have .* row 3\); extract"),
    "no maps": (attribute("rows_without_video", lambda folder: rows_in_test(folder)), "7 of 7 videos of test have no"),
}
DOUBTFUL = {      # training takes it
    "share": (change("prob_label.h5", lambda a: with_value(a, 7, [0, 0, 0.5, 0, 0.5])),
              r"prob_label.h5: 1 vid.*row 7\)\n.*a.mean\(axis=1\)"),
    "category": (change("mil_labels.h5", lambda a: np.roll(a, 1, axis=1)), "mil_labels.h5: .* another category"),
    "background": (change("labels_noisy.h5", lambda a: a[:, ::-1]), "labels_noisy.h5: 5 vid.* than background"),
    "other rows": (change("right_labels.h5", lambda a: a[::-1]), "right_labels.h5: .* do not belong together"),
    "overlap": (lambda folder: rewrite(folder / "test_order.h5", read(folder / "train_order.h5")[:3]),
                "train_order.h5: shares 3 rows with the test split"),
    "zeros": (lambda folder: change("visual_feature.h5", lambda a: with_value(a, rows_in_test(folder), 0))(folder),
              "7 of 7 videos of test have no features"),
}


@pytest.mark.parametrize("case", [*WRONG, *DOUBTFUL])
def test_what_is_wrong_is_said_by_file_with_the_remedy(audit, data_folder, case):
    apply, expected = {**WRONG, **DOUBTFUL}[case]
    apply(data_folder)
    code, _, wrong, out = audit(data_folder)
    assert code == (2 if case in WRONG else 1) and re.search(expected, wrong) and "labels_noisy.h5" in out


def nan_in_no_split(folder):
    row = read(folder / "val_order.h5")[-1]
    change("val_order.h5", lambda a: a[:-1])(folder)
    change("audio_feature.h5", lambda a: with_value(a, (row, 0, 0), np.nan))(folder)


NOTES = {
    "a label": (change("right_labels.h5", lambda a: with_value(a, (4, 1), [0, 0, 0, 1, 0])),
                r"right_labels.h5: 1 of 40 videos .* row 4\); keep"),
    "negative": (change("audio_feature.h5", lambda a: a - 0.5), "audio_feature.h5: has negative values"),
    "random": (attribute("random_weights", lambda folder: True), "made with --random_weights"),
    "one video": (attribute("rows_without_video", lambda folder: rows_in_test(folder)[:1]), "1 of 7 videos of test"),
    "unused": (change("val_order.h5", lambda a: a[:4]), "5 videos are in no split"),
    "NaN elsewhere": (nan_in_no_split, "audio_feature.h5: 1 videos have .* in no split"),
}


@pytest.mark.parametrize("case", NOTES)
def test_what_is_worth_knowing_is_noted(audit, data_folder, case):
    apply, expected = NOTES[case]
    apply(data_folder)
    code, notes, wrong, _ = audit(data_folder, "--setting", "fully")
    assert code == 0 and re.search(expected, notes), notes + wrong


def test_background_features_that_do_not_fit_are_left_out(audit, data_folder):
    change("audio_feature_noisy.h5", lambda a: a[..., 1:])(data_folder)
    code, notes, _, out = audit(data_folder)
    assert code == 0 and "(fully and weakly supervised with --background_videos off)" in out
    assert re.search("needs --background_videos off.*\n.*audio_feature_noisy.h5: has shape .* must have", notes)


def test_weak_files_are_not_asked_for_if_only_the_full_setting_is_wanted(audit, data_folder):
    (data_folder / "visual_feature_noisy.h5").unlink()
    code, notes, _, out = audit(data_folder)
    assert code == 0 and "(fully and weakly supervised with --background_videos off)" in out
    assert re.search("needs --background_videos off.*\n.*visual_feature_noisy.h5: missing", notes)
    change("labels_noisy.h5", lambda a: a * np.nan)(data_folder)
    assert audit(data_folder)[0] == 0
    DOUBTFUL["share"][0](data_folder)
    assert audit(data_folder)[0] == 1      # the other files of weak training are checked all the same
    code, _, _, out = audit(data_folder, "--setting", "fully")
    assert code == 0 and "can be trained on (fully supervised)" in out


def test_single_files_are_named_by_the_options_of_the_training_script(audit, main_in_process, data_folder, tmp_path):
    for name in ("visual_feature.h5", "right_labels.h5", "mil_labels.h5"):
        (data_folder / name).rename(tmp_path / f"my_{name}")
    assert audit(data_folder)[3].count("MISSING") == 3
    visual = "--dir_video", tmp_path / "my_visual_feature.h5"
    code, _, _, out = audit(data_folder, *visual, "--dir_labels", tmp_path / "my_mil_labels.h5",
                            "--dir_labels_gt", tmp_path / "my_right_labels.h5")
    assert code == 0 and "my_mil_labels.h5 " in out
    assert audit(data_folder, *visual, "--setting=fully", "--dir_labels", tmp_path / "my_right_labels.h5")[0] == 0
    assert main_in_process("data.check", "--setting=fully", "--dir_labels_gt", "a.h5")[0] == 2


def test_a_folder_of_features_alone(audit, bare_folder):
    change("visual_feature.h5", lambda a: with_value(a, 3, 0))(bare_folder)
    code, notes, _, out = audit(bare_folder)
    assert code == 0 and "can be labelled by a trained network" in out and "MISSING" not in out
    assert "1 of 40 videos" in notes


def test_of_a_folder_without_files_all_are_asked_for(audit, tmp_path):
    code, _, _, out = audit(tmp_path)
    assert code == 2 and out.count("MISSING") == 11


# ---------------------------------------------------------------------------------------- layouts of other programs

def follow_advice(out):
    """Runs the advised commands in a shell. A file NAME_new.h5 takes the place of NAME.h5."""
    advice = re.findall(r"write (/.*?\.h5)(?:, and use it instead)?: (python -c .*)", out)
    for new, command in advice:
        assert run_in_shell(command) == 0
        shutil.move(new, new.replace("_new.h5", ".h5"))


def run_in_shell(command):
    command = command.replace("python", shlex.quote(sys.executable), 1)
    return subprocess.run(command, shell=True, stderr=subprocess.DEVNULL).returncode


def arrays_in(folder):
    return {path.name: read(path) for path in folder.glob("*.h5")}


def each(function, *names):
    """Changes several files."""
    return lambda folder: [change(name, function)(folder) for name in names]


def as_numpy(new_name, name="visual_feature.h5"):
    def apply(folder):
        np.save(folder / "array.npy", read(folder / name))
        (folder / name).unlink()
        (folder / "array.npy").rename(folder / new_name)
    return apply


def under_key(name, key):
    return lambda folder: rewrite(folder / name, read(folder / name), key)


def in_another_file(folder):
    path = folder / "visual_feature.h5"
    array = read(path)
    path.rename(folder / "part.hdf5")
    layout = h5py.VirtualLayout(array.shape, array.dtype)
    layout[:] = h5py.VirtualSource("part.hdf5", "avadataset", array.shape)
    with h5py.File(path, "w", locking=False) as file:
        file.create_virtual_dataset("avadataset", layout)
    return folder / "part.hdf5"


MAPS = "visual_feature.h5", "visual_feature_noisy.h5"
LABELS = "right_labels.h5", "mil_labels.h5", "prob_label.h5", "labels_noisy.h5"
SOUNDS = "audio_feature.h5", "audio_feature_noisy.h5"
ONE_CELL = each(lambda a: a[:, :, :1, :1], *MAPS)
MANY_CHANNELS = each(lambda a: np.tile(a[:, :, :1, :1], 15), *MAPS)

# What the folder should hold, the change that another program made, and what the audit says of it.
LAYOUTS = {
    "NumPy": (None, as_numpy("visual_feature.npy"), "visual_feature.npy is a NumPy file"),
    "NumPy by name": (None, as_numpy("visual_feature.h5"), "visual_feature.h5 is a NumPy file"),
    "other labels' name": (None, as_numpy("right_labels.npy", "right_labels.h5"), "right_labels.npy is a NumPy file"),
    "key": (None, under_key("visual_feature.h5", "my/maps"), r"it holds my/maps \(40, 6, 3, 3, 20\)"),
    "group": (None, under_key("visual_feature.h5", "avadataset/data"), "it holds avadataset/data"),
    "order's key": (None, under_key("train_order.h5", "avadataset"), r"it holds avadataset \(24,\)"),
    "other files": (None, in_another_file, "its numbers are in other files"),
    "reversed": (None, each(lambda a: a.T, "visual_feature.h5"), "axes of .*visual_feature.h5 look reversed"),
    "all reversed": (None, each(lambda a: a.T, *MAPS, *SOUNDS, *LABELS[:3]), "axes of .*right_labels.h5 look reversed"),
    "weak reversed": (None, each(lambda a: a.T, "mil_labels.h5"), "axes of .*mil_labels.h5 look reversed"),
    "no map": (ONE_CELL, each(lambda a: a[:, :, 0, 0], *MAPS), "without a map need 1 x 1 cells"),
    "flattened": (MANY_CHANNELS, each(lambda a: np.moveaxis(a, 4, 2), *MAPS), "these may be flattened features"),
    "channels": (None, each(lambda a: np.moveaxis(a, 4, 2), *MAPS), "as if the channels came first: 20 x 3 cells of 3"),
    "background": (None, each(lambda a: np.roll(a, 1, axis=-1), *LABELS), "class 0 looks like background"),
}


@pytest.mark.parametrize("case", LAYOUTS)
def test_the_advised_commands_fix_the_layouts_of_other_programs(audit, tiny_folder, tmp_path, case):
    prepare, apply, message = LAYOUTS[case]
    folder = shutil.copytree(tiny_folder, tmp_path / "it's $HOME")
    if prepare:
        prepare(folder)
    expected = arrays_in(folder)
    apply(folder)
    out = audit(folder)[3]
    follow_advice(out)
    found = arrays_in(folder)
    assert re.search(message, out) and found.keys() == expected.keys()
    for name, array in found.items():
        assert np.array_equal(array, expected[name]), name
    assert audit(folder)[0] == 0


def test_no_command_writes_over_a_file(audit, data_folder):
    as_numpy("maps.npy")(data_folder)
    kept = (data_folder / "maps.npy").read_bytes()
    new = data_folder / "maps_new.h5"
    out = audit(data_folder, "--dir_video", data_folder / "maps.npy")[3]
    command = re.search(rf"write {new}, and use it instead: (.*)", out)[1]
    assert run_in_shell(command) == 0 and run_in_shell(command) != 0      # the second time it exists
    assert audit(data_folder, "--dir_video", new)[0] == 0
    assert (data_folder / "maps.npy").read_bytes() == kept


def several_datasets(folder):
    with h5py.File(folder / "visual_feature.h5", "w", locking=False) as file:
        file["one/a"], file["two"] = np.ones((2, 3)), np.ones(4)


ADVICE = {
    "filter": (unknown_filter, "filter 32015 .*pip install hdf5plugin"),
    "several": (several_datasets, r"it holds one/a \(2, 3\), two \(4,\); with the right one for NAME, write "),
    "nothing": (lambda folder: h5py.File(folder / "visual_feature.h5", "w").close(), "it holds no dataset at all"),
    "missing part": (lambda folder: in_another_file(folder).unlink(), "which are missing: /.*part.hdf5"),
    "external": (lambda folder: rewrite(folder / "audio_feature.h5", None, shape=(40, 6, 12), dtype="f8", external=[
        ("gone.bin", 0, 40 * 6 * 12 * 8)]), "which are missing: /.*gone.bin"),
    "maps of VGGish": (change("audio_feature.h5", lambda a: np.ones((40, 6, 6, 4, 12))), "VGGish's last pooling layer"),
}


@pytest.mark.parametrize("case", ADVICE)
def test_what_no_command_can_fix_is_said(audit, data_folder, case):
    apply, message = ADVICE[case]
    apply(data_folder)
    assert re.search(message, audit(data_folder)[2])


@pytest.mark.parametrize("content", [b"", b"no HDF5", b"\x89HDF\r\n\x1a\n" + bytes(300)])
def test_of_a_file_that_is_damaged_only_that_is_said(audit, data_folder, content):
    (data_folder / "visual_feature.h5").write_bytes(content)
    wrong = audit(data_folder)[2]
    assert re.fullmatch(r"\n  - .*visual_feature.h5: cannot be read as HDF5 .*make it again\n\n.*cannot be .*\n", wrong)
