"""The visible mark: legible on anything, small, seen in every corner, the same bytes each time."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest

from kinema.runtime.errors import UsageError
from kinema.runtime.media.mp4 import write_mp4
from kinema.runtime.provenance.visible_mark import (
    CORNERS,
    DIMMED,
    FADE_SECONDS,
    GLYPH,
    LIT,
    STAY_SECONDS,
    TWINKLES,
    VisibleMark,
    blend,
    drawings,
    strength,
)

Picture = Callable[[int, int], np.ndarray]

SIZES = [(64, 64), (65, 97), (128, 128), (256, 256), (320, 576), (480, 832), (720, 1280)]
ODD_SIZES = [(65, 97), (64, 1024), (1024, 64), (333, 91), (721, 1281), (1279, 719), (321, 2001)]
TEXT, GRAPHIC = 5.0, 3.0  # WCAG 2.2 asks 4.5 of text (1.4.3, AA), 3 of graphics (1.4.11)


def plain(*colour: int) -> Picture:
    return lambda height, width: np.full((height, width, 3), colour, np.uint8)


def busy(height: int, width: int) -> np.ndarray:
    """Every pixel black, white or a saturated colour: the hardest there is to read on."""
    return np.random.default_rng(0).integers(0, 2, (height, width, 3), np.uint8) * 255


def stripes(height: int, width: int) -> np.ndarray:
    """White and black, two pixels wide, like strokes of letters."""
    columns = np.arange(width) // 2 % 2 * 255
    return np.broadcast_to(columns[None, :, None], (height, width, 3)).astype(np.uint8)


PICTURES = {
    "dark": plain(0, 0, 0),
    "light": plain(255, 255, 255),
    "mid": plain(128, 128, 128),
    "red": plain(230, 30, 30),
    "busy": busy,
    "stripes": stripes,
}


def luminance(pixels: np.ndarray) -> np.ndarray:
    """WCAG's relative luminance of sRGB pixels (..., 3)."""
    values = pixels / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]


def contrast(light: np.ndarray, dark: np.ndarray) -> float:
    """WCAG's ratio between the darkest pixel of one and the lightest of the other."""
    return (luminance(light).min() + 0.05) / (luminance(dark).max() + 0.05)


def seen(mark: VisibleMark, picture: str, index: int) -> np.ndarray:
    """What the mark makes of its place in a picture."""
    frame = PICTURES[picture](mark.height, mark.width)
    return mark.apply(frame, index)[mark.region(index / mark.fps)]


def parts(mark: VisibleMark, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where letters, spark and plate are in the mark's place, without their soft edges."""
    dark, light = seen(mark, "dark", index), seen(mark, "light", index)
    letters = dark.min(axis=2) >= 0.95 * dark.max()
    spark = (dark[..., 0] >= 0.95 * dark.max()) & (dark[..., 2] < 0.7 * dark.max())
    return letters, spark, (dark.max(axis=2) == 0) & (light.max(axis=2) <= light.min() + 2)


@pytest.mark.parametrize("picture", PICTURES)
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_reads_on_whatever_is_behind(height: int, width: int, picture: str):
    mark = VisibleMark(height, width, 24)
    letters, spark, plate = parts(mark, 0)
    marked = seen(mark, picture, 0)
    assert letters.sum() >= 15 and plate.sum() >= 20
    assert contrast(marked[letters], marked[plate]) >= TEXT
    assert spark.any() == (min(height, width) >= 320)
    if spark.any():
        assert contrast(marked[spark], marked[plate]) >= GRAPHIC


@pytest.mark.parametrize("picture", ["dark", "light", "mid", "red"])
@pytest.mark.parametrize("fps", [8, 24])
def test_is_never_gone(picture: str, fps: int):
    mark = VisibleMark(320, 320, fps)
    for index in range(round((len(CORNERS) + 1) * STAY_SECONDS * fps)):
        letters, _, plate = parts(mark, index)
        marked = seen(mark, picture, index)
        assert contrast(marked[letters], marked[plate]) >= 1.7


@pytest.mark.parametrize("picture", PICTURES)
def test_reads_after_encoding_at_64x64(tmp_path: Path, picture: str):
    mark = VisibleMark(64, 64, 8)
    frames = [mark.apply(PICTURES[picture](64, 64), index) for index in range(9)]
    with av.open(str(write_mp4(tmp_path / "a.mp4", frames, 8))) as container:
        shown = [frame.to_ndarray(format="gray") for frame in container.decode(video=0)]
    letters = np.array([[dot == "#" for dot in row] for row in GLYPH])
    corners = np.ones(letters.shape, bool)
    corners[[0, 0, -1, -1], [0, -1, 0, -1]] = False  # of the picture, not of the mark
    for frame in shown:
        assert np.array_equal((frame[mark.region(0)] > 128) & corners, letters)


def test_covers_a_small_part_from_64x64_to_4k():
    sides = [*range(64, 720, 5), 114, 115, 319, 320, 1080, 2160]
    for side in sides:
        assert (drawings(side)[0].cover[..., 0] > 0).sum() <= 0.015 * side * side


@pytest.mark.parametrize(("height", "width"), [*SIZES, *ODD_SIZES])
def test_touches_its_own_place_alone(height: int, width: int):
    mark = VisibleMark(height, width, 24)
    frame = busy(height, width)
    for index in (0, 70, 130, 190):
        changed = (mark.apply(frame, index) != frame).any(axis=2)
        assert 0.004 * min(height, width) ** 2 < changed.sum() <= 0.015 * height * width
        changed[mark.region(index / 24)] = False
        assert not changed.any()


@pytest.mark.parametrize(("height", "width"), [*SIZES, *ODD_SIZES])
def test_keeps_clear_of_the_edges(height: int, width: int):
    mark = VisibleMark(height, width, 24)
    margin = round(0.05 * min(height, width))
    for turn in range(len(CORNERS)):
        rows, columns = mark.region((turn + 0.5) * STAY_SECONDS)
        assert min(rows.start, height - rows.stop) == margin
        assert min(columns.start, width - columns.stop) == margin


@pytest.mark.parametrize("fps", [8, 24_000 / 1001, 60])
@pytest.mark.parametrize(("height", "width"), [(64, 64), (91, 333), (320, 400)])
def test_visits_every_corner_and_alternates(height: int, width: int, fps: float):
    mark = VisibleMark(height, width, fps)
    frame = PICTURES["mid"](height, width)
    stays: list[tuple[bool, bool]] = []
    starts: list[int] = []
    for index in range(int(len(CORNERS) * STAY_SECONDS * fps)):
        y, x = np.nonzero(mark.apply(frame, index)[..., 0] != frame[..., 0])
        corner = bool(y.mean() > height / 2), bool(x.mean() > width / 2)
        if not stays or corner != stays[-1]:
            stays.append(corner)
            starts.append(index)
    assert len(stays) == len(set(stays)) == 4
    assert all(above[0] != below[0] for above, below in pairwise(stays))
    assert np.abs(np.diff(starts) / fps - STAY_SECONDS).max() <= 1 / fps


def test_dims_smoothly_where_the_corner_changes():
    times = np.arange(0, 10, 0.01)
    levels = np.array([strength(time) for time in times])
    assert levels[0] == LIT  # a thumbnail is the first frame
    assert DIMMED <= levels.min() < DIMMED + 10 and 0 < np.abs(np.diff(levels)).max() <= 10
    away = np.abs((times + STAY_SECONDS / 2) % STAY_SECONDS - STAY_SECONDS / 2)
    assert (levels[away > FADE_SECONDS] == LIT).all()


def test_the_spark_breathes():
    mark, frame = VisibleMark(720, 1280, 24), PICTURES["mid"](720, 1280)
    stay = [mark.apply(frame, index).tobytes() for index in range(48)]  # before it dims
    assert len(set(stay)) >= TWINKLES / 2


@pytest.mark.parametrize(("height", "width"), [(64, 64), (128, 96), (360, 640)])
def test_same_bytes_in_any_order(height: int, width: int):
    frame = busy(height, width)
    first, second = (VisibleMark(height, width, 24) for _ in range(2))
    forth = [first.apply(frame, index).tobytes() for index in range(0, 240, 7)]
    back = [second.apply(frame, index).tobytes() for index in reversed(range(0, 240, 7))]
    assert forth == back[::-1]


def test_the_smallest_mark_is_the_same_everywhere():
    marked = VisibleMark(64, 64, 8).apply(PICTURES["mid"](64, 64), 0)
    mark = marked[64 - 3 - len(GLYPH) : 61, 64 - 3 - len(GLYPH[0]) : 61]
    values = {"#": 247, ".": 28}  # 128 under white at 240/256, under black at 200/256
    expected = np.array([[values[dot] for dot in row] for row in GLYPH])
    expected[[0, 0, -1, -1], [0, -1, 0, -1]] = 128
    assert np.array_equal(mark, np.repeat(expected[..., None], 3, axis=2))


def test_integer_arithmetic_agrees_with_real():
    frame = busy(36, 184)
    for drawing in drawings(720):
        for level in (DIMMED, 177, LIT):
            cover, ink = (level / 256 * part / 256 for part in (drawing.cover, drawing.ink))
            real = frame * (1 - cover) + ink * drawing.colour
            # Two weights rounded down, each by less than 1/256 of 255, and the result rounded.
            assert np.abs(blend(frame, drawing, level) - real).max() <= 1.5


@pytest.mark.parametrize("view", ["plain", "read-only", "strided"])
def test_the_frame_itself_stays_as_it_was(view: str):
    frame = busy(360, 640)
    given = frame[:, ::-1] if view == "strided" else frame
    given.flags.writeable = view != "read-only"
    before = given.tobytes()
    marked = VisibleMark(360, 640, 24).apply(given, 0)
    assert given.tobytes() == before
    assert marked.tobytes() != before and not np.shares_memory(marked, given)
    assert marked.flags.c_contiguous and marked.dtype == np.uint8


def test_smallest_picture():
    frame = PICTURES["dark"](7, 9)
    assert VisibleMark(7, 9, 8).apply(frame, 0).any()
    with pytest.raises(UsageError, match="frames are 8x8; the visible mark needs 9x7"):
        VisibleMark(8, 8, 8)


@pytest.mark.parametrize("fps", [0, -24, float("nan"), float("inf")])
def test_fps_that_cannot_be(fps: float):
    with pytest.raises(UsageError, match="above 0"):
        VisibleMark(64, 64, fps)


def test_frames_of_another_size_or_type_are_refused():
    mark = VisibleMark(64, 96, 8)
    for frame in (np.zeros((96, 64, 3), np.uint8), np.zeros((64, 96, 3), np.float32)):
        with pytest.raises(UsageError, match=r"frame 3 is .*; uint8 \(64, 96, 3\) is expected"):
            mark.apply(frame, 3)


def test_nothing_heavy_is_imported_before_a_mark_is_made():
    heavy = "{'PIL', 'torch', 'av'}"
    code = f"import sys, kinema.runtime.provenance.visible_mark; print({heavy} & {{*sys.modules}})"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "set()"
