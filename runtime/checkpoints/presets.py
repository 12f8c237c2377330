"""What each model makes unless told otherwise, and the limits it works within. A new size is a row.

A pipeline class has a row; what a checkpoint's index and configs say makes variants of it, and
where these are alike its name.

A checkpoint may carry its own presets, as the object `kinema.presets` of its `model_index.json`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from ..errors import KinemaError

if TYPE_CHECKING:
    from .checkpoint import Checkpoint

TEXT_LENGTH = 512  # tokens that the published pipelines pad prompts to, and cut them at


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
    the place of the scheduler's in models distilled for them.
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

# https://huggingface.co/Wan-AI/Wan2.1-T2V-1.3B-Diffusers
WAN = Presets(
    num_frames=81,
    height=480,
    width=832,
    fps=16,
    num_inference_steps=50,
    guidance_scale=5.0,
    max_num_frames=481,
    min_size=16,
    max_size=2048,
)
PIPELINES = {
    "WanPipeline": WAN,
    # https://huggingface.co/Wan-AI/Wan2.1-I2V-14B-480P-Diffusers
    "WanImageToVideoPipeline": replace(WAN, conditions="beside"),
    # https://huggingface.co/Wan-AI/Wan2.1-VACE-1.3B-diffusers
    "WanVACEPipeline": replace(WAN, conditions="control"),
    # https://huggingface.co/FastVideo/FastWan2.1-T2V-1.3B-Diffusers; the steps of its training are
    # in https://github.com/hao-ai-lab/FastVideo, dmd_denoising_steps
    "WanDMDPipeline": replace(
        WAN,
        height=448,
        num_frames=61,
        num_inference_steps=3,
        guidance_scale=1.0,
        solver="lcm",
        sigmas=(1.0, 0.757, 0.522),
    ),
}
# https://huggingface.co/Wan-AI/Wan2.2-T2V-A14B-Diffusers and .../Wan2.2-I2V-A14B-Diffusers
EXPERTS = {
    "WanPipeline": {
        "height": 720,
        "width": 1280,
        "num_inference_steps": 40,
        "guidance_scale": 4.0,
        "guidance_scale_2": 3.0,
    },
    "WanImageToVideoPipeline": {
        "num_inference_steps": 40,
        "guidance_scale": 3.5,
        "guidance_scale_2": 3.5,
    },
}
# https://huggingface.co/Wan-AI/Wan2.2-TI2V-5B-Diffusers: text, or text and a first frame
FIRST_FRAME_HELD = {
    "height": 704,
    "width": 1280,
    "num_frames": 121,
    "fps": 24,
    "conditions": "first",
}
# https://huggingface.co/Wan-AI/Wan2.1-FLF2V-14B-720P-diffusers
TWO_FRAMES = {"height": 720, "width": 1280, "guidance_scale": 5.5, "last_frame": "needed"}
# https://huggingface.co/Wan-AI/Wan2.1-I2V-14B-720P-Diffusers; its configs are those of the 480P one
LARGE, LARGE_NAME = {"height": 720, "width": 1280}, re.compile(r"720p", re.IGNORECASE)


def presets_of(checkpoint: Checkpoint) -> Presets:
    """A checkpoint's own presets; else those of its pipeline class, as its configs vary them.

    Raises `KinemaError` for a class that is not known, and for a part that the variant lacks.
    """
    found, index = checkpoint.presets, checkpoint.index
    pipeline = index.get("_class_name", "")
    if found is not PIPELINES.get(pipeline):
        return found
    transformer, vae = (_config(checkpoint, name) for name in ("transformer", "vae"))
    changes: dict[str, Any] = {}
    if LARGE_NAME.search("/".join(checkpoint.name.split("/")[-2:])):
        changes.update(LARGE)
    if index.get("boundary_ratio") is not None:
        _check_part(checkpoint, "transformer_2", f"boundary_ratio={index['boundary_ratio']}")
        changes.update(EXPERTS.get(pipeline, {}), boundary_ratio=index["boundary_ratio"])
    if index.get("expand_timesteps"):
        changes.update(FIRST_FRAME_HELD)
    elif found.conditions == "beside" and transformer.get("pos_embed_seq_len") is not None:
        changes.update(TWO_FRAMES)
    elif found.conditions == "beside" and transformer.get("image_dim") is None:
        changes.update(last_frame="optional")
    if found.conditions == "beside" and transformer.get("image_dim") is not None:
        _check_part(checkpoint, "image_encoder", f"image_dim={transformer['image_dim']}")
    return replace(found, **changes, **_geometry(transformer, vae, found))


def _geometry(
    transformer: Mapping[str, Any], vae: Mapping[str, Any], found: Presets
) -> dict[str, int]:
    stride = vae.get("scale_factor_spatial", found.spatial_stride)
    multiple = stride * max(transformer.get("patch_size", (1, 2, 2))[1:])
    return {
        "spatial_stride": stride,
        "frame_stride": vae.get("scale_factor_temporal", found.frame_stride),
        "latent_channels": vae.get("z_dim", found.latent_channels),
        "size_multiple": multiple,
        "min_size": multiple,
    }


def _check_part(checkpoint: Checkpoint, name: str, why: str) -> None:
    if name not in checkpoint.components:
        raise KinemaError(f"checkpoint {checkpoint.name!r} has {why}, but no {name}")


def _config(checkpoint: Checkpoint, name: str) -> Mapping[str, Any]:
    return checkpoint.component(name).config if name in checkpoint.components else {}
