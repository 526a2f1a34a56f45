"""Synthetic AVE is in the published format, follows its own rules, and needs both ears and eyes."""
import h5py
import numpy as np
import pytest

from conftest import TINY, read
from data.feature_statistics import REAL_AUDIO, REAL_VISUAL, statistics
from data.synthetic import FAMILIES, World, own_annotations


def test_all_files_in_the_published_format(quick_script, tmp_path):
    done = quick_script("data/synthetic.py", "--output_dir", tmp_path,
                        *"--train 3 --val 2 --test 1 --background 2".split())
    expected = {
        "audio_feature.h5": ((6, 10, 128), "float64"), "visual_feature.h5": ((6, 10, 7, 7, 512), "float64"),
        "audio_feature_noisy.h5": ((2, 10, 128), "float64"), "visual_feature_noisy.h5": ((2, 10, 7, 7, 512), "float64"),
        "right_labels.h5": ((6, 10, 29), "float64"), "mil_labels.h5": ((6, 29), "float32"),
        "prob_label.h5": ((6, 29), "float64"), "labels_noisy.h5": ((2, 29), "float32"),
        "train_order.h5": ((3,), "int64"), "val_order.h5": ((2,), "int64"), "test_order.h5": ((1,), "int64"),
        "true_cells.h5": ((6, 10, 7, 7), "uint8"),
    }
    assert {path.name for path in tmp_path.iterdir()} == {*expected, "Annotations.txt"}
    for name, (shape, dtype) in expected.items():
        with h5py.File(tmp_path / name) as file:
            data = file["order" if "order" in name else "avadataset"]
            assert data.shape == shape and data.dtype == dtype and data.chunks is None
            assert name != "visual_feature.h5" or data[:].min() == 0
    # A contiguous file is its values and a short header, as published: 8,315,168,768 bytes for 4143 videos.
    assert (tmp_path / "visual_feature.h5").stat().st_size == 6 * 10 * 7 * 7 * 512 * 8 + 2048
    rows = np.concatenate([read(tmp_path / f"{split}_order.h5", "order") for split in ("train", "val", "test")])
    assert sorted(rows) == list(range(6))
    assert "6 videos" in done.stdout


def test_labels_have_the_statistics_of_AVE():
    annotations = own_annotations(np.random.default_rng(0), 4143, 28, 10)
    length = np.array([annotation.end - annotation.start for annotation in annotations])
    assert abs(length.mean() / 10 - 0.829) < 0.01
    assert abs((length == 10).mean() - 0.664) < 0.02
    assert len({annotation.category for annotation in annotations}) == 28


def test_the_same_seed_writes_the_same_bytes_and_another_seed_others(quick_script, tiny_folder, tmp_path):
    quick_script("data/synthetic.py", "--output_dir", tmp_path / "same", *TINY)
    quick_script("data/synthetic.py", "--output_dir", tmp_path / "other", *TINY, "--seed", 1)
    for name in ("audio_feature.h5", "visual_feature.h5", "right_labels.h5", "train_order.h5", "true_cells.h5"):
        key = "order" if "order" in name else "avadataset"
        np.testing.assert_array_equal(read(tmp_path / "same" / name, key), read(tiny_folder / name, key))
        assert not np.array_equal(read(tmp_path / "other" / name, key), read(tiny_folder / name, key))


def test_existing_data_is_not_overwritten_unasked(quick_script, data_folder):
    before = (data_folder / "visual_feature.h5").read_bytes()
    done = quick_script("data/synthetic.py", "--output_dir", data_folder, *TINY, "--seed", 1, code=2)
    assert "--overwrite" in done.stderr
    assert (data_folder / "visual_feature.h5").read_bytes() == before
    quick_script("data/synthetic.py", "--output_dir", data_folder, *TINY, "--seed", 1, "--overwrite")
    assert (data_folder / "visual_feature.h5").read_bytes() != before


def test_only_hearing_and_seeing_tells_an_event():
    """Without clutter one can tell sound and look of every segment from the features; events are where both agree."""
    world = World(seed=3, categories=14, segments=10, audio_dim=600, map_size=7, visual_dim=300, difficulty=0.5)
    for clutter in (world.audio_clutter, world.visual_clutter):
        clutter.levels[:], clutter.textures[:], clutter.noise = 0, 0, 0
    cases = {"event, heard clearly": 0, "event, drowned": 0, "sound alone": 0, "look alone": 0, "neither": 0}

    def strong(feature, pattern):
        return (feature[pattern > 0] > 0).mean() > 0.6       # a tenth of its channels misses in a video's variant

    for row in range(60):
        event = np.zeros(10, bool)
        event[row % 7:row % 7 + 4] = True
        category = row % 14
        audio, visual, cells = world.video(1, row, category, event)
        assert visual[~cells].max(initial=0) == 0
        looks = [visual[t][cells[t]].mean(axis=0) for t in range(10) if event[t]]
        seen = {f for look in looks for f, pattern in enumerate(world.family_looks) if strong(look, pattern)}
        assert seen == {category % FAMILIES}
        for t in range(10):
            heard = [c for c in range(14) if strong(audio[t], world.sounds[c])]
            of_source = strong(audio[t], world.hums[category % FAMILIES])
            if event[t]:
                assert of_source and cells[t].any()
                assert len(heard) == 1      # the event's own, or that of the second source over it
                assert heard == [category] or (heard[0] - category) % FAMILIES
                cases["event, heard clearly" if heard == [category] else "event, drowned"] += 1
            elif cells[t].any():
                assert not of_source and heard and category not in heard
                cases["look alone"] += 1
            elif of_source:
                cases["sound alone"] += 1
            else:
                cases["neither"] += 1
        assert cells.sum(axis=(1, 2)).max() <= 4
    assert min(cases.values()) > 25, cases


def test_at_the_highest_difficulty_nothing_tells_sources_from_clutter():
    for difficulty, same in ((1, True), (0.5, False)):
        world = World(seed=0, categories=3, segments=5, audio_dim=20, map_size=3, visual_dim=10, difficulty=difficulty)
        (audio, visual, _), (other_audio, other_visual, _) = [
            world.video(1, 0, 1, np.full(5, kind)) for kind in (True, False)]
        assert np.array_equal(audio, other_audio) == np.array_equal(visual, other_visual) == same


def test_statistics_worked_by_hand():
    """Two seconds of two cells side by side, then one below the other."""
    audio = np.array([[[0, 0, 4, 2], [0, 0, 8, 4], [0, 1, 0, 0]]], np.float32)
    values = statistics(audio)
    assert values["zeros"] == 7 / 12 and values["median of the non-zeros"] == 4
    assert values["mean"] == pytest.approx(19 / 12)
    assert values["standard deviation"] == pytest.approx(np.sqrt(101 / 12 - (19 / 12) ** 2))
    # the first pair: 1; the second: cov(0 0 8 4, 0 1 0 0) = -3, of variances 44 and 3 / 4
    assert values["correlation between seconds"] == pytest.approx((1 - 3 / np.sqrt(44 * 0.75)) / 2)
    picture = np.array([[[1, 0], [2, 0]], [[0, 1], [0, 3]]], np.float32)[None, None]
    values = statistics(picture)
    assert values["correlation between cells side by side"] == pytest.approx(1)
    assert values["correlation between cells one below the other"] == pytest.approx(-1)
    assert values["correlation between far corners"] == pytest.approx(-1)
    assert np.isnan(values["correlation between seconds"])       # there is but one


def test_default_set_is_like_real_features(quick_script, tmp_path):
    """Recomputed from the written files, in another way."""
    done = quick_script("data/synthetic.py", "--output_dir", tmp_path,
                        *"--train 48 --val 4 --test 4 --background 0".split())
    for name, real in (("audio", REAL_AUDIO), ("visual", REAL_VISUAL)):
        features = read(tmp_path / f"{name}_feature.h5")
        positive = np.sort(features[features > 0])

        def near(what, value):
            assert real[what] / 1.4 < value < real[what] * 1.4, (name, what, value)

        near("zeros", 1 - positive.size / features.size)
        near("mean", positive.sum() / features.size)
        mean = positive.sum() / features.size
        near("standard deviation", np.sqrt((positive ** 2).sum() / features.size - mean ** 2))
        near("median of the non-zeros", positive[positive.size // 2])
        near("99 % of the non-zeros", positive[int(0.99 * positive.size)])

        def correlation(pairs):
            return np.mean([np.corrcoef(x.ravel(), y.ravel())[0, 1] for x, y in pairs])

        videos = features[::7]
        near("correlation between seconds", correlation((v[t], v[t + 1]) for v in videos for t in range(9)))
        if name == "visual":
            maps = videos[:, ::3].reshape(-1, 7, 7, 512)
            pairs = ((m[2, x], m[2, x + 1]) for m in maps for x in range(6))
            near("correlation between cells side by side", correlation(pairs))
            near("correlation between cells one below the other",
                 correlation((m[y, 2], m[y + 1, 2]) for m in maps for y in range(6)))
            assert correlation((m[0, 0], m[6, 6]) for m in maps) < 0.2
    # and the script says so: each line ends with this set beside real ones
    lines = [line.split() for line in done.stdout.splitlines() if line[:2] == "  " != line[1:3]]
    assert len(lines) == len(REAL_AUDIO) + len(REAL_VISUAL)
    assert all(float(line[-1]) == pytest.approx(float(line[-2]) / float(line[-3]), abs=0.02) for line in lines)


def test_real_labels_and_splits(quick_script, real_ave, tmp_path):
    quick_script("data/synthetic.py", "--output_dir", tmp_path, "--annotations", real_ave / "Annotations.txt",
           "--orders", real_ave, *"--audio_dim 4 --map_size 2 --visual_dim 3 --background 178".split())
    np.testing.assert_array_equal(read(tmp_path / "mil_labels.h5"), read(real_ave / "mil_labels.h5"))
    for split, count in (("train", 3339), ("val", 402), ("test", 402)):
        order = read(tmp_path / f"{split}_order.h5", "order")
        assert len(order) == count
        np.testing.assert_array_equal(order, read(real_ave / f"{split}_order.h5", "order"))
    assert read(tmp_path / "visual_feature.h5").shape == (4143, 10, 2, 2, 3)


@pytest.mark.parametrize("options, expected", [
    (["--annotations", "a.txt"], "--orders"),
    (["--annotations", "nowhere.txt", "--orders", "."], "nowhere.txt"),
    (["--difficulty", "2"], "--difficulty"),
    (["--train", "0"], "--train"),
])
def test_bad_options(quick_script, tmp_path, options, expected):
    done = quick_script("data/synthetic.py", "--output_dir", tmp_path / "out", *options, code=2)
    assert expected in done.stderr
