"""Synthetic AVE is in the published format, follows its own rules, and needs both ears and eyes."""
import h5py
import numpy as np
import pytest

from conftest import TINY, read
from data.hdf5 import new_h5
from data.synthetic import FAMILIES, World, own_annotations


def test_all_files_in_the_published_format(quick_script, tmp_path):
    quick_script("data/synthetic.py", "--output_dir", tmp_path, *"--train 3 --val 2 --test 1 --background 2".split())
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
        with h5py.File(tmp_path / name, locking=False) as file:
            data = file["order" if "order" in name else "avadataset"]
            assert data.shape == shape and data.dtype == dtype and data.chunks is None
    rows = np.concatenate([read(tmp_path / f"{split}_order.h5", "order") for split in ("train", "val", "test")])
    assert sorted(rows) == list(range(6))


def test_a_new_file_gets_its_name_when_it_is_whole(tmp_path):
    with pytest.raises(KeyError), new_h5(tmp_path / "a.h5", (3,), "f4") as dataset:
        raise KeyError
    with pytest.raises(OSError, match="No space left") as error, new_h5(tmp_path / "a.h5", (10**15,), "f4"):
        pass
    assert error.value.filename == str(tmp_path / "a.h5") and not list(tmp_path.iterdir())
    with new_h5(tmp_path / "a.h5", (3,), "f4") as dataset:
        dataset[:] = [1, 2, 3]
    assert read(tmp_path / "a.h5").tolist() == [1, 2, 3]


def test_labels_have_the_statistics_of_AVE():
    annotations = own_annotations(np.random.default_rng(0), 4143, 28, 10)
    length = np.array([annotation.end - annotation.start for annotation in annotations])
    assert abs(length.mean() / 10 - 0.829) < 0.01
    assert abs((length == 10).mean() - 0.664) < 0.02
    assert len({annotation.category for annotation in annotations}) == 28


def test_the_same_seed_writes_the_same_bytes_and_another_seed_others(quick_script, tiny_folder, tmp_path):
    quick_script("data/synthetic.py", "--output_dir", tmp_path, *TINY)
    for path in tiny_folder.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()
    quick_script("data/synthetic.py", "--output_dir", tmp_path, *TINY, "--seed", 1, "--overwrite")
    for name in ("audio_feature.h5", "visual_feature.h5", "right_labels.h5", "train_order.h5", "true_cells.h5"):
        assert (tmp_path / name).read_bytes() != (tiny_folder / name).read_bytes()


def test_only_hearing_and_seeing_tells_an_event():
    """Without clutter one can tell sound and look of every segment from the features; events are where both agree."""
    world = World(seed=3, categories=14, segments=10, audio_dim=600, map_size=7, visual_dim=300, difficulty=0.5)
    for clutter in (world.audio_clutter, world.visual_clutter):
        clutter.levels[:], clutter.textures[:], clutter.noise = 0, 0, 0
    cases = {"event, heard clearly": 0, "event, drowned": 0, "sound alone": 0, "look alone": 0, "neither": 0}

    def strong(feature, pattern):
        return (feature[pattern > 0] > 0).mean() > 0.6       # a tenth of its channels misses in a video's variant

    for row in range(60):
        category, event = row % 14, np.isin(np.arange(10), row % 7 + np.arange(4))
        audio, visual, cells = world.video(1, row, category, event)
        assert visual[~cells].max(initial=0) == 0 and cells.sum(axis=(1, 2)).max() <= 4
        looks = [visual[t][cells[t]].mean(axis=0) for t in range(10) if event[t]]
        seen = {f for look in looks for f, pattern in enumerate(world.family_looks) if strong(look, pattern)}
        assert seen == {category % FAMILIES}
        for t in range(10):
            heard = [c for c in range(14) if strong(audio[t], world.sounds[c])]
            source_heard = strong(audio[t], world.hums[category % FAMILIES])
            if event[t]:
                assert source_heard and cells[t].any()
                assert len(heard) == 1      # the event's own sound, or the sound of the second source over it
                assert heard == [category] or (heard[0] - category) % FAMILIES
                cases["event, heard clearly" if heard == [category] else "event, drowned"] += 1
            elif cells[t].any():
                assert not source_heard and heard and category not in heard
                cases["look alone"] += 1
            else:
                cases["sound alone" if source_heard else "neither"] += 1
    assert min(cases.values()) > 25, cases


def test_at_the_highest_difficulty_nothing_tells_sources_from_clutter():
    world = World(seed=0, categories=3, segments=5, audio_dim=20, map_size=3, visual_dim=10, difficulty=1)
    with_event, without = world.video(1, 0, 1, np.full(5, True)), world.video(1, 0, 1, np.full(5, False))
    assert np.array_equal(with_event[0], without[0]) and np.array_equal(with_event[1], without[1])


# The picture of one clip, and the sounds of the 178 background videos of AVE: all that was at hand.
REAL = {"audio": {"zeros": 0.653, "mean": 0.122, "deviation": 0.262, "seconds": 0.707},
        "visual": {"zeros": 0.663, "mean": 2.01, "deviation": 6.34, "seconds": 0.780, "side by side": 0.680}}


def test_the_default_set_is_like_real_features(quick_script, tmp_path):
    quick_script("data/synthetic.py", "--output_dir", tmp_path, *"--train 30 --val 1 --test 1 --background 0".split())

    def correlation(one, other):
        return np.mean([np.corrcoef(x.ravel(), y.ravel())[0, 1] for x, y in zip(one, other)])

    for name, real in REAL.items():
        features = read(tmp_path / f"{name}_feature.h5")
        found = {"zeros": (features == 0).mean(), "mean": features.mean(), "deviation": features.std(),
                 "seconds": np.mean([correlation(video[:-1], video[1:]) for video in features[::7]])}
        if name == "visual":
            maps = features[::7, ::3].reshape(-1, 7, 7, 512)
            found["side by side"] = np.mean([correlation(row[:-1], row[1:]) for row in maps[:, 2]])
        for what, value in found.items():
            assert real[what] / 1.4 < value < real[what] * 1.4, (name, what, value)


def test_each_row_holds_the_video_of_its_labels(tiny_folder):
    world = World(seed=0, categories=4, segments=6, audio_dim=12, map_size=3, visual_dim=20, difficulty=0)
    for row, labels in enumerate(read(tiny_folder / "right_labels.h5").argmax(-1)):
        video = world.video(1, row, category=labels.min(), event=labels < 4)
        for name, expected in zip(("audio_feature.h5", "visual_feature.h5", "true_cells.h5"), video):
            assert np.array_equal(read(tiny_folder / name)[row], expected)


def test_real_labels_and_splits(quick_script, real_ave, tmp_path):
    quick_script("data/synthetic.py", "--output_dir", tmp_path, "--annotations", real_ave / "Annotations.txt",
                 "--orders", real_ave, *"--audio_dim 4 --map_size 2 --visual_dim 3 --background 178".split())
    assert np.array_equal(read(tmp_path / "mil_labels.h5"), read(real_ave / "mil_labels.h5"))
    for split in ("train", "val", "test"):
        order = read(tmp_path / f"{split}_order.h5", "order")
        assert np.array_equal(order, read(real_ave / f"{split}_order.h5", "order"))
    assert read(tmp_path / "visual_feature.h5").shape == (4143, 10, 2, 2, 3)
