"""Features from video files: agreement with the published extraction, any kind of clip, runs that are stopped."""
import json
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
from golden import recipe  # noqa: E402
from model import feature_networks as networks  # noqa: E402
from utils import UserError, locked  # noqa: E402

OUT = Path("out")      # in the folder of a test
GOLDEN = json.loads((TESTS / "golden/extraction.json").read_text())


def test_frame_numbers_are_the_published_ones_and_one_a_second_at_least():
    for count, numbers in GOLDEN["frames"].items():
        assert frame_numbers(int(count)).ravel().tolist() == numbers
    with pytest.raises(VideoError, match="has 3 frames; 6, one for each second, are needed"):
        frame_numbers(3, 6)


@pytest.mark.parametrize("golden", [GOLDEN["resize"], GOLDEN["resize_big"]])
def test_resize_is_the_published_one(golden):
    frame = av.VideoFrame.from_ndarray(recipe.picture(golden["seed"], *golden["shape"]), format="rgb24")
    resized = picture_of(frame).astype(int)
    assert np.abs(resized[np.ix_(golden["rows"], golden["columns"])] - golden["values"]).max() <= 1
    assert abs(resized.sum() - golden["sum"]) <= 0.01 * resized.size


def test_vgg19_of_a_keras_file_is_keras(tmp_path, monkeypatch):
    golden, path = GOLDEN["vgg19"], tmp_path / "keras.h5"
    with h5py.File(path, "w", locking=False) as file:
        for name, shape in golden["shapes"].items():
            layer, kind = name.split("/")
            file[f"{layer}/{layer}_{kind[0]}:0"] = recipe.weight(name, shape, np.prod(shape[:3]))
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


def test_log_mel_is_the_published_one():
    golden = GOLDEN["log_mel_44k_stereo"]
    sound = recipe.sound(golden["seed"], golden["rate"], golden["seconds"], golden["channels"])
    patches = log_mel_patches(sound, golden["rate"], 2)
    np.testing.assert_allclose(patches[:, :3], golden["first_rows"], rtol=0, atol=1e-8)
    np.testing.assert_allclose(np.linalg.norm(patches, axis=(1, 2)), golden["norm"], rtol=1e-8)


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


@pytest.mark.parametrize("segments, count, options", [
    (10, 20, {"rate": 2}),
    (10, 260, {"seconds": 10.4}),      # a clip of about ten seconds is used as a whole
    (3, 75, {"seconds": 5})])          # of a longer one the first seconds
def test_frames_are_spread_over_all_and_no_others_are_kept(tmp_path, monkeypatch, segments, count, options):
    kept = []
    monkeypatch.setattr("data.video.picture_of", lambda frame: kept.append(frame.pts) or picture_of(frame))
    frames, notes = read_frames(film(tmp_path / "film.mkv", **options), segments)
    assert number_of(frames).tolist() == frame_numbers(count, segments).tolist() and notes == []
    assert len(kept) == min(count, 16 * segments)


@pytest.mark.parametrize("suffix", ["mkv", "mp4"])
@pytest.mark.parametrize("times", [
    [*range(0, 2000, 40), *range(2000, 10000, 100)],                   # 25 frames a second, later 10
    [*range(0, 3000, 40), *range(9000, 12000, 40)]])                   # a still of six seconds
def test_pictures_of_a_variable_rate_go_by_time(tmp_path, suffix, times):
    frames, notes = read_frames(film(tmp_path / f"film.{suffix}", times=times))
    seen, due = np.take(times, number_of(frames)), 1000 * (np.arange(10)[:, np.newaxis] + np.arange(16) / 16)
    held = np.array([[max(time for time in times if time <= moment) for moment in row] for row in due])
    np.testing.assert_array_equal(seen[:, 0], held[:, 0])
    assert (seen <= held).all() and (held - seen <= 100).mean() > 0.98 and notes == []


def test_each_frame_of_a_constant_rate_shows_the_last_picture():
    times = np.array([0, 0.125, 0.251, 1.5, 1.7])      # a millisecond off, as in .mkv
    assert pictures_at_constant_rate(times, 8, 2).tolist() == [[0, 0, 1, 1] + [2] * 12, [2] * 8 + [3] * 4 + [4] * 4]


def test_a_clock_that_jumps_is_no_length(tmp_path):
    path = film(tmp_path / "film.mp4", times=[*range(0, 3000, 40), *range(100000, 110000, 40)])
    with pytest.raises(VideoError, match=r"lasts 3.0 s, 10 are needed \(--pad .*; the times of the picture jump"):
        read_frames(path)
    assert number_of(read_frames(path, 3)[0]).tolist() == frame_numbers(75, 3).tolist()


@pytest.mark.parametrize("starts", [(0, 0), (0, 60000), (60000, 0)])
def test_a_clock_that_starts_again_goes_on(tmp_path, starts):
    parts = [film(tmp_path / f"{number}.ts", times=range(start, start + 2000, 40)).read_bytes()
             for number, start in enumerate(starts)]
    (tmp_path / "film.ts").write_bytes(b"".join(parts))
    with pytest.raises(VideoError, match="lasts 4.0 s, 10 are needed"):
        read_frames(tmp_path / "film.ts")
    frames, notes = read_frames(tmp_path / "film.ts", 4)
    assert number_of(frames).tolist() == (frame_numbers(100, 4) % 50).tolist()
    assert notes == ["a jump of the times of the picture is closed"]


@pytest.mark.parametrize("rate, layout, channels", [(8000, "mono", 1), (48000, "5.1", 6)])
def test_a_short_clip_with_any_sound_is_refused_or_padded(tmp_path, rate, layout, channels):
    sound = tone(1, rate, hertz=[200 + 50 * c for c in range(channels)])
    path = film(tmp_path / "film.mov", 1, 20, sound, rate, layout)
    with pytest.raises(VideoError, match=r"lasts 1.0 s, 3 are needed \(--pad"):
        read_clip(path, 3)
    clip = read_clip(path, 3, pad=True)
    assert number_of(clip.frames).tolist() == [[int(i / 16 * 20) for i in range(16)], [19] * 16, [19] * 16]
    np.testing.assert_array_equal(clip.sound, np.pad(sound, ((0, 2 * rate), (0, 0))))
    assert clip.rate == rate and clip.notes == ["the last frame fills 2.0 s", "silence fills 2.0 s of the sound"]


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_pictures_are_the_ones_that_opencv_reads(tmp_path, degrees):
    path = film(tmp_path / "film.mp4", 1, 16, picture=lambda _: recipe.picture(2, 48, 160), rotation=degrees)
    as_opencv = cv2.resize(cv2.VideoCapture(str(path)).read()[1], (224, 224))[..., ::-1]
    np.testing.assert_array_equal(read_frames(path, 1)[0][0, 0], as_opencv)


@pytest.mark.parametrize("note, options", [
    ("the picture begins 0.7 s after the file does; its seconds count from there", {"times": range(700, 2700, 40)}),
    ("the sound begins 0.3 s after the file does; its seconds count from there", {"seconds": 2, "sound_start": 0.3}),
    ("the picture is HDR; its colours are used as they are stored, mostly too pale", {"seconds": 2, "transfer": 16})])
def test_what_is_late_or_hdr_is_noted_and_used_as_it_is(tmp_path, note, options):
    clip = read_clip(film(tmp_path / "film.mkv", sound=tone(2), **options), 2)
    assert clip.notes == [note] and number_of(clip.frames).tolist() == frame_numbers(50, 2).tolist()
    np.testing.assert_array_equal(clip.sound, tone(2))


@pytest.mark.parametrize("suffix, sound_codec", [("mkv", "aac"), ("ts", "mp2")])
def test_a_film_that_is_cut_off_or_damaged_is_used_in_part_or_refused(tmp_path, suffix, sound_codec):
    path = tmp_path / f"film.{suffix}"
    content = np.fromfile(film(path, 2, 16, tone(2), sound_codec=sound_codec), np.uint8)
    generator, notes, refused = np.random.default_rng(1), [], 0
    for number in range(30):
        damaged = content * (generator.random(len(content)) > 10 * number / len(content))
        damaged[:generator.integers(len(content))].tofile(path)
        try:
            notes += read_clip(path, 2, pad=True).notes
        except VideoError:
            refused += 1
    assert 0 < refused < 30 and re.search("a damaged part of the (picture|sound) is skipped", str(notes))


class SmallVGG19(torch.nn.Module):
    """Takes the place of VGG-19: the mean colour of each cell. Someone presses Ctrl-C when no videos are `left`."""

    left = 100

    def forward(self, pictures):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        cells = pictures.float().unflatten(1, (7, 32)).unflatten(3, (7, 32)).mean(dim=(2, 4))
        return torch.nn.functional.pad(cells, (0, 509))


@pytest.fixture
def run(monkeypatch, quick_script, tmp_path):
    """Runs the script on one second of each video, with small networks; its stderr. ids: of the annotations."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(networks, "VGG19", SmallVGG19)
    monkeypatch.setattr(networks, "VGGish", lambda: torch.nn.Sequential(torch.nn.Flatten(),
                                                                        torch.nn.AdaptiveAvgPool1d(128)))

    def run(videos, *options, ids=(), code=0):
        if ids:
            options += ("--annotations", "Annotations.txt")
            Path("Annotations.txt").write_text("".join(f"Bark&{video_id}&good&0&1\n" for video_id in ids))
        return quick_script("data/extract_features.py", "--videos", videos, "--output_dir", OUT, "--segments", 1,
                            "--random_weights", "--device", "cpu", *options, code=code).stderr
    return run


@pytest.fixture
def clips(tmp_path):
    """Folder of one-second clips, of which b.mp4 is broken, and of files to be skipped."""
    folder = tmp_path / "clips"
    for rate, name in enumerate(("a2.mov", "a10.MOV", "c.mov"), start=16):
        film(folder / name, 1, rate, tone(1, hertz=[20 * rate]))
    film(folder / "silent.mp4", 1, 19)
    for name in ("b.mp4", "._a2.mov", ".hidden.mp4", "notes.txt", "silent.m4a"):
        (folder / name).write_bytes(b"broken")
    return folder


def assert_shows(films):
    """Row i of the visual features is what SmallVGG19 makes of films[i], of one second; for None, zeros and noted."""
    with h5py.File(OUT / "visual_feature.h5", locking=False) as file:
        visual, attributes = file["avadataset"][:], dict(file["avadataset"].attrs)
    assert visual.shape == (len(films), 1, 7, 7, 512) and attributes["random_weights"]
    for row, film in enumerate(films):
        expected = 0 if film is None else read_frames(film, 1)[0].reshape(16, 7, 32, 7, 32, 3).mean(axis=(0, 2, 4))
        np.testing.assert_allclose(visual[row, 0, ..., :3], expected, rtol=1e-5)
        assert (row in attributes.get("rows_without_video", [])) == (film is None)


def test_rows_are_the_files_in_order_and_a_broken_one_has_none(run, clips):
    error = run(clips, code=1)
    for words in ("1 of 5 videos could not be used; they have no row", "b.mp4: cannot be read as a video",
                  "silent.mp4: no sound", "silent.mp4: silent.m4a is not used", "mean nothing"):
        assert words in error
    names = (OUT / "videos.txt").read_text().splitlines()
    assert names == ["a2.mov", "a10.MOV", "c.mov", "silent.mp4"]
    assert_shows([clips / name for name in names])
    audio = read(OUT / "audio_feature.h5")
    assert audio.shape == (4, 1, 128) and audio.dtype == np.float64
    assert audio.any(axis=(1, 2)).tolist() == [True, True, True, False]


def test_with_annotations_rows_are_lines_and_a_missing_video_is_zeros(run, clips):
    error = run(clips, "--dtype", "float32", ids=["c", "gone", "a2", "b", "c"], code=1)
    assert "  gone: is missing\n  b: cannot be read" in error
    assert_shows([clips / "c.mov", None, clips / "a2.mov", None, clips / "c.mov"])
    audio = read(OUT / "audio_feature.h5")
    assert audio.dtype == np.float32 and not audio[[1, 3]].any()


def test_with_annotations_a_part_of_the_name_is_enough_if_it_is_clear(run, tmp_path):
    used = [tmp_path / "clips" / name for name in ("Dog [-x_Y1].mp4", "qqq_000030.mp4", "abc.mp4", "cafe\u0301.mp4")]
    others = ("abc.f137.mp4", "two 1.mp4", "two 2.mp4", "qqqq.mp4", "m n.mp4")
    for seed, path in enumerate([*used, *(tmp_path / "clips" / name for name in others)]):
        film(path, 1, 16, picture=lambda _: recipe.picture(seed, 48, 160))      # noqa: B023
    error = run(tmp_path / "clips", ids=["-x_Y1", "qqq", "abc", "caf\u00e9", "two", "m", "n"], code=1)
    assert "5 of 9 files are not used, as no line is theirs alone: abc.f137.mp4, m n.mp4, qqqq.mp4, ..." in error
    assert_shows([*used, None, None, None])      # nothing that is unclear


def test_two_runs_do_not_write_into_one_folder(run, clips):
    OUT.mkdir()
    with locked(OUT / "extraction.lock"):
        assert "another run is writing there" in run(clips / "c.mov", code=2)


def test_a_stopped_run_continues_and_ends_in_the_same_bytes(run, clips, monkeypatch):
    run(clips, code=1)
    whole = OUT.rename(OUT.with_name("whole"))
    monkeypatch.setattr(SmallVGG19, "left", 2)
    run(clips, code=130)
    assert len(list((OUT / "by_video").iterdir())) == 2 and not (OUT / "videos.txt").exists()
    run(clips, code=1)      # two more can be used; a third one would stop the run again
    for name in ("visual_feature.h5", "audio_feature.h5", "videos.txt"):
        assert (OUT / name).read_bytes() == (whole / name).read_bytes()


def test_features_of_other_settings_or_of_another_content_are_made_again(run, clips):
    video = clips / "c.mov"
    run(video, "--dtype", "float16")
    assert "videos.txt: exists already" in run(video, code=2)
    run(video, "--overwrite")
    assert_shows([video])      # to more digits than float16 has
    video.write_bytes((clips / "a2.mov").read_bytes().ljust(video.stat().st_size, b"\0"))
    run(video, "--overwrite")
    assert_shows([video])
