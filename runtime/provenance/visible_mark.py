"""A mark that people see: a small plate that says "AI generated" and moves between the corners.

It is for the viewer, so it says what the viewer should know; who made it is in the manifest. A
spark says it to those who do not read English. White on a dark translucent plate, because that
reads on whatever is behind: in a stay, by WCAG's measure, the body of every letter stands out from
every bit of plate by 5:1. It covers at most 1.5 % of a picture of 64x64 or more, and keeps 5 % of
the short side away from the edges. It dims, steps to another corner and comes up again, and is
never quite gone; stays alternate between top and bottom, so that cropping either away leaves the
next.

Drawn once, when it is made; a frame costs a copy, and integer arithmetic under the mark alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..errors import UsageError

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

STAY_SECONDS, FADE_SECONDS = 2.5, 0.3
CORNERS = ((True, True), (False, False), (True, False), (False, True))  # (bottom, right), in turn
MARGIN = 0.05  # of the short side
LIT, DIMMED = 256, 112  # strength of 256 in a stay, and where the corner changes

PLATE, LETTERS = 164, 240  # opacity of 256
GLYPH_PLATE = 200  # a rim of one pixel has to be darker to be seen
WHITE, GOLD = (255, 255, 255), (255, 222, 150)

TEXT = "AI generated"
TEXT_SIDE, SHORT_SIDE = 320, 115  # short sides of a picture from which a text is legible
TEXT_PLATE, SHORT_PLATE = 0.05, 0.095  # heights, of the short side
# Below them two letters of single pixels, the only ones that so small a plate can show.
GLYPH = (
    ".........",
    "..#..###.",
    ".#.#..#..",
    ".###..#..",
    ".#.#..#..",
    ".#.#.###.",
    ".........",
)

OVERSAMPLING = 8
TWINKLES = 12  # drawings of the spark in a stay


@dataclass(frozen=True)
class Drawing:
    """One state of the mark, uint16 (h, w, 3): opacities of 256, and the letters' colours.

    Opacities are the same in all three channels: numpy is slow to stretch one over a row of three.
    """

    cover: np.ndarray  # plate and letters together
    ink: np.ndarray  # letters alone, never above cover
    colour: np.ndarray  # of what is ink; the plate is black


class VisibleMark:
    """The mark of frames uint8 (height, width, 3) that are shown at `fps`.

    A function of frame and index alone: the same bytes whoever draws it, in whatever order.
    """

    def __init__(self, height: int, width: int, fps: float) -> None:
        """Raises UsageError for a picture that is smaller than the smallest mark."""
        if not (math.isfinite(fps) and fps > 0):
            raise UsageError(f"fps is {fps}; the visible mark needs a number above 0")
        self.height, self.width, self.fps = height, width, float(fps)
        self.drawings = drawings(min(height, width))
        self.mark_height, self.mark_width = self.drawings[0].cover.shape[:2]
        if self.mark_height > height or self.mark_width > width:
            least = f"{self.mark_width}x{self.mark_height}"
            raise UsageError(f"frames are {width}x{height}; the visible mark needs {least}")

    def apply(self, frame: np.ndarray, index: int) -> np.ndarray:
        """A copy of frame `index` with the mark on it."""
        if frame.shape != (self.height, self.width, 3) or frame.dtype != np.uint8:
            wanted = f"uint8 {(self.height, self.width, 3)}"
            raise UsageError(f"frame {index} is {frame.dtype} {frame.shape}; {wanted} is expected")
        marked = frame.copy()
        seconds = index / self.fps
        behind = marked[self.region(seconds)]
        behind[...] = blend(behind, self._drawing(seconds), strength(seconds))
        return marked

    def region(self, seconds: float) -> tuple[slice, slice]:
        """Rows and columns that the mark takes at a time."""
        bottom, right = CORNERS[int(seconds // STAY_SECONDS) % len(CORNERS)]
        margin = round(MARGIN * min(self.height, self.width))
        top = _start(bottom, margin, self.mark_height, self.height)
        left = _start(right, margin, self.mark_width, self.width)
        return slice(top, top + self.mark_height), slice(left, left + self.mark_width)

    def _drawing(self, seconds: float) -> Drawing:
        part = seconds % STAY_SECONDS / STAY_SECONDS
        return self.drawings[int(part * len(self.drawings))]


def strength(seconds: float) -> int:
    """Of 256: full in a stay, and from its beginning in the first; dimmed at a change of corner."""
    into = seconds % STAY_SECONDS
    left = STAY_SECONDS - into
    edge = left if seconds < STAY_SECONDS else min(into, left)
    ease = min(1.0, edge / FADE_SECONDS)
    return DIMMED + round((LIT - DIMMED) * ease * ease * (3 - 2 * ease))


def blend(behind: np.ndarray, drawing: Drawing, strength: int) -> np.ndarray:
    """Pixels with the mark over them, in 16-bit integers: 255 * 256 + 128 is the most there is."""
    keep = 256 - ((drawing.cover * strength) >> 8)
    light = ((drawing.ink * strength) >> 8) * drawing.colour
    return ((behind * keep + light + 128) >> 8).astype(np.uint8)


def _start(far: bool, margin: int, length: int, side: int) -> int:
    room = side - length
    margin = min(margin, room // 2)
    return room - margin if far else margin


# ---- drawing -------------------------------------------------------------------------------------


def drawings(side: int) -> list[Drawing]:
    """What a stay shows, one after the other, for a picture whose short side is `side`."""
    if side < SHORT_SIDE:
        return [_glyph()]
    if side < TEXT_SIDE:
        return [_short(round(SHORT_PLATE * side))]
    return _long(round(TEXT_PLATE * side))


def _glyph() -> Drawing:
    letters = np.array([[dot == "#" for dot in row] for row in GLYPH], float)
    plate = np.full(letters.shape, float(GLYPH_PLATE))
    plate[[0, 0, -1, -1], [0, -1, 0, -1]] = 0
    return _drawing(plate, letters)


def _short(high: int) -> Drawing:
    """A plate `high` pixels high, with two letters in its middle."""
    wide = round(1.5 * high)
    image, draw = _canvas(high, wide)
    unit = image.height
    for x, letter in ((0.36, "A"), (0.94, "I")):  # further apart than type is set
        _write(draw, (x * unit, unit / 2), letter, capital=0.54 * unit, bold=0.06)
    return _drawing(_plate(high, wide, corner=0.3), _pixels(image))


def _long(high: int) -> list[Drawing]:
    """A plate `high` pixels high, with a spark that breathes and a line of text."""
    wide = round(5.1 * high)
    image, draw = _canvas(high, wide)
    unit = image.height
    _write(draw, (0.99 * unit, unit / 2), TEXT, capital=0.44 * unit)
    plate, text = _plate(high, wide, corner=0.5), _pixels(image)
    sparks = (
        _spark(high, 0.31 - 0.06 * math.cos(math.tau * i / TWINKLES)) for i in range(TWINKLES)
    )
    return [_drawing(plate, text, spark) for spark in sparks]


def _spark(high: int, radius: float) -> np.ndarray:
    """A star of four points, (high, high) from 0 to 1; radius in parts of `high`."""
    image, draw = _canvas(high, high)
    angles = np.linspace(0, math.tau, 96, endpoint=False)
    x, y = (np.sign(f) * np.abs(f) ** 3.2 for f in (np.cos(angles), np.sin(angles)))
    middle = high / 2 + round(0.08 * high), high / 2  # on the pixels' grid alike: even points
    points = OVERSAMPLING * (np.stack([x, y], axis=-1) * radius * high + middle)
    draw.polygon([tuple(point) for point in points], fill=255)
    return _pixels(image)


def _write(
    draw: ImageDraw, at: tuple[float, float], text: str, capital: float, bold: float = 0.03
) -> None:
    """Text whose capitals are `capital` high; `at` is half way up them, `bold` widens strokes."""
    from PIL import ImageFont

    font = ImageFont.load_default(capital / 0.7)  # Aileron's capitals are 0.7 em
    x, y = at
    stroke = round(capital * bold)
    draw.text((x, y + capital / 2), text, 255, font, anchor="ls", stroke_width=stroke)


def _plate(high: int, wide: int, corner: float) -> np.ndarray:
    image, draw = _canvas(high, wide)
    size = image.width - 1, image.height - 1
    draw.rounded_rectangle((0, 0, *size), corner * image.height, fill=255)
    return PLATE * _pixels(image)


def _canvas(high: int, wide: int) -> tuple[Image, ImageDraw]:
    from PIL import Image, ImageDraw

    image = Image.new("L", (wide * OVERSAMPLING, high * OVERSAMPLING))
    return image, ImageDraw.Draw(image)


def _pixels(image: Image) -> np.ndarray:
    """(high, wide), from 0 to 1."""
    return np.asarray(image.reduce(OVERSAMPLING), float) / 255


def _drawing(plate: np.ndarray, letters: np.ndarray, spark: np.ndarray | None = None) -> Drawing:
    colour = np.full((*plate.shape, 3), WHITE, np.uint16)
    if spark is not None:
        part = np.s_[:, : spark.shape[1]]
        letters = letters.copy()
        letters[part] = np.maximum(letters[part], spark)
        colour[part][spark > 0] = GOLD
    ink = np.rint(LETTERS * letters)
    cover = np.rint(plate * (1 - letters) + ink)
    cover, ink = (np.stack(3 * [part.astype(np.uint16)], axis=-1) for part in (cover, ink))
    return Drawing(cover, ink, colour)
