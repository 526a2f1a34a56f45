"""Makes small films with test pictures and tones (PyAV encodes), for the tests of the feature extraction."""
import av
import numpy as np

BITS = 10


def numbered_picture(number, width=160, height=48):
    """RGB uint8 [height, width, 3]: upright bars, white for each 1 among the bits of the number, the lowest first."""
    bars = np.array([255 * (number >> bit & 1) for bit in range(BITS)], np.uint8)
    return np.broadcast_to(bars.repeat(width // BITS)[None, :, None], (height, width, 3)).copy()


def number_of(pictures):
    """The number that each of the pictures [..., height, width, 3] shows."""
    row = pictures[..., pictures.shape[-3] // 2, :, :].mean(axis=-1)
    centres = ((np.arange(BITS) + 0.5) * row.shape[-1] / BITS).astype(int)
    return (row[..., centres] > 127) @ (1 << np.arange(BITS))


def tone(seconds, rate=16000, hertz=(440,), strength=0.3):
    """int16 [seconds * rate, channels]: a tone in each channel."""
    t = np.arange(round(seconds * rate)) / rate
    return np.stack([np.round(strength * 32767 * np.sin(2 * np.pi * h * t)) for h in hertz], axis=1).astype(np.int16)


def film(path, seconds=10, rate=25, sound=None, sound_rate=16000, layout="mono", sound_codec="pcm_s16le",
         picture=numbered_picture, times=None, sound_start=0, rotation=0, transfer=2):
    """Writes a film of numbered pictures; returns its path.

    times: when each picture is shown, in milliseconds; else at a fixed rate. sound_start: of the sound, in seconds.
    rotation: the flag, in degrees. transfer: number of the transfer function.
    """
    path.parent.mkdir(exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=1000 if times else rate)
        first = picture(0)
        stream.height, stream.width, stream.pix_fmt, stream.bit_rate = *first.shape[:2], "yuv420p", 2_000_000
        stream.set_display_rotation(rotation)
        stream.codec_context.color_trc = transfer
        if sound is not None:
            heard = container.add_stream(sound_codec, rate=sound_rate, layout=layout)
            frame = av.AudioFrame.from_ndarray(sound.reshape(1, -1), format="s16", layout=layout)
            frame.sample_rate, frame.pts = sound_rate, round(sound_start * sound_rate)
            container.mux(heard.encode(frame) + heard.encode())
        for number, time in enumerate(times or range(round(seconds * rate))):
            frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
            frame.pts = time
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path
