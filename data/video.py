"""Reads one video file: what the networks see and hear of it.

PyAV (which brings ffmpeg) decodes, OpenCV resizes, resampy resamples. N is the number of segments, a second each.

- A clip of N seconds, give or take half a second, is used as a whole: the frames are spread over all that were
  decoded, not over the number that the container promises. Of a longer clip the first N seconds are used.
- If the frame rate varies, row l is second l, as in the sound: at the nominal rate, a picture holds until the next one.
- A clock that starts again continues one frame later. So does one that jumps by more than 10 s, in formats where it may
  (.ts, .mpg); in others the clip ends there.
- A clip or a sound that is shorter raises VideoError; with `pad` the last frame or silence fills it.
- Damaged parts are skipped. Frames and sound count from their own beginning; a note tells if one is late.
"""
import os
import re
from collections import Counter
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

from model.feature_networks import RATE, SPECTRA, log_mel
from utils import UserError, one_line

try:
    import av
    import cv2
    import resampy
    MISSING = None
    cv2.setNumThreads(1)      # the network has the other cores
except ImportError as error:
    MISSING = one_line(error)

PACKAGES = "av==18.1.0 opencv-python-headless==4.14.0.94 resampy==0.4.3 numba==0.68.1"
FRAMES_OF_A_SEGMENT = 16
SIZE = 224                # height and width of a frame as the network sees it
TOLERANCE = 0.5           # seconds that a clip may lack or have too many
LATE = 0.1                # seconds after which a note says that a stream begins late
ROUNDING = 0.0011         # seconds that a file's clock may be wrong, as .mkv has whole milliseconds
BACK, JUMP = 0.1, 10      # seconds that the clock may go back or forth between two frames (ffmpeg has these limits)
CLOCK_MAY_JUMP = 0x200    # flag of such formats, AVFMT_TS_DISCONT
HDR = (16, 18)            # transfer functions, smpte2084 and arib-std-b67
SOUND_SUFFIXES = (".wav", ".m4a", ".mp3", ".aac", ".flac", ".ogg", ".opus")


class VideoError(Exception):
    """The features of a video cannot be made; the text says why."""


class Clip(NamedTuple):
    """The part of a video that is used."""
    frames: np.ndarray     # uint8 [N, 16, 224, 224, 3], RGB
    sound: np.ndarray      # int16 [N * rate, channels]; None if the video has none
    rate: int              # samples of sound a second
    notes: list            # warnings: no sound; damaged, filled or late parts


def natural_order(path):
    """Sort key of a path: its name, with numbers that count as numbers (clip2.mp4 before clip10.mp4)."""
    parts = re.split("([0-9]+)", path.name)      # text and digits in turn
    return [int(part) if position % 2 else part for position, part in enumerate(parts)], path.name


def read_clip(path, segments=10, pad=False):
    """The Clip of a video file. Raises VideoError if it cannot be used, UserError if a Python package is missing."""
    if MISSING:
        raise UserError(f"{MISSING}; pip install {PACKAGES}")
    frames, notes = read_frames(path, segments, pad)
    sound, rate, notes_on_sound = read_sound(path, segments, pad)
    notes += notes_on_sound
    beside = [suffix for suffix in SOUND_SUFFIXES if os.path.isfile(path.with_suffix(suffix))]
    if sound is None and beside:
        notes.append(f"{path.stem}{beside[0]} is not used; join both in one file to use it")
    counted = [f"{note} ({count} times)" if count > 1 else note for note, count in Counter(notes).items()]
    return Clip(frames, sound, rate, counted)


# -------------------------------------------------------------------------------------------- frames

def frame_numbers(count, segments=10):
    """Numbers [segments, 16] of the frames to use, of `count`; VideoError if there are fewer frames than segments."""
    interval = count // segments
    if interval == 0:
        raise VideoError(f"has {count} frame{'s' * (count != 1)}; {segments}, one for each second, are needed")
    within = np.arange(FRAMES_OF_A_SEGMENT) / FRAMES_OF_A_SEGMENT * interval
    return (np.arange(segments)[:, np.newaxis] * interval + within).astype(int)


def read_frames(path, segments=10, pad=False):
    """(frames uint8 [segments, 16, 224, 224, 3] RGB, notes). Raises VideoError as read_clip."""
    times, duration, rate, notes = _frame_times(path, segments)
    fill = 0      # frames that are missing at the end
    if times[-1] >= segments + TOLERANCE:
        times, seconds = times[times < segments], segments
    else:
        seconds = times[-1] + (duration or times[-1] / max(1, len(times) - 1) or 1 / rate)
        seconds = min(seconds, max(times[-1], segments))      # the last picture may stay for long
    if seconds < segments - TOLERANCE:
        if not pad:
            lasts = f"lasts {seconds:.1f} s, {segments} are needed (--pad fills up, or fewer --segments)"
            raise VideoError("; ".join([lasts, *dict.fromkeys(notes)]))
        notes.append(f"the last frame fills {segments - seconds:.1f} s")
        fill = round((segments - seconds) * len(times) / seconds)
    step = times[-1] / max(1, len(times) - 1)
    uneven = np.abs(times - np.linspace(0, times[-1], len(times))).max()
    if uneven <= step / 2 and seconds - times[-1] <= step + TOLERANCE:      # as good as evenly spread
        chosen = np.minimum(frame_numbers(len(times) + fill, segments), len(times) - 1)
    else:
        chosen = pictures_at_constant_rate(times, max(1, round(max(rate, len(times) / seconds))), segments)

    # A second reading keeps only the chosen pictures in memory.
    frames = np.empty((*chosen.shape, SIZE, SIZE, 3), np.uint8)
    with _open(path, "video") as stream:
        for number, frame in enumerate(_frames(stream, [])):
            if number in chosen:
                frames[chosen == number] = picture_of(frame)
            if number == chosen.max():
                return frames, notes
    raise VideoError("has changed while it was read")


def pictures_at_constant_rate(times, rate, segments=10):
    """Numbers [segments, 16] of pictures: at a constant whole rate, each frame shows the last one at or before it."""
    ticks = frame_numbers(rate * segments, segments) / rate
    return np.maximum(0, np.searchsorted(times, ticks + ROUNDING, side="right") - 1)


def _frame_times(path, segments):
    """(times from 0 to the first frame that is too late, duration of the last or 0, rate, notes)."""
    times, duration, notes = [], 0.0, []
    with _open(path, "video") as stream:
        for frame in _frames(stream, notes):
            if not times:
                rate = float(stream.guessed_rate or stream.average_rate or 25)
                shift = -(frame.time or 0.0)      # seconds added to the clock of the file
                if int(frame.color_trc) in HDR:
                    notes.append("the picture is HDR; its colours are used as they are stored, mostly too pale")
            before, following = (times[-1], times[-1] + 1 / rate) if times else (0.0, 0.0)
            time = following if frame.time is None else frame.time + shift
            if time > before + JUMP and not stream.container.format.flags & CLOCK_MAY_JUMP:
                notes.append(f"the times of the picture jump by more than {JUMP} s; it is used up to there")
                duration = 0.0      # which reaches to the next picture in some formats
                break
            if not before - BACK <= time <= before + JUMP:
                notes.append("a jump of the times of the picture is closed")
                shift += following - time
                time = following
            times.append(max(time, before))
            if times[-1] >= segments + TOLERANCE:
                break
            duration = float((frame.duration or 0) * (frame.time_base or 0))
    if not times:
        raise VideoError("has no picture that can be decoded")
    return np.array(times), duration, rate, notes


def picture_of(frame):
    """uint8 [224, 224, 3] RGB: a frame as a player shows it, resized bilinearly without antialiasing, and squeezed."""
    picture = frame.to_ndarray(format="rgb24", interpolation="BICUBIC")      # which is about the chroma
    if frame.rotation % 90 == 0:
        picture = np.ascontiguousarray(np.rot90(picture, frame.rotation // 90))
    return cv2.resize(picture, (SIZE, SIZE))


# --------------------------------------------------------------------------------------------- sound

def read_sound(path, segments=10, pad=False):
    """(int16 [segments * rate, channels] or None without sound, rate, notes). Raises VideoError as read_clip."""
    blocks, samples, kind, notes = [], 0, None, []
    with _open(path, "audio") as stream:
        for frame in _frames(stream, notes):
            if kind is None:
                layout, rate = frame.layout, frame.sample_rate
            if kind != (frame.format.name, frame.layout.name, frame.sample_rate):      # it may change on the way
                kind = frame.format.name, frame.layout.name, frame.sample_rate
                resampler = av.AudioResampler("s16", layout, rate)
            frame.pts = None      # samples are counted as decoded
            for part in resampler.resample(frame):
                blocks.append(part.to_ndarray().reshape(-1, len(layout.channels)))
                samples += len(blocks[-1])
            if samples >= segments * rate:
                break
    if samples == 0:
        if notes:
            raise VideoError("has sound that cannot be decoded")
        return None, 0, ["no sound: its audio features are zeros"]
    sound = np.concatenate(blocks)[:segments * rate]
    missing = segments - len(sound) / rate
    if missing > TOLERANCE:
        if not pad:
            raise VideoError(f"lacks {missing:.1f} of {segments} s of sound (--pad adds silence, or fewer --segments)")
        notes.append(f"silence fills {missing:.1f} s of the sound")
    return np.pad(sound, ((0, segments * rate - len(sound)), (0, 0))), rate, notes


def log_mel_patches(samples, rate, seconds):
    """int16 [at least seconds * rate, channels] at `rate` Hz -> float64 [seconds, 96, 64], a patch for each second.

    As for the AVE features, each second is cut out first, then averaged over the channels, then resampled. Other
    versions of resampy than 0.4.3 give other numbers.
    """
    patches = []
    for second in range(seconds):
        wave = (samples[second * rate:(second + 1) * rate] / 32768).mean(axis=1)
        patches.append(log_mel(wave if rate == RATE else resampy.resample(wave, rate, RATE))[:SPECTRA])
    return np.stack(patches)


# ------------------------------------------------------------------------------------------- decoding

@contextmanager
def _open(path, kind):
    """The best stream of the kind, or None. Any error here or in the body is a VideoError: other files may do."""
    try:
        # A name is a name, though it may look like an address; nothing is fetched; tags may be in any encoding.
        with av.open(f"file:{path}", options={"protocol_whitelist": "file"}, metadata_errors="replace") as container:
            stream = container.streams.best(kind)
            if stream and stream.codec_context:
                stream.codec_context.thread_count = 1      # the same frames each time, of damaged files too
            yield stream
    except Exception as error:
        reason = one_line(getattr(error, "strerror", None) or error)
        raise VideoError(f"cannot be read as a video ({reason})") from error


def _frames(stream, notes):
    """Frames as they are decoded. What cannot be decoded is skipped; notes tell of it, and of a late first frame."""
    if stream is None:
        return
    what = {"video": "picture", "audio": "sound"}[stream.type]
    packets = stream.container.demux(stream)
    packet = first = True
    while packet is not None:
        frames = []
        try:
            packet = next(packets, None)      # None empties the decoder
            frames = stream.decode(packet)
        except av.EOFError:      # it was empty already
            pass
        except Exception:
            notes.append(f"a damaged part of the {what} is skipped")
        for frame in frames:
            late = (frame.time or 0) - (stream.container.start_time or 0) / av.time_base
            if first and late > LATE:
                notes.append(f"the {what} begins {late:.1f} s after the file does; its seconds count from there")
            first = False
            yield frame
