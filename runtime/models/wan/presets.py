"""What the published Wan checkpoints make unless told otherwise. A new size is a row.

A pipeline class has a row; what a checkpoint's index and configs say makes variants of it, and
where these are alike its name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ...checkpoints.presets import Presets
from ...errors import KinemaError

if TYPE_CHECKING:
    from ...checkpoints.checkpoint import Checkpoint

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
    """The presets of a checkpoint's pipeline class, as its configs vary them.

    Raises `KinemaError` for a part that the variant lacks.
    """
    index, pipeline = checkpoint.index, checkpoint.index["_class_name"]
    found = PIPELINES[pipeline]
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
