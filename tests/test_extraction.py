"""Features from video files: agreement with the published extraction, any kind of clip, and runs that are stopped."""
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import wave
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

av = pytest.importorskip("av")
cv2 = pytest.importorskip("cv2")
resampy = pytest.importorskip("resampy")

import data.extract_features as script_module  # noqa: E402
from data.files import UserError  # noqa: E402
from data.log_mel import examples, log_mel  # noqa: E402
from data.row_files import RowFiles, read_log  # noqa: E402
from data.video import VideoError, frame_numbers, read_clip, read_frames, read_sound, resize  # noqa: E402
from films import film, number_of, tone, turned  # noqa: E402
from golden import extraction_recipe as recipe  # noqa: E402
from model import vgg19, vggish  # noqa: E402
from model.weights import check_digest, find_missing  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = json.loads((ROOT / "tests/golden/extraction.json").read_text())


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """One-second clips with sound: right0.mov .. right3.mov; not to be changed."""
    folder = tmp_path_factory.mktemp("clips")
    for number in range(4):
        film(folder / f"right{number}.mov", 1, 16 + number, tone(1, hertz=(300 + 100 * number,)))
    return folder


@pytest.fixture(scope="module")
def real():
    """Folder of one real clip and one real sound, beside that of AVE_DATA."""
    folder = Path(os.environ.get("AVE_DATA", "none")).parent / "extraction" / "real"
    if not folder.is_dir():
        pytest.skip("no real clip at hand")
    return folder


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


def test_vgg19_is_keras():
    golden = GOLDEN["vgg19"]
    network = vgg19.VGG19().double()
    with torch.no_grad():
        for name, layer in network.convolutions.items():
            shape = golden["shapes"][f"{name}/kernel"]
            kernel = recipe.weight(f"{name}/kernel", shape, np.prod(shape[:3]))
            layer.weight.copy_(torch.from_numpy(kernel.transpose(3, 2, 0, 1)))
            layer.bias.copy_(torch.from_numpy(recipe.weight(f"{name}/bias", shape[3:], 0)))
        pictures = np.stack([recipe.picture(seed, 224, 224) for seed in golden["pictures"]])
        maps = network(torch.from_numpy(pictures)).numpy()
    np.testing.assert_allclose(maps[..., :4], golden["cells"], rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(np.linalg.norm(maps.reshape(2, -1), axis=1), golden["norm"], rtol=1e-8)


def test_vggish_is_torchvggish():
    golden, sound = GOLDEN["vggish"], GOLDEN["log_mel_16k"]
    network = vggish.VGGish().double()
    network.load_state_dict({name: torch.from_numpy(recipe.weight(f"vggish/{name}", shape, np.prod(shape[1:])))
                             for name, shape in golden["shapes"].items()})
    seen = examples(recipe.sound(sound["seed"], sound["rate"], 2, 1), sound["rate"], 2)
    with torch.no_grad():
        np.testing.assert_allclose(network(torch.from_numpy(seen)).numpy(), golden["embedding"], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("case", ["log_mel_16k", "log_mel_44k_stereo"])
def test_log_mel_is_the_published_one(case):
    golden = GOLDEN[case]
    sound = recipe.sound(golden["seed"], golden["rate"], golden["seconds"], golden["channels"])
    seen = examples(sound, golden["rate"], 2)
    assert seen.shape == (2, 96, 64)
    np.testing.assert_allclose(seen[:, :3], golden["first_rows"], rtol=0, atol=1e-8)
    np.testing.assert_allclose(np.linalg.norm(seen, axis=(1, 2)), golden["norm"], rtol=1e-8)


def test_log_mel_of_a_sine():
    wave_44k = np.sin(2 * np.pi * 1000 * np.arange(0, 3, 1 / 44100))
    wave_16k = resampy.resample(wave_44k, 44100, 16000)
    np.testing.assert_allclose(log_mel(wave_16k)[0], GOLDEN["sine_1khz"]["first_row"], atol=1e-8)


def test_channels_are_averaged():
    loud = tone(1)
    np.testing.assert_array_equal(examples(np.hstack([loud, -loud]), 16000, 1), np.full((1, 96, 64), np.log(0.01)))


def test_each_second_is_cut_out_before_it_is_resampled():
    sound = recipe.sound(1, 22050, 2, 1)
    np.testing.assert_array_equal(examples(sound, 22050, 2)[1], examples(sound[22050:], 22050, 1)[0])


def test_160_of_the_251_frames_of_the_real_clip_as_opencv_reads_them(real):
    frames, notes = read_frames(real / "video.mp4")
    capture, pictures = cv2.VideoCapture(str(real / "video.mp4")), []
    while (read := capture.read())[0]:
        pictures.append(cv2.resize(read[1], (224, 224))[..., ::-1])
    assert len(pictures) == 251 and notes == []
    expected = np.stack([pictures[number] for number in GOLDEN["frames"]["251"]])
    np.testing.assert_array_equal(frames.reshape(-1, 224, 224, 3), expected)


def test_real_sound_is_that_of_the_wave_file(real, tmp_path):
    with wave.open(str(real / "train_horn.wav")) as file:
        samples = np.frombuffer(file.readframes(441000), np.int16).reshape(-1, 2)
    sound, rate, _ = read_sound(real / "train_horn.wav")
    assert rate == 44100
    np.testing.assert_array_equal(sound, samples)


# --------------------------------------------------------------------------------------------- any video

@pytest.mark.parametrize("rate, seconds", [(25, 10), (30, 10), (60, 10), (5, 10), (2, 10), (25, 9.6), (25, 10.4)])
def test_frames_are_spread_over_all_of_a_clip_of_about_ten_seconds(tmp_path, rate, seconds):
    frames, _ = read_frames(film(tmp_path / "film.mov", seconds, rate))
    assert shown(frames) == frame_numbers(round(seconds * rate)).tolist()


def test_of_a_longer_film_the_first_seconds_are_used(tmp_path):
    path = film(tmp_path / "film.mov", 14, 25, tone(14))
    clip = read_clip(path)
    assert shown(clip.frames) == frame_numbers(250).tolist()
    np.testing.assert_array_equal(clip.sound, tone(10))
    assert shown(read_clip(path, segments=3).frames) == frame_numbers(75, 3).tolist()


def test_a_wrong_frame_count_in_the_container_does_no_harm(tmp_path, monkeypatch):
    path = film(tmp_path / "film.mkv", 2, 25)      # Matroska promises no number at all
    assert shown(read_frames(path, 2)[0]) == frame_numbers(50, 2).tolist()


def test_a_short_clip_is_refused_or_padded(tmp_path):
    path = film(tmp_path / "film.mov", 1, 20, tone(1))
    with pytest.raises(VideoError, match=r"lasts 1.0 s, 3 are needed \(--pad"):
        read_clip(path, 3)
    clip = read_clip(path, 3, pad=True)
    assert shown(clip.frames) == [[int(i / 16 * 20) for i in range(16)], [19] * 16, [19] * 16]
    np.testing.assert_array_equal(clip.sound, np.pad(tone(1), ((0, 32000), (0, 0))))
    assert clip.notes == ["the last frame fills 2.0 s", "silence fills 2.0 s of the sound"]


def test_sound_that_ends_early_is_refused_or_padded(tmp_path):
    path = film(tmp_path / "film.mov", 3, 16, tone(1.25))
    with pytest.raises(VideoError, match="has 1.2 s of sound, 3 are needed"):
        read_clip(path, 3)
    clip = read_clip(path, 3, pad=True)
    assert clip.notes == ["silence fills 1.8 s of the sound"]
    assert len(clip.sound) == 48000 and not clip.sound[20000:].any()


def test_fewer_frames_than_seconds_are_refused(tmp_path):
    with pytest.raises(VideoError, match="has 3 frames; at least one for each of 6 seconds"):
        read_frames(film(tmp_path / "film.mkv", times=[0, 3000, 5800]), 6)


def test_frames_of_a_variable_rate_are_counted_as_decoded(tmp_path):
    times = [*range(0, 500, 20), *range(500, 2000, 100)]      # 25 frames in the first half second, 15 in the rest
    assert shown(read_frames(film(tmp_path / "film.mkv", times=times), 2)[0]) == frame_numbers(40, 2).tolist()


@pytest.mark.parametrize("quarters", [0, 1, 2, 3])
def test_rotation_flags_are_obeyed(tmp_path, quarters):
    path = turned(film(tmp_path / "film.mp4", 1, 16, picture=lambda _: recipe.picture(2, 48, 160)), quarters)
    stored = av.open(str(path))
    expected = np.rot90(next(stored.decode(video=0)).to_ndarray(format="rgb24", interpolation="BICUBIC"), -quarters)
    frame = read_frames(path, 1)[0][0, 0]
    np.testing.assert_array_equal(frame, resize(np.ascontiguousarray(expected)))
    np.testing.assert_array_equal(frame, resize(np.ascontiguousarray(cv2.VideoCapture(str(path)).read()[1][..., ::-1])))


@pytest.mark.parametrize("rate, layout, channels", [(8000, "mono", 1), (44100, "stereo", 2), (48000, "5.1", 6)])
def test_sound_of_any_rate_and_layout(tmp_path, rate, layout, channels):
    sound = tone(1, rate, hertz=[200 + 50 * c for c in range(channels)])
    clip = read_clip(film(tmp_path / "film.mov", 1, 16, sound, rate, layout), 1)
    np.testing.assert_array_equal(clip.sound, sound)
    assert clip.rate == rate


def test_a_film_without_sound_has_none(tmp_path):
    clip = read_clip(film(tmp_path / "film.mp4", 1, 16), 1)
    assert clip.sound is None and clip.notes == ["no sound: its audio features are zeros"]


@pytest.mark.parametrize("suffix, options", [("mp4", {}), ("mp4", {"movflags": "faststart"}), ("mkv", {}), ("ts", {}),
                                             ("avi", {})])
def test_a_film_cut_off_anywhere_is_padded_or_refused(tmp_path, suffix, options):
    sound_codec = "mp2" if suffix in ("ts", "avi") else "aac"
    content = film(tmp_path / f"whole.{suffix}", 2, 16, tone(2), sound_codec=sound_codec, **options).read_bytes()
    cut, outcomes = tmp_path / f"cut.{suffix}", set()
    for share in np.linspace(0, 1, 25):
        cut.write_bytes(content[:round(share * len(content))])
        try:
            clip = read_clip(cut, 2, pad=True)
            assert clip.frames.shape == (2, 16, 224, 224, 3)
            outcomes.add("read")
        except VideoError as error:
            assert "\n" not in str(error)
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}


def test_damage_within_a_film_is_passed_over_or_refused(tmp_path):
    content = film(tmp_path / "whole.mp4", 2, 16, tone(2), sound_codec="aac").read_bytes()
    generator = np.random.default_rng(0)
    for trial in range(25):
        damaged = np.frombuffer(content, np.uint8).copy()
        damaged[generator.integers(len(damaged), size=1 + 8 * trial)] = generator.integers(256, size=1 + 8 * trial)
        (tmp_path / "damaged.mp4").write_bytes(damaged.tobytes())
        try:
            read_clip(tmp_path / "damaged.mp4", 2, pad=True)
        except VideoError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize("content", [b"", b"no film", b"\0" * 5000, b"#EXTM3U\n#EXTINF:1,\nother.ts\n"])
def test_a_file_that_is_no_film_is_refused(tmp_path, content):
    (tmp_path / "film.mp4").write_bytes(content)
    with pytest.raises(VideoError, match="cannot be read as a video"):
        read_clip(tmp_path / "film.mp4")


def test_a_name_that_looks_like_an_address_is_a_name(tmp_path, monkeypatch):
    film(tmp_path / "http:film.mov", 1, 16)
    monkeypatch.chdir(tmp_path)
    assert read_frames(Path("http:film.mov"), 1)[0].shape == (1, 16, 224, 224, 3)


# ----------------------------------------------------------------------------------------------- weights

def test_missing_weights_are_told_in_one_message(script, clips, tmp_path):
    done = script("data/extract_features.py", "--videos", clips, "--output_dir", tmp_path / "out", code=2, cwd=tmp_path)
    assert "2 weight files not found" in done.stderr
    for part in (vgg19.WEIGHTS.default.name, "80 MB", vggish.WEIGHTS.default.name, "289 MB", "https://"):
        assert part in done.stderr
    assert not (tmp_path / "out").exists()


def test_one_missing_weight_file_is_named_alone(tmp_path):
    (tmp_path / "here").touch()
    with pytest.raises(UserError, match="1 weight file not found") as error:
        find_missing([(vgg19.WEIGHTS, tmp_path / "here"), (vggish.WEIGHTS, tmp_path / "gone")])
    assert "Keras" not in str(error.value)


def test_the_digest_decides(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(b"abc")
    check_digest(path, vgg19.WEIGHTS._replace(digest="900150983cd24fb0d6963f7d28e17f72"))      # RFC 1321
    check_digest(path, vggish.WEIGHTS._replace(digest="ba7816bf"))                              # FIPS 180-2
    for wrong in (vgg19.WEIGHTS, vggish.WEIGHTS):
        with pytest.raises(UserError, match=f"is not {wrong.what}: its {wrong.algorithm.upper()} is"):
            check_digest(path, wrong)


@pytest.mark.parametrize("kernel_name, bias_name", [("{0}_W_1:0", "{0}_b_1:0"), ("{0}/kernel:0", "{0}/bias:0")])
def test_keras_weights_are_read(tmp_path, monkeypatch, kernel_name, bias_name):
    monkeypatch.setattr(vgg19, "BLOCKS", ((2, 1), (3, 2)))
    arrays, channels = {}, 3
    with h5py.File(tmp_path / "keras.h5", "w") as file:
        for name, width in (("block1_conv1", 2), ("block2_conv1", 3), ("block2_conv2", 3)):
            arrays[name] = np.random.default_rng(width).random((3, 3, channels, width)), np.arange(width)
            file[f"{name}/{kernel_name.format(name)}"], file[f"{name}/{bias_name.format(name)}"] = arrays[name]
            channels = width
    network = vgg19.VGG19().double()
    vgg19.read_keras_weights(network, tmp_path / "keras.h5")
    for name, (kernel, bias) in arrays.items():
        layer = network.convolutions[name]
        assert layer.weight[1, 0, 2, 1] == kernel[2, 1, 0, 1]
        assert layer.bias.tolist() == bias.tolist()
    network.convolutions["block9_conv1"] = torch.nn.Conv2d(1, 1, 3)
    with pytest.raises(UserError, match="does not hold the layers"):
        vgg19.read_keras_weights(network, tmp_path / "keras.h5")


class Malicious:
    def __reduce__(self):
        return exec, ("raise SystemExit('the file ran')",)


def test_vggish_weights_run_nothing(tmp_path, monkeypatch):
    path = tmp_path / "weights.pth"
    torch.save(Malicious(), path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(vggish, "WEIGHTS", vggish.WEIGHTS._replace(digest=digest))
    with pytest.raises(UserError, match="does not hold torchvggish's state dict"):
        vggish.load_vggish(path)


# -------------------------------------------------------------------------------------------- the script

class SmallVGG19(torch.nn.Module):
    """Stands for VGG-19: the mean colour of each cell."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, pictures):
        cells = pictures.float().unflatten(1, (7, 32)).unflatten(3, (7, 32)).mean(dim=(2, 4))
        return torch.nn.functional.pad(cells, (0, 509))


class SmallVGGish(SmallVGG19):
    """Stands for VGGish: the loudness of each band."""

    def forward(self, log_mels):
        return torch.nn.functional.pad(log_mels.mean(dim=1).exp(), (0, 64))


@pytest.fixture
def small_networks(monkeypatch):
    monkeypatch.setattr(vgg19, "VGG19", SmallVGG19)
    monkeypatch.setattr(vggish, "VGGish", SmallVGGish)


def run(*options):
    """Runs the script in this process; its exit code."""
    sys.argv = ["extract_features.py", *map(str, options), "--random_weights", "--segments", "1", "--device", "cpu"]
    try:
        script_module.main()
    except SystemExit as stop:
        return stop.code
    return 0


@pytest.fixture(autouse=True)
def same_arguments(monkeypatch):
    monkeypatch.setattr(sys, "argv", sys.argv)


def features(folder):
    """(visual, audio) HDF5 datasets as arrays, and the attributes of the first."""
    with h5py.File(folder / "visual_feature.h5") as visual, h5py.File(folder / "audio_feature.h5") as audio:
        assert dict(visual["avadataset"].attrs).keys() == dict(audio["avadataset"].attrs).keys()
        return visual["avadataset"][()], audio["avadataset"][()], dict(visual["avadataset"].attrs)


def digests(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def expected_visual(path):
    """What SmallVGG19 makes of a one-second film."""
    frames, _ = read_frames(path, 1)
    return frames.reshape(16, 7, 32, 7, 32, 3).mean(axis=(0, 2, 4))


def test_the_real_networks_run_over_one_second(script, tmp_path):
    path = film(tmp_path / "still.mkv", 1, 16, tone(1), codec="ffv1", picture=lambda _: recipe.picture(2, 48, 160))
    script("data/extract_features.py", "--videos", path, "--output_dir", tmp_path, "--random_weights",
           "--segments", "1", "--device", "cpu")
    visual, audio, attributes = features(tmp_path)
    assert attributes["random_weights"]
    clip = read_clip(path, 1)
    with torch.no_grad():      # one frame is all frames
        maps = script_module.randomised(vgg19.VGG19())(torch.from_numpy(clip.frames[0, :1]))
        embedding = script_module.randomised(vggish.VGGish())(torch.from_numpy(examples(clip.sound, clip.rate, 1)))
    np.testing.assert_allclose(visual, maps[None], rtol=1e-3, atol=1e-3 * float(maps.max()))
    np.testing.assert_allclose(audio, embedding[None], rtol=1e-3, atol=1e-3)


def test_rows_are_the_sorted_names_and_a_broken_file_has_none(small_networks, clips, tmp_path, capsys):
    folder = tmp_path / "videos"
    folder.mkdir()
    for name, source in (("a.mov", "right1.mov"), ("c.MOV", "right0.mov")):
        (folder / name).write_bytes((clips / source).read_bytes())
    (folder / "b.mp4").write_bytes(b"broken")
    film(folder / "d.mp4", 1, 16)
    (folder / "notes.txt").write_text("no film")
    assert run("--videos", folder, "--output_dir", tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert "1 of 4 videos could not be used; they have no row" in error and "b.mp4: cannot be read as a video" in error
    assert error.count("mean nothing") == 2

    visual, audio, attributes = features(tmp_path / "out")
    assert visual.shape == (3, 1, 7, 7, 512) and audio.shape == (3, 1, 128)
    assert visual.dtype == audio.dtype == np.float64
    np.testing.assert_allclose(visual[0, 0, ..., :3], expected_visual(folder / "a.mov"), rtol=1e-5)
    np.testing.assert_allclose(visual[1, 0, ..., :3], expected_visual(folder / "c.MOV"), rtol=1e-5)
    assert audio[:2].max(axis=(1, 2)).all() and not audio[2].any()
    assert set(attributes) == {"random_weights"}
    assert (tmp_path / "out" / "videos.txt").read_text() == "a.mov\nc.MOV\nd.mp4\n"
    log = [json.loads(line) for line in (tmp_path / "out" / "extraction.jsonl").read_text().splitlines()][1:]
    assert [entry["video"] for entry in log if entry["error"]] == ["b.mp4"]
    assert not list((tmp_path / "out").glob("*.partial"))


def test_with_annotations_rows_are_lines_and_a_missing_video_is_zeros(small_networks, clips, tmp_path, capsys):
    lines = ["Bark&right2&good&0&1", "Bark&gone&good&0&1", "Cat&right0&good&0&1", "Cat&right2&good&0&1"]
    (tmp_path / "Annotations.txt").write_text("\n".join(lines) + "\n")
    assert run("--videos", clips, "--output_dir", tmp_path / "out", "--annotations", tmp_path / "Annotations.txt",
               "--dtype", "float32") == 1
    assert "row 1, gone: is missing" in capsys.readouterr().err
    visual, audio, attributes = features(tmp_path / "out")
    assert visual.dtype == audio.dtype == np.float32 and len(visual) == len(audio) == 4
    np.testing.assert_allclose(visual[2, 0, ..., :3], expected_visual(clips / "right0.mov"), rtol=1e-5)
    np.testing.assert_array_equal(visual[0], visual[3])
    assert not visual[1].any() and not audio[1].any()
    assert attributes["rows_without_video"].tolist() == [1]
    assert not (tmp_path / "out" / "videos.txt").exists()


def test_where_no_video_can_be_used_no_file_is_written(small_networks, tmp_path, capsys):
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.mp4").write_bytes(b"broken")
    assert run("--videos", tmp_path / "videos", "--output_dir", tmp_path / "out") == 1
    assert "no file was written" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []


def test_files_are_not_overwritten_unasked(small_networks, clips, tmp_path):
    options = "--videos", clips / "right0.mov", "--output_dir", tmp_path
    assert run(*options) == 0
    with pytest.raises(script_module.UserError, match="--overwrite"):
        run(*options)
    before = digests(tmp_path)
    assert run(*options, "--overwrite") == 0
    assert digests(tmp_path) == before


def test_what_cannot_be_right_is_said_in_one_line(small_networks, clips, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "twice").mkdir()
    for suffix in ("mov", "mp4"):
        (tmp_path / "twice" / f"right0.{suffix}").touch()
    (tmp_path / "Annotations.txt").write_text("Cat&right0&good&0&1\n")
    (tmp_path / "other.txt").write_text("Cat&unknown&good&0&1\n")
    for options, message in (
            (["--videos", tmp_path / "gone"], "does not exist"),
            (["--videos", tmp_path / "empty"], "has no video files"),
            (["--videos", tmp_path / "twice", "--annotations", tmp_path / "Annotations.txt"], "are of one YouTube id"),
            (["--videos", clips, "--annotations", tmp_path / "other.txt"], "no file is named by a YouTube id")):
        with pytest.raises(script_module.UserError, match=message) as error:
            run(*options, "--output_dir", tmp_path / "out")
        assert "\n" not in str(error.value)


class Stopped(Exception):
    pass


@pytest.mark.parametrize("annotated", [False, True])
def test_a_run_stopped_after_any_video_ends_in_the_same_bytes(small_networks, clips, tmp_path, monkeypatch, annotated):
    folder = tmp_path / "videos"
    folder.mkdir()
    for number in (0, 2, 3):
        (folder / f"right{number}.mov").write_bytes((clips / f"right{number}.mov").read_bytes())
    (folder / "right1.mp4").write_bytes(b"broken")
    (tmp_path / "lines").write_text("".join(f"Cat&right{number}&good&0&1\n" for number in range(4)))
    options = ["--videos", folder, *(["--annotations", tmp_path / "lines"] if annotated else [])]
    assert run(*options, "--output_dir", tmp_path / "whole") == 1
    whole_add = RowFiles.add
    for stop_at in range(4):
        def add(self, entry, rows):
            if len(self.entries) == stop_at:
                # The worst moment: a row half written, the log's line torn.
                self._files[0]["avadataset"][stop_at:] = 7
                self._log.write('{"video": "ri')
                raise Stopped
            whole_add(self, entry, rows)
        target = tmp_path / f"stopped{stop_at}"
        monkeypatch.setattr(RowFiles, "add", add)
        with pytest.raises(Stopped):
            run(*options, "--output_dir", target)
        monkeypatch.setattr(RowFiles, "add", whole_add)
        with pytest.raises(script_module.UserError, match="go on with --resume"):
            run(*options, "--output_dir", target)
        with pytest.raises(script_module.UserError, match="of other pad"):
            run(*options, "--output_dir", target, "--resume", "--pad")
        assert run(*options, "--output_dir", target, "--resume") == 1
        assert digests(target) == digests(tmp_path / "whole")


KILLED = """
import sys
sys.path[:0] = {path}
import test_extraction as test
from model import vgg19, vggish
vgg19.VGG19, vggish.VGGish = test.SmallVGG19, test.SmallVGGish
sys.exit(test.run(*{options}))
"""


def test_a_killed_run_goes_on(small_networks, clips, tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    for number in range(60):
        (folder / f"{number:02}.mov").hardlink_to(clips / f"right{number % 4}.mov")
    assert run("--videos", folder, "--output_dir", tmp_path / "whole") == 0
    options = ["--videos", str(folder), "--output_dir", str(tmp_path / "killed")]
    code = KILLED.format(path=[str(ROOT), str(ROOT / "tests")], options=options)
    log = tmp_path / "killed" / "extraction.jsonl.partial"
    running = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (log.exists() and log.read_bytes().count(b"\n") > 5):
        assert running.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    running.send_signal(signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL
    assert log.exists() and not (tmp_path / "killed" / "visual_feature.h5").exists()
    assert run("--resume", *options) == 0
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")


def test_the_next_video_is_decoded_meanwhile_and_no_more(small_networks, clips, monkeypatch):
    asked = []

    def read(path, *options):
        asked.append(path.name)
        return read_clip(path, *options)

    monkeypatch.setattr(script_module, "read_clip", read)
    videos = script_module.find_videos(clips)
    for position, (given, prepared) in enumerate(script_module.prepare_ahead(videos, 1, False)):
        time.sleep(0.5)
        assert given == videos[position] and not isinstance(prepared, VideoError)
        assert len(asked) == min(position + 2, 4)


@pytest.mark.parametrize("lines", ["[1]", '{"pad": false}\n[1]', "{"])
def test_a_log_of_something_else_is_no_log_to_go_on_with(tmp_path, lines):
    path = tmp_path / "extraction.jsonl.partial"
    path.write_text(lines + "\n")
    with pytest.raises(UserError, match="extraction.jsonl.partial: cannot be read"):
        read_log(path, {"pad": False})
