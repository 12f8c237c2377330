"""The invisible mark of a picture: a keyed pattern added to the luma of every frame.

Spread spectrum: a grid of cells covers the picture, a key gives each cell one of the channel's bits
and a sign, and a cell is made a little lighter or darker. A bit is spread over a hundred and fifty
cells; what the picture itself has in them does not correlate with the signs. The grid is in units
of the picture, so a reader of a rescaled copy needs no search, and the same in every frame, so
neither frame rate nor trimming matters.

Whoever has the key can read the mark, and can take it off. It is no proof against an adversary.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ..errors import UsageError
from .code import CHANNEL_BITS, Found, decode, encode, probability_of_chance, stream

DEFAULT_KEY = b"kinema: a public key, so that anyone can read this mark"

LONG, SHORT, EQUAL = 160, 90, 120  # cells along the sides of a picture, and of a square one
SQUARE_RATIO = 1.15  # of the sides, up to which a picture counts as square
SMALL_GRID = 32  # cells along both sides of a small picture
SMALL_SIDE = 240  # pixels of the short side below which a picture is small

FLAT, TEXTURED = 4.0, 12.0  # mean differences of neighbouring samples, in grey levels
MEAN_SQUARE = 4.0  # of what is added: a PSNR of 42.1 dB

ROUNDS = 3  # of weighing frames; with more, one frame outweighs all others
MOST_CHANCE = 1e-7  # a mark that chance explains better than this is none
LUMA = np.array([0.299, 0.587, 0.114], np.float32)


@dataclass(frozen=True)
class Grid:
    """Cells (rows, columns): which channel bit each carries, and with which sign."""

    bit: np.ndarray  # int (rows * columns,)
    sign: np.ndarray  # float32 (rows * columns,)
    rows: int
    columns: int


class PictureMark:
    """The mark of frames uint8 (height, width, 3): a payload of 32 bits under a key."""

    def __init__(self, payload: int, key: bytes, height: int, width: int) -> None:
        """Raises UsageError for a picture with fewer pixels than the mark has cells."""
        if min(height, width) < SMALL_GRID:
            least = f"{SMALL_GRID}x{SMALL_GRID}"
            raise UsageError(f"frames are {width}x{height}; the invisible mark needs {least}")
        self.height, self.width = height, width
        rows, columns = embedding_grid(height, width)
        grid = carrier(key, rows, columns)
        chips = (grid.sign * (2 * encode(payload) - 1)[grid.bit]).reshape(rows, columns)
        self._lighter = np.uint8(255) * (chips > 0)
        self._row = np.arange(height) * rows // height
        self._column = np.repeat(np.arange(width) * columns // width, 3)
        self._samples = np.ix_(_centres(rows, height), _centres(columns, width))

    def apply(self, frame: np.ndarray, index: int) -> np.ndarray:
        """A copy of frame `index` with the mark in it; any index gets the same pattern."""
        if frame.shape != (self.height, self.width, 3) or frame.dtype != np.uint8:
            wanted = f"uint8 {(self.height, self.width, 3)}"
            raise UsageError(f"frame {index} is {frame.dtype} {frame.shape}; {wanted} is expected")
        levels = strengths(frame[..., 1][self._samples])
        flat = np.ascontiguousarray(frame).reshape(self.height, -1)
        up, down = (self._pixels(levels & side) for side in (self._lighter, ~self._lighter))
        marked = np.minimum(flat, ~up)  # 255 - up: what is added next never wraps
        marked += up
        np.maximum(marked, down, out=marked)
        marked -= down
        return marked.reshape(frame.shape)

    def _pixels(self, cells: np.ndarray) -> np.ndarray:
        """Values of cells at every pixel and channel, (height, 3 * width)."""
        return cells[:, self._column][self._row]


def strengths(samples: np.ndarray) -> np.ndarray:
    """Grey levels to add in each cell, uint8 (rows, columns), from samples (2 rows, 2 columns).

    2 as a rule, 1 where the picture is flat and 3 where its texture hides it, never more of the 3
    than keeps the mean square within its bound.
    """
    samples = samples.astype(np.int16)
    across = np.abs(samples[:, 1::2] - samples[:, ::2])
    down = np.abs(samples[1::2] - samples[::2])
    activity = (across[::2] + across[1::2] + down[:, ::2] + down[:, 1::2]) / 4
    levels = np.full(activity.shape, 2, np.uint8)
    levels[activity < FLAT] = 1
    room = MEAN_SQUARE - np.mean(np.square(levels))
    strong = min(np.mean(activity > TEXTURED), room / 5)  # from 4 to 9
    if strong > 0:
        levels[activity > np.quantile(activity, 1 - strong)] = 3
    return levels


def read(frames: Iterable[np.ndarray], key: bytes = DEFAULT_KEY) -> Found | None:
    """The mark of a clip's frames uint8 (height, width, 3), or None."""
    readers: list[Reader] = []
    for frame in frames:
        if not readers:
            grids = reading_grids(*frame.shape[:2])
            readers = [Reader(key, *grid, *frame.shape[:2]) for grid in grids]
        for reader in readers:
            reader.add(frame)
    found = [reader.found(attempts=len(readers)) for reader in readers]
    return min((f for f in found if f), key=lambda f: f.chance, default=None)


class Reader:
    """Gathers what frames say of each bit."""

    def __init__(self, key: bytes, rows: int, columns: int, height: int, width: int) -> None:
        self.grid = carrier(key, rows, columns)
        self.vertical = averages(2 * rows, height)
        self.horizontal = np.kron(averages(2 * columns, width), LUMA).T
        self.frames: list[np.ndarray] = []  # soft values (96,) of each

    def add(self, frame: np.ndarray) -> None:
        """Add what one frame says, read at half a cell and at a whole one."""
        flat = frame.reshape(len(frame), -1).astype(np.float32)
        halves = self.vertical @ flat @ self.horizontal
        cells = 4 * _halved(evidence(halves)) + evidence(_halved(halves))
        values = cells.ravel() * self.grid.sign
        self.frames.append(np.bincount(self.grid.bit, values, minlength=CHANNEL_BITS))

    def soft(self) -> np.ndarray:
        """The channel's bits over all frames, float (96,); zeros of none."""
        return combined(np.array(self.frames).reshape(-1, CHANNEL_BITS))

    def found(self, attempts: int = 1) -> Found | None:
        """The mark, if chance does not explain it."""
        payload, score, right = decode(self.soft())
        chance = probability_of_chance(score, attempts)
        if payload is None or chance > MOST_CHANCE:
            return None
        return Found(payload, score, right, chance)


def combined(frames: np.ndarray) -> np.ndarray:
    """The sum (96,) of soft values (frames, 96), those that agree with it counting for more.

    An encoder leaves the mark in the frames that it spends bits on, one in four or fewer where
    texture moves. A frame weighs as the best combination of a common signal has it: by its part in
    the sum over its own variance; a few rounds find both. Turning the axes turns the outcome alike,
    so noise stays as likely in every direction, and chance needs no other account.
    """
    total = frames.sum(0)
    for _ in range(ROUNDS):
        direction = total / (np.linalg.norm(total) or 1.0)
        part = frames @ direction
        power = np.square(frames).sum(1)
        variance = np.maximum(power - np.square(part), 1e-3 * power) + 1e-9
        total = np.maximum(part / variance, 0) @ frames
    return total


def evidence(cells: np.ndarray) -> np.ndarray:
    """How much lighter each cell is than its surroundings suggest, in units of its texture.

    The whitening of a picture: what neighbours predict goes, edges and texture count less.
    """
    residual = cells - _around(cells)
    spread = np.sqrt(_box(np.square(residual)) + 1.0)
    weighted = np.clip(residual / spread, -2, 2) / spread
    return weighted - _around(weighted)


def embedding_grid(height: int, width: int) -> tuple[int, int]:
    """Rows and columns of the mark of a picture."""
    small = min(height, width) < SMALL_SIDE
    return (SMALL_GRID, SMALL_GRID) if small else _large_grid(height, width)


def reading_grids(height: int, width: int) -> list[tuple[int, int]]:
    """What a reader tries: the picture may have been rescaled from any size."""
    large = _large_grid(height, width)
    fits = large[0] <= height and large[1] <= width
    return [large, (SMALL_GRID, SMALL_GRID)] if fits else [(SMALL_GRID, SMALL_GRID)]


def carrier(key: bytes, rows: int, columns: int) -> Grid:
    """Bits and signs of the cells under a key; bits share the cells evenly, to within one."""
    count = rows * columns
    random = stream(key, f"picture {rows}x{columns}", 2 * count)
    bit = np.argsort(random[:count], kind="stable") % CHANNEL_BITS
    sign = np.where(random[count:] >> np.uint64(63), 1, -1).astype(np.float32)
    return Grid(bit, sign, rows, columns)


def averages(cells: int, pixels: int) -> np.ndarray:
    """(cells, pixels): each row averages the pixels of a cell, in part where an edge cuts one."""
    edges = np.linspace(0, pixels, cells + 1)
    pixel = np.arange(pixels)
    covered = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    return (np.clip(covered, 0, 1) * (cells / pixels)).astype(np.float32)


def _large_grid(height: int, width: int) -> tuple[int, int]:
    if max(height, width) <= SQUARE_RATIO * min(height, width):
        return EQUAL, EQUAL
    return (SHORT, LONG) if width > height else (LONG, SHORT)


def _centres(cells: int, pixels: int) -> np.ndarray:
    """Pixels at one and three quarters of each cell."""
    return ((2 * np.arange(2 * cells) + 1) * pixels) // (4 * cells)


def _halved(values: np.ndarray) -> np.ndarray:
    """Means over 2x2."""
    rows, columns = values.shape
    return values.reshape(rows // 2, 2, columns // 2, 2).mean((1, 3))


def _box(values: np.ndarray) -> np.ndarray:
    """Means over 3x3 cells; the border repeats."""
    padded = np.pad(values, 1, mode="edge")
    rows = padded[:-2] + padded[1:-1] + padded[2:]
    return (rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]) / 9


def _around(values: np.ndarray) -> np.ndarray:
    """Means of the eight neighbours."""
    return (9 * _box(values) - values) / 8
