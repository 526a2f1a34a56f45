"""Reads one video file: the frames and the sound that the features of AVE are made of.

PyAV (which brings ffmpeg) decodes, OpenCV resizes. N is the number of segments, a second each.

- A clip of about N seconds (up to half a second more or less) is taken as a whole: the frames are spread over all that
  were decoded, whatever the container promises. Of a longer clip the first N seconds are used; the rest is not decoded.
- What is missing of a shorter clip, or of its sound, makes it a VideoError, or with `pad` is filled: with the last
  frame, and with silence.
- Damaged parts are passed over, as a player does.
- Frames and sound both count from their own beginning.
"""
from contextlib import contextmanager
from itertools import chain
from typing import NamedTuple

import av
import cv2
import numpy as np

FRAMES_OF_A_SEGMENT = 16
SIZE = 224                # height and width of a frame as the network sees it
TOLERANCE = 0.5           # seconds that a clip may lack or have too many

cv2.setNumThreads(1)      # the network has the other cores


class VideoError(Exception):
    """The features of a video cannot be made; the text says why."""


class Clip(NamedTuple):
    """What the networks are shown of one video."""
    frames: np.ndarray     # uint8 [N, 16, 224, 224, 3], RGB
    sound: np.ndarray      # int16 [N * rate, channels]; None where the video has none
    rate: int              # samples of sound a second
    notes: list            # what a person should know: missing sound, damaged or filled parts


def read_clip(path, segments=10, pad=False):
    """The Clip of a video file.

    Raises VideoError where it cannot be read, has no picture, or is too short and not padded.
    """
    frames, notes_on_frames = read_frames(path, segments, pad)
    sound, rate, notes_on_sound = read_sound(path, segments, pad)
    return Clip(frames, sound, rate, notes_on_frames + notes_on_sound)


def frame_numbers(count, segments=10):
    """Numbers [segments, 16] of the chosen ones of `count` frames; VideoError where those are fewer than segments."""
    interval = count // segments
    if interval == 0:
        raise VideoError(f"has {count} frame{'s' * (count != 1)}; at least one for each of {segments} seconds "
                         "is needed")
    within = np.arange(FRAMES_OF_A_SEGMENT) / FRAMES_OF_A_SEGMENT * interval
    return (np.arange(segments)[:, np.newaxis] * interval + within).astype(int)


# -------------------------------------------------------------------------------------------- frames

def read_frames(path, segments=10, pad=False):
    """(frames uint8 [segments, 16, 224, 224, 3] RGB, notes). Raises VideoError as read_clip.

    Which frames are needed depends on how many there are. So those are kept that would be right for the promised
    number, and where another number was decoded, the file is decoded once more.
    """
    with _open(path, "video") as (_, stream):
        promised = stream.frames
    wanted = set(frame_numbers(promised, segments).flat) if promised >= segments else set()
    for _ in range(2):
        film = _decode(path, segments, wanted)
        numbers, notes = _choose(film, segments, pad)
        wanted = set(numbers.flat)
        if wanted <= film.pictures.keys():
            frames = np.stack([film.pictures[number] for number in numbers.flat])
            return frames.reshape(segments, FRAMES_OF_A_SEGMENT, SIZE, SIZE, 3), notes
    raise VideoError("gives other frames each time it is decoded; encode it again")


class _Film(NamedTuple):
    pictures: dict         # by the number of the frame: uint8 [224, 224, 3] RGB
    count: int             # frames decoded, of the first N seconds in a longer film
    seconds: float         # that these last
    damaged: int           # parts that could not be decoded


def _decode(path, segments, wanted):
    """The _Film of a video file, with the pictures whose numbers are wanted."""
    pictures, count, in_time, last, damaged = {}, 0, 0, 0.0, []
    with _open(path, "video") as (container, stream):
        step = float(1 / (stream.average_rate or 25))
        first = None
        for frame in _frames(container, stream, damaged):
            time = frame.time if frame.time is not None else count * step
            first = time if first is None else first
            if time - first >= segments + TOLERANCE:
                return _Film(pictures, in_time, float(segments), len(damaged))
            if count in wanted:
                pictures[count] = _picture(frame)
            count += 1
            in_time += time - first < segments
            last = max(last, time - first)
            duration = float(frame.duration * frame.time_base) if frame.duration and frame.time_base else 0.0
    if count == 0:
        raise VideoError("has no picture that can be decoded")
    return _Film(pictures, count, last + (duration or last / max(1, count - 1) or step), len(damaged))


def _choose(film, segments, pad):
    """(frame numbers [segments, 16] of a film, notes); VideoError where it is too short and not padded."""
    notes = _about(film.damaged, "picture")
    total = film.count
    if film.seconds < segments - TOLERANCE:
        if not pad:
            raise VideoError(f"lasts {film.seconds:.1f} s, {segments} are needed (--pad fills up with the last "
                             "frame and silence, --segments takes fewer)")
        total += round((segments - film.seconds) * film.count / film.seconds)
        notes.append(f"the last frame fills {segments - film.seconds:.1f} s")
    return np.minimum(frame_numbers(total, segments), film.count - 1), notes


def _picture(frame):
    """A decoded frame as a player shows it, resized: uint8 [224, 224, 3] RGB."""
    picture = frame.to_ndarray(format="rgb24", interpolation="BICUBIC")      # which is about the chroma
    if frame.rotation % 90 == 0:
        picture = np.ascontiguousarray(np.rot90(picture, frame.rotation // 90))
    return resize(picture)


def resize(picture):
    """uint8 [height, width, 3] -> [224, 224, 3], bilinear without antialiasing; the aspect ratio is not kept."""
    return cv2.resize(picture, (SIZE, SIZE))


# --------------------------------------------------------------------------------------------- sound

def read_sound(path, segments=10, pad=False):
    """(int16 [segments * rate, channels] or None without sound, rate, notes). Raises VideoError as read_clip."""
    blocks, samples, rate, damaged = [], 0, 0, []
    with _open(path, "audio") as (container, stream):
        if stream is not None:
            kind = None
            for frame in _frames(container, stream, damaged):
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
        if damaged:
            raise VideoError("has sound that cannot be decoded")
        return None, 0, ["no sound: its audio features are zeros"]
    notes = _about(len(damaged), "sound")
    sound = np.concatenate(blocks)[:segments * rate]
    missing = segments - len(sound) / rate
    if missing > TOLERANCE:
        if not pad:
            raise VideoError(f"has {len(sound) / rate:.1f} s of sound, {segments} are needed (--pad fills up with "
                             "silence, --segments takes fewer)")
        notes.append(f"silence fills {missing:.1f} s of the sound")
    return np.pad(sound, ((0, segments * rate - len(sound)), (0, 0))), rate, notes


# ------------------------------------------------------------------------------------------- decoding

@contextmanager
def _open(path, kind):
    """(container, its best stream of the kind; None where it has no sound). Raises VideoError for whatever is wrong."""
    try:
        # A name is a name, though it may look like an address; no other file is read; tags may be in any encoding.
        with av.open(f"file:{path}", options={"protocol_whitelist": "file"}, metadata_errors="replace") as container:
            stream = container.streams.best(kind)
            if stream is None and kind == "video":
                raise VideoError("has no picture, only sound" if container.streams.audio else
                                 "has neither picture nor sound")
            if stream is not None:
                if stream.codec_context is None:
                    what = "picture" if kind == "video" else "sound"
                    raise VideoError(f"has a kind of {what} that cannot be decoded here")
                stream.codec_context.thread_count = 1      # the same frames each time, of damaged files too
            yield container, stream
    except VideoError:
        raise
    except Exception as error:      # whatever a broken file leads ffmpeg into
        what = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise VideoError(f"cannot be read as a video ({' '.join(what.split())[:120]})") from error


def _frames(container, stream, damaged):
    """Frames as they are decoded; what cannot be is passed over, and its error put into the list `damaged`."""
    for packet in chain(_packets(container, stream, damaged), [None]):      # None empties the decoder
        try:
            frames = stream.decode(packet)
        except av.EOFError:      # it was empty already
            frames = []
        except av.FFmpegError as error:
            damaged.append(error)
            frames = []
        yield from frames


def _packets(container, stream, damaged):
    """Packets of the stream, up to the end or to where the file cannot be read any further."""
    try:
        yield from container.demux(stream)
    except (av.FFmpegError, IndexError) as error:      # IndexError: a packet of a stream that turned up late
        damaged.append(error)


def _about(damaged, what):
    return [f"{damaged} damaged part{'s' * (damaged > 1)} of the {what} passed over"] if damaged else []
