"""What each model makes unless told otherwise, and the limits it works within. A new size is a row.

A checkpoint may carry its own presets, as the object `kinema.presets` of its `model_index.json`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from .errors import KinemaError


@dataclass(frozen=True)
class Sound:
    """A strip of latent rows under the picture that holds its sound.

    Its sigmas are the picture's, shifted: s -> shift s / (1 + (shift - 1) s).
    """

    rows: int
    sample_rate: int
    channels: int = 1
    guidance_scale: float = 1.0
    shift: float = 1.0


@dataclass(frozen=True)
class Presets:
    """Defaults and limits of one model. Sizes in pixels; strides are pixels or frames per latent.

    Valid frame counts are 1 + frame_stride k up to max_num_frames; heights and widths are multiples
    of size_multiple from min_size to max_size.
    """

    num_frames: int
    height: int
    width: int
    fps: float
    num_inference_steps: int
    guidance_scale: float
    max_num_frames: int
    min_size: int
    max_size: int
    size_multiple: int = 16
    spatial_stride: int = 8
    frame_stride: int = 4
    latent_channels: int = 16
    sound: Sound | None = None
    bearings: bool = False  # whether the transformer is shown where tokens lie (`given.py`)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str) -> Presets:
        """Presets from JSON. `where` names the source in the KinemaError that a bad one raises."""
        values = dict(values)
        if values.get("sound") is not None:
            values["sound"] = _build(Sound, values["sound"], f"{where}, sound")
        return _build(cls, values, where)


def _build(kind: type, values: Mapping[str, Any], where: str) -> Any:
    known = [f.name for f in fields(kind)]
    if unknown := sorted(set(values).difference(known)):
        raise KinemaError(f"{where}: unknown preset {unknown[0]!r}; known are {', '.join(known)}")
    for name, value in values.items():
        if not isinstance(value, (int, float)) and name != "sound":
            raise KinemaError(f"{where}: preset {name} is {value!r}; a number is expected")
    try:
        return kind(**values)
    except TypeError as error:
        raise KinemaError(f"{where}: {str(error).split('__init__() ')[-1]}") from None


PIPELINES = {
    # https://huggingface.co/Wan-AI/Wan2.1-T2V-1.3B-Diffusers
    "WanPipeline": Presets(
        num_frames=81,
        height=480,
        width=832,
        fps=16,
        num_inference_steps=50,
        guidance_scale=5.0,
        max_num_frames=241,
        min_size=64,
        max_size=1280,
    ),
}
