"""What a video is to show: pictures and clips at their frames, and references that it resembles."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import UsageError
from ..media import clips

if TYPE_CHECKING:
    from torch import Tensor

MEDIA = ("image", "frames", "mask")


@dataclass(frozen=True)
class Condition:
    """Media at a frame: image-to-video, first and last frame, extension and editing are all these.

    `image`: a picture (a path, a PIL image, an array or tensor (height, width, 3)); or `frames`:
    several of them, an array (frames, height, width, 3), or a path of a video. `frame` is where the
    first of them is, -1 the last frame of the video; None is nowhere: a reference for how things
    look. `mask` is what the model makes anew: a picture, or one for every frame, white where it
    does and black where the media stays, or a number for all of it. Where it is 1, media guides
    what is made (depth, pose, scribbles). `strength`: how much the model heeds the media.

    Pictures do not count when two conditions are compared.
    """

    image: Any = field(default=None, repr=False, compare=False)
    frames: Any = field(default=None, repr=False, compare=False)
    frame: int | None = 0
    mask: Any = field(default=0.0, repr=False, compare=False)
    strength: float = 1.0

    def __post_init__(self) -> None:
        self._check_media()
        self._check_frame()
        if not (math.isfinite(self.strength) and self.strength >= 0):
            raise UsageError(f"a condition's strength is {self.strength:g}; it must be 0 or more")

    @property
    def has_mask(self) -> bool:
        """Whether the mask is pictures, not one number."""
        return not isinstance(self.mask, (int, float))

    def pictures(self) -> Iterator[Any]:
        """The image, or the frames in order."""
        return iter([self.image]) if self.frames is None else clips.open_frames(self.frames)

    def masks(self) -> Iterator[Any]:
        """A mask for every picture: a picture, or a number."""
        if not self._has_masks:
            return (self.mask for _ in self.pictures())
        return clips.open_frames(self.mask)

    def count(self) -> int:
        """How many pictures there are. Raises `UsageError` for none, and for too few masks."""
        count = 1 if self.frames is None else clips.count_frames(self.frames)
        if count == 0:
            raise UsageError("a condition has no frames; give one at least")
        if self._has_masks and (masks := clips.count_frames(self.mask)) != count:
            raise UsageError(f"a condition has {count} frames and {masks} masks; give as many")
        return count

    def as_dict(self) -> dict[str, Any]:
        """What it is, ready for JSON; pictures that are no files appear as their size."""
        media = {name: getattr(self, name) for name in MEDIA}
        told = {name: clips.describe(value) for name, value in media.items() if value is not None}
        return {"frame": self.frame, "strength": self.strength, **told}

    def as_saved(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """What a saved run keeps: values for JSON, and pictures, uint8 (height, width, 3)."""
        values: dict[str, Any] = {"frame": self.frame, "strength": self.strength}
        kind = "image" if self.frames is None else "frames"
        pictures = {f"{kind}.{i}": _pixels(p) for i, p in enumerate(self.pictures())}
        if not self.has_mask:
            return {**values, "mask": self.mask}, pictures
        masks = (clips.mask_picture(mask) for mask in self.masks())
        return values, {**pictures, **{f"mask.{i}": _pixels(m) for i, m in enumerate(masks)}}

    @classmethod
    def from_saved(cls, values: dict[str, Any], pictures: dict[str, Tensor]) -> Condition:
        """The condition of a saved run."""
        media: dict[str, list[Tensor]] = {}
        for name in sorted(pictures, key=lambda name: int(name.split(".")[1])):
            media.setdefault(name.split(".")[0], []).append(pictures[name])
        one = "image" in media
        given: dict[str, Any] = {n: parts[0] if one else parts for n, parts in media.items()}
        return cls(**values, **given)

    @property
    def _has_masks(self) -> bool:
        return self.has_mask and self.frames is not None and not clips.is_mask(self.mask)

    def _check_media(self) -> None:
        if (self.image is None) == (self.frames is None):
            raise UsageError("a condition is one image or several frames; give one of the two")
        if self.image is not None and not clips.is_picture(self.image):
            kind = clips.kind_of(self.image)
            raise UsageError(f"an image is {kind}; {clips.PICTURE} is expected")
        if self.frames is not None and not clips.is_clip(self.frames):
            raise UsageError(f"frames are {clips.kind_of(self.frames)}; {clips.CLIP} is expected")
        if self.has_mask and not clips.is_masks(self.mask):
            raise UsageError(f"a mask is {clips.kind_of(self.mask)}; {clips.MASK} is expected")
        if not self.has_mask and not 0 <= self.mask <= 1:
            raise UsageError(f"a condition's mask is {self.mask:g}; it must be from 0 to 1")

    def _check_frame(self) -> None:
        if self.frame is None:
            if self.has_mask:
                raise UsageError("a reference (frame=None) has no mask; it is shown nowhere")
            return
        try:
            object.__setattr__(self, "frame", operator.index(self.frame))
        except TypeError:
            raise UsageError(
                f"a condition's frame is {self.frame!r}; a whole number, or None for a reference"
            ) from None


def _pixels(picture: Any) -> Tensor:
    import numpy as np
    import torch

    from ..media.pictures import open_picture

    return torch.from_numpy(np.array(open_picture(picture)))


class Placed(NamedTuple):
    """A condition on frames [start, stop) of a video."""

    condition: Condition
    start: int
    stop: int


# ---- where they go -------------------------------------------------------------------------------


def place(conditions: Iterable[Condition], num_frames: int, cut: bool = False) -> list[Placed]:
    """Conditions with a frame, on the frames of a video, in order.

    Raises `UsageError` for one outside (or that goes on beyond the end, unless `cut`), and for two
    on one frame.
    """
    placed = sorted(
        (_place(c, num_frames, cut) for c in conditions if c.frame is not None),
        key=lambda item: item.start,
    )
    for before, after in pairwise(placed):
        if after.start < before.stop:
            raise UsageError(
                f"frame {after.start} has two conditions, each with its mask; give one for a frame"
            )
    return placed


def references(conditions: Iterable[Condition]) -> list[Any]:
    """Pictures that are shown nowhere."""
    return [picture for c in conditions if c.frame is None for picture in c.pictures()]


def ends(placed: Sequence[Placed], num_frames: int) -> tuple[int, int]:
    """How many frames are given at the start of a video, and how many at its end, without a gap."""
    begin, end = 0, 0
    for item in placed:
        begin = item.stop if item.start == begin else begin
    for item in reversed(placed):
        end = num_frames - item.start if item.stop == num_frames - end else end
    return begin, (0 if begin == num_frames else end)


def _place(condition: Condition, num_frames: int, cut: bool) -> Placed:
    assert condition.frame is not None  # a reference has no place
    start, count = condition.frame, condition.count()
    start = start + num_frames if start < 0 else start
    if not 0 <= start < num_frames:
        raise UsageError(
            f"a condition is at frame {condition.frame}; frames are 0 to {num_frames - 1}"
        )
    if start + count > num_frames and not cut:
        raise UsageError(
            f"a condition has {count} frames from frame {start} on; the video has {num_frames}:"
            f" {num_frames - start} fit, or adjust=True cuts"
        )
    return Placed(condition, start, min(start + count, num_frames))
