"""AVEDataset gives what the files hold, whatever their dtype and layout, and refuses what cannot be right."""
import os

import h5py
import numpy as np
import pytest
import torch

from conftest import change, read, rewrite, with_value
from data.annotations import read_annotations
from data.files import UserError
from dataset import AVE_FILES, AVEDataset, find_files, required_files


def load(folder, split="train", weak=False, features="memory", dtype=torch.float32, **given):
    return AVEDataset(find_files(folder, required_files([split], weak), given), split, weak, features, dtype)


def assert_holds_rows(dataset, folder, rows):
    audio, visual = read(folder / "audio_feature.h5"), read(folder / "visual_feature.h5")
    labels = read(folder / "right_labels.h5")
    assert len(dataset) >= len(rows)
    for position, row in enumerate(rows):
        item = dataset[position]
        assert item["video"] == row
        assert item["audio"].dtype == item["visual"].dtype == torch.float32
        np.testing.assert_array_equal(item["audio"], audio[row].astype(np.float32))
        np.testing.assert_array_equal(item["visual"], visual[row].astype(np.float32))
        assert item["labels"].tolist() == [list(one_hot).index(1) for one_hot in labels[row]]


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_every_item_is_the_row_that_the_order_names(tiny_folder, split):
    rows = read(tiny_folder / f"{split}_order.h5", "order")
    dataset = load(tiny_folder, split)
    assert len(dataset) == len(rows)
    assert_holds_rows(dataset, tiny_folder, rows)


def test_an_order_may_be_shuffled(data_folder):
    order = np.array([5, 3, 4, 39, 0, 1])
    rewrite(data_folder / "train_order.h5", order, "order")
    assert_holds_rows(load(data_folder), data_folder, order)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
@pytest.mark.parametrize("layout", [{}, {"chunks": True}, {"chunks": True, "compression": "gzip"}],
                         ids=["contiguous", "chunked", "compressed"])
def test_any_float_dtype_and_layout(data_folder, dtype, layout):
    for name in ("audio_feature.h5", "visual_feature.h5"):
        rewrite(data_folder / name, read(data_folder / name).astype(dtype), **layout)
    for features in ("memory", "disk"):
        assert_holds_rows(load(data_folder, features=features), data_folder,
                          read(data_folder / "train_order.h5", "order"))


def test_a_file_that_begins_with_something_else_is_read_in_the_right_place(data_folder):
    features = read(data_folder / "visual_feature.h5")
    with h5py.File(data_folder / "visual_feature.h5", "w", userblock_size=512) as file:
        file.create_dataset("other", data=np.ones(77))
        file.create_dataset("avadataset", data=features.astype(">f8"))
    for where in ("memory", "disk"):
        assert_holds_rows(load(data_folder, features=where), data_folder, read(data_folder / "train_order.h5", "order"))


@pytest.mark.parametrize("weak", [False, True])
def test_features_on_disk_are_those_in_memory(tiny_folder, weak):
    held, read_anew = load(tiny_folder, weak=weak), load(tiny_folder, weak=weak, features="disk")
    for index in (3, [len(held) - 1, 0, 7], torch.tensor([5, 5]), slice(2, 9)):
        for name, value in held[index].items():
            assert torch.equal(value, read_anew[index][name]), name
    assert read_anew.digest == held.digest
    workers = torch.utils.data.DataLoader(read_anew, batch_size=4, num_workers=2)
    assert torch.equal(torch.cat([batch["visual"] for batch in workers]), held.values["visual"])


def test_features_in_bfloat16_are_the_rounded_ones(tiny_folder):
    rounded = load(tiny_folder, dtype=torch.bfloat16).values["visual"]
    assert torch.equal(rounded, load(tiny_folder).values["visual"].to(torch.bfloat16))


def test_the_digest_tells_other_features_labels_and_orders(data_folder):
    before = load(data_folder, weak=True).digest
    assert load(data_folder, weak=True).digest == before
    for name, key in (("visual_feature.h5", "avadataset"), ("audio_feature.h5", "avadataset"),
                      ("mil_labels.h5", "avadataset"),
                      ("train_order.h5", "order")):
        whole = read(data_folder / name, key)
        rewrite(data_folder / name, whole[::-1], key)
        assert load(data_folder, weak=True).digest != before, name
        rewrite(data_folder / name, whole, key)


def test_weak_training_set_has_the_background_videos_behind_the_others(tiny_folder):
    dataset = load(tiny_folder, weak=True)
    order = read(tiny_folder / "train_order.h5", "order")
    share, category = read(tiny_folder / "prob_label.h5"), read(tiny_folder / "mil_labels.h5")
    assert len(dataset) == 24 + 5
    assert_holds_rows(dataset, tiny_folder, order)
    for position, row in enumerate(order):
        np.testing.assert_array_equal(dataset[position]["label_share"], share[row].astype(np.float32))
        assert dataset[position]["video_label"] == category[row].argmax()
    for k in range(5):
        item = dataset[24 + k]
        assert item["video"] == 40 + k
        np.testing.assert_array_equal(item["audio"], read(tiny_folder / "audio_feature_noisy.h5")[k].astype(np.float32))
        visual = read(tiny_folder / "visual_feature_noisy.h5")[k]
        np.testing.assert_array_equal(item["visual"], visual.astype(np.float32))
        assert item["label_share"].tolist() == [0, 0, 0, 0, 1]
        assert item["video_label"] == 4 and item["labels"].tolist() == [4] * 6


def test_a_list_of_positions_is_a_batch(tiny_folder):
    dataset = load(tiny_folder)
    batch = dataset[[7, 2]]
    for name, value in batch.items():
        assert torch.equal(value, torch.stack([dataset[7][name], dataset[2][name]]))


def test_both_names_of_the_label_file_and_paths_of_single_files(data_folder, tmp_path):
    (data_folder / "right_labels.h5").rename(data_folder / "right_label.h5")
    elsewhere = tmp_path / "my_sound.h5"
    (data_folder / "audio_feature.h5").rename(elsewhere)
    dataset = load(data_folder, audio=elsewhere)
    np.testing.assert_array_equal(dataset[0]["audio"], read(elsewhere)[dataset[0]["video"]].astype(np.float32))


def test_all_missing_files_are_listed_at_once_with_source_and_alternative(tmp_path):
    with pytest.raises(UserError) as error:
        load(tmp_path, weak=True)
    text = str(error.value)
    for name in required_files(["train"], weak_training=True):
        assert AVE_FILES[name].names[0] in text
    assert "AVE-ECCV18" in text and "drive.google.com" in text and "data/synthetic.py" in text


BROKEN = {
    "not HDF5": ("visual_feature.h5", lambda folder: (folder / "visual_feature.h5").write_text("no"), "cannot be read"),
    "truncated": ("visual_feature.h5", lambda folder: truncate(folder / "visual_feature.h5"), "cannot be read"),
    "wrong key": ("audio_feature.h5", lambda folder: rewrite(folder / "audio_feature.h5", np.zeros(3), "other"),
                  "avadataset"),
    "text": ("audio_feature.h5", lambda folder: rewrite(folder / "audio_feature.h5", np.array([b"a"])), "not numbers"),
    "wrong axes": ("visual_feature.h5", change("visual_feature.h5", lambda a: a[..., 0]), "shape"),
    "fewer videos": ("audio_feature.h5", change("audio_feature.h5", lambda a: a[:-1]), "shape"),
    "fewer segments": ("visual_feature.h5", change("visual_feature.h5", lambda a: a[:, :-1]), "shape"),
    "row out of range": ("train_order.h5", change("train_order.h5", lambda a: a + 30, "order"), "rows 0 to 39"),
    "negative row": ("train_order.h5", change("train_order.h5", lambda a: a - 30, "order"), "rows 0 to 39"),
    "fractional rows": ("train_order.h5", change("train_order.h5", lambda a: a + 0.5, "order"), "whole numbers"),
    "a row twice": ("train_order.h5", change("train_order.h5", lambda a: a[[0, 1, 0]], "order"), "more than once"),
    "a link": ("audio_feature.h5", lambda folder: link(folder / "audio_feature.h5"), "link to another file"),
    "one value": ("audio_feature.h5", lambda folder: rewrite(folder / "audio_feature.h5", 3.5), "a single value"),
    "nothing": ("labels_noisy.h5", lambda folder: rewrite(folder / "labels_noisy.h5", h5py.Empty("f8")), "nothing"),
    "partly written": ("visual_feature.h5", lambda folder: unwritten(folder / "visual_feature.h5"),
                       "not written to its end"),
    "a chunk too short for its checksum": ("train_order.h5", lambda folder: short_chunk(folder / "train_order.h5"),
                                           "not written to its end"),
    "more rows than videos": ("train_order.h5", change("train_order.h5", lambda a: np.arange(41), "order"), "41 rows"),
    "big-endian and too large": ("visual_feature.h5", change("visual_feature.h5", lambda a: (a + 1e100).astype(">f8")),
                                 "NaN or inf"),
    "empty split": ("train_order.h5", change("train_order.h5", lambda a: a[:0], "order"), "no videos"),
    "no background videos": ("labels_noisy.h5", change("labels_noisy.h5", lambda a: a[:0]), "has no background video"),
    "two labels": ("right_labels.h5", change("right_labels.h5", lambda a: np.maximum(a, a[..., ::-1])), "not one-hot"),
    "no label": ("right_labels.h5", change("right_labels.h5", lambda a: a * 0), "not one-hot"),
    "two categories": ("mil_labels.h5", change("mil_labels.h5", lambda a: a + a[:, ::-1]), "not one-hot"),
    "share over 1": ("prob_label.h5", change("prob_label.h5", lambda a: 2 * a), "sum to 1"),
    "negative share": ("prob_label.h5", change("prob_label.h5", lambda a: with_value(a, 3, [-1, 2, 0, 0, 0])),
                       "sum to 1"),
    "share of others": ("prob_label.h5", change("prob_label.h5", lambda a: a[:, :-1]),
                        r"\[videos, classes\] must have shape \(40, 5\)"),
    "background map": ("visual_feature_noisy.h5", change("visual_feature_noisy.h5", lambda a: a[:, :, :2]), "shape"),
    "background count": ("audio_feature_noisy.h5", change("audio_feature_noisy.h5", lambda a: a[:2]), "shape"),
}


def link(path):
    path.rename(path.with_name("elsewhere.h5"))
    with h5py.File(path, "w") as file:
        file["avadataset"] = h5py.ExternalLink("elsewhere.h5", "avadataset")


def unwritten(path):
    features = read(path)
    with h5py.File(path, "w") as file:
        file.create_dataset("avadataset", features.shape, features.dtype,
                            chunks=(1, *features.shape[1:]))[:-3] = features[:-3]


def short_chunk(path):
    """What ends the program inside HDF5 if it is read."""
    order = read(path, "order")
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset("order", order.shape, order.dtype, chunks=order.shape, fletcher32=True)
        dataset.id.write_direct_chunk((0,), b"\0\0")


def truncate(path):
    path.write_bytes(path.read_bytes()[:-5000])


@pytest.mark.parametrize("case", BROKEN)
def test_broken_data_is_refused_by_file_and_reason(data_folder, case):
    name, apply, reason = BROKEN[case]
    apply(data_folder)
    with pytest.raises(UserError, match=reason) as error:
        load(data_folder, weak=True)
    assert name in str(error.value)


@pytest.mark.parametrize("row, fits", [
    ([0.3, 0, 0, 0, 0.7], True), ([0.3, 0, 0, 0, 0.7005], True), ([0.3, 0, 0, 0, 0.702], False),
    ([0.3, 0, 0, 0, 0.698], False), ([0, 0, 0, 0, 0], False)])
def test_shares_of_labels_sum_to_one_within_a_thousandth(data_folder, row, fits):
    change("prob_label.h5", lambda share: with_value(share, 3, row))(data_folder)
    if fits:
        load(data_folder, weak=True)
    else:
        with pytest.raises(UserError, match="prob_label.h5: row 3 is no share"):
            load(data_folder, weak=True)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
@pytest.mark.parametrize("name", ["audio_feature.h5", "visual_feature.h5"])
def test_values_that_are_not_finite_in_float32_are_found_by_video(data_folder, name, value):
    row = read(data_folder / "train_order.h5", "order")[7]
    features = read(data_folder / name)
    features[row, 2, ..., 1] = value
    rewrite(data_folder / name, features)
    with pytest.raises(UserError, match=f"{name}.*video row {row},"):
        load(data_folder)
    with pytest.raises(UserError, match=f"{name}.*video row {row},"):
        load(data_folder, features="disk")[[2, 7]]


def test_a_file_overwritten_while_it_is_in_use_is_named(data_folder):
    """With other numbers of the same size, in place."""
    path = data_folder / "visual_feature.h5"
    dataset = load(data_folder, features="disk")
    whole = path.read_bytes()
    os.utime(path, ns=(0, 0))
    with open(path, "r+b") as file:
        file.write(whole[:-8] + bytes(8))
    with pytest.raises(UserError, match="visual_feature.h5: was changed while"):
        dataset[0]


def test_a_file_cut_short_while_it_is_in_use_is_named(data_folder):
    dataset = load(data_folder, features="disk")
    dataset[0]
    os.truncate(data_folder / "visual_feature.h5", (data_folder / "visual_feature.h5").stat().st_size // 2)
    with pytest.raises(UserError, match="visual_feature.h5: was changed while"):
        dataset[list(range(len(dataset)))]


@pytest.mark.parametrize("line", ["Bark&id&good&0", "Bark&id&good&a&3", "Bark&id&good&5&3", "Bark&id&good&-1&3", ""])
def test_a_malformed_annotation_is_refused_by_line_number(tmp_path, line):
    path = tmp_path / "Annotations.txt"
    path.write_text(f"Bark&id0&good&0&10\n{line}\nBark&id2&good&0&10\n")
    with pytest.raises(UserError, match="line 2 "):
        read_annotations(path)


@pytest.mark.parametrize("name", ["visual_feature.h5", "right_labels.h5", "train_order.h5"])
def test_truncations_and_bit_flips_end_in_one_line_or_in_data(data_folder, name):
    """Damage anywhere in a file: a UserError that names a file, or numbers that pass every check."""
    whole = (data_folder / name).read_bytes()
    generator = np.random.default_rng(0)
    for number in range(60):
        data = bytearray(whole)
        if number % 3 == 0:
            data = data[:generator.integers(len(whole))]
        else:      # the first 2 kB hold the structure of the file
            until = min(2200, len(whole)) if number % 3 == 1 else len(whole)
            data[generator.integers(until)] ^= 1 << generator.integers(8)
        (data_folder / name).write_bytes(data)
        try:
            dataset = load(data_folder, weak=True)
        except UserError as error:
            assert str(data_folder) in str(error)
        else:
            assert all(torch.isfinite(value.double()).all() for value in dataset[list(range(len(dataset)))].values())


def test_one_more_feature_file_is_in_each_batch(data_folder, monkeypatch):
    """Two entries in dataset.py are enough; its shape is checked, and it has no background videos."""
    import dataset as module
    flow = np.random.default_rng(0).random((40, 6, 5))
    rewrite(data_folder / "flow_feature.h5", flow)
    monkeypatch.setitem(module.AVE_FILES, "flow", module.AVEFile(("flow_feature.h5",), "flow", "nowhere"))
    monkeypatch.setattr(module, "FEATURES", ("audio", "visual", "flow"))
    for features in ("memory", "disk"):
        item = load(data_folder, features=features)[[2, 0]]
        np.testing.assert_array_equal(item["flow"], flow[item["video"]].astype(np.float32))
    with pytest.raises(UserError, match="--background_videos off"):
        load(data_folder, weak=True)
    rewrite(data_folder / "flow_feature.h5", flow[:, :-1])
    with pytest.raises(UserError, match=r"flow_feature.h5: has shape \(40, 5, 5\)"):
        load(data_folder)
