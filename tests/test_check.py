"""The audit says what is true of a folder: counts, each kind of damage, and the command that helps."""
import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest

from conftest import change, read, rewrite, run_main, set_attributes, with_value

pytestmark = pytest.mark.filterwarnings("error")

MAPS = "visual_feature.h5", "visual_feature_noisy.h5"
SOUNDS = "audio_feature.h5", "audio_feature_noisy.h5"
LABELS = "right_labels.h5", "mil_labels.h5", "prob_label.h5", "labels_noisy.h5"


@pytest.fixture
def audit():
    """(exit code, output) of a folder's audit."""
    def run(folder, *options):
        code, out, error = run_main("data.check", "--data_dir", folder, *options)
        assert error == "" and "says more" not in out
        assert bool(re.search(": cannot be (trained|labelled)", out)) == ("\nWrong:" in out) == (code == 2)
        assert ("can be trained" in out and "but see what is doubtful" in out) == (code == 1)
        return code, out
    return run


def test_a_good_folder(audit, tiny_folder):
    code, out = audit(tiny_folder)
    assert code == 0 and "can be trained on (fully and weakly supervised)" in out and "Worth knowing" not in out
    largest = read(tiny_folder / "visual_feature.h5").max()
    assert re.search(rf"visual_feature.h5 +40 x 6 x 3 x 3 x 20 +float64 .* {largest:.4g} +0\n", out)
    train = read(tiny_folder / "right_labels.h5")[read(tiny_folder / "train_order.h5")]
    assert re.search(rf"hold the event +{(train[..., -1] == 0).mean():.1%}", out)
    assert re.search(rf"category 2 +{(train[..., 2] == 1).any(axis=1).sum()} ", out)


def test_the_real_labels_and_splits(audit, quick_script, real_ave, tmp_path):
    quick_script("data/synthetic.py", "--output_dir", tmp_path, "--annotations", real_ave / "Annotations.txt",
                 "--orders", real_ave, *"--audio_dim 3 --map_size 1 --visual_dim 2 --background 178".split())
    code, out = audit(tmp_path)
    assert code == 0
    for text in ("45 ids occur more than once: 46 rows too many", "8 ids are in both train and test",
                 "10 ids are in both train and val", "rows 26"):
        assert text in out
    assert re.search(r"all videos +3339 +402 +402", out)
    assert re.search(r"hold the event +83.1% +81.8% +82.2%", out)


def rows_in_test(folder):
    return read(folder / "test_order.h5")


def without_video(rows):
    return lambda folder: set_attributes(folder / "visual_feature.h5", rows_without_video=rows(folder))


NAN = change("audio_feature.h5", lambda a: with_value(a, (3, 2, 1), np.nan))

# The exit code, the change, and what is said.
FOUND = {
    "missing": (2, lambda folder: (folder / "prob_label.h5").unlink(), "prob_label.h5: missing.*prepare_labels.py"),
    "damaged": (2, lambda folder: (folder / "visual_feature.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(300)),
                r"Wrong:\n  - .*visual_feature.h5: cannot be read as HDF5 .*make it again\n\n"),
    "NaN": (2, NAN, r"audio_feature.h5: 1 of 24 videos of train .* NaN or infinite \(first in row 3\); extract"),
    "no maps": (2, without_video(rows_in_test), "7 of 7 videos of test have no"),
    "share": (1, change("prob_label.h5", lambda a: with_value(a, 7, [0, 0, 0.5, 0, 0.5])),
              r"prob_label.h5: 1 vid.*row 7\).*prepare_labels.py"),
    "category": (1, change("mil_labels.h5", lambda a: np.roll(a, 1, axis=1)), "mil_labels.h5: .* another category"),
    "background": (1, change("labels_noisy.h5", lambda a: a[:, ::-1]), "labels_noisy.h5: 5 vid.* than background"),
    "other rows": (1, change("right_labels.h5", lambda a: a[::-1]), "right_labels.h5: .* do not belong together"),
    "overlap": (1, lambda folder: rewrite(folder / "test_order.h5", read(folder / "train_order.h5")[:3]),
                "train_order.h5: shares 3 rows with the test split"),
    "zeros": (1, lambda folder: change("visual_feature.h5", lambda a: with_value(a, rows_in_test(folder), 0))(folder),
              "7 of 7 videos of test have no features"),
    "random": (0, lambda folder: set_attributes(folder / "visual_feature.h5", random_weights=True), "--random_weights"),
    "one video": (0, without_video(lambda folder: rows_in_test(folder)[:1]), "1 of 7 videos of test"),
    "NaN in no split": (0, lambda folder: [NAN(folder), change("train_order.h5", lambda a: a[a != 3])(folder)],
                        r"\naudio_feature.h5 .* 1\n"),
    "background videos that do not fit": (0, change("audio_feature_noisy.h5", lambda a: a[..., 1:]),
                                          "audio_feature_noisy.h5: has shape .* must have"),
    "NaN in background videos": (0, change("audio_feature_noisy.h5", lambda a: a * np.nan), "5 rows hold NaN"),
    "no background videos": (0, lambda folder: (folder / "visual_feature_noisy.h5").unlink(), "_noisy.h5: missing"),
}


@pytest.mark.parametrize("case", FOUND)
def test_what_is_found_is_said_by_file_with_the_remedy(audit, data_folder, case):
    expected_code, apply, expected = FOUND[case]
    apply(data_folder)
    code, out = audit(data_folder)
    assert code == expected_code and re.search(expected, out), out
    assert ("background videos" in case) == ("weakly supervised with --background_videos off" in out)


def test_weak_files_are_not_asked_for_if_only_the_full_setting_is_wanted(audit, data_folder):
    change("labels_noisy.h5", lambda a: a * np.nan)(data_folder)
    FOUND["share"][1](data_folder)
    assert audit(data_folder)[0] == 1      # the other files of weak training are checked all the same
    code, out = audit(data_folder, "--setting", "fully")
    assert code == 0 and "can be trained on (fully supervised)" in out


def test_single_files_are_named_by_the_options_of_the_training_script(audit, data_folder, tmp_path):
    for name in ("visual_feature.h5", "right_labels.h5", "mil_labels.h5"):
        (data_folder / name).rename(tmp_path / f"my_{name}")
    assert audit(data_folder)[1].count("MISSING") == 3
    visual = "--dir_video", tmp_path / "my_visual_feature.h5"
    code, out = audit(data_folder, *visual, "--dir_labels", tmp_path / "my_mil_labels.h5",
                      "--dir_labels_gt", tmp_path / "my_right_labels.h5")
    assert code == 0 and "my_mil_labels.h5 " in out
    assert audit(data_folder, *visual, "--setting=fully", "--dir_labels", tmp_path / "my_right_labels.h5")[0] == 0
    assert run_main("data.check", "--setting=fully", "--dir_labels_gt", "a.h5")[0] == 2


def test_a_folder_of_features_alone(audit, bare_folder):
    change("visual_feature.h5", lambda a: with_value(a, 3, 0))(bare_folder)
    code, out = audit(bare_folder)
    assert code == 0 and "can be labelled by a trained network" in out and "MISSING" not in out
    assert "1 of 40 videos" in out


def test_of_a_folder_without_files_all_are_asked_for(audit, tmp_path):
    code, out = audit(tmp_path)
    assert code == 2 and out.count("MISSING") == 11


def follow_advice(out):
    """Runs the advised commands in a shell. A file NAME_new.h5 takes the place of NAME.h5."""
    for new, command in re.findall(r"write (/.*?\.h5), and use it: (python -c .*)", out):
        assert run_in_shell(command) == 0
        shutil.move(new, new.replace("_new.h5", ".h5"))


def run_in_shell(command):
    command = command.replace("python", shlex.quote(sys.executable), 1)
    return subprocess.run(command, shell=True, stderr=subprocess.DEVNULL).returncode


def each(function, *names):
    """Changes several files."""
    return lambda folder: [change(name, function)(folder) for name in names]


def as_numpy(new_name):
    def apply(folder):
        np.save(folder / "array.npy", read(folder / "visual_feature.h5"))
        (folder / "visual_feature.h5").unlink()
        (folder / "array.npy").rename(folder / new_name)
    return apply


def under_key(name, key):
    return lambda folder: rewrite(folder / name, read(folder / name), key)


# The change that another program made, and what the audit says of it.
LAYOUTS = {
    "NumPy": (as_numpy("visual_feature.npy"), "visual_feature.npy is a NumPy file"),
    "NumPy by name": (as_numpy("visual_feature.h5"), "visual_feature.h5 is a NumPy file"),
    "key": (under_key("visual_feature.h5", "my/maps"), r"holds my/maps \(40, 6, 3, 3, 20\)"),
    "group": (under_key("visual_feature.h5", "avadataset/data"), "holds avadataset/data"),
    "order's key": (under_key("train_order.h5", "avadataset"), r"holds avadataset \(24,\)"),
    "reversed": (each(lambda a: a.T, "visual_feature.h5"), "axes of .*visual_feature.h5 look reversed"),
    "all reversed": (each(lambda a: a.T, *MAPS, *SOUNDS, *LABELS[:3]), "axes of .*right_labels.h5 look reversed"),
    "weak reversed": (each(lambda a: a.T, "mil_labels.h5"), "axes of .*mil_labels.h5 look reversed"),
    "no map": (each(lambda a: a[:, :, 0, 0], *MAPS), "without a map need 1 x 1 cells"),
    "flattened": (each(lambda a: np.moveaxis(a, 4, 2), *MAPS), "these may be flattened features"),
    "channels": (each(lambda a: np.moveaxis(a, 4, 2), *MAPS), "as if the channels came first: 20 x 3 cells of 3"),
    "background": (each(lambda a: np.roll(a, 1, axis=-1), *LABELS), "class 0 looks like background"),
}


@pytest.mark.parametrize("apply, message", LAYOUTS.values(), ids=LAYOUTS)
def test_the_advised_commands_fix_the_layouts_of_other_programs(audit, tiny_folder, tmp_path, apply, message):
    folder = shutil.copytree(tiny_folder, tmp_path / "it's $HOME")
    if "without a map" in message:
        each(lambda a: a[:, :, :1, :1], *MAPS)(folder)
    if "flattened" in message:
        each(lambda a: np.tile(a[:, :, :1, :1], 15), *MAPS)(folder)
    expected = {path.name: read(path) for path in folder.glob("*.h5")}
    apply(folder)
    out = audit(folder)[1]
    assert re.search(message, out)
    follow_advice(out)
    for name, array in expected.items():
        assert np.array_equal(read(folder / name), array), name
    assert audit(folder)[0] == 0


def test_no_command_writes_over_a_file(audit, data_folder):
    as_numpy("maps.npy")(data_folder)
    kept = (data_folder / "maps.npy").read_bytes()
    new = data_folder / "maps_new.h5"
    out = audit(data_folder, "--dir_video", data_folder / "maps.npy")[1]
    command = re.search(rf"write {new}, and use it: (.*)", out)[1]
    assert run_in_shell(command) == 0 and run_in_shell(command) != 0      # the second time it exists
    assert audit(data_folder, "--dir_video", new)[0] == 0
    assert (data_folder / "maps.npy").read_bytes() == kept


def annotated(pattern, new):
    """Replaces text in Annotations.txt."""
    def apply(folder):
        path = folder / "Annotations.txt"
        path.write_text(re.sub(pattern, new, path.read_text()))
    return apply


TWICE = annotated("synthetic00001", "synthetic00000")
NOTES = {
    "twice": (TWICE, "1 ids occur more than once"),
    "misspelt": (annotated("category ([0-3])", lambda found: ("Bark", "Cat", "Horse", "Hoarse")[int(found[1])]),
                 r"'Hoarse' is not a category of AVE \(10 lines, the first is line 31\)"),
    "alike": (annotated("category 1", "CATEGORY 0"), "'category 0' and 'CATEGORY 0' differ in case only"),
    "late": (annotated(r"(synthetic00000.*&)\d+", r"\g<1>99"), "line 1 .* ends at second 99"),
    "a label": (change("right_labels.h5", lambda a: with_value(a, (4, 2), [1, 0, 0, 0, 0])),
                r"right_labels.h5: 1 of 40 videos .* row 4\); keep"),
    "two events": (change("right_labels.h5", lambda a: with_value(a, (4, 2), [0, 1, 0, 0, 0])),
                   r"1 videos have events of more than one category \(first in row 4\)"),
}


@pytest.mark.parametrize("apply, expected", NOTES.values(), ids=NOTES)
def test_what_training_takes_is_noted(audit, data_folder, train, apply, expected):
    apply(data_folder)
    code, out = audit(data_folder, "--setting", "fully")
    assert code == 0 and re.search(expected, out), out
    train("weakly", "--data_dir", data_folder, "--nb_epoch", 1)


@pytest.mark.parametrize("name", ["Annotations.txt", "videos.txt"])
def test_features_alone_must_have_a_line_for_each_row(audit, tiny_folder, bare_folder, name):
    text = (tiny_folder / "Annotations.txt").read_text()
    (bare_folder / name).write_text(text)
    assert audit(bare_folder)[0] == 0
    (bare_folder / name).write_text(text + text.splitlines()[0] + "\n")
    code, out = audit(bare_folder)
    assert code == 2 and f"{name}: has 41 lines, but the data has 40 rows" in out
    assert ("has 41 lines for 40 videos, since" in out) == (name == "Annotations.txt")


def test_features_of_each_video_do_not_fit_labels_of_each_line(audit, data_folder):
    TWICE(data_folder)
    each(lambda a: a[1:], "audio_feature.h5", "visual_feature.h5")(data_folder)
    code, out = audit(data_folder)
    assert code == 2 and "has 40 lines for 39 videos, since" in out and "extract_features.py --annotations" in out


@pytest.mark.parametrize("name", ["visual_feature", "visual_feature_noisy"])
def test_a_dict_of_arrays_is_stacked_in_the_order_of_the_annotations(audit, data_folder, name):
    expected = read(data_folder / f"{name}.h5")
    np.save(data_folder / f"{name}.npy", {f"synthetic{row:05d}": expected[row] for row in range(len(expected))[::-1]})
    (data_folder / f"{name}.h5").unlink()
    follow_advice(audit(data_folder)[1])
    assert np.array_equal(read(data_folder / f"{name}.h5"), expected) and audit(data_folder)[0] == 0
