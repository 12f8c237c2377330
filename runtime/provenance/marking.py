"""What is done to a file while it is written: marks into its frames and its sound, and a signature
when all else is in it.

Frames and samples that are handed in stay as they are; marks are made in copies.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import KinemaError, UsageError
from ..files import beside, reason_of
from . import keys, manifest
from .payload import payload_of

if TYPE_CHECKING:
    import numpy as np

    from .keys import Identity


@dataclass(frozen=True)
class Provenance:
    """How a file says where it comes from.

    manifest: signed content credentials. invisible: marks in picture and sound that survive
    encoding. visible: a small mark that moves between the corners. tell_prompt: the manifest holds
    the prompt itself, not only its hash. identity: who signs, by default the keys the environment
    names, else a development identity. mark_key: of the invisible marks, by default a public one.
    """

    manifest: bool = True
    invisible: bool = True
    visible: bool = False
    tell_prompt: bool = False
    identity: Identity | None = None
    mark_key: bytes | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not self.manifest and (self.tell_prompt or self.identity):
            raise UsageError("without a manifest nothing tells the prompt and nobody signs")
        if not self.invisible and self.mark_key:
            raise UsageError("without invisible marks there is no use for their key")

    def ready(self) -> Provenance:
        """The same, with an identity that can sign now; raises UsageError where there is none."""
        if not self.manifest:
            return self
        manifest.check_installed()
        identity = self.identity or keys.opened()
        identity.check()
        return replace(self, identity=identity)


def marking(
    provenance: Provenance | None,
    origin: Mapping[str, Any],
    size: tuple[int, int],
    fps: float,
    parent: Path | None = None,
) -> Marking | None:
    """What marks a video of this size (height, width), or None where there is nothing to say.

    origin: a report, of which the request, the model and its LoRAs count. Frames of which no report
    says that a model made them are not marked as if one had. parent: the file it is made from, by
    default the first clip of the request that is a file and is kept.
    """
    provenance = provenance or Provenance()
    nothing = not (provenance.manifest or provenance.invisible or provenance.visible)
    if nothing or not origin.get("model"):
        return None
    return Marking(provenance.ready(), origin, size, fps, parent)


class Marking:
    """The marks of one file, made as its frames come, and its signature."""

    def __init__(
        self,
        provenance: Provenance,
        origin: Mapping[str, Any],
        size: tuple[int, int],
        fps: float,
        parent: Path | None = None,
    ) -> None:
        from .picture_mark import DEFAULT_KEY, SMALL_GRID, PictureMark
        from .visible_mark import VisibleMark

        self.provenance, self.key = provenance, provenance.mark_key or DEFAULT_KEY
        self.parent = parent
        if parent is not None and not parent.is_file():
            raise UsageError(f"no such file: {str(parent)!r}, which a video is to be made from")
        self.payload = payload_of(origin.get("request", {}), weights_of(origin))
        # In the order they are made: the invisible one is in the visible one, too.
        self._pictures: list[VisibleMark | PictureMark] = []
        if provenance.visible:
            self._pictures.append(VisibleMark(*size, fps))
        self.has_picture_mark = provenance.invisible and min(size) >= SMALL_GRID
        if self.has_picture_mark:
            self._pictures.append(PictureMark(self.payload, self.key, *size))
        self.has_sound_mark = False

    def frame(self, frame: np.ndarray, index: int) -> np.ndarray:
        """Frame `index`, uint8 (height, width, 3), with its marks."""
        for mark in self._pictures:
            frame = mark.apply(frame, index)
        return frame

    def still(self, picture: np.ndarray) -> np.ndarray:
        """A picture taken of marked frames, uint8 (height, width, 3), with a mark of its own size.

        Frames that are scaled down, or put side by side, no longer carry theirs for sure.
        """
        from .picture_mark import SMALL_GRID, PictureMark

        size = picture.shape[:2]
        if not self.provenance.invisible or min(size) < SMALL_GRID:
            return picture
        return PictureMark(self.payload, self.key, *size).apply(picture, 0)

    def sound(self, samples: np.ndarray, sample_rate: int) -> np.ndarray:
        """A whole sound, float32 (num_samples, channels), with its mark."""
        from .sound_mark import LEAST_RATE, SoundMark

        if not self.provenance.invisible or sample_rate < LEAST_RATE:
            return samples
        self.has_sound_mark = True
        return SoundMark(self.payload, self.key, sample_rate).apply(samples)

    def sign(self, file: Path, report: Mapping[str, Any], title: str) -> None:
        """Put a manifest into a finished file, in place, if there is to be one."""
        if not self.provenance.manifest:
            return
        signed = beside(file)
        marked = self.has_picture_mark or self.has_sound_mark
        told = manifest.claims(
            report, self.payload if marked else None, self.provenance.tell_prompt
        )
        try:
            parent = self.parent or manifest.parent_of(report.get("request", {}))
            assert self.provenance.identity is not None  # of provenance that is ready
            manifest.sign(file, signed, self.provenance.identity, told, title, parent)
            os.replace(signed, file)
        except OSError as error:
            raise KinemaError(f"cannot sign {title!r}: {reason_of(error)}") from error
        finally:
            signed.unlink(missing_ok=True)


def weights_of(origin: Mapping[str, Any]) -> str:
    """The hash of a model's weights, and those of its LoRAs with how much they count."""
    loras = (f"{lora['sha256']}:{lora['weight']:g}" for lora in origin.get("loras", ()))
    return " ".join([str(origin["model"].get("weights")), *loras])
