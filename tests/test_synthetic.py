"""Synthetic AVE is in the published format, follows its own rules, and needs both ears and eyes."""
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from conftest import TINY, read
from data.hdf5 import new_h5
from data.synthetic import FAMILIES, World, own_annotations


def test_all_files_in_the_published_format(quick_script, tmp_path):
    quick_script("data/synthetic.py", "--output_dir", tmp_path, *"--train 3 --val 2 --test 1 --background 2".split())
    expected = {
        "audio_feature": ((6, 10, 128), "float64"), "visual_feature": ((6, 10, 7, 7, 512), "float64"),
        "audio_feature_noisy": ((2, 10, 128), "float64"), "visual_feature_noisy": ((2, 10, 7, 7, 512), "float64"),
        "right_labels": ((6, 10, 29), "float64"), "true_cells": ((6, 10, 7, 7), "uint8"),
        "prob_label": ((6, 29), "float64"), "mil_labels": ((6, 29), "float32"), "labels_noisy": ((2, 29), "float32"),
        "train_order": ((3,), "int64"), "val_order": ((2,), "int64"), "test_order": ((1,), "int64"),
    }
    assert {path.stem for path in tmp_path.iterdir()} == {*expected, "Annotations"}
    for name, (shape, dtype) in expected.items():
        data = read(tmp_path / f"{name}.h5")
        assert data.shape == shape and data.dtype == dtype


def test_a_new_file_gets_its_name_when_it_is_whole(tmp_path):
    with pytest.raises(KeyError), new_h5(tmp_path / "a.h5", (3,), "f4"):
        raise KeyError
    with pytest.raises(OSError, match="No space left") as error, new_h5(tmp_path / "a.h5", (10**15,), "f4"):
        pass
    assert error.value.filename == str(tmp_path / "a.h5") and not list(tmp_path.iterdir())


def test_a_disk_that_tells_no_size_is_not_full(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(total=0, used=0, free=0))
    with new_h5(tmp_path / "a.h5", (2,), "float64"):
        pass
    assert read(tmp_path / "a.h5").shape == (2,)


def test_labels_have_the_statistics_of_AVE():
    annotations = own_annotations(np.random.default_rng(0), 4143, 28, 10)
    length = np.array([annotation.end - annotation.start for annotation in annotations])
    assert abs(length.mean() / 10 - 0.829) < 0.01 and abs((length == 10).mean() - 0.664) < 0.02
    assert len({annotation.category for annotation in annotations}) == 28


def test_the_same_seed_writes_the_same_bytes_and_another_seed_others(quick_script, tiny_folder, tmp_path):
    for seed, same in ((0, True), (1, False)):
        quick_script("data/synthetic.py", "--output_dir", tmp_path, *TINY, "--seed", seed, "--overwrite")
        for name in ("audio_feature.h5", "visual_feature.h5", "right_labels.h5", "train_order.h5", "true_cells.h5"):
            assert ((tmp_path / name).read_bytes() == (tiny_folder / name).read_bytes()) == same


def test_only_hearing_and_seeing_tells_an_event():
    """Without clutter one can tell sound and look of every segment from the features; events are where both agree."""
    world = World(seed=3, categories=14, segments=10, audio_dim=600, map_size=7, visual_dim=300, difficulty=0.5)
    for clutter in (world.audio_clutter, world.visual_clutter):
        clutter.levels[:], clutter.textures[:], clutter.noise = 0, 0, 0

    def strong(feature, patterns):      # a tenth of a pattern's channels misses in a video's variant
        return [i for i, pattern in enumerate(patterns) if (feature[pattern > 0] > 0).mean() > 0.6]

    cases = Counter()
    for row in range(60):
        category, event = row % 14, np.isin(np.arange(10), row % 7 + np.arange(4))
        audio, visual, cells = world.video(1, row, category, event)
        assert visual[~cells].max(initial=0) == 0 and cells.sum(axis=(1, 2)).max() <= 4
        for t in range(10):
            seen, heard = cells[t].any(), category % FAMILIES in strong(audio[t], world.hums)
            assert event[t] == (seen and heard)
            assert not seen or strong(visual[t][cells[t]].mean(axis=0), world.family_looks) == [category % FAMILIES]
            sound, = strong(audio[t], world.sounds)      # the event's own, or that of the second source over it
            assert (sound == category and heard) or (sound - category) % FAMILIES
            cases["heard clearly" if sound == category else "drowned" if heard else "silent", bool(seen)] += 1
    assert len(cases) == 6 and min(cases.values()) > 25, cases


def test_at_the_highest_difficulty_nothing_tells_sources_from_clutter():
    world = World(seed=0, categories=3, segments=5, audio_dim=20, map_size=3, visual_dim=10, difficulty=1)
    with_event, without = world.video(1, 0, 1, np.full(5, True)), world.video(1, 0, 1, np.full(5, False))
    assert np.array_equal(with_event[0], without[0]) and np.array_equal(with_event[1], without[1])


def test_the_default_set_is_like_real_features(quick_script, tmp_path):
    """Zeros, mean, deviation, correlation of seconds and of cells: of AVE's 178 background videos, and of one clip."""
    quick_script("data/synthetic.py", "--output_dir", tmp_path, *"--train 30 --val 1 --test 1 --background 0".split())
    expected = {"audio": (0.653, 0.122, 0.262, 0.707), "visual": (0.663, 2.01, 6.34, 0.780, 0.680)}

    def correlation(parts):      # of consecutive parts
        return np.mean([np.corrcoef(part[:-1].ravel(), part[1:].ravel())[0, 1] for part in parts])

    for name, real in expected.items():
        features = read(tmp_path / f"{name}_feature.h5")
        found = [(features == 0).mean(), features.mean(), features.std(), correlation(features[::7])]
        if name == "visual":
            found.append(correlation(features[::7, ::3, 2].reshape(-1, 7, 512)))
        assert found == pytest.approx(real, rel=0.2), name


def test_each_row_holds_the_video_of_its_labels(tiny_folder):
    world = World(seed=0, categories=4, segments=6, audio_dim=12, map_size=3, visual_dim=20, difficulty=0)
    for row, labels in enumerate(read(tiny_folder / "right_labels.h5").argmax(-1)):
        video = world.video(1, row, category=labels.min(), event=labels < 4)
        for name, expected in zip(("audio_feature", "visual_feature", "true_cells"), video):
            assert np.array_equal(read(tiny_folder / f"{name}.h5")[row], expected)
