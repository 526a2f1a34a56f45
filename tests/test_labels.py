"""Labels built from annotations: worked by hand, and equal to the published files."""
import numpy as np

from conftest import read


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
