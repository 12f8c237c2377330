"""The invisible mark of sound: a keyed noise between 1 and 6 kHz, shaped under what is heard.

Spread spectrum: for each of the channel's bits a key draws a second of noise; their sum, with the
bits as signs, is repeated for as long as the sound lasts, and follows it in loudness, moment by
moment and band by band, a fixed distance below. A reader flattens the sound, folds it to one period
and tries every beginning, so trimming needs no sync; the period is in seconds, so neither does
another sample rate. Where nothing sounds there is no mark.

What is said of keys and adversaries in `picture_mark` holds here as well.
"""

from __future__ import annotations

import numpy as np

from ..errors import UsageError
from .code import CHANNEL_BITS, Found, decode, encode, probability_of_chance, stream
from .picture_mark import DEFAULT_KEY, MOST_CHANCE

RATE = 16_000  # samples a second at which marks are made and read
PERIOD = 16_384  # samples
LOWEST_HZ, HIGHEST_HZ = 1000, 6000
LEAST_RATE = 2 * HIGHEST_HZ

WINDOW, HOP = 512, 256  # samples
SMOOTHED = 9  # bins of 31 Hz over which loudness is averaged
BELOW = 0.16  # of the sound's magnitude in its band: 16 dB below
BEGINNINGS = 8  # of which a reader tries to decode
SILENT = 1e-4  # root mean square of a bin's magnitude, in full scales, that counts as nothing


class SoundMark:
    """The mark of samples float32 (num_samples, channels): a payload of 32 bits under a key."""

    def __init__(self, payload: int, key: bytes, sample_rate: int) -> None:
        """Raises UsageError for a rate at which the mark's band does not fit."""
        if sample_rate < LEAST_RATE:
            raise UsageError(
                f"sample_rate is {sample_rate}; the mark in the sound needs {LEAST_RATE} or more"
            )
        self.sample_rate = sample_rate
        signs = 2 * encode(payload) - 1
        period = signs @ carriers(key)
        self.period = (period / np.sqrt(np.mean(np.square(period)))).astype(np.float32)

    def apply(self, samples: np.ndarray) -> np.ndarray:
        """A copy of a whole sound with the mark in it, the same in every channel's own loudness."""
        if samples.ndim != 2 or samples.dtype != np.float32:
            wanted = "float32 (num_samples, channels)"
            raise UsageError(f"audio is {samples.dtype} {samples.shape}; {wanted} is expected")
        if not len(samples):
            return samples.copy()
        marks = [self._mark(channel) for channel in samples.T]
        return np.clip(samples + np.stack(marks, axis=1), -1, 1)

    def _mark(self, channel: np.ndarray) -> np.ndarray:
        """What is added to one channel."""
        slow = resampled(channel, self.sample_rate, RATE)
        noise = spectra(np.resize(self.period, len(slow)))
        loudness = smoothed(np.abs(spectra(slow)))
        mark = from_spectra(noise * (BELOW * loudness / _FLAT), len(slow))
        return resampled(mark, RATE, self.sample_rate, len(channel)).astype(np.float32)


def read(samples: np.ndarray, sample_rate: int, key: bytes = DEFAULT_KEY) -> Found | None:
    """The mark of samples float32 (num_samples, channels), or None."""
    if not len(samples) or sample_rate < LEAST_RATE:
        return None
    decoded = [decode(soft) for soft in soft_bits(samples, sample_rate, key)]
    payload, score, right = max(decoded, key=lambda d: (d[0] is not None, d[1]))
    chance = probability_of_chance(score, attempts=BEGINNINGS)
    if payload is None or chance > MOST_CHANCE:
        return None
    return Found(payload, score, right, chance)


def soft_bits(samples: np.ndarray, sample_rate: int, key: bytes) -> np.ndarray:
    """The channel's bits as correlations (8, 96), for the beginnings where they are strongest.

    A sample or two beside the right one they are almost as strong, and wrong in sign.
    """
    slow = resampled(samples.mean(axis=1), sample_rate, RATE)
    fold = np.zeros(PERIOD)
    flattened = flat(slow)
    for start in range(0, len(flattened), PERIOD):
        part = flattened[start : start + PERIOD]
        fold[: len(part)] += part
    against = np.fft.rfft(fold) * np.conj(np.fft.rfft(carriers(key), axis=1))
    every_beginning = np.fft.irfft(against, PERIOD, axis=1)
    strongest = np.argsort(np.square(every_beginning).sum(axis=0))[: -BEGINNINGS - 1 : -1]
    return every_beginning[:, strongest].T


def flat(samples: np.ndarray) -> np.ndarray:
    """Samples whose every band is as loud as any other, at every moment; silence stays silent."""
    bins = spectra(samples)
    loudness = smoothed(np.abs(bins))
    bins = np.where(loudness > SILENT * _FLAT, bins / np.maximum(loudness, 1e-12), 0)
    bins *= np.minimum(1, 2 / np.maximum(np.abs(bins), 1e-12))  # a tone says no more than noise
    return from_spectra(bins, len(samples))


def carriers(key: bytes) -> np.ndarray:
    """A period of noise in the band for each channel bit, float32 (96, 16384)."""
    bins = np.arange(PERIOD // 2 + 1) * RATE / PERIOD
    inside = np.flatnonzero((bins >= LOWEST_HZ) & (bins <= HIGHEST_HZ))
    random = stream(key, "sound", CHANNEL_BITS * len(inside)).reshape(CHANNEL_BITS, -1)
    spectrum = np.zeros((CHANNEL_BITS, len(bins)), np.complex64)
    quarter = (random >> np.uint64(62)).astype(np.float32)
    spectrum[:, inside] = np.exp(0.5j * np.pi * (quarter + 0.5))
    return np.fft.irfft(spectrum, PERIOD, axis=1).astype(np.float32)


def resampled(samples: np.ndarray, rate: int, to: int, count: int | None = None) -> np.ndarray:
    """Samples at another rate, by the spectrum of the whole; `count` of them if told."""
    if rate == to:
        return samples
    count = count or max(1, round(len(samples) * to / rate))
    bins = np.fft.rfft(samples)[: count // 2 + 1]
    return np.fft.irfft(bins, count) * (count / len(samples))


def spectra(samples: np.ndarray) -> np.ndarray:
    """Spectra (frames, bins) of windows that overlap by half."""
    padded = np.pad(samples, (HOP, WINDOW + -len(samples) % HOP))
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP]
    return np.fft.rfft(frames * _WINDOW, axis=1)


def from_spectra(bins: np.ndarray, count: int) -> np.ndarray:
    """`count` samples whose spectra were given: the inverse of `spectra`."""
    frames = np.fft.irfft(bins, WINDOW, axis=1) * _WINDOW
    first, second = frames[:, :HOP], frames[:, HOP:]
    return (first[1:] + second[:-1]).reshape(-1)[:count]


def smoothed(magnitudes: np.ndarray) -> np.ndarray:
    """Root mean squares over neighbouring bins, (frames, bins)."""
    power = np.pad(np.square(magnitudes), ((0, 0), (SMOOTHED // 2 + 1, SMOOTHED // 2)), mode="edge")
    sums = np.cumsum(power, axis=1)
    return np.sqrt(np.maximum(sums[:, SMOOTHED:] - sums[:, :-SMOOTHED], 0) / SMOOTHED)


_WINDOW = np.sin(np.pi * (np.arange(WINDOW) + 0.5) / WINDOW)  # its squares, half apart, sum to one
_FLAT = float(np.sqrt(np.sum(np.square(_WINDOW))))  # magnitude of noise whose samples measure one
