"""Features from video files: agreement with the published extraction, any kind of clip, runs that are stopped."""
import json
import os
import re
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

av = pytest.importorskip("av")
cv2 = pytest.importorskip("cv2")
pytest.importorskip("resampy")

from conftest import TESTS, read  # noqa: E402
from data.video import (VideoError, frame_numbers, log_mel_patches, picture_of, pictures_at_constant_rate,  # noqa: E402
                        read_clip, read_frames)
from films import film, number_of, tone  # noqa: E402
from golden import extraction_recipe as recipe  # noqa: E402
from model import feature_networks as networks  # noqa: E402
from utils import UserError, locked, write_atomically  # noqa: E402

GOLDEN = json.loads((TESTS / "golden/extraction.json").read_text())


def shown(frames):
    """Numbers that the frames [T, 16, 224, 224, 3] show."""
    return [[number_of(picture) for picture in second] for second in frames]


# ------------------------------------------------------------------------------- the published extraction

def test_frame_numbers_are_the_published_ones():
    for count, numbers in GOLDEN["frames"].items():
        assert frame_numbers(int(count)).ravel().tolist() == numbers


@pytest.mark.parametrize("case", ["resize", "resize_big"])
def test_resize_is_the_published_one(case):
    golden = GOLDEN[case]
    frame = av.VideoFrame.from_ndarray(recipe.picture(golden["seed"], *golden["shape"]), format="rgb24")
    resized = picture_of(frame).astype(int)
    assert np.abs(resized[np.ix_(golden["rows"], golden["columns"])] - golden["values"]).max() <= 1
    assert abs(resized.sum() - golden["sum"]) <= 0.01 * resized.size


def test_vgg19_of_a_keras_file_is_keras(tmp_path, monkeypatch):
    golden, path = GOLDEN["vgg19"], tmp_path / "keras.h5"
    with h5py.File(path, "w", locking=False) as file:
        for name, shape in golden["shapes"].items():
            layer, kind = name.split("/")
            fan_in = np.prod(shape[:3]) if kind == "kernel" else 0
            file[f"{layer}/{layer}_{kind[0]}:0"] = recipe.weight(name, shape, fan_in)
    monkeypatch.setattr(networks, "check_digest", lambda *_: None)
    torch.set_default_dtype(torch.float64)
    pictures = np.stack([recipe.picture(seed, 224, 224) for seed in golden["pictures"]])
    with torch.no_grad():
        maps = networks.load_vgg19(path)(torch.from_numpy(pictures)).numpy()
    np.testing.assert_allclose(maps[..., :4], golden["cells"], rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(np.linalg.norm(maps.reshape(2, -1), axis=1), golden["norm"], rtol=1e-8)


def test_vggish_is_torchvggish():
    golden, sound = GOLDEN["vggish"], GOLDEN["log_mel_16k"]
    network = networks.VGGish().double()
    network.load_state_dict({name: torch.from_numpy(recipe.weight(f"vggish/{name}", shape, np.prod(shape[1:])))
                             for name, shape in golden["shapes"].items()})
    patches = log_mel_patches(recipe.sound(sound["seed"], sound["rate"], 2, 1), sound["rate"], 2)
    with torch.no_grad():
        embedding = network(torch.from_numpy(patches)).numpy()
    np.testing.assert_allclose(embedding, golden["embedding"], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("case", ["log_mel_16k", "log_mel_44k_stereo"])
def test_log_mel_is_the_published_one(case):
    golden = GOLDEN[case]
    sound = recipe.sound(golden["seed"], golden["rate"], golden["seconds"], golden["channels"])
    patches = log_mel_patches(sound, golden["rate"], 2)
    assert patches.shape == (2, 96, 64)
    np.testing.assert_allclose(patches[:, :3], golden["first_rows"], rtol=0, atol=1e-8)
    np.testing.assert_allclose(np.linalg.norm(patches, axis=(1, 2)), golden["norm"], rtol=1e-8)


def test_the_frames_of_the_real_clip_are_the_ones_that_opencv_reads():
    path = Path(os.environ.get("AVE_DATA", "none")).parent / "extraction/real/video.mp4"
    if not path.is_file():
        pytest.skip("no real clip at hand")
    capture, pictures = cv2.VideoCapture(str(path)), []
    while (found := capture.read())[0]:
        pictures.append(cv2.resize(found[1], (224, 224))[..., ::-1])
    expected = np.stack([pictures[number] for number in GOLDEN["frames"]["251"]])
    np.testing.assert_array_equal(read_frames(path)[0].reshape(-1, 224, 224, 3), expected)


# --------------------------------------------------------------------------------------------- any video

@pytest.mark.parametrize("segments, count, options", [
    (10, 20, {"rate": 2}),
    (10, 260, {"seconds": 10.4}),      # a clip of about ten seconds is used as a whole
    (3, 75, {"seconds": 5})])          # of a longer one the first seconds
def test_frames_are_spread_over_all_that_are_decoded(tmp_path, segments, count, options):
    frames, notes = read_frames(film(tmp_path / "film.mkv", **options), segments)
    assert shown(frames) == frame_numbers(count, segments).tolist() and notes == []


@pytest.mark.parametrize("suffix", ["mkv", "mp4"])
@pytest.mark.parametrize("times", [
    [*range(0, 2000, 40), *range(2000, 10000, 100)],                   # 25 frames a second, later 10
    [*range(0, 3000, 40), *range(8000, 10000, 40)],                    # a still of five seconds
    [*range(0, 3000, 40), *range(9000, 12000, 40)]])
def test_pictures_of_a_variable_rate_go_by_time(tmp_path, suffix, times):
    frames, notes = read_frames(film(tmp_path / f"film.{suffix}", times=times))
    seen, due = np.take(times, shown(frames)), 1000 * (np.arange(10)[:, np.newaxis] + np.arange(16) / 16)
    held = np.array([[max(time for time in times if time <= moment) for moment in row] for row in due])
    np.testing.assert_array_equal(seen[:, 0], held[:, 0])
    assert (seen <= held).all() and (held - seen <= 100).mean() > 0.98 and notes == []


def test_each_frame_of_a_constant_rate_shows_the_last_picture():
    times = np.array([0, 0.125, 0.251, 1.5, 1.7])      # a millisecond off, as in .mkv
    numbers = pictures_at_constant_rate(times, 8, 2)
    assert numbers.tolist() == [[0, 0, 1, 1] + [2] * 12, [2] * 8 + [3] * 4 + [4] * 4]


@pytest.mark.parametrize("suffix", ["mkv", "mp4"])
def test_a_clock_that_jumps_is_no_length(tmp_path, suffix):
    path = film(tmp_path / f"film.{suffix}", times=[*range(0, 3000, 40), *range(100000, 110000, 40)])
    with pytest.raises(VideoError, match=r"lasts 3.0 s, 10 are needed \(--pad .*; the times of the picture jump"):
        read_frames(path)
    assert shown(read_frames(path, 3)[0]) == frame_numbers(75, 3).tolist()


@pytest.mark.parametrize("starts", [(0, 0), (0, 60000), (60000, 0)])
def test_a_clock_that_starts_again_goes_on(tmp_path, starts):
    parts = [film(tmp_path / f"{number}.ts", times=range(start, start + 2000, 40)).read_bytes()
             for number, start in enumerate(starts)]
    (tmp_path / "film.ts").write_bytes(b"".join(parts))
    frames, notes = read_frames(tmp_path / "film.ts", 4)
    assert shown(frames) == (frame_numbers(100, 4) % 50).tolist()
    assert notes == ["a jump of the times of the picture is closed"]
    with pytest.raises(VideoError, match="lasts 4.0 s, 10 are needed"):
        read_frames(tmp_path / "film.ts")


def test_only_chosen_pictures_are_kept(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr("data.video.picture_of", lambda frame: made.append(0) or np.zeros((224, 224, 3), np.uint8))
    read_frames(film(tmp_path / "film.mkv", 4, 60), 2)
    assert len(made) == 32


def test_hdr_and_sound_in_a_file_of_its_own_are_noted(tmp_path):
    (tmp_path / "film.m4a").touch()
    notes = read_clip(film(tmp_path / "film.mkv", 1, 16, transfer=16), 1).notes
    assert "HDR" in notes[0] and notes[-1].startswith("film.m4a is not used")


def test_a_short_clip_is_refused_or_padded(tmp_path):
    path = film(tmp_path / "film.mov", 1, 20, tone(1))
    with pytest.raises(VideoError, match=r"lasts 1.0 s, 3 are needed \(--pad"):
        read_clip(path, 3)
    clip = read_clip(path, 3, pad=True)
    assert shown(clip.frames) == [[int(i / 16 * 20) for i in range(16)], [19] * 16, [19] * 16]
    np.testing.assert_array_equal(clip.sound, np.pad(tone(1), ((0, 32000), (0, 0))))
    assert clip.notes == ["the last frame fills 2.0 s", "silence fills 2.0 s of the sound"]


def test_fewer_frames_than_seconds_are_refused():
    with pytest.raises(VideoError, match="has 3 frames; 6, one for each second, are needed"):
        frame_numbers(3, 6)


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotation_flags_are_obeyed(tmp_path, degrees):
    path = film(tmp_path / "film.mp4", 1, 16, picture=lambda _: recipe.picture(2, 48, 160), rotation=degrees)
    as_opencv = np.ascontiguousarray(cv2.VideoCapture(str(path)).read()[1][..., ::-1])
    np.testing.assert_array_equal(read_frames(path, 1)[0][0, 0], cv2.resize(as_opencv, (224, 224)))


@pytest.mark.parametrize("rate, layout, channels", [(8000, "mono", 1), (48000, "5.1", 6)])
def test_sound_of_any_rate_and_layout(tmp_path, rate, layout, channels):
    sound = tone(2, rate, hertz=[200 + 50 * c for c in range(channels)])
    clip = read_clip(film(tmp_path / "film.mov", 2, 16, sound, rate, layout), 1)
    np.testing.assert_array_equal(clip.sound, sound[:rate])
    assert clip.rate == rate


@pytest.mark.parametrize("what, late, options", [
    ("picture", 0.7, {"times": range(700, 2700, 40)}), ("sound", 0.3, {"seconds": 2, "sound_start": 0.3})])
def test_a_picture_or_a_sound_that_begins_late_is_noted_and_not_shifted(tmp_path, what, late, options):
    clip = read_clip(film(tmp_path / "film.mkv", sound=tone(2), **options), 2)
    assert clip.notes == [f"the {what} begins {late} s after the file does; its seconds count from there"]
    assert shown(clip.frames) == frame_numbers(50, 2).tolist()
    np.testing.assert_array_equal(clip.sound, tone(2))


@pytest.mark.parametrize("suffix, sound_codec", [("mkv", "aac"), ("ts", "mp2")])
def test_a_film_that_is_cut_off_or_damaged_is_used_in_part_or_refused(tmp_path, suffix, sound_codec):
    path = tmp_path / f"film.{suffix}"
    content = np.fromfile(film(path, 2, 16, tone(2), sound_codec=sound_codec), np.uint8)
    generator, notes, refused = np.random.default_rng(1), [], 0
    cut = [content[:part * len(content) // 10] for part in range(10)]
    damaged = [content * (generator.random(len(content)) > zeros / len(content)) for zeros in range(20, 420, 20)]
    for broken in cut + damaged:
        path.write_bytes(broken.tobytes())
        try:
            notes += read_clip(path, 2, pad=True).notes
        except VideoError:
            refused += 1
    assert 0 < refused < 30 and any(re.match("a damaged part of the (picture|sound) is skipped", note) for note in notes)


@pytest.mark.parametrize("content", [b"no film", b"#EXTM3U\n#EXTINF:1,\nother.ts\n"])
def test_a_file_of_something_else_is_refused(tmp_path, content):
    (tmp_path / "film.mp4").write_bytes(content)
    with pytest.raises(VideoError, match="cannot be read as a video"):
        read_clip(tmp_path / "film.mp4")


# ----------------------------------------------------------------------------------------------- weights

def test_the_content_of_a_file_of_weights_is_checked(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(b"abc")
    networks.check_digest(path, networks.VGG19_WEIGHTS._replace(digest="900150983cd24fb0d6963f7d28e17f72"))  # RFC 1321
    networks.check_digest(path, networks.VGGISH_WEIGHTS._replace(digest="ba7816bf"))                     # FIPS 180-2
    for load in (networks.load_vgg19, networks.load_vggish):
        with pytest.raises(UserError, match="weights: is not .* download it as in data/README"):
            load(path)
        with pytest.raises(UserError, match="missing: not found; data/README.md .* --random_weights"):
            load(tmp_path / "missing")


# -------------------------------------------------------------------------------------------- the script

class SmallVGG19(torch.nn.Module):
    """Takes the place of VGG-19: the mean colour of each cell."""

    def forward(self, pictures):
        cells = pictures.float().unflatten(1, (7, 32)).unflatten(3, (7, 32)).mean(dim=(2, 4))
        return torch.nn.functional.pad(cells, (0, 509))


class SmallVGGish(torch.nn.Module):
    """Takes the place of VGGish: the loudness of each band."""

    def forward(self, patches):
        return torch.nn.functional.pad(patches.mean(dim=1).exp(), (0, 64))


@pytest.fixture
def run(monkeypatch, quick_script, tmp_path):
    """Runs the script on one second of each video, with small networks; its stderr. ids: of the annotations."""
    monkeypatch.setattr(networks, "VGG19", SmallVGG19)
    monkeypatch.setattr(networks, "VGGish", SmallVGGish)

    def run(videos, *options, ids=(), output_dir=tmp_path / "out", code=0):
        if ids:
            options += ("--annotations", tmp_path / "Annotations.txt")
            options[-1].write_text("".join(f"Bark&{video_id}&good&0&1\n" for video_id in ids))
        return quick_script("data/extract_features.py", "--videos", videos, "--output_dir", output_dir, *options,
                            "--random_weights", "--segments", 1, "--device", "cpu", code=code).stderr
    return run


@pytest.fixture
def clips(tmp_path):
    """Folder of one-second clips, of which b.mp4 is broken, and of files to be skipped."""
    folder = tmp_path / "clips"
    for rate, name in enumerate(("a2.mov", "a10.MOV", "c.mov"), start=16):
        film(folder / name, 1, rate, tone(1, hertz=[20 * rate]))
    film(folder / "silent.mp4", 1, 19)
    for name in ("b.mp4", "._a2.mov", ".hidden.mp4", "notes.txt"):
        (folder / name).write_bytes(b"broken")
    return folder


def features(folder):
    """(visual, audio) arrays, and the attributes of the first."""
    with h5py.File(folder / "visual_feature.h5", locking=False) as file:
        attributes = dict(file["avadataset"].attrs)
    return read(folder / "visual_feature.h5"), read(folder / "audio_feature.h5"), attributes


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def assert_shows(visual, path):
    """The visual features of a row are what SmallVGG19 makes of the one-second film."""
    expected = read_frames(path, 1)[0].reshape(16, 7, 32, 7, 32, 3).mean(axis=(0, 2, 4))
    np.testing.assert_allclose(visual[0, ..., :3], expected, rtol=1e-5)


def test_rows_are_the_files_in_order_and_a_broken_one_has_none(run, clips, tmp_path):
    error = run(clips, code=1)
    assert "1 of 5 videos could not be used; they have no row" in error and "b.mp4: cannot be read as a video" in error
    assert "silent.mp4: no sound" in error and "mean nothing" in error
    visual, audio, attributes = features(tmp_path / "out")
    assert attributes["random_weights"]
    assert visual.shape == (4, 1, 7, 7, 512) and audio.shape == (4, 1, 128)
    assert visual.dtype == audio.dtype == np.float64
    names = (tmp_path / "out" / "videos.txt").read_text().splitlines()
    assert names == ["a2.mov", "a10.MOV", "c.mov", "silent.mp4"]
    for row, name in enumerate(names):
        assert_shows(visual[row], clips / name)
    assert audio[:3].max(axis=(1, 2)).all() and not audio[3].any()


def test_with_annotations_rows_are_lines_and_a_missing_video_is_zeros(run, clips, tmp_path):
    error = run(clips, "--dtype", "float32", ids=["c", "gone", "a2", "b", "c"], code=1)
    assert "  gone: is missing\n  b: cannot be read" in error
    visual, audio, attributes = features(tmp_path / "out")
    assert visual.dtype == audio.dtype == np.float32 and len(visual) == len(audio) == 5
    assert_shows(visual[2], clips / "a2.mov")
    np.testing.assert_array_equal(visual[0], visual[4])
    assert not visual[[1, 3]].any() and not audio[[1, 3]].any()
    assert attributes["rows_without_video"].tolist() == [1, 3]


def test_with_annotations_a_part_of_the_name_is_enough_if_it_is_clear(run, tmp_path):
    folder = tmp_path / "clips"
    for seed, name in enumerate(["Dog [-x_Y1].mp4", "qqq_000030.mp4", "abc.mp4", "cafe\u0301.mp4", "abc.f137.mp4",
                                 "two 1.mp4", "two 2.mp4", "qqqq.mp4", "m n.mp4"]):
        film(folder / name, 1, 16, picture=lambda _: recipe.picture(seed, 48, 160))      # noqa: B023
    error = run(folder, ids=["-x_Y1", "qqq", "abc", "two", "caf\u00e9", "m", "n"], code=1)
    assert "5 of 9 files are not used, as no line is theirs alone: abc.f137.mp4, m n.mp4, qqqq.mp4, ..." in error
    visual, _, attributes = features(tmp_path / "out")
    assert attributes["rows_without_video"].tolist() == [3, 5, 6]      # nothing that is unclear
    for row, name in {0: "Dog [-x_Y1].mp4", 1: "qqq_000030.mp4", 2: "abc.mp4", 4: "cafe\u0301.mp4"}.items():
        assert_shows(visual[row], folder / name)


def test_any_file_name_has_one_line_in_the_list(run, tmp_path):
    for name in ("two\nlines.mp4", f"{'z' * 251}.mp4"):
        film(tmp_path / "clips" / "film.mp4", 1, 16).rename(tmp_path / "clips" / name)
    run(tmp_path / "clips")
    assert (tmp_path / "out/videos.txt").read_text() == rf"'two\nlines.mp4'" + f"\n{'z' * 251}.mp4\n"


def test_two_runs_do_not_write_into_one_folder(run, clips, tmp_path):
    (tmp_path / "out").mkdir()
    with locked(tmp_path / "out" / "extraction.lock"):
        assert "another run is writing there" in run(clips / "c.mov", code=2)


def test_a_stopped_run_continues_and_ends_in_the_same_bytes(run, clips, tmp_path, monkeypatch):
    def stop_after_two(path, content):
        if len(files(path.parent)) == 2:
            raise KeyboardInterrupt
        write_atomically(path, content)

    run(clips, output_dir=tmp_path / "whole", code=1)
    with monkeypatch.context() as patch:
        patch.setattr("data.extract_features.write_atomically", stop_after_two)
        run(clips, code=130)
    assert list(files(tmp_path / "out")) == ["extraction.lock"]
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/by_video").iterdir()}
    run(clips, code=1)
    assert len(kept) == 2 and all(path.stat().st_mtime_ns == time for path, time in kept.items())
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_features_of_other_settings_are_not_mixed_in(run, clips, tmp_path):
    run(clips / "c.mov", "--dtype", "float16")
    run(clips / "c.mov", "--overwrite")
    assert_shows(features(tmp_path / "out")[0][0], clips / "c.mov")      # to more digits than float16 has


def test_features_of_a_video_that_has_changed_are_made_again(run, clips, tmp_path):
    run(clips / "c.mov")
    (clips / "a2.mov").replace(clips / "c.mov")
    assert "videos.txt: exists already" in run(clips / "c.mov", code=2)
    run(clips / "c.mov", "--overwrite")
    assert_shows(features(tmp_path / "out")[0][0], clips / "c.mov")
