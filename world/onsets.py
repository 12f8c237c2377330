"""Times at which sounds begin, from samples alone, and how they match contacts that are seen."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

COLUMNS = 16  # of the spectrogram, a frame; the resolution before interpolation
_WINDOW = 0.032  # seconds
_OVER_AMBIENCE = 1.0  # an onset's magnitude over the ambience's, both summed over frequency
_QUIETEST = 0.15  # amplitude of the quietest tone that counts, a third of a contact's
_HOLD = 0.1  # seconds in which a decaying sound's level may fall to 1/e without ending it
_RISE = 2.0  # times a new onset exceeds what is left of the last sound
_REFRACTORY = 1.5  # frames from one onset to the next


def find_onsets(audio: np.ndarray, sample_rate: int, fps: float = 8) -> np.ndarray:
    """Onset times in frames, float64 (num_onsets,).

    audio: float (num_samples,) or (num_samples, channels). The ambience is taken to be what half
    of the clip is quieter than, frequency by frequency. An onset is dated where its level passes
    half of its peak, which a symmetric smear (an inverted spectrogram's) does not move. The last
    quarter of a frame is not looked at: the cut at the end of a clip spreads over all frequencies.
    """
    mono = np.asarray(audio, np.float32)
    mono = mono.mean(1) if mono.ndim == 2 else mono
    hop = max(round(sample_rate / fps / COLUMNS), 1)
    level, floor = _excess(mono, hop, 2 * round(sample_rate * _WINDOW / 2))
    column = fps * hop / sample_rate  # in frames
    level = level[: max(len(level) - COLUMNS // 4 - 1, 0)]
    return column * _pick(level, floor, np.exp(-hop / sample_rate / _HOLD), column)


def _excess(mono: np.ndarray, hop: int, size: int) -> tuple[np.ndarray, float]:
    """Level over the ambience in each column centred on a multiple of `hop`, and its threshold."""
    window = np.hanning(size + 1)[:-1].astype(np.float32)
    window *= 2 / window.sum()  # a tone's peak is its amplitude
    padded = np.pad(mono, (size // 2, size // 2))
    columns = np.lib.stride_tricks.sliding_window_view(padded, size)[::hop]
    magnitude = np.abs(np.fft.rfft(columns * window, axis=1))
    ambience = np.median(magnitude, axis=0)
    # A Hann window spreads a tone over three bins that sum to twice its peak.
    floor = max(_OVER_AMBIENCE * float(ambience.sum()), 2 * _QUIETEST)
    return np.maximum(magnitude - 2 * ambience, 0).sum(1), floor


def _pick(level: np.ndarray, floor: float, keep: float, column: float) -> np.ndarray:
    """Onsets in columns: rises over the threshold and over what is left of the sound before."""
    reach = round(0.75 / column)
    onsets: list[float] = []
    left, i = level[0] if len(level) else 0.0, 1
    while i < len(level):
        if level[i] > floor and level[i] > _RISE * left:
            peak = i + int(level[i : i + reach].argmax())
            onsets.append(_half_rise(level, peak))
            left = level[peak]
            i = max(peak + 1, i + round(_REFRACTORY / column))
            left *= keep ** (i - peak)
        else:
            left = max(level[i], keep * left)
            i += 1
    return np.array(onsets)


def _half_rise(level: np.ndarray, peak: int) -> float:
    """Where the level passes half of its peak, between columns."""
    half = level[peak] / 2
    at = peak
    while at > 0 and level[at - 1] > half:
        at -= 1
    if at == 0:
        return 0.0
    return at - 1 + (half - level[at - 1]) / (level[at] - level[at - 1])


def synchrony(
    contacts: Sequence[np.ndarray], onsets: Sequence[np.ndarray], tolerance: float = 1.0
) -> dict[str, float | None]:
    """How well the onsets of clips match the contacts of the same clips, pooled over the clips.

    recall: share of contacts with an onset within `tolerance` frames; precision: share of onsets
    with such a contact. The shuffled rates pair every clip's contacts with every other clip's
    onsets: what chance gives. None where there is nothing to count.
    """
    count = len(contacts)
    near = np.array([[_count_near(c, o, tolerance) for o in onsets] for c in contacts])
    back = np.array([[_count_near(o, c, tolerance) for o in onsets] for c in contacts])
    total_contacts, total_onsets = sum(map(len, contacts)), sum(map(len, onsets))

    def rate(hits: np.ndarray, total: int) -> tuple[float | None, float | None]:
        if total == 0:
            return None, None
        own = float(np.trace(hits))
        others = float(hits.sum()) - own
        return own / total, others / total / (count - 1) if count > 1 else None

    recall, shuffled_recall = rate(near, total_contacts)
    precision, shuffled_precision = rate(back, total_onsets)
    return {
        "recall": recall,
        "shuffled_recall": shuffled_recall,
        "precision": precision,
        "shuffled_precision": shuffled_precision,
    }


def _count_near(times: np.ndarray, others: np.ndarray, tolerance: float) -> int:
    if len(times) == 0 or len(others) == 0:
        return 0
    return int((np.abs(times[:, None] - others[None]).min(1) <= tolerance).sum())
