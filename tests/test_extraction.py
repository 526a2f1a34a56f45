"""Features from video files: agreement with the published extraction, any kind of clip, runs that are stopped."""
import hashlib
import json
import os
import pickle
import resource
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

av = pytest.importorskip("av")
cv2 = pytest.importorskip("cv2")
pytest.importorskip("resampy")

from data.video import (VideoError, frame_numbers, log_mel_patches, natural_order, read_clip, read_frames,  # noqa: E402
                        read_sound, resize)
from dataset import UserError  # noqa: E402
from films import film, number_of, tone, turned  # noqa: E402
from golden import extraction_recipe as recipe  # noqa: E402
from model import feature_networks as networks  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = json.loads((ROOT / "tests/golden/extraction.json").read_text())


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
    resized = resize(recipe.picture(golden["seed"], *golden["shape"])).astype(int)
    assert np.abs(resized[np.ix_(golden["rows"], golden["columns"])] - golden["values"]).max() <= 1
    assert abs(resized.sum() - golden["sum"]) <= 0.01 * resized.size


def test_vgg19_of_a_keras_file_is_keras(tmp_path, monkeypatch):
    golden, path = GOLDEN["vgg19"], tmp_path / "keras.h5"
    with h5py.File(path, "w", locking=False) as file:
        for name, shape in golden["shapes"].items():
            layer, kind = name.split("/")
            fan_in = np.prod(shape[:3]) if kind == "kernel" else 0
            file[f"{layer}/{layer}_{kind[0]}:0"] = recipe.weight(name, shape, fan_in)
    digest = hashlib.md5(path.read_bytes()).hexdigest()
    monkeypatch.setattr(networks, "VGG19_WEIGHTS", networks.VGG19_WEIGHTS._replace(digest=digest))
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


def test_160_of_the_251_frames_of_the_real_clip_as_opencv_reads_them():
    path = Path(os.environ.get("AVE_DATA", "none")).parent / "extraction/real/video.mp4"
    if not path.is_file():
        pytest.skip("no real clip at hand")
    capture, pictures = cv2.VideoCapture(str(path)), []
    while (read := capture.read())[0]:
        pictures.append(cv2.resize(read[1], (224, 224))[..., ::-1])
    expected = np.stack([pictures[number] for number in GOLDEN["frames"]["251"]])
    np.testing.assert_array_equal(read_frames(path)[0].reshape(-1, 224, 224, 3), expected)


# --------------------------------------------------------------------------------------------- any video

@pytest.mark.parametrize("segments, count, options", [
    (10, 250, {}), (10, 600, {"rate": 60}), (10, 20, {"rate": 2}), (10, 240, {"seconds": 9.6}),
    (10, 260, {"seconds": 10.4}),      # a clip of about ten seconds is used as a whole
    (3, 75, {"seconds": 5}),           # of a longer one the first seconds
    # A variable rate: 25 frames in the first half second, 15 in the rest.
    (2, 40, {"times": [*range(0, 500, 20), *range(500, 2000, 100)]})])
def test_frames_are_spread_over_all_that_are_decoded(tmp_path, segments, count, options):
    frames, notes = read_frames(film(tmp_path / "film.mkv", **options), segments)
    assert shown(frames) == frame_numbers(count, segments).tolist() and notes == []


@pytest.mark.parametrize("promised", [20, 400])
def test_a_wrong_frame_count_in_the_container_does_no_harm(tmp_path, promised):
    path = film(tmp_path / "film.avi", 2, 25)
    content = bytearray(path.read_bytes())
    place = content.index(b"strh") + 40      # where the header of the stream has its length
    content[place:place + 4] = promised.to_bytes(4, "little")
    path.write_bytes(content)
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == promised
    assert shown(read_frames(path, 2)[0]) == frame_numbers(50, 2).tolist()


def test_a_short_clip_is_refused_or_padded(tmp_path):
    path = film(tmp_path / "film.mov", 1, 20, tone(1))
    with pytest.raises(VideoError, match=r"lasts 1.0 s, 3 are needed \(--pad"):
        read_clip(path, 3)
    clip = read_clip(path, 3, pad=True)
    assert shown(clip.frames) == [[int(i / 16 * 20) for i in range(16)], [19] * 16, [19] * 16]
    np.testing.assert_array_equal(clip.sound, np.pad(tone(1), ((0, 32000), (0, 0))))
    assert clip.notes == ["the last frame fills 2.0 s", "silence fills 2.0 s of the sound"]
    with pytest.raises(VideoError, match="has 1.2 s of sound, 3 are needed"):
        read_clip(film(tmp_path / "silent.mov", 3, 16, tone(1.25)), 3)


def test_fewer_frames_than_seconds_are_refused(tmp_path):
    with pytest.raises(VideoError, match="has 3 frames; 6, one for each second, are needed"):
        read_frames(film(tmp_path / "film.mkv", times=[0, 3000, 5800]), 6)


@pytest.mark.parametrize("quarters", [0, 1, 2, 3])
def test_rotation_flags_are_obeyed(tmp_path, quarters):
    path = turned(film(tmp_path / "film.mp4", 1, 16, picture=lambda _: recipe.picture(2, 48, 160)), quarters)
    as_opencv = np.ascontiguousarray(cv2.VideoCapture(str(path)).read()[1][..., ::-1])
    np.testing.assert_array_equal(read_frames(path, 1)[0][0, 0], cv2.resize(as_opencv, (224, 224)))


@pytest.mark.parametrize("rate, layout, channels", [(8000, "mono", 1), (44100, "stereo", 2), (48000, "5.1", 6)])
def test_sound_of_any_rate_and_layout(tmp_path, rate, layout, channels):
    sound = tone(2, rate, hertz=[200 + 50 * c for c in range(channels)])
    clip = read_clip(film(tmp_path / "film.mov", 2, 16, sound, rate, layout), 1)
    np.testing.assert_array_equal(clip.sound, sound[:rate])
    assert clip.rate == rate


def test_sound_whose_format_changes_keeps_the_first_one(tmp_path):
    mono = film(tmp_path / "mono.ts", 2, 25, tone(2), sound_codec="mp2").read_bytes()
    stereo = film(tmp_path / "stereo.ts", 2, 25, tone(2, 44100, (440, 440)), 44100, "stereo", sound_codec="mp2")
    (tmp_path / "both.ts").write_bytes(mono + stereo.read_bytes())
    sound, rate, _ = read_sound(tmp_path / "both.ts", 3)
    assert sound.shape == (48000, 1) and rate == 16000
    spectrum = np.abs(np.fft.rfft(sound[36000:44000, 0]))
    assert spectrum.argmax() == 220      # 440 Hz in half a second, in the second part too


@pytest.mark.parametrize("what, late, options", [
    ("picture", 0.7, {"times": range(700, 2700, 40)}), ("sound", 0.3, {"seconds": 2, "sound_start": 0.3})])
def test_a_picture_or_a_sound_that_begins_late_is_noted_and_not_shifted(tmp_path, what, late, options):
    clip = read_clip(film(tmp_path / "film.mkv", sound=tone(2), **options), 2)
    assert clip.notes == [f"the {what} begins {late} s after the file does; its seconds count from its own start"]
    assert shown(clip.frames) == frame_numbers(50, 2).tolist()
    np.testing.assert_array_equal(clip.sound, tone(2))


@pytest.mark.parametrize("suffix, sound_codec, options", [
    ("mp4", "aac", {"movflags": "faststart"}), ("mkv", "aac", {}), ("ts", "mp2", {})])
def test_a_film_that_is_cut_off_or_damaged_is_used_in_part_or_refused(tmp_path, suffix, sound_codec, options):
    path = tmp_path / f"film.{suffix}"
    content = film(path, 2, 16, tone(2), sound_codec=sound_codec, **options).read_bytes()
    generator, notes, refused = np.random.default_rng(0), [], 0
    for trial in range(50):
        broken = np.frombuffer(content, np.uint8).copy()
        if trial < 25:
            broken = broken[:trial * len(content) // 25]
        else:
            broken[generator.integers(len(broken), size=8 * trial)] = generator.integers(256, size=8 * trial)
        path.write_bytes(broken.tobytes())
        try:
            notes += read_clip(path, 2, pad=True).notes
        except VideoError as error:
            assert "\n" not in str(error)
            refused += 1
    assert 0 < refused < 50 and any("damaged part" in note for note in notes)


@pytest.mark.parametrize("content", [b"", b"no film", b"\0" * 5000, b"#EXTM3U\n#EXTINF:1,\nother.ts\n"])
def test_a_file_of_something_else_is_refused(tmp_path, content):
    (tmp_path / "film.mp4").write_bytes(content)
    with pytest.raises(VideoError, match="cannot be read as a video"):
        read_clip(tmp_path / "film.mp4")


def test_a_name_that_looks_like_an_address_is_a_name(tmp_path, monkeypatch):
    film(tmp_path / "http:film.mov", 1, 16)
    monkeypatch.chdir(tmp_path)
    assert read_frames(Path("http:film.mov"), 1)[0].shape == (1, 16, 224, 224, 3)


def test_numbers_in_names_count_as_numbers():
    names = ["2.mp4", "10.mp4", "clip1.mp4", "clip2a.mp4", "clip02b.mp4", "clip10.mp4"]
    assert [path.name for path in sorted(map(Path, sorted(names)), key=natural_order)] == names


# ----------------------------------------------------------------------------------------------- weights

def test_only_the_published_weights_are_accepted(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(b"abc")
    networks.check_digest(path, networks.VGG19_WEIGHTS._replace(digest="900150983cd24fb0d6963f7d28e17f72"))  # RFC 1321
    networks.check_digest(path, networks.VGGISH_WEIGHTS._replace(digest="ba7816bf"))                     # FIPS 180-2
    for load, algorithm in ((networks.load_vgg19, "MD5"), (networks.load_vggish, "SHA256")):
        with pytest.raises(UserError, match=f"weights: is not .*: its {algorithm} is .* download it again from https"):
            load(path)


class Malicious:
    def __reduce__(self):
        return exec, ("raise SystemExit('the file ran')",)


def test_vggish_weights_run_nothing(tmp_path, monkeypatch):
    path = tmp_path / "weights.pth"
    torch.save(Malicious(), path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(networks, "VGGISH_WEIGHTS", networks.VGGISH_WEIGHTS._replace(digest=digest))
    with pytest.raises(pickle.UnpicklingError):
        networks.load_vggish(path)


# -------------------------------------------------------------------------------------------- the script

class SmallVGG19(torch.nn.Module):
    """Takes the place of VGG-19: the mean colour of each cell."""

    stop_at = None      # number of the video that Ctrl-C is pressed at

    def __init__(self):
        super().__init__()
        self.videos = 0

    def forward(self, pictures):
        self.videos += 1
        if self.videos == self.stop_at:
            raise KeyboardInterrupt
        cells = pictures.float().unflatten(1, (7, 32)).unflatten(3, (7, 32)).mean(dim=(2, 4))
        return torch.nn.functional.pad(cells, (0, 509))


class SmallVGGish(torch.nn.Module):
    """Takes the place of VGGish: the loudness of each band."""

    def forward(self, patches):
        return torch.nn.functional.pad(patches.mean(dim=1).exp(), (0, 64))


@pytest.fixture
def run(monkeypatch, main_in_process, tmp_path):
    """Runs the script on one second of each video, with small networks; (exit code, stdout, stderr)."""
    monkeypatch.setattr(networks, "VGG19", SmallVGG19)
    monkeypatch.setattr(networks, "VGGish", SmallVGGish)

    def run(videos, *options, output_dir=tmp_path / "out"):
        return main_in_process("data/extract_features.py", "--videos", videos, "--output_dir", output_dir, *options,
                               "--random_weights", "--segments", 1, "--device", "cpu")
    return run


@pytest.fixture
def clips(tmp_path):
    """Folder of one-second clips, of which b.mp4 is broken, and of files to be passed over."""
    folder = tmp_path / "clips"
    folder.mkdir()
    for rate, name in ((16, "a2.mov"), (17, "a10.MOV"), (18, "c.mov")):
        film(folder / name, 1, rate, tone(1, hertz=(20 * rate,)))
    film(folder / "silent.mp4", 1, 19)
    for name in ("b.mp4", "._a2.mov", ".hidden.mp4", "notes.txt"):
        (folder / name).write_bytes(b"broken")
    return folder


def features(folder):
    """(visual, audio) arrays, and the attributes of both."""
    with h5py.File(folder / "visual_feature.h5", locking=False) as visual, \
         h5py.File(folder / "audio_feature.h5", locking=False) as audio:
        attributes = dict(visual["avadataset"].attrs)
        assert attributes.keys() == dict(audio["avadataset"].attrs).keys()
        return visual["avadataset"][()], audio["avadataset"][()], attributes


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def expected_visual(path):
    """What SmallVGG19 makes of a one-second film."""
    return read_frames(path, 1)[0].reshape(16, 7, 32, 7, 32, 3).mean(axis=(0, 2, 4))


def test_the_real_networks_run_over_one_second(main_in_process, tmp_path):
    path = film(tmp_path / "still.mkv", 1, 16, tone(1), codec="ffv1", picture=lambda _: recipe.picture(2, 48, 160))
    main_in_process("data/extract_features.py", "--videos", path, "--output_dir", tmp_path, "--random_weights",
                    "--segments", "1", "--device", "cpu")
    visual, audio, attributes = features(tmp_path)
    assert attributes["random_weights"]
    clip = read_clip(path, 1)
    vgg19, vggish = networks.random_networks()
    with torch.no_grad():      # one frame is all frames
        maps = vgg19(torch.from_numpy(clip.frames[0, :1]))
        embedding = vggish(torch.from_numpy(log_mel_patches(clip.sound, clip.rate, 1)))
    np.testing.assert_allclose(visual, maps[None], rtol=1e-3, atol=1e-3 * float(maps.max()))
    np.testing.assert_allclose(audio, embedding[None], rtol=1e-3, atol=1e-3)


def test_rows_are_the_files_in_order_and_a_broken_one_has_none(run, clips, tmp_path):
    code, _, error = run(clips)
    assert code == 1
    assert "1 of 5 videos could not be used; they have no row" in error and "b.mp4: cannot be read as a video" in error
    assert "silent.mp4: no sound" in error and "mean nothing" in error
    visual, audio, attributes = features(tmp_path / "out")
    assert visual.shape == (4, 1, 7, 7, 512) and audio.shape == (4, 1, 128)
    assert visual.dtype == audio.dtype == np.float64
    names = (tmp_path / "out" / "videos.txt").read_text().splitlines()
    assert names == ["a2.mov", "a10.MOV", "c.mov", "silent.mp4"]
    for row, name in enumerate(names):
        np.testing.assert_allclose(visual[row, 0, ..., :3], expected_visual(clips / name), rtol=1e-5)
    assert audio[:3].max(axis=(1, 2)).all() and not audio[3].any()
    assert set(attributes) == {"random_weights"}


def test_with_annotations_rows_are_lines_and_a_missing_video_is_zeros(run, clips, tmp_path):
    lines = "".join(f"Bark&{video_id}&good&0&1\n" for video_id in ("c", "gone", "a2", "b", "c"))
    (tmp_path / "Annotations.txt").write_text(lines)
    code, _, error = run(clips, "--annotations", tmp_path / "Annotations.txt", "--dtype", "float32")
    assert code == 1 and "row 1, gone: is missing" in error and "row 3, b: cannot be read" in error
    visual, audio, attributes = features(tmp_path / "out")
    assert visual.dtype == audio.dtype == np.float32 and len(visual) == len(audio) == 5
    np.testing.assert_allclose(visual[2, 0, ..., :3], expected_visual(clips / "a2.mov"), rtol=1e-5)
    np.testing.assert_array_equal(visual[0], visual[4])
    assert not visual[[1, 3]].any() and not audio[[1, 3]].any()
    assert attributes["rows_without_video"].tolist() == [1, 3]


def test_without_a_video_that_can_be_used_no_file_is_written(run, clips, tmp_path):
    code, _, error = run(clips / "b.mp4")
    assert code == 1 and "no file was written" in error
    assert not any(path.is_file() for path in (tmp_path / "out").rglob("*"))


@pytest.mark.parametrize("stop_at", [1, 3])
def test_a_stopped_run_continues_and_ends_in_the_same_bytes(run, clips, tmp_path, monkeypatch, stop_at):
    assert run(clips, output_dir=tmp_path / "whole")[0] == 1
    monkeypatch.setattr(SmallVGG19, "stop_at", stop_at)
    assert run(clips)[0] == 130
    kept = files(tmp_path / "out" / "by_video")
    assert len(kept) == stop_at - 1 and not files(tmp_path / "out")
    monkeypatch.setattr(SmallVGG19, "stop_at", 6 - stop_at)      # one more than are left: none is made again
    assert run(clips)[0] == 1
    assert kept.items() <= files(tmp_path / "out" / "by_video").items()
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_features_of_other_settings_or_another_file_are_not_mixed_in(run, clips, tmp_path):
    video, kept = clips / "c.mov", tmp_path / "out" / "by_video" / "c.mov.npz"
    assert run(video)[0] == 0
    for name in files(tmp_path / "out"):
        (tmp_path / "out" / name).unlink()
    code, _, error = run(video, "--pad")
    assert code == 2 and f"{kept}: was made with --segments 1 --dtype float64 --random_weights of" in error
    film(video, 1, 30, tone(1))
    code, _, error = run(video)
    assert code == 2 and f"this run has --segments 1 --dtype float64 --random_weights of a file of " \
                         f"{video.stat().st_size} bytes" in error
    assert run(video, "--overwrite")[0] == 0
    np.testing.assert_allclose(features(tmp_path / "out")[0][0, 0, ..., :3], expected_visual(video), rtol=1e-5)


def test_a_mended_video_is_added_and_the_others_are_not_made_again(run, clips, tmp_path, monkeypatch):
    assert run(clips)[0] == 1
    code, _, error = run(clips)
    assert code == 2 and "videos.txt: exists already" in error
    film(clips / "b.mp4", 1, 25, tone(1))
    monkeypatch.setattr(SmallVGG19, "stop_at", 2)
    assert run(clips, "--overwrite")[0] == 0
    assert (tmp_path / "out" / "videos.txt").read_text().splitlines()[2] == "b.mp4"
    assert len(features(tmp_path / "out")[0]) == 5


def test_mistakes_are_told_in_one_line(run, clips, tmp_path, main_in_process):
    (tmp_path / "empty").mkdir()
    (tmp_path / "Annotations.txt").write_text("Cat&c&good&0&1\n")
    (clips / "c.mp4").touch()
    damaged = tmp_path / "damaged" / "by_video" / "a2.mov.npz"
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(b"PK")
    for options, message in (
            ([tmp_path / "gone"], f"{tmp_path / 'gone'}: No such file"),
            ([tmp_path / "empty"], "has no video files"),
            ([clips, "--annotations", tmp_path / "Annotations.txt"], "are of one YouTube id"),
            ([clips, "--output_dir", tmp_path / "damaged"], f"{damaged}: cannot be read"),
            ([clips, "--output_dir", clips / "c.mov"], f"{clips / 'c.mov' / 'by_video'}: Not a directory")):
        code, _, error = run(*options)
        assert code == 2 and message in error and error.splitlines()[-1].startswith("extract_features.py: error: ")


def test_missing_weights_are_told_with_their_addresses(main_in_process, clips, tmp_path):
    code, _, error = main_in_process("data/extract_features.py", "--videos", clips, "--output_dir", tmp_path / "out",
                                     "--vgg19_weights", tmp_path / "a.h5", "--vggish_weights", tmp_path / "b.pth")
    assert code == 2 and error.count("\n") == 1 and error.count("https://") == 2
    assert "a.h5 (Keras' VGG-19 without its top layers, 80 MB" in error and "b.pth (torchvggish's" in error


def test_a_name_that_begins_with_a_dash(run, clips, tmp_path, monkeypatch, main_in_process):
    code, _, error = main_in_process("data/extract_features.py", "--videos", "-PE8geTWt-g.mp4", "--output_dir", "out")
    assert code == 2 and "--videos=-PE8geTWt-g.mp4 or ./-PE8geTWt-g.mp4" in error and error.count("\n") == 1
    (clips / "c.mov").rename(tmp_path / "-PE8geTWt-g.mp4")
    monkeypatch.chdir(tmp_path)
    assert run("./-PE8geTWt-g.mp4")[0] == 0
    assert run("unused", "--videos=-PE8geTWt-g.mp4", "--overwrite")[0] == 0


def test_a_full_disk_ends_in_one_line_that_names_the_file(run, clips, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        code, _, error = run(clips)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    kept = tmp_path / "out" / "by_video" / "a2.mov.npz"
    assert code == 2 and error.splitlines()[-1] == f"extract_features.py: error: {kept}: File too large"
    assert not files(kept.parent)


def test_a_missing_package_is_told_with_the_command_that_installs_it():
    code = ("import runpy, sys; sys.modules['av'] = None; sys.argv = ['extract_features.py', '--videos', 'clips', "
            f"'--output_dir', 'out']; runpy.run_path({str(ROOT / 'data/extract_features.py')!r}, run_name='__main__')")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "av" in done.stderr and "pip install av==" in done.stderr
