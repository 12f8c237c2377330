"""Which background a clip has and how the camera moves, from the pixels around the object."""

from __future__ import annotations

import functools

import numpy as np

from .render import background_texture
from .scene import BACKGROUNDS, NUM_FRAMES, SIZE

_SHIFTS = np.array([0, -8, 8, -16, 16, -24, 24, -32, 32.0])  # px a pan may move NUM_FRAMES frames
_ZOOMS = (1.2, 1.35, 1.5)  # scales a zoom may reach over NUM_FRAMES


def find_backdrop(frames: np.ndarray, free: np.ndarray) -> tuple[str, str]:
    """Names of background and camera, from the pixels that are free of the object.

    frames: uint8 (num_frames, SIZE, SIZE, 3); free: bool (num_frames, SIZE, SIZE).
    """
    few = np.unique(np.linspace(0, len(frames) - 1, 5).astype(int))
    seen = np.where(free[few, ..., None], frames[few], 0).astype(np.float32)
    count = np.maximum(free[few].sum(0), 1)[..., None]
    mean = seen.sum(0) / count
    weight = np.minimum(free[few].sum(0), 1)

    def distance(name: str) -> float:
        error = np.abs(mean - background_texture(name)[:, :SIZE]).mean(-1)
        return float((np.minimum(error, 60) * weight).sum())

    background = min(BACKGROUNDS, key=distance)
    return background, _camera(frames, free, background)


def _camera(frames: np.ndarray, free: np.ndarray, background: str) -> str:
    """Which of a range of pans and zooms correlates most with what the clip shows."""
    weight = free[::2].reshape(-1).astype(np.float32)
    count = max(float(weight.sum()), 1.0)
    light = frames[::2].mean(-1, dtype=np.float32).reshape(-1)
    light = (light - light @ weight / count) * weight
    views = _views(background, len(frames))
    variance = views**2 @ weight / count - (views @ weight / count) ** 2
    best = int((views @ light / np.sqrt(np.maximum(variance, 1e-3))).argmax())
    if best >= len(_SHIFTS):
        return "zoom in"
    shift = _SHIFTS[best]
    return "static" if abs(shift) < 12 else ("pan left" if shift < 0 else "pan right")


@functools.lru_cache(maxsize=2 * len(BACKGROUNDS))
def _views(background: str, num_frames: int) -> np.ndarray:
    """Brightness of every second frame, flat, as each pan, then each zoom, would show it."""
    texture = background_texture(background).mean(-1)
    share = np.arange(0, num_frames, 2) / (NUM_FRAMES - 1)
    last = (num_frames - 1) / (NUM_FRAMES - 1)
    views = [(shift * share, np.ones_like(share)) for shift in _SHIFTS]
    for zoom in _ZOOMS:
        scale = 1 / zoom + (1 - 1 / zoom) * share
        views.append((0 * share, (1 / zoom + (1 - 1 / zoom) * last) / scale))
    middle = (SIZE - 1) / 2
    grid = np.arange(SIZE) - middle
    result = np.empty((len(views), len(share), SIZE, SIZE), np.float32)
    for view, (shifts, scales) in zip(result, views, strict=True):
        for frame, shift, scale in zip(view, shifts, scales, strict=True):
            y = np.clip(grid * scale + middle, 0, SIZE - 1)
            frame[:] = _line_up(_line_up(texture, y), grid * scale + middle + shift, axis=1)
    return result.reshape(len(views), -1)


def _line_up(texture: np.ndarray, at: np.ndarray, axis: int = 0) -> np.ndarray:
    """Linear samples along an axis, periodic."""
    low = np.floor(at).astype(int)
    share = np.expand_dims(at - low, 1 - axis)
    first = np.take(texture, low, axis, mode="wrap")
    return first + share * (np.take(texture, low + 1, axis, mode="wrap") - first)
