"""AVEDataset gives what the files hold, whatever their dtype and layout, and refuses what cannot be right."""
import os
import pickle

import h5py
import numpy as np
import pytest
import torch

from conftest import change, read, rewrite, set_attributes, with_value
from dataset import (AVE_FILES, SPLITS, AVEDataset, Sizes, find_files, load_batches, open_h5, required_files,
                     shuffled)
from model.class_names import AVE_CLASSES, class_names, names_and_ids, read_annotations
from utils import UserError


def load(folder, split="train", weak=False, features="memory", dtype=torch.float32, **given):
    return AVEDataset(find_files(folder, required_files([split], weak), given), split, weak, features, dtype)


def assert_holds_rows(dataset, folder, rows):
    audio, visual = read(folder / "audio_feature.h5"), read(folder / "visual_feature.h5")
    labels = read(folder / "right_labels.h5")
    items = dataset[list(range(len(rows)))]
    assert items["video"].tolist() == list(rows)
    assert np.array_equal(items["audio"], audio[rows].astype(np.float32))
    assert np.array_equal(items["visual"], visual[rows].astype(np.float32))
    assert items["labels"].tolist() == [[list(one_hot).index(1) for one_hot in video] for video in labels[rows]]


@pytest.mark.parametrize("features", ["memory", "disk"])
def test_position_i_is_the_row_that_the_order_names(data_folder, features):
    for split in SPLITS:
        assert_holds_rows(load(data_folder, split, features=features), data_folder,
                          read(data_folder / f"{split}_order.h5"))
    rewrite(data_folder / "train_order.h5", np.array([5, 3, 4, 39, 0], ">u2"))
    dataset = load(data_folder, features=features)
    assert_holds_rows(dataset, data_folder, [5, 3, 4, 39, 0])
    assert len(dataset) == 5 and torch.equal(dataset[3]["visual"], dataset[[1, 3]]["visual"][1])


@pytest.mark.parametrize("dtype, layout", [
    ("float16", {}), ("float32", {"chunks": True, "compression": "gzip", "fletcher32": True, "shuffle": True}),
    (">f8", {"chunks": (7, 1, 2, 2, 9)}), ("longdouble", {}), ("int16", {}), ("bool", {})])
def test_any_dtype_and_layout(data_folder, dtype, layout):
    rewrite(data_folder / "visual_feature.h5", read(data_folder / "visual_feature.h5").astype(dtype), **layout)
    rewrite(data_folder / "right_labels.h5", read(data_folder / "right_labels.h5").astype(dtype))
    for features in ("memory", "disk"):
        assert_holds_rows(load(data_folder, features=features), data_folder, read(data_folder / "train_order.h5"))


def test_chunks_of_many_videos_are_kept_until_their_rows_are_read(data_folder):
    """As create_dataset(..., compression="gzip") lays them out: each video has a part of all chunks of its row."""
    path = data_folder / "visual_feature.h5"
    rewrite(path, read(path), compression="gzip", chunks=(20, 1, 3, 3, 5))
    with open_h5(path) as dataset:
        _, slots, size, _ = dataset.file.id.get_access_plist().get_cache()
        assert size >= 20 * 6 * 3 * 3 * 20 * 8 and slots > 6 * 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_features_on_disk_are_the_features_in_memory(tiny_folder, dtype):
    memory, disk = (load(tiny_folder, weak=True, features=features, dtype=dtype) for features in ("memory", "disk"))
    for index in (3, [28, 0, 7], torch.tensor([5, 5]), slice(2, 9)):
        for name, value in memory[index].items():
            assert torch.equal(value, disk[index][name]) and value.dtype in (torch.int64, dtype), name
    rounded = load(tiny_folder, weak=True, dtype=torch.bfloat16)
    assert torch.equal(rounded[:]["visual"], memory[:]["visual"].float().bfloat16())
    assert memory.fingerprint == disk.fingerprint == rounded.fingerprint


def test_a_dataset_on_disk_can_be_given_to_another_process(tiny_folder):
    dataset = load(tiny_folder, features="disk")      # its files are open: it has read the fingerprint
    assert torch.equal(pickle.loads(pickle.dumps(dataset))[:]["visual"], dataset[:]["visual"])


@pytest.mark.parametrize("features", ["memory", "disk"])
def test_batches_are_those_asked_for_and_stay_as_they_are(tiny_folder, features):
    dataset = load(tiny_folder, weak=True, features=features)
    asked_for = [torch.tensor(positions) for positions in ([3, 1, 28], [0, 23, 9], [4, 4, 4], [7])]
    for positions, batch in zip(asked_for, list(load_batches(dataset, asked_for, dataset.device)), strict=True):
        assert all(torch.equal(value, dataset[positions][name]) for name, value in batch.items())


def test_the_fingerprint_tells_other_features_labels_and_orders(data_folder):
    before = load(data_folder, weak=True).fingerprint
    for name in ("visual_feature", "audio_feature", "mil_labels", "train_order"):
        path = data_folder / f"{name}.h5"
        whole = read(path)
        rewrite(path, whole[::-1])
        assert load(data_folder, weak=True).fingerprint != before, name
        rewrite(path, whole)


def test_a_weak_training_set_ends_with_the_background_videos(tiny_folder):
    dataset, order = load(tiny_folder, weak=True), read(tiny_folder / "train_order.h5")
    assert len(dataset) == 24 + 5
    assert_holds_rows(dataset, tiny_folder, order)
    share, category = dataset[:]["label_share"], dataset[:]["video_label"]
    assert np.array_equal(share[:24], read(tiny_folder / "prob_label.h5")[order].astype(np.float32))
    assert np.array_equal(category[:24], read(tiny_folder / "mil_labels.h5")[order])
    assert share[24:].tolist() == category[24:].tolist() == [[0, 0, 0, 0, 1]] * 5
    background = dataset[list(range(24, 29))]
    assert background["video"].tolist() == [40, 41, 42, 43, 44] and (background["labels"] == 4).all()
    for name in ("audio", "visual"):
        assert np.array_equal(background[name], read(tiny_folder / f"{name}_feature_noisy.h5").astype(np.float32))


def test_rows_without_video_are_counted_and_random_weights_known(data_folder):
    order, path = read(data_folder / "train_order.h5"), data_folder / "visual_feature.h5"
    assert load(data_folder).without_features == 0 and not load(data_folder).random_weights
    set_attributes(path, rows_without_video=order[:3], random_weights=True)
    assert load(data_folder).without_features == 3 and load(data_folder).random_weights
    set_attributes(path, rows_without_video=order)
    with pytest.raises(UserError, match="no video of train has features"):
        load(data_folder)


# ------------------------------------------------------------------------------------------- missing and broken files

def test_all_missing_files_are_listed_at_once_with_source_and_alternative(data_folder, tmp_path):
    with pytest.raises(UserError) as error:
        load(tmp_path, weak=True)
    for name in required_files(["train"], weak_training=True):
        assert AVE_FILES[name].names[0] in str(error.value)
    assert "AVE-ECCV18" in str(error.value) and "data/synthetic.py" in str(error.value)
    (data_folder / "audio_feature.h5").rename(tmp_path / "my_sound.h5")
    assert len(load(data_folder, audio=tmp_path / "my_sound.h5")) == 24


def in_file(name, function):
    return name, change(name, function)


def partly_written(folder):
    rewrite(folder / "audio_feature.h5", None, shape=(40, 6, 12), dtype="f4", chunks=(1, 6, 12))


def unknown_filter(folder):
    """As a filter that h5py lacks leaves a file."""
    layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    layout.set_chunk((24,))
    layout.set_filter(32015, h5py.h5z.FLAG_OPTIONAL, (3,))
    with h5py.File(folder / "train_order.h5", "w", locking=False) as file:
        space = h5py.h5s.create_simple((24,))
        dataset = h5py.h5d.create(file.id, b"order", h5py.h5t.NATIVE_INT64, space, layout)
        dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, np.arange(24))


BROKEN = {
    "cut short": ("visual_feature.h5", lambda folder: os.truncate(folder / "visual_feature.h5", 9000), "download"),
    "partly written": ("audio_feature.h5", partly_written, "incomplete"),
    "a filter": ("train_order.h5", unknown_filter, "filter 32015 .*pip install hdf5plugin"),
    "another key": ("audio_feature.h5", lambda folder: rewrite(folder / "audio_feature.h5", np.ones(3), "data"),
                    "has no HDF5 dataset of numbers 'avadataset', but data"),
    "text": (*in_file("audio_feature.h5", lambda a: np.array([b"a"])), "no HDF5 dataset of numbers"),
    "axes": (*in_file("visual_feature.h5", lambda a: a[..., 0]), r"must have shape \(40, 6, >0, >0, >0\)"),
    "one channel": (*in_file("visual_feature.h5", lambda a: np.ones((40, 6, 32, 32, 1))), r"1\), 1024 cells with one"),
    "fewer videos": (*in_file("audio_feature.h5", lambda a: a[:-1]), r"must have shape \(40, 6, >0\)"),
    "share of others": (*in_file("prob_label.h5", lambda a: a[:, :-1]), r"must have shape \(40, 5\)"),
    "no background videos": (*in_file("labels_noisy.h5", lambda a: a[:0]), r"must have shape \(>0, 5\)"),
    "row out of range": (*in_file("train_order.h5", lambda a: np.r_[a, 40]), "40, but the labels have 0 to 39"),
    "a row twice": (*in_file("train_order.h5", lambda a: a[[0, 1, 0]]), "more than once"),
    "empty split": (*in_file("train_order.h5", lambda a: a[:0]), r"must have shape \(>0\)"),
    "two labels": (*in_file("right_labels.h5", lambda a: np.maximum(a, a[..., ::-1])), "not one-hot"),
    "share over 1": (*in_file("prob_label.h5", lambda a: with_value(a, 3, 0.3)), "row 3 does not hold shares"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_data_is_refused_by_file_and_reason(data_folder, case):
    name, apply, reason = BROKEN[case]
    apply(data_folder)
    with pytest.raises(UserError, match=reason) as error:
        load(data_folder, weak=True)
    assert name in str(error.value)


@pytest.mark.parametrize("name, dtype, value", [
    ("audio_feature.h5", "f8", np.nan), ("visual_feature.h5", "f8", -1e300), ("visual_feature.h5", "f2", np.inf)])
def test_values_that_are_not_finite_in_float32_are_found_by_row(data_folder, name, dtype, value):
    row = read(data_folder / "train_order.h5")[7]
    change(name, lambda a: with_value(a.astype(dtype), (row, 2, ..., 1), value))(data_folder)
    for features in ("memory", "disk"):
        with pytest.raises(UserError, match=f"{name}: contains NaN or infinite values .*row {row},"):
            load(data_folder, features=features)[[2, 7]]


def test_each_epoch_has_each_video_once_in_a_new_order_of_its_seed():
    epochs = shuffled(videos=21, batch_size=4, seed=5)
    first, second = next(epochs), next(epochs)
    for positions in (first, second):
        assert positions.shape == (5, 4) and len(set(positions.flatten().tolist())) == 20      # one is dropped
    assert not torch.equal(first, second)
    assert torch.equal(next(shuffled(21, 4, seed=5)), first)
    assert not torch.equal(next(shuffled(21, 4, seed=6)), first)


@pytest.mark.parametrize("line", ["Bark&id&good&0", "Bark&id&good&a&3", ""])
def test_a_malformed_annotation_is_refused_by_line_number(tmp_path, line):
    path = tmp_path / "Annotations.txt"
    path.write_text(f"Bark&id0&good&0&10\n{line}\nBark&id2&good&0&10\n")
    with pytest.raises(UserError, match="line 2 "):
        read_annotations(path)


def test_class_names_are_those_of_AVE_for_its_own_data_alone(tmp_path):
    path, ave_sizes = tmp_path / "Annotations.txt", Sizes(4143, 10, 128, (7, 7), 512, 29)
    path.write_text("Cat&a&good&0&10\nBark&b&good&0&10\n")
    ave = read_annotations(path)
    assert class_names(ave) == class_names(ave, 29) == list(AVE_CLASSES)
    assert class_names(ave, 3) == ["Cat", "Bark", "background"]
    with pytest.raises(UserError, match="has 2 lines, but the data has 4143 rows"):
        names_and_ids(tmp_path, None, ave_sizes)
    path.unlink()
    assert names_and_ids(tmp_path, None, ave_sizes) == (list(AVE_CLASSES), None)
    assert names_and_ids(tmp_path, None, ave_sizes._replace(num_rows=40)) == (None, None)      # own 28 categories
