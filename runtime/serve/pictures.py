"""Pictures on their way in and out: fitted to a size, and what is shown of a finished video."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ..files import whole_or_nothing

if TYPE_CHECKING:
    from ..provenance.marking import Marking

THUMBNAIL, SHEET = "thumbnail.webp", "spritesheet.jpg"
THUMBNAIL_SIDE, CELL_SIDE, COLUMNS, CELLS = 640, 160, 5, 25  # pixels; cells of a sheet
QUALITY = 85
PREVIEW_SIDE, PREVIEW_MS = 128, 250


def inner_size(width: int, height: int, to_width: int, to_height: int) -> tuple[int, int]:
    """The largest size of one shape inside another."""
    scale = min(to_width / width, to_height / height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def fit(frames: np.ndarray, width: int, height: int) -> np.ndarray:
    """Frames uint8 (n, h, w, 3) scaled to fit, in the middle of black (n, height, width, 3)."""
    count, tall, wide = frames.shape[:3]
    if (wide, tall) == (width, height):
        return frames
    inner = inner_size(wide, tall, width, height)
    left, top = (width - inner[0]) // 2, (height - inner[1]) // 2
    fitted = np.zeros((count, height, width, 3), np.uint8)
    for frame, place in zip(frames, fitted, strict=True):
        scaled = Image.fromarray(frame).resize(inner, Image.Resampling.BICUBIC)
        place[top : top + inner[1], left : left + inner[0]] = np.asarray(scaled)
    return fitted


def cover(picture: np.ndarray, width: int, height: int) -> np.ndarray:
    """A picture uint8 (h, w, 3) scaled to fill a size, what is over cut off: `fit`, undone."""
    tall, wide = picture.shape[:2]
    scale = max(width / wide, height / tall)
    across, down = width / scale, height / scale
    left, top = (wide - across) / 2, (tall - down) / 2
    box = (left, top, left + across, top + down)
    scaled = Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS, box=box)
    return np.asarray(scaled)


def read(path: Path) -> np.ndarray:
    """A picture that was stored, uint8 (h, w, 3)."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def show(
    video: Path,
    num_frames: int,
    mark: Marking | None = None,
    report: Mapping[str, Any] | None = None,
) -> None:
    """Write the thumbnail and sheet of a finished video beside it, marked and signed like it."""
    picked = np.unique(np.linspace(0, num_frames - 1, min(CELLS, num_frames)).round().astype(int))
    frames = list(_pick(video, set(picked.tolist())))
    thumbnail = Image.fromarray(frames[len(frames) // 2])
    thumbnail.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    for name, kind, image in ((THUMBNAIL, "WEBP", thumbnail), (SHEET, "JPEG", _sheet(frames))):
        with whole_or_nothing(video.with_name(name)) as unfinished:
            if mark is None:
                image.save(unfinished, kind, quality=QUALITY)
                continue
            marked = Image.fromarray(mark.still(np.asarray(image)))
            marked.save(unfinished, kind, quality=QUALITY)
            mark.sign(unfinished, report or {}, name)


def animated(frames: Sequence[np.ndarray]) -> bytes:
    """A small animated WebP."""
    small = [Image.fromarray(frame) for frame in frames]
    inner = inner_size(*small[0].size, PREVIEW_SIDE, PREVIEW_SIDE)
    first, *others = [image.resize(inner, Image.Resampling.BILINEAR) for image in small]
    out = BytesIO()
    options = {"save_all": True, "append_images": others, "duration": PREVIEW_MS, "loop": 0}
    first.save(out, "WEBP", quality=QUALITY, method=0, **options)
    return out.getvalue()


def _sheet(frames: Sequence[np.ndarray]) -> Image.Image:
    height, width = frames[0].shape[:2]
    cell = inner_size(width, height, CELL_SIDE, CELL_SIDE)
    rows = -(-len(frames) // COLUMNS)
    sheet = Image.new("RGB", (cell[0] * min(COLUMNS, len(frames)), cell[1] * rows))
    for index, frame in enumerate(frames):
        row, column = divmod(index, COLUMNS)
        small = Image.fromarray(frame).resize(cell, Image.Resampling.BICUBIC)
        sheet.paste(small, (column * cell[0], row * cell[1]))
    return sheet


def _pick(video: Path, picked: set[int]) -> Iterator[np.ndarray]:
    from ..media.clips import open_frames

    for index, frame in enumerate(open_frames(video)):
        if index in picked:
            yield frame
