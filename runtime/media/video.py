"""A finished video, and what a file of one says about itself."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import KinemaError, UsageError
from ..files import reason_of
from .mp4 import check_target, write_mp4

if TYPE_CHECKING:
    import av.container
    import torch

    from ..provenance.marking import Provenance


@dataclass(frozen=True, eq=False, repr=False)
class Video:
    """A finished video.

    frames: uint8 (num_frames, height, width, 3), None if the request stopped at latents.
    audio: float32 (num_samples, channels) from -1 to 1 at `sample_rate`, or None.
    latents: what was decoded. report: the request, the plan, the model, versions, seconds by stage.
    """

    frames: np.ndarray | None
    fps: float
    audio: np.ndarray | None = None
    sample_rate: int | None = None
    latents: torch.Tensor | None = None
    report: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"<Video: {self}>"

    def __str__(self) -> str:
        if self.frames is None:
            return "latents only"
        num_frames, height, width = self.frames.shape[:3]
        sound = "silent" if self.audio is None else "with sound"
        return f"{num_frames} frames {width}x{height}, {num_frames / self.fps:.4g} s, {sound}"

    def save(
        self,
        path: str | Path,
        overwrite: bool = True,
        provenance: Provenance | None = None,
    ) -> Path:
        """Writes an MP4, whole or not at all; returns its path.

        provenance: how the file says where it comes from; by default signed, and marked invisibly.
        Raises UsageError for a path that cannot be written, KinemaError for a disk that is full.
        """
        if self.frames is None:
            raise UsageError('there are no frames to save: the request had output="latents"')
        from ..provenance.marking import marking

        path, size = check_target(path, overwrite), self.frames.shape[1:3]
        return write_mp4(
            path,
            self.frames,
            self.fps,
            self.audio,
            self.sample_rate,
            self.report,
            overwrite,
            marking(provenance, self.report, size, self.fps),
        )


def read_info(path: str | Path) -> dict[str, Any]:
    """What a file made by kinema says about itself, and what is measured from it.

    {"path", "media": codecs, frames, size, fps, seconds, samples; and the report's own keys}
    Raises UsageError for a missing file, KinemaError for one that is no video or has no report.
    """
    import av

    path = Path(path).expanduser()
    if not path.is_file():
        raise UsageError(f"no such file: {str(path)!r}")
    try:
        with av.open(str(path)) as container:
            media, comment = _measure(container), container.metadata.get("comment", "")
    except (OSError, ValueError) as error:
        reason = reason_of(error)
        raise KinemaError(f"{str(path)!r} is no video that can be read: {reason}") from None
    try:
        report = json.loads(comment)
    except ValueError:
        report = None
    if not isinstance(report, dict) or "kinema" not in report:
        raise KinemaError(f"{str(path)!r} says nothing about itself: kinema did not write it")
    return {"path": str(path), "media": media, **report}


def _measure(container: av.container.InputContainer) -> dict[str, Any]:
    if not container.streams.video:
        raise ValueError("it has no picture")
    video = container.streams.video[0]
    seconds = float(container.duration or 0) / 1_000_000
    media = {
        "video_codec": video.codec_context.name,
        "num_frames": video.frames,
        "height": video.codec_context.height,
        "width": video.codec_context.width,
        "fps": float(video.average_rate or 0),
        "seconds": seconds,
        "audio_codec": None,
    }
    for audio in container.streams.audio[:1]:
        media["audio_codec"] = audio.codec_context.name
        media["sample_rate"] = audio.rate
        media["channels"] = audio.channels
        media["num_samples"] = round((audio.duration or 0) * (audio.time_base or 0) * audio.rate)
    return media
