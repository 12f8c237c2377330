"""What to make of an accepted request: kept in the database, settled against a model, in parts.

A length beyond the model's own is made in parts, each of which goes on from the last frames of the
one before it, where the model can be shown frames.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..conditions import Condition
from ..errors import UsageError
from ..presets import Presets, presets_of
from ..request import Request
from . import pictures

if TYPE_CHECKING:
    from ..checkpoint import Checkpoint

REFERENCE, SOURCE = "reference.png", "source.mp4"  # in the video's folder
MAX_SECONDS = 120
SIDES = (16, 4096)  # of what is asked for, in pixels
STRENGTH = 0.7  # sigma that an edit begins at


@dataclass(frozen=True)
class Order:
    """What to make. `kind` is "create", "edit" (of SOURCE) or "extension" (after SOURCE).

    `seconds` are those to be made. `picture`: REFERENCE is the first frame. `strength` is the sigma
    that an edit begins at: 1 keeps nothing of its source.
    """

    prompt: str
    seed: int
    width: int
    height: int
    seconds: float
    negative_prompt: str = ""
    fps: float | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    kind: str = "create"
    picture: bool = False
    strength: float = STRENGTH

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON; `Order(**values)` reads it back."""
        return asdict(self)

    def request(self, presets: Presets, part: Part, folder: Path, before: Any = None) -> Request:
        """Of one part. `before`: the frames it goes on from, of any size."""
        width, height = native_size(self.width, self.height, presets)
        shown: list[Condition] = []
        if before is not None:
            frames = [pictures.cover(frame, width, height) for frame in before]
            one = len(frames) == 1
            shown.append(Condition(image=frames[0]) if one else Condition(frames=frames))
        elif self.picture:
            picture = pictures.read(folder / REFERENCE)
            shown.append(Condition(image=pictures.cover(picture, width, height)))
        return Request(
            self.prompt,
            negative_prompt=self.negative_prompt,
            num_frames=part.num_frames,
            width=width,
            height=height,
            fps=self.fps,
            seed=self.seed + part.number,
            num_inference_steps=self.steps,
            guidance_scale=self.guidance_scale,
            conditions=tuple(shown),
        )


class Part(NamedTuple):
    """One request of several: it makes `num_frames`, the first `overlap` of which are there."""

    number: int
    num_frames: int
    overlap: int


def parts_of(order: Order, checkpoint: Checkpoint) -> list[Part]:
    """The requests that an order takes.

    Raises `UsageError` for a length that the model cannot make, with those that it can.
    """
    presets = presets_of(checkpoint)
    fps, most = order.fps or presets.fps, presets.max_num_frames
    wanted, goes_on = math.ceil(order.seconds * fps - 1e-6), order.kind == "extension"
    if not goes_on and wanted <= most:
        return [Part(0, _valid(wanted, presets), 0)]
    overlap = overlap_of(presets)
    if overlap is None:
        what = "is given no frames to go on from"
        if goes_on:
            raise UsageError(f"this model makes video from text alone: it {what}")
        raise UsageError(
            f"seconds is {order.seconds:g}; this model makes at most {most / fps:.4g} at {fps:g}"
            f" fps ({most} frames), and {what}: {math.floor(most / fps)} works"
        )
    parts = [] if goes_on else [Part(0, most, 0)]
    left = wanted if goes_on else wanted - most
    while left > 0:
        count = min(most, _valid(left + overlap, presets))
        parts.append(Part(len(parts), count, overlap))
        left -= count - overlap
    return parts


def overlap_of(presets: Presets) -> int | None:
    """How many frames a part is shown of the one before; None where the model takes none."""
    if presets.conditions == "control":
        return 1 + presets.frame_stride
    alone = presets.conditions == "first" or presets.last_frame != "needed"
    return 1 if presets.conditions in ("first", "beside") and alone else None


def native_size(width: int, height: int, presets: Presets) -> tuple[int, int]:
    """The nearest width and height that the model makes."""
    step, low, high = presets.size_multiple, presets.min_size, presets.max_size
    shrink = min(1.0, high / max(width, height))
    sides = (step * round(side * shrink / step) for side in (width, height))
    wide, tall = (min(max(side, low), high) for side in sides)
    return wide, tall


def settle(order: Order, checkpoint: Checkpoint) -> dict[str, Any]:
    """How the order is made to fit the model, for the report."""
    presets = presets_of(checkpoint)
    width, height = native_size(order.width, order.height, presets)
    told: dict[str, Any] = {"made_at": f"{width}x{height}"}
    scaled = pictures.inner_size(width, height, order.width, order.height)
    if (width, height) != (order.width, order.height):
        told["scaled_to"] = f"{scaled[0]}x{scaled[1]}"
    if scaled != (order.width, order.height):
        told["padded_to"] = f"{order.width}x{order.height}"
    parts = parts_of(order, checkpoint)
    told["num_frames"] = sum(part.num_frames - part.overlap for part in parts)
    if len(parts) > 1 or order.kind == "extension":
        told["parts"] = len(parts)
    return told


def _valid(count: int, presets: Presets) -> int:
    stride = presets.frame_stride
    return 1 + stride * max(0, math.ceil((count - 1) / stride))
