"""The front end of VGGish (Hershey et al., ICASSP 2017): a second of sound to the log mel spectrogram that it sees.

In the AVE features each second is cut out of the sound first, then its channels are averaged, then it is resampled;
resampy 0.4.3 is pinned, since other versions of it differ.
"""
import numpy as np
import resampy

RATE = 16000              # samples a second that the network knows
WINDOW, HOP, FFT = 400, 160, 512
BANDS, LOWEST, HIGHEST = 64, 125, 7500      # mel bands, and their range in Hz
FRAMES = 96               # spectra of an example
OFFSET = 0.01             # keeps the logarithm finite


def examples(samples, rate, seconds):
    """int16 [at least seconds * rate, channels] at `rate` Hz -> float64 [seconds, 96, 64], one example a second."""
    return np.stack([log_mel(to_network_rate(samples[second * rate:(second + 1) * rate], rate))[:FRAMES]
                     for second in range(seconds)])


def to_network_rate(samples, rate):
    """int16 [n, channels] -> float64 mono in -1..1 at 16 kHz."""
    mono = (samples / 32768).mean(axis=1)
    return mono if rate == RATE else resampy.resample(mono, rate, RATE)


def log_mel(wave):
    """float64 [n >= 400] at 16 kHz -> log mel spectra [frames, 64], a frame every 10 ms, no padding."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)      # periodic Hann
    frames = np.lib.stride_tricks.sliding_window_view(wave, WINDOW)[::HOP]
    return np.log(np.abs(np.fft.rfft(frames * window, FFT)) @ mel_matrix() + OFFSET)


def mel_matrix():
    """Weights [257, 64] of the magnitudes in each band: triangles on the mel scale; bin 0 counts nowhere."""
    def mel(hertz):
        return 1127 * np.log1p(np.asarray(hertz) / 700)

    edges = np.linspace(mel(LOWEST), mel(HIGHEST), BANDS + 2)
    bins = mel(np.arange(FFT // 2 + 1) * RATE / FFT)[:, np.newaxis]
    lower, centre, upper = edges[:-2], edges[1:-1], edges[2:]
    weights = np.maximum(0, np.minimum((bins - lower) / (centre - lower), (upper - bins) / (upper - centre)))
    weights[0] = 0
    return weights
