"""What happens in a clip of the procedural world: one object, one motion, one background.

A `Scene` is a small frozen description in picture units (pixels of a 64x64 picture, frames of an
8 fps clip). Everything else follows from it alone: the picture (`render`), the sound (`sound`),
the words (`captions`), and what a detector must find (`detect`).
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

SIZE = 64
FPS = 8
NUM_FRAMES = 33

SHAPES = ("ball", "square", "triangle")
MOTIONS = ("left", "right", "up", "down", "bounce", "still")
BACKGROUNDS = ("grass", "sand", "night", "brick", "snow")
CAMERAS = ("static", "pan left", "pan right", "zoom in")

# Hue in degrees; saturation and value are common to all, so only the hue tells colours apart.
COLORS = {"red": 0, "yellow": 58, "green": 120, "cyan": 180, "blue": 232, "purple": 290}
SATURATION = 0.86
VALUE = 0.94

MARGIN = 1.0  # pixels between an object's bounding box and the picture's edge
HORIZON = 42  # first row of the ground, in pixels from the top


@dataclasses.dataclass(frozen=True)
class Scene:
    """One clip. Lengths in pixels, times in frames; `start` is the centre in the first frame."""

    shape: str
    color: str
    motion: str
    background: str
    radius: float
    start: tuple[float, float]
    travel: float = 0.0  # signed length of a straight move over NUM_FRAMES frames
    period: float = 0.0  # between two floor contacts of a bounce
    first_contact: float = 0.0
    height: float = 0.0  # of a bounce
    camera: str = "static"

    def centres(self, num_frames: int = NUM_FRAMES) -> np.ndarray:
        """Centres (num_frames, 2) as x, y on the picture."""
        t = np.arange(num_frames, dtype=np.float32)
        x0, y0 = self.start
        x, y = np.full_like(t, x0), np.full_like(t, y0)
        share = t / (NUM_FRAMES - 1)
        if self.motion in ("left", "right"):
            x = x0 + self.travel * share
        elif self.motion in ("up", "down"):
            y = y0 + self.travel * share
        elif self.motion == "bounce":
            phase = np.mod((t - self.first_contact) / self.period, 1.0)
            y = y0 - 4.0 * self.height * phase * (1.0 - phase)
        return np.stack([x, y], axis=1).astype(np.float32)

    def contacts(self, num_frames: int = NUM_FRAMES) -> np.ndarray:
        """Times, in frames, at which the object touches the floor."""
        if self.motion != "bounce":
            return np.zeros(0, np.float32)
        count = math.floor((num_frames - 1 - self.first_contact) / self.period) + 1
        return (self.first_contact + self.period * np.arange(max(count, 0))).astype(np.float32)


def sample_scene(
    rng: np.random.Generator,
    *,
    shape: str | None = None,
    color: str | None = None,
    motion: str | None = None,
    background: str | None = None,
    camera: str = "static",
) -> Scene:
    """Draw a scene; what is given stays fixed. The object never leaves the picture.

    Raises `ValueError` for what the world has not.
    """
    shape = shape or str(rng.choice(SHAPES))
    color = color or str(rng.choice(list(COLORS)))
    motion = motion or str(rng.choice(MOTIONS))
    background = background or str(rng.choice(BACKGROUNDS))
    for value, known in (
        (shape, SHAPES),
        (color, COLORS),
        (motion, MOTIONS),
        (background, BACKGROUNDS),
        (camera, CAMERAS),
    ):
        if value not in known:
            raise ValueError(f"the world has no {value!r} among {', '.join(known)}")
    radius = float(rng.uniform(9.0, 12.5))
    low = radius + MARGIN
    high = SIZE - 1 - low
    x, y = (float(v) for v in rng.uniform(low, high, 2))
    fields: dict[str, float] = {}
    if motion in ("left", "right", "up", "down"):
        length = float(rng.uniform(24.0, high - low))
        sign = 1.0 if motion in ("right", "down") else -1.0
        first = float(rng.uniform(low, high - length)) + (0.0 if sign > 0 else length)
        x, y = (first, y) if motion in ("left", "right") else (x, first)
        fields["travel"] = sign * length
    elif motion == "bounce":
        height = float(rng.uniform(20.0, min(32.0, high - low)))
        # Higher bounces take longer, so that the fastest frames move 9 pixels at most.
        period = 8.5 + (height - 20.0) / 12.0 * 4.5 + float(rng.uniform(-0.5, 0.5))
        floor = float(rng.uniform(HORIZON + 8, SIZE - 1 - MARGIN))  # the object's lower edge
        y = min(max(floor - radius, low + height), high)
        fields |= {
            "height": height,
            "period": period,
            "first_contact": float(rng.uniform(1.0, period)),
        }
    return Scene(shape, color, motion, background, radius, (x, y), camera=camera, **fields)
