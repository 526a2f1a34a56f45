"""Labels built from annotations: worked by hand, and equal to the published files; what the audit says of both."""
import re

import numpy as np
import pytest

from conftest import change, read, rewrite, with_value
from test_check import audit, follow_advice  # noqa: F401


def prepare(run, folder, text, *options, code=0):
    (folder / "Annotations.txt").write_bytes(text.encode())
    return run("data/prepare_labels.py", "--annotations", folder / "Annotations.txt", "--output_dir", folder / "out",
               *options, code=code)


def test_label_files_worked_by_hand(quick_script, tmp_path):
    """With a header, blanks around fields, and empty lines at the end."""
    done = prepare(quick_script, tmp_path, "Category&VideoID&Quality&StartTime&EndTime\r\ncat&id0&good&0&4\r\n"
                   "Bark & id1&good&1&3\r\ncat & id2&good& 2&2 \r\n\r\n", "--segments", 4, "--background_videos", 2)
    right = read(tmp_path / "out" / "right_labels.h5")
    assert right.argmax(-1).tolist() == [[0, 0, 0, 0], [2, 1, 1, 2], [2, 2, 2, 2]]
    assert right.sum(-1).tolist() == [[1] * 4] * 3
    assert read(tmp_path / "out" / "prob_label.h5").tolist() == [[1, 0, 0], [0, 0.5, 0.5], [0, 0, 1]]
    assert read(tmp_path / "out" / "mil_labels.h5").tolist() == [[1, 0, 0], [0, 1, 0], [1, 0, 0]]
    assert read(tmp_path / "out" / "labels_noisy.h5").tolist() == [[0, 0, 1]] * 2
    assert "line 4 (video row 2, id2)" in done.stdout
    assert "not a category" not in done.stdout      # as if misspelt: only one of two is AVE's


def test_a_bad_line_writes_nothing(quick_script, tmp_path):
    done = prepare(quick_script, tmp_path, "cat&id0&good&0&4\ncat&id1&good&0&11\n", code=2)
    assert "line 2 " in done.stderr and not (tmp_path / "out").exists()


def test_equal_to_the_published_files(quick_script, real_ave, tmp_path):
    done = quick_script("data/prepare_labels.py", "--annotations", real_ave / "Annotations.txt",
                        "--output_dir", tmp_path)
    assert np.array_equal(read(tmp_path / "mil_labels.h5"), read(real_ave / "mil_labels.h5"))
    assert np.array_equal(read(tmp_path / "labels_noisy.h5"), read(real_ave / "labels_noisy.h5"))
    right = read(tmp_path / "right_labels.h5")
    assert np.array_equal(1 - right[..., 28], read(real_ave / "labels_closs.h5"))
    event = right[..., :28].sum(-1) > 0
    assert (right.argmax(-1)[event] == np.repeat(read(real_ave / "mil_labels.h5").argmax(-1), event.sum(1))).all()
    np.testing.assert_allclose(read(tmp_path / "prob_label.h5"), right.mean(1))
    assert done.stdout.count("zero length") == 1 and "video row 26" in done.stdout


# ------------------------------------------------------------------------------------- annotations in the audit

def lines(function):
    """Changes the text of Annotations.txt."""
    def apply(folder):
        (folder / "Annotations.txt").write_text(function((folder / "Annotations.txt").read_text()))
    return apply


def with_categories(*names):
    return lines(lambda text: re.sub("category ([0-3])", lambda found: names[int(found[1])], text))


def two_events(folder):
    """The last segment of row 4 holds an event of another category, which is not in the annotations."""
    other = np.roll(read(folder / "mil_labels.h5")[4, :4], 1)
    change("right_labels.h5", lambda a: with_value(a, (4, slice(5, 6)), [*other, 0]))(folder)
    change("right_labels.h5", lambda a: with_value(a, (4, slice(0, 5)), read(folder / "mil_labels.h5")[4]))(folder)
    rewrite(folder / "prob_label.h5", read(folder / "right_labels.h5").mean(axis=1))


NOTES = {
    "twice": (lines(lambda text: text.replace("synthetic00001", "synthetic00000")), "1 ids occur more than"),
    "misspelt": (with_categories("Bark", "Cat", "Horse", "Hoarse"),
                 r"'Hoarse' is not a category of AVE \(10 lines, the first is line 31\)"),
    "alike": (with_categories("one", "One", "two", "three"), "'one' and 'One' differ in case only"),
    "late": (lines(lambda text: re.sub(r"&\d+\n", "&99\n", text, count=1)), "line 1 .* ends at second 99"),
    "fewer classes": (with_categories("one", "one", "two", "three"), r"shape \(40, 6, 5\); the annot.* \(40, 6, 4\)"),
    "two events": (two_events, r"1 videos have events of more than one category \(first in row 4\)"),
}


@pytest.mark.parametrize("case", NOTES)
def test_what_training_takes_is_noted(audit, data_folder, train, case):  # noqa: F811
    apply, expected = NOTES[case]
    apply(data_folder)
    code, notes, wrong, _ = audit(data_folder)
    assert code == 0 and re.search(expected, notes), notes + wrong
    train("weakly", "--data_dir", data_folder, "--nb_epoch", 1)


@pytest.mark.parametrize("name", ["Annotations.txt", "videos.txt"])
def test_features_alone_must_have_a_line_for_each_row(audit, tiny_folder, bare_folder, name):  # noqa: F811
    text = (tiny_folder / "Annotations.txt").read_text()
    (bare_folder / name).write_text(text)
    assert audit(bare_folder)[0] == 0
    (bare_folder / name).write_text(text + text.splitlines()[0] + "\n")
    code, _, wrong, _ = audit(bare_folder)
    assert code == 2 and re.search(f"{name}: has 41 lines, but the data has 40 rows", wrong)
    assert ("has 41 lines for 40 videos, since" in wrong) == (name == "Annotations.txt")


def test_features_of_each_video_do_not_fit_labels_of_each_line(audit, data_folder):  # noqa: F811
    lines(lambda text: text.replace("synthetic00001", "synthetic00000"))(data_folder)
    for name in ("audio_feature.h5", "visual_feature.h5"):
        change(name, lambda a: a[1:])(data_folder)
    code, _, wrong, _ = audit(data_folder)
    assert code == 2 and "has 40 lines for 39 videos, since" in wrong and "extract_features.py --annotations" in wrong


@pytest.mark.parametrize("name", ["visual_feature", "visual_feature_noisy"])
def test_a_dict_of_arrays_is_stacked_in_the_order_of_the_annotations(audit, data_folder, name):  # noqa: F811
    expected = read(data_folder / f"{name}.h5")
    rows = {f"synthetic{row:05d}": array for row, array in enumerate(expected)}
    np.save(data_folder / f"{name}.npy", dict(sorted(rows.items(), reverse=True)))
    (data_folder / f"{name}.h5").unlink()
    follow_advice(audit(data_folder)[3])
    assert np.array_equal(read(data_folder / f"{name}.h5"), expected) and audit(data_folder)[0] == 0


def test_the_classes_are_printed_and_background_is_none_of_its_own(quick_script, tmp_path):
    done = prepare(quick_script, tmp_path, "cat&a&good&0&2\nBackground&b&good&0&4\nCAT&c&good&0&4\n", "--segments", 4)
    assert read(tmp_path / "out" / "right_labels.h5").argmax(-1).tolist() == [[0, 0, 2, 2], [2] * 4, [1] * 4]
    assert read(tmp_path / "out" / "mil_labels.h5").argmax(-1).tolist() == [0, 2, 1]
    assert "3 classes:\n   0  cat\n   1  CAT\n   2  background\n" in done.stdout
    assert "note: 'cat' and 'CAT' differ in case only" in done.stdout and "AVE" not in done.stdout
    done = prepare(quick_script, tmp_path, "Cat&a&good&0&2\nBark&b&good&0&4\nbackground&c&good&0&4\n", "--overwrite")
    assert "only 2 of its 28 occur; the labels still have AVE's 29 classes" in done.stdout
    assert "29 classes:\n   0  Church bell\n" in done.stdout and "not a category" not in done.stdout
