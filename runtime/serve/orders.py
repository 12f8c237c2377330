"""What to make of an accepted request: kept in the database, settled against a model, in parts.

A length beyond the model's own is made in parts, each of which goes on from the last frames of the
one before it, where the model can be shown frames. So is a storyboard: each of its shots is a part,
or several.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..checkpoints.presets import Presets
from ..errors import UsageError
from ..requests.conditions import Condition
from ..requests.request import Request
from . import pictures

if TYPE_CHECKING:
    from ..checkpoints.checkpoint import Checkpoint

# In the video's folder. What is made from an upload, or remixed, names PARENT: the file as it came.
REFERENCE, SOURCE, PARENT = "reference.png", "source.mp4", "parent.mp4"
CHARACTERS = "character-*.png"  # pictures of those who appear
MAX_SECONDS = 120
SIDES = (16, 4096)  # of what is asked for, in pixels
STRENGTH = 0.7  # sigma that an edit begins at
FORWARD, BACKWARD = "forward", "backward"  # an extension comes after its source, or before it
LEADS_TO = ("control", "ends")  # kinds of conditions that may be at the end
# Latent frames after the first that the next part is shown, by kind of conditions: where the prompt
# is the same, and where it is another, which must not be held to how things moved before.
OVERLAPS = {"control": (1, 1), "ends": (2, 0)}
CONTINUE, CUT = "continue", "cut"  # how a shot follows another


@dataclass(frozen=True)
class Order:
    """What to make. `kind` is "create", "edit" (of SOURCE) or "extension" (of SOURCE, at an end).

    `seconds` are those to be made. `picture`: REFERENCE is the first frame. `strength` is the sigma
    that an edit begins at: 1 keeps nothing of its source. `storyboard` has the second at which
    each shot starts ("start") and its own "prompt"; what comes before the first has `prompt`.
    `transition`: how shots follow each other; None continues them where the model can.
    `turns`: an extension's prompt may not be its source's. `variations` are the ids of videos that
    differ in their seeds alone, this one's among them. `characters` (each its "id" and "name")
    look as the CHARACTERS do.
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
    direction: str = FORWARD
    turns: bool = False
    storyboard: Sequence[dict[str, Any]] = ()
    transition: str | None = None
    variations: Sequence[str] = ()
    characters: Sequence[dict[str, Any]] = ()

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON; `Order(**values)` reads it back."""
        return asdict(self)

    def request(self, presets: Presets, part: Part, folder: Path, before: Any = None) -> Request:
        """Of one part. `before`: the frames it goes on from, or leads to, of any size."""
        width, height = native_size(self.width, self.height, presets)
        shown: list[Condition] = []
        if before is not None:
            frames = [pictures.cover(frame, width, height) for frame in before]
            at = part.num_frames - len(frames) if self.direction == BACKWARD else 0
            media: dict[str, Any] = {"image": frames[0]} if len(frames) == 1 else {"frames": frames}
            shown.append(Condition(**media, frame=at))
        elif self.picture and part.number == 0:
            picture = pictures.read(folder / REFERENCE)
            shown.append(Condition(image=pictures.cover(picture, width, height)))
        if self.characters:
            looks = [pictures.read(file) for file in sorted(folder.glob(CHARACTERS))]
            shown += [Condition(image=picture, frame=None) for picture in looks]
        return Request(
            part.prompt or self.prompt,
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
    """One request of several: it makes `num_frames`, of which `overlap` are there already, and
    `kept` are new to the video; what comes after is dropped. `prompt`: its own, if it has one."""

    number: int
    num_frames: int
    overlap: int
    kept: int
    prompt: str | None = None


class Shot(NamedTuple):
    """So many frames of a prompt of their own, from a frame on; None is the order's prompt."""

    start: int
    num_frames: int
    prompt: str | None = None


def parts_of(order: Order, checkpoint: Checkpoint) -> list[Part]:
    """The requests that an order takes.

    Raises `UsageError` for a length that the model cannot make, with those that it can.
    """
    presets = checkpoint.presets
    if order.kind == "extension":
        return _extension(order, presets)
    parts: list[Part] = []
    goes_on = continues(order, presets)
    for shot in shots_of(order, presets):
        overlap = overlap_of(presets, turns=True) if parts and goes_on else 0
        assert overlap is not None  # where shots go on, the model takes frames to go on from
        for size in _sizes(shot.num_frames, overlap, order, presets):
            parts.append(Part(len(parts), *size, shot.prompt))
    return _whole(parts)


def shots_of(order: Order, presets: Presets) -> list[Shot]:
    """An order's shots, one where it has no storyboard. Raises `UsageError` for one too short."""
    fps = order.fps or presets.fps
    end = math.ceil(order.seconds * fps - 1e-6)
    told = [(round(shot["start"] * fps), shot["prompt"]) for shot in order.storyboard]
    if not told or told[0][0] > 0:
        told = [(0, None), *told]
    shots = [Shot(at, then - at, text) for (at, text), (then, _) in pairwise([*told, (end, None)])]
    if short := [shot.start / fps for shot in shots if shot.num_frames < 1]:
        raise UsageError(
            f"the shot at {short[0]:.4g} seconds has no frame of its own; at {fps:g} fps shots are"
            f" {1 / fps:.3g} seconds or longer"
        )
    return shots


def continues(order: Order, presets: Presets) -> bool:
    """Whether a shot goes on from the one before it, or is cut to.

    Raises `UsageError` where it cannot be as the order asks.
    """
    able = overlap_of(presets) is not None
    if order.transition == CONTINUE and not able:
        raise UsageError(
            'this model is given no frames to go on from; transition="cut" works between shots'
        )
    cut = order.transition == CUT or not able
    if cut and presets.conditions == "beside" and len(shots_of(order, presets)) > 1:
        raise UsageError(
            "this model animates a picture, and shots after a cut have none:"
            ' transition="continue" works'
        )
    return not cut


def _sizes(
    wanted: int, overlap: int, order: Order, presets: Presets
) -> Iterator[tuple[int, int, int]]:
    """Counts, overlaps and new frames of the requests that make so many frames of one prompt, of
    which the first is shown `overlap` frames."""
    backward = order.direction == BACKWARD
    next_overlap = presets.frame_stride if backward else overlap_of(presets)
    while wanted > 0:
        count = min(presets.max_num_frames, _valid(wanted + overlap, presets))
        yield count, overlap, min(count - overlap, wanted)
        wanted -= count - overlap
        if next_overlap is not None:
            overlap = next_overlap
        elif wanted > 0:
            raise UsageError(_too_long(order, presets))


def _whole(parts: list[Part]) -> list[Part]:
    """The same, the last with all of its frames: a few more, of which nothing comes after."""
    *before, end = parts
    return [*before, end._replace(kept=end.num_frames - end.overlap)]


def _extension(order: Order, presets: Presets) -> list[Part]:
    overlap, backward = overlap_of(presets, order.turns), order.direction == BACKWARD
    if overlap is None:
        raise UsageError(
            "this model makes video from text alone: it is given no frames to go on from"
        )
    if backward and presets.conditions not in LEADS_TO:
        raise UsageError(
            'this model is shown how a video begins, not how it ends: direction="forward" works'
        )
    wanted = math.ceil(order.seconds * (order.fps or presets.fps) - 1e-6)
    overlap = presets.frame_stride if backward else overlap
    sizes = _sizes(wanted, overlap, order, presets)
    return _whole([Part(number, *size) for number, size in enumerate(sizes)])


def _too_long(order: Order, presets: Presets) -> str:
    fps, most = order.fps or presets.fps, presets.max_num_frames
    what = "a shot is longer" if order.storyboard else f"seconds is {order.seconds:g}"
    return (
        f"{what}; this model makes at most {most / fps:.4g} at {fps:g} fps ({most} frames), and is"
        f" given no frames to go on from: {math.floor(most / fps)} works"
    )


def overlap_of(presets: Presets, turns: bool = False) -> int | None:
    """How many frames a part is shown of the one before; None where the model takes none.

    `turns`: its prompt is another.
    """
    if presets.conditions in OVERLAPS:
        return 1 + OVERLAPS[presets.conditions][turns] * presets.frame_stride
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
    presets = checkpoint.presets
    width, height = native_size(order.width, order.height, presets)
    told: dict[str, Any] = {"made_at": f"{width}x{height}"}
    scaled = pictures.inner_size(width, height, order.width, order.height)
    if (width, height) != (order.width, order.height):
        told["scaled_to"] = f"{scaled[0]}x{scaled[1]}"
    if scaled != (order.width, order.height):
        told["padded_to"] = f"{order.width}x{order.height}"
    parts = parts_of(order, checkpoint)
    told["num_frames"] = sum(part.kept for part in parts)
    if len(parts) > 1 or order.kind == "extension":
        told["parts"] = len(parts)
    if order.kind == "extension":
        told["direction"] = order.direction
    if order.storyboard:
        told |= _told_shots(order, presets)
    return told


def _told_shots(order: Order, presets: Presets) -> dict[str, Any]:
    fps, shots = order.fps or presets.fps, shots_of(order, presets)
    told = [
        {"start": shot.start / fps, "num_frames": shot.num_frames, "prompt": shot.prompt}
        for shot in shots
    ]
    told[0]["prompt"] = told[0]["prompt"] or order.prompt
    return {"shots": told, "transition": CONTINUE if continues(order, presets) else CUT}


def _valid(count: int, presets: Presets) -> int:
    stride = presets.frame_stride
    return 1 + stride * max(0, math.ceil((count - 1) / stride))
