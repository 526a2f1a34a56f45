"""Labels built from annotations: worked by hand, and equal to the published files."""
import numpy as np

from conftest import read


def prepare(run, folder, text, *options, code=0):
    (folder / "Annotations.txt").write_bytes(text.encode())
    return run("data/prepare_labels.py", "--annotations", folder / "Annotations.txt", "--output_dir", folder / "out",
               *options, code=code)


def test_label_files_worked_by_hand(quick_script, tmp_path):
    done = prepare(quick_script, tmp_path, "Category&VideoID&Quality&StartTime&EndTime\r\ncat&id0&good&0&4\r\n"
                   "dog & id1&good&1&3\r\ncat&id2&good&2&2\r\n\r\n", "--segments", 4, "--background_videos", 2)
    right = read(tmp_path / "out" / "right_labels.h5")
    assert right.argmax(-1).tolist() == [[0, 0, 0, 0], [2, 1, 1, 2], [2, 2, 2, 2]]
    assert right.sum(-1).tolist() == [[1] * 4] * 3
    assert read(tmp_path / "out" / "prob_label.h5").tolist() == [[1, 0, 0], [0, 0.5, 0.5], [0, 0, 1]]
    assert read(tmp_path / "out" / "mil_labels.h5").tolist() == [[1, 0, 0], [0, 1, 0], [1, 0, 0]]
    assert read(tmp_path / "out" / "labels_noisy.h5").tolist() == [[0, 0, 1]] * 2
    assert "line 4 (video row 2, id2)" in done.stdout


def test_a_misspelt_category_is_noted_if_most_are_of_AVE(quick_script, tmp_path):
    lines = "Bark&id0&good&0&4\nCat&id1&good&0&4\n{}&id2&good&0&4\nHorse&id3&good&0&4\n"
    assert "not a category" not in prepare(quick_script, tmp_path, lines.format("Bus")).stdout
    assert "note: 'Buss' is not a category of AVE (1 lines, the first is line 3)" in prepare(
        quick_script, tmp_path, lines.format("Buss"), "--overwrite").stdout
    own = "one&id0&good&0&4\ntwo&id1&good&0&4\nBark&id2&good&0&4\n"
    assert "not a category" not in prepare(quick_script, tmp_path, own, "--overwrite").stdout


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
