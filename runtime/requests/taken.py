"""Which conditions a model takes, by its presets; all else is refused with what would work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ..errors import UsageError
from ..media import clips
from .conditions import Condition, Placed, ends, place

if TYPE_CHECKING:
    from ..checkpoints.presets import Presets

Conditions = Sequence[Condition]


def check(conditions: Conditions, presets: Presets, num_frames: int, cut: bool) -> None:
    """Raises `UsageError` for conditions that a model with these presets cannot heed, and for a
    picture that cannot be read."""
    for condition in conditions:
        if condition.image is not None:
            clips.picture_size(condition.image)
    CHECKS[presets.conditions](conditions, presets, place(conditions, num_frames, cut), num_frames)


def _takes_none(conditions: Conditions, presets: Presets, placed: list[Placed], _: int) -> None:
    if conditions:
        raise UsageError(
            f"this model makes video from text alone; {len(conditions)} picture(s) or clip(s) were"
            " given, and an image-to-video model takes them"
        )


def _takes_first(conditions: Conditions, presets: Presets, placed: list[Placed], _: int) -> None:
    _only_pictures_at(conditions, placed, {0: "the first"})


def _takes_ends(
    conditions: Conditions, presets: Presets, placed: list[Placed], num_frames: int
) -> None:
    _only_whole(conditions, "frames that the video begins or ends with work")
    begin, end = ends(placed, num_frames)
    loose = [item.start for item in placed if begin <= item.start < num_frames - end]
    if loose:
        raise UsageError(
            f"a condition is at frame {loose[0]} of {num_frames}; this model is shown frames that"
            " the video begins with, and frames that it ends with"
        )
    stride = presets.frame_stride
    if begin and (begin - 1) % stride:
        nearest = 1 + stride * ((begin - 1) // stride)
        raise UsageError(
            f"the video begins with {begin} given frames; 1 + {stride}k work: nearest {nearest}"
        )
    if end % stride and end != 1:
        raise UsageError(
            f"the video ends with {end} given frames; 1 or {stride}k work:"
            f" nearest {max(1, end // stride * stride)}"
        )
    if conditions and begin + (stride if end == 1 else end) >= num_frames:
        raise UsageError(f"all {num_frames} frames are given; leave at least {stride} to make")


def _takes_beside(
    conditions: Conditions, presets: Presets, placed: list[Placed], num_frames: int
) -> None:
    last, works = num_frames - 1, {0: "the first"}
    if presets.last_frame != "none":
        works[last] = "the last"
    _only_pictures_at(conditions, placed, works)
    starts = {item.start for item in placed}
    if 0 not in starts:
        raise UsageError("this model animates a picture, and none was given; give image=...")
    if presets.last_frame == "needed" and (last == 0 or last not in starts):
        raise UsageError(
            "this model leads from one picture to another, and the second was not given;"
            " give last_image=..."
        )


def _takes_control(conditions: Conditions, presets: Presets, placed: list[Placed], _: int) -> None:
    strengths = sorted({condition.strength for condition in conditions})
    if len(strengths) > 1:
        told = ", ".join(f"{strength:g}" for strength in strengths)
        raise UsageError(f"this model heeds all conditions with one strength, not with {told}")


CHECKS: dict[str, Callable[[Conditions, Presets, list[Placed], int], None]] = {
    "none": _takes_none,
    "first": _takes_first,
    "ends": _takes_ends,
    "beside": _takes_beside,
    "control": _takes_control,
}


def _only_pictures_at(conditions: Conditions, placed: list[Placed], works: dict[int, str]) -> None:
    where = " and ".join(f"frame {index} ({name})" for index, name in works.items())
    _only_whole(conditions, f"a picture at {where} works")
    for item in placed:
        if item.start not in works or item.stop != item.start + 1:
            frames = f"frame {item.start}" if item.condition.frames is None else "several frames"
            raise UsageError(f"a condition is at {frames}; this model takes a picture at {where}")


def _only_whole(conditions: Conditions, what_works: str) -> None:
    for condition in conditions:
        if condition.frame is None:
            raise UsageError(f"this model takes no references; {what_works}")
        if condition.has_mask or condition.mask != 0 or condition.strength != 1:
            raise UsageError("this model takes pictures whole: no mask, and a strength of 1")
