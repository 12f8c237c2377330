"""What a track of centres is: which motion, and when it touches the floor.

Between two floor contacts a bounce is a parabola in time, so contacts are dated between frames,
where neighbouring parabolas meet. y grows downwards.
"""

from __future__ import annotations

import numpy as np

from .scene import NUM_FRAMES

_STILL = 6.0  # pixels a still object may wander (a zoom drifts it by 5.6 at most)
_MOVE = 15.0  # pixels of a straight move: a quarter of the picture, less a frame at either end
_BOUNCE = 8.0  # pixels a bounce is high at least


def find_motion(centres: np.ndarray) -> tuple[str, np.ndarray]:
    """Name of the motion or "other", and the times of floor contacts where it is a bounce.

    centres: (num_frames, 2) as x, y in pixels, NaN where no object is seen; times in frames.
    """
    nothing = np.zeros(0)
    seen = np.isfinite(centres[:, 0])
    if seen.mean() < 0.5:
        return "other", nothing
    time = np.arange(len(centres))
    x, y = (np.interp(time, time[seen], values[seen]) for values in centres.T)
    width, height = np.ptp(x), np.ptp(y)
    if max(width, height) < _STILL:
        return "still", nothing
    least = _MOVE * min(max((len(time) - 1) / (NUM_FRAMES - 1), 0.5), 1.0)
    for names, along, across in ((("left", "right"), x, height), (("up", "down"), y, width)):
        net = np.median(along[-3:]) - np.median(along[:3])
        path = np.abs(np.diff(along)).sum()
        if abs(net) >= least and abs(net) > 0.75 * path and across < max(8.0, abs(net) / 2):
            return names[int(net > 0)], nothing
    if height >= _BOUNCE and width < max(8.0, height / 2):
        lows = _lows(y)
        pieces = _pieces(y, lows)
        if _turns(y) >= 2 and _is_parabolic(y, pieces):
            return "bounce", _contacts(y, lows, pieces)
    return "other", nothing


def _turns(y: np.ndarray) -> int:
    """Reversals of direction, each of at least a third of the whole range."""
    turns, direction, extreme = 0, 0, y[0]
    for value in y[1:]:
        if abs(value - extreme) > np.ptp(y) / 3 and np.sign(value - extreme) != direction:
            turns += direction != 0
            direction, extreme = np.sign(value - extreme), value
        elif (value - extreme) * direction > 0:
            extreme = value
    return int(turns)


def _lows(y: np.ndarray) -> list[int]:
    """The lowest place on the picture (largest y) of every run of frames in the lower half."""
    low = np.concatenate([[False], y > (y.min() + y.max()) / 2, [False]])
    edges = np.flatnonzero(np.diff(low.astype(int)))
    return [
        int(start + y[start:stop].argmax())
        for start, stop in zip(edges[::2], edges[1::2], strict=True)
    ]


def _pieces(y: np.ndarray, lows: list[int]) -> list[tuple[int, int, np.poly1d | None]]:
    """The parabola before, between and after the low frames: first and end frame, and the fit."""
    pieces = []
    for first, end in zip([0, *(low + 1 for low in lows)], [*lows, len(y)], strict=True):
        time = np.arange(first, end)
        fit = np.poly1d(np.polyfit(time, y[first:end], 2)) if end - first >= 3 else None
        pieces.append((first, end, fit))
    return pieces


def _is_parabolic(y: np.ndarray, pieces: list) -> bool:
    """Whether the fits leave a tenth of the range at most, over enough degrees of freedom."""
    whole = [piece for piece in pieces if piece[2] is not None]
    freedom = sum(end - first - 3 for first, end, _ in whole)
    if freedom < len(y) / 4 or any(f[2] < 0 for a, b, f in whole if b - a > 4):
        return False
    errors = np.concatenate(
        [y[first:end] - fit(np.arange(first, end)) for first, end, fit in whole]
    )
    return float(np.sqrt(np.square(errors).sum() / freedom)) < 0.1 * np.ptp(y)


def _contacts(y: np.ndarray, lows: list[int], pieces: list) -> np.ndarray:
    """Times between frames at which neighbouring parabolas meet, one near each low frame."""
    times = []
    for i, low in enumerate(lows):
        before, after = pieces[i][2], pieces[i + 1][2]
        time: float | None = float(low)
        if before is not None and after is not None:
            meets = (before - after).roots
            meets = meets[np.isreal(meets)].real
            close = meets[np.abs(meets - low) < 1.2]
            time = float(close[np.abs(close - low).argmin()]) if len(close) else time
        elif before is not None:
            time = _mirrored(before, y, min(low + 1, len(y) - 1), time)
        elif after is not None:
            time = _mirrored(after, y, max(low - 1, 0), time)
        if time is not None:
            times.append(time)
    return np.array(times)


def _mirrored(piece: np.poly1d, y: np.ndarray, other: int, low: float) -> float | None:
    """Contact between a parabola and one frame of its mirror image; None if that frame is on it."""
    if other == low and piece(other) - y[other] < 1.5:
        return None
    roots = (piece - y[other]).roots
    if not np.isreal(roots).all():
        return low
    near = roots.real[np.abs(roots.real - other).argmin()]
    time = (near + other) / 2
    return float(time) if abs(time - low) < 1.2 else low
