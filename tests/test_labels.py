"""Labels built from annotations: worked by hand, and equal to the published files; what the audit says of both."""
import re

import numpy as np
import pytest

from conftest import change, read, with_value
from test_check import audit, each, follow_advice  # noqa: F401


def test_label_files_worked_by_hand(quick_script, tmp_path):
    """With a header, blanks around fields, a background video, and empty lines at the end."""
    (tmp_path / "a.txt").write_bytes(b"Category&VideoID&Quality&StartTime&EndTime\r\ncat&id0&good&0&4\r\n"
                                     b"Bark & id1&good&1&3\r\ncat & id2&good& 2&2 \r\nBackground&id3&good&0&4\r\n\r\n")
    done = quick_script("data/prepare_labels.py", "--annotations", tmp_path / "a.txt", "--output_dir", tmp_path / "out",
                        "--segments", 4, "--background_videos", 2)
    found = {path.name: read(path).tolist() for path in (tmp_path / "out").iterdir()}
    assert found == {"right_labels.h5": np.eye(3)[[[0, 0, 0, 0], [2, 1, 1, 2], [2, 2, 2, 2], [2, 2, 2, 2]]].tolist(),
                     "prob_label.h5": [[1, 0, 0], [0, 0.5, 0.5], [0, 0, 1], [0, 0, 1]],
                     "mil_labels.h5": [[1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, 1]], "labels_noisy.h5": [[0, 0, 1]] * 2}
    assert "line 4 (video row 2, id2)" in done.stdout
    assert "3 classes:\n   0  cat\n   1  Bark\n   2  background\n" in done.stdout


def test_some_categories_of_AVE_make_all_its_classes_with_a_note(quick_script, tmp_path):
    (tmp_path / "a.txt").write_text("Cat&id0&good&0&2\nBark&id1&good&0&4\nbackground&id2&good&0&4\n")
    done = quick_script("data/prepare_labels.py", "--annotations", tmp_path / "a.txt", "--output_dir", tmp_path)
    assert "only 2 of AVE's 28 categories occur" in done.stdout
    assert read(tmp_path / "mil_labels.h5").argmax(axis=1).tolist() == [22, 2, 28]


def test_a_bad_line_writes_nothing(quick_script, tmp_path):
    (tmp_path / "a.txt").write_text("cat&id0&good&0&4\ncat&id1&good&0&11\n")
    done = quick_script("data/prepare_labels.py", "--annotations", tmp_path / "a.txt", "--output_dir", tmp_path / "out",
                        code=2)
    assert "line 2 (id1): the event ends at second 11" in done.stderr and not (tmp_path / "out").exists()


def test_equal_to_the_published_files(quick_script, real_ave, tmp_path):
    done = quick_script("data/prepare_labels.py", "--annotations", real_ave / "Annotations.txt",
                        "--output_dir", tmp_path)
    assert np.array_equal(read(tmp_path / "mil_labels.h5"), read(real_ave / "mil_labels.h5"))
    assert np.array_equal(read(tmp_path / "labels_noisy.h5"), read(real_ave / "labels_noisy.h5"))
    assert np.array_equal(1 - read(tmp_path / "right_labels.h5")[..., 28], read(real_ave / "labels_closs.h5"))
    assert done.stdout.count("zero length") == 1 and "video row 26" in done.stdout


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
def test_what_training_takes_is_noted(audit, data_folder, train, apply, expected):  # noqa: F811
    apply(data_folder)
    code, out = audit(data_folder, "--setting", "fully")
    assert code == 0 and re.search(expected, out), out
    train("weakly", "--data_dir", data_folder, "--nb_epoch", 1)


@pytest.mark.parametrize("name", ["Annotations.txt", "videos.txt"])
def test_features_alone_must_have_a_line_for_each_row(audit, tiny_folder, bare_folder, name):  # noqa: F811
    text = (tiny_folder / "Annotations.txt").read_text()
    (bare_folder / name).write_text(text)
    assert audit(bare_folder)[0] == 0
    (bare_folder / name).write_text(text + text.splitlines()[0] + "\n")
    code, out = audit(bare_folder)
    assert code == 2 and f"{name}: has 41 lines, but the data has 40 rows" in out
    assert ("has 41 lines for 40 videos, since" in out) == (name == "Annotations.txt")


def test_features_of_each_video_do_not_fit_labels_of_each_line(audit, data_folder):  # noqa: F811
    TWICE(data_folder)
    each(lambda a: a[1:], "audio_feature.h5", "visual_feature.h5")(data_folder)
    code, out = audit(data_folder)
    assert code == 2 and "has 40 lines for 39 videos, since" in out and "extract_features.py --annotations" in out


@pytest.mark.parametrize("name", ["visual_feature", "visual_feature_noisy"])
def test_a_dict_of_arrays_is_stacked_in_the_order_of_the_annotations(audit, data_folder, name):  # noqa: F811
    expected = read(data_folder / f"{name}.h5")
    np.save(data_folder / f"{name}.npy", {f"synthetic{row:05d}": expected[row] for row in range(len(expected))[::-1]})
    (data_folder / f"{name}.h5").unlink()
    follow_advice(audit(data_folder)[1])
    assert np.array_equal(read(data_folder / f"{name}.h5"), expected) and audit(data_folder)[0] == 0
