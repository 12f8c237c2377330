"""What a model makes unless told otherwise, and the limits it works within.

A family has them by pipeline class (`models/<family>/presets.py`). A checkpoint may carry its own,
as the object `kinema.presets` of its `model_index.json`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from ..errors import KinemaError

TEXT_LENGTH = 512  # tokens that prompts are cut at, unless a family says otherwise
PICTURE_TOKENS = 257  # of a picture encoder's sight


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

    `conditions` is what the model can be shown: "none"; "first", its first frame if one is given;
    "ends", frames that the video begins with, 1 + frame_stride k of them, and frames that it ends
    with, frame_stride k or one that stands for so many, if they are given; "beside", latents of its
    first frame, and of its last where `last_frame` ("none", "optional", "needed") lets them, in
    channels beside its own; "control", clips, masks and references. Of two experts the first works
    at timesteps of `boundary_ratio` of the scheduler's range and above. `solver` and `sigmas` take
    the place of the scheduler's in models distilled for them. Prompts are cut at `text_length`
    tokens.
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
    bearings: bool = False  # whether the transformer is shown where tokens lie (`shown.py`)
    conditions: str = "none"
    last_frame: str = "none"
    guidance_scale_2: float | None = None
    boundary_ratio: float | None = None
    solver: str | None = None
    sigmas: tuple[float, ...] | None = None
    text_length: int = TEXT_LENGTH

    @property
    def timestep_axes(self) -> tuple[bool, bool, bool]:
        """Whether timesteps differ along frames, rows and columns: some frames are shown clean,
        and a strip of sound has sigmas of its own."""
        held = self.bearings or self.conditions in ("first", "ends")
        return held, self.sound is not None, False

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
        if not isinstance(value, (int, float)) and name not in NOT_NUMBERS:
            raise KinemaError(f"{where}: preset {name} is {value!r}; a number is expected")
    try:
        return kind(**values)
    except TypeError as error:
        raise KinemaError(f"{where}: {str(error).split('__init__() ')[-1]}") from None


NOT_NUMBERS = {"sound", "conditions", "last_frame", "solver", "sigmas"}
