"""What a clip shows and sounds like, measured from pixels and samples alone.

`detect` knows the world's vocabulary (named colours, ideal outlines, background textures) but not
the scene: it reads a rendered clip and a generated one alike. Times are in frames, lengths in
pixels, y grows downwards.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from .backdrop import find_backdrop
from .onsets import find_onsets
from .render import color_rgb, coverage
from .scene import COLORS, FPS, SHAPES, SIZE
from .track import find_motion

STRICT_IOU = 0.8  # outline overlap from which a shape counts as strict

_MIN_SATURATION, _MIN_VALUE = 0.55, 0.3  # of object pixels; every background stays below one
_MIN_AREA = 20  # pixels an object has in a frame that shows it
_WINDOW = 32  # side of the crop in which outlines are compared; objects are at most 25 wide


@dataclasses.dataclass(frozen=True)
class Detection:
    """What one clip shows. Attributes are names of the world, "other", or "none" without object."""

    color: str
    shape: str
    motion: str
    background: str
    camera: str
    frame_iou: dict[str, np.ndarray]  # overlap with each ideal outline, (num_frames,) in 0..1
    centres: np.ndarray  # (num_frames, 2) as x, y; NaN where no object is seen
    areas: np.ndarray  # (num_frames,) pixels
    contacts: np.ndarray  # times of floor contacts, from the picture
    onsets: np.ndarray  # times of sounds that begin, from the samples

    @property
    def iou(self) -> dict[str, float]:
        """Overlap with each ideal outline, mean over the frames."""
        return {shape: float(values.mean()) for shape, values in self.frame_iou.items()}

    @property
    def outline_iou(self) -> float:
        """Overlap with the ideal outline of the detected shape, mean over the frames."""
        return self.iou.get(self.shape, 0.0)

    def strict(self, shape: str) -> bool:
        """Whether the clip shows this shape, and with a clean outline."""
        return self.shape == shape and self.iou[shape] > STRICT_IOU


def detect(
    frames: np.ndarray,
    audio: np.ndarray | None = None,
    sample_rate: int = 16000,
    fps: float = FPS,
) -> Detection:
    """Measure a clip.

    frames: uint8 (num_frames, SIZE, SIZE, 3); audio: float (num_samples,) or (num_samples, n).
    """
    if frames.ndim != 4 or frames.shape[1:] != (SIZE, SIZE, 3):
        raise ValueError(f"frames are {frames.shape}, not (num_frames, {SIZE}, {SIZE}, 3)")
    planes = np.ascontiguousarray(np.moveaxis(frames, -1, 0))
    saturated = _saturated(planes)
    body = _largest_component(saturated)
    color = _color(planes, body)
    background, camera = find_backdrop(frames, ~_dilate(saturated, 3))
    alpha = _alpha(frames, saturated, body, color)
    own = alpha * _dilate(body, 2)
    centres, areas = _moments(own)
    frame_iou = _outlines(np.maximum(alpha, saturated), centres, areas)
    mean_iou = {shape: values.mean() for shape, values in frame_iou.items()}
    motion, contacts = find_motion(centres)
    return Detection(
        color=color,
        shape=max(mean_iou, key=lambda shape: mean_iou[shape]) if color != "none" else "none",
        motion=motion,
        background=background,
        camera=camera,
        frame_iou=frame_iou,
        centres=centres,
        areas=areas,
        contacts=contacts,
        onsets=np.zeros(0) if audio is None else find_onsets(audio, sample_rate, fps),
    )


# ---- the object's pixels ----


def _saturated(planes: np.ndarray) -> np.ndarray:
    high = np.maximum(np.maximum(planes[0], planes[1]), planes[2]).astype(np.int16)
    low = np.minimum(np.minimum(planes[0], planes[1]), planes[2])
    return (high - low > _MIN_SATURATION * high) & (high > 255 * _MIN_VALUE)


def _dilate(mask: np.ndarray, times: int = 1) -> np.ndarray:
    """Grow every frame of a mask (frames, rows, columns) by one pixel in the four directions."""
    for _ in range(times):
        grown = mask.copy()
        grown[:, 1:] |= mask[:, :-1]
        grown[:, :-1] |= mask[:, 1:]
        grown[:, :, 1:] |= mask[:, :, :-1]
        grown[:, :, :-1] |= mask[:, :, 1:]
        mask = grown
    return mask


def _largest_component(mask: np.ndarray) -> np.ndarray:
    """Largest connected part of each frame, looked for among the four thickest."""
    best, rest = np.zeros_like(mask), mask
    for _ in range(4):
        part = _flood(rest, _thickest(rest))
        larger = part.sum((1, 2)) > best.sum((1, 2))
        best[larger] = part[larger]
        rest = rest & ~part
        if not (rest.sum((1, 2)) > best.sum((1, 2))).any():
            break
    return best


def _thickest(mask: np.ndarray) -> np.ndarray:
    """One pixel a frame, where the mask fills its neighbourhood most."""
    filled = np.pad(mask, ((0, 0), (4, 3), (4, 3))).cumsum(1, np.int16).cumsum(2, np.int16)
    box = filled[:, 7:, 7:] - filled[:, :-7, 7:] - filled[:, 7:, :-7] + filled[:, :-7, :-7]
    peak = np.where(mask, box, 0).reshape(len(mask), -1).argmax(1)
    seed = np.zeros_like(mask).reshape(len(mask), -1)
    seed[np.arange(len(mask)), peak] = True
    return seed.reshape(mask.shape) & mask


def _flood(mask: np.ndarray, seed: np.ndarray) -> np.ndarray:
    size = -1
    while (grown := int(seed.sum())) != size:
        size = grown
        seed = _dilate(seed) & mask
    return seed


def _color(planes: np.ndarray, body: np.ndarray) -> str:
    if body.sum() < _MIN_AREA * len(body) / 2:
        return "none"
    red, green, blue = planes[:, body].astype(np.float32)
    hue = np.degrees(np.arctan2(3**0.5 * (green - blue), 2 * red - green - blue))
    middle = np.degrees(np.angle(np.exp(1j * np.radians(hue)).mean()))
    median = middle + np.median((hue - middle + 180) % 360 - 180)
    return min(COLORS, key=lambda name: abs((COLORS[name] - median + 180) % 360 - 180))


def _alpha(frames: np.ndarray, saturated: np.ndarray, body: np.ndarray, color: str) -> np.ndarray:
    """Share of each pixel that the object's colour covers, float32 (frames, rows, columns).

    The chroma along the object's hue mixes linearly between background (taken row by row) and
    object; a gain of 1.2 takes shading and noise out of the inside and the outside.
    """
    if color == "none":
        return np.zeros(saturated.shape, np.float32)
    axis = color_rgb(color)
    axis = ((axis - axis.mean()) / np.square(axis - axis.mean()).sum()).astype(np.float32)
    chroma = frames.astype(np.float32) @ axis
    outside = ~_dilate(saturated, 2)
    count = outside.sum((0, 2))
    below = np.where(outside, chroma, 0).sum((0, 2)) / np.maximum(count, 1)
    full = np.median(chroma[body])
    alpha = (chroma - below[None, :, None]) / np.maximum(full - below, 0.1)[None, :, None]
    return np.clip(1.2 * alpha - 0.1, 0, 1) * _dilate(saturated, 2)


def _moments(alpha: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centres (frames, 2), NaN where nothing is seen, and areas (frames,)."""
    areas = alpha.sum((1, 2))
    grid = np.arange(SIZE, dtype=np.float32)
    mass = np.where(areas >= _MIN_AREA, areas, np.nan)
    return np.stack([alpha.sum(1) @ grid / mass, alpha.sum(2) @ grid / mass], axis=1), areas


# ---- shape ----


def _outlines(whole: np.ndarray, centres: np.ndarray, areas: np.ndarray) -> dict[str, np.ndarray]:
    """Overlap of every frame with each ideal outline at its best place and size near the object.

    `whole` holds stray mass too, which belongs to no outline and so lowers the overlap.
    """
    seen = np.isfinite(centres[:, 0])
    results = {shape: np.zeros(len(whole), np.float32) for shape in SHAPES}
    if not seen.any():
        return results
    middle = np.clip(np.rint(centres[seen]).astype(int), 0, SIZE - 1)
    padded = np.pad(whole[seen], ((0, 0), (_WINDOW // 2,) * 2, (_WINDOW // 2,) * 2))
    rows = middle[:, 1, None] + np.arange(_WINDOW)
    columns = middle[:, 0, None] + np.arange(_WINDOW)
    crop = padded[np.arange(len(middle))[:, None, None], rows[:, :, None], columns[:, None, :]]
    offset = (centres[seen] - middle + _WINDOW // 2).astype(np.float32)
    mass = whole[seen].sum((1, 2))
    for shape in SHAPES:
        results[shape][seen] = _fit_outline(shape, crop, mass, offset, areas[seen])
    return results


def _fit_outline(
    shape: str, crop: np.ndarray, mass: np.ndarray, centre: np.ndarray, area: np.ndarray
) -> np.ndarray:
    """Best overlap (frames,) over a coordinate search from equal area and equal centroid."""
    unit = {"ball": np.pi, "square": 3.24, "triangle": 2.0}[shape]  # area at radius 1
    radius = np.sqrt(area / unit).astype(np.float32)
    place = np.stack([centre[:, 0], centre[:, 1], radius], axis=1)
    if shape == "triangle":  # its centroid lies a third of the radius below its centre
        place[:, 1] -= radius / 3
    best = _overlap(shape, crop, mass, place, unit)
    for step in (0.8, 0.4):
        for axis in (2, 1, 0):
            for sign in (-step, step):
                trial = place.copy()
                trial[:, axis] += sign
                overlap = _overlap(shape, crop, mass, trial, unit)
                better = overlap > best
                best[better], place[better] = overlap[better], trial[better]
    return best


def _overlap(
    shape: str, crop: np.ndarray, mass: np.ndarray, place: np.ndarray, unit: float
) -> np.ndarray:
    grid = np.arange(_WINDOW, dtype=np.float32)
    x, y, radius = (value[:, None, None] for value in place.T)
    ideal = coverage(shape, grid[None, None, :] - x, grid[None, :, None] - y, radius)
    common = np.minimum(crop, ideal).sum((1, 2))
    return common / (mass + unit * place[:, 2] ** 2 - common)
