"""Labels built from annotations: hand-worked, and equal to the published files."""
import numpy as np

from conftest import read


def test_label_files_worked_by_hand(quick_script, tmp_path):
    (tmp_path / "Annotations.txt").write_text("cat&id0&good&0&4\ndog&id1&good&1&3\ncat&id2&good&2&2\n")
    done = quick_script("data/prepare_labels.py", "--annotations", tmp_path / "Annotations.txt",
                        "--output_dir", tmp_path,
                  "--segments", 4, "--background_videos", 2)
    assert read(tmp_path / "right_labels.h5").argmax(-1).tolist() == [[0, 0, 0, 0], [2, 1, 1, 2], [2, 2, 2, 2]]
    assert read(tmp_path / "right_labels.h5").sum(-1).tolist() == [[1] * 4] * 3
    assert read(tmp_path / "prob_label.h5").tolist() == [[1, 0, 0], [0, 0.5, 0.5], [0, 0, 1]]
    assert read(tmp_path / "mil_labels.h5").tolist() == [[1, 0, 0], [0, 1, 0], [1, 0, 0]]
    assert read(tmp_path / "labels_noisy.h5").tolist() == [[0, 0, 1]] * 2
    assert "line 3 (video row 2, id2)" in done.stdout


def test_a_bad_line_writes_nothing(quick_script, tmp_path):
    for line, number in (("cat&id1&good&0", 2), ("cat&id1&good&0&11", 2)):
        (tmp_path / "Annotations.txt").write_text(f"cat&id0&good&0&4\n{line}\n")
        done = quick_script("data/prepare_labels.py", "--annotations", tmp_path / "Annotations.txt", "--output_dir",
                      tmp_path / "out", code=2)
        assert f"line {number} " in done.stderr
        assert not list(tmp_path.glob("out/*"))


def test_equal_to_the_published_files(quick_script, real_ave, tmp_path):
    done = quick_script("data/prepare_labels.py", "--annotations", real_ave / "Annotations.txt",
                        "--output_dir", tmp_path)
    np.testing.assert_array_equal(read(tmp_path / "mil_labels.h5"), read(real_ave / "mil_labels.h5"))
    np.testing.assert_array_equal(read(tmp_path / "labels_noisy.h5"), read(real_ave / "labels_noisy.h5"))
    right = read(tmp_path / "right_labels.h5")
    np.testing.assert_array_equal(1 - right[..., 28], read(real_ave / "labels_closs.h5"))
    event = right[..., :28].sum(-1) > 0
    assert (right.argmax(-1)[event] == np.repeat(read(real_ave / "mil_labels.h5").argmax(-1), event.sum(1))).all()
    np.testing.assert_allclose(read(tmp_path / "prob_label.h5"), right.mean(1))
    assert done.stdout.count("zero length") == 1 and "video row 26" in done.stdout
