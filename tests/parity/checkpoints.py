"""Small random checkpoints of every Wan variant, written by diffusers' own `save_pretrained`."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import diffusers
import numpy as np
import torch
import transformers
from PIL import Image

from kinema.runtime.requests.conditions import Condition
from kinema.runtime.requests.request import Request
from kinema.world.text import write_tokenizer

PROMPT, NEGATIVE = "a red ball bounces on the grass", "a blue square"
TEXT_DIM, IMAGE_DIM, DIM = 24, 20, 3 * 28
TRANSFORMER = {
    "num_attention_heads": 3,
    "attention_head_dim": 28,  # RoPE splits it unevenly: 12, 8, 8
    "text_dim": TEXT_DIM,
    "freq_dim": 32,
    "ffn_dim": 100,
    "num_layers": 2,
    "in_channels": 4,
    "out_channels": 4,
}
SHOWN_PICTURES = {"image_dim": IMAGE_DIM, "added_kv_proj_dim": DIM}
VAE = {"base_dim": 4, "z_dim": 4, "num_res_blocks": 1}
VAE_16X = {
    **VAE,
    "decoder_base_dim": 8,
    "z_dim": 6,
    "is_residual": True,
    "patch_size": 2,
    "in_channels": 12,
    "out_channels": 12,
    "scale_factor_spatial": 16,
    "temperal_downsample": [False, True, True],
}
UNIPC = (
    "UniPCMultistepScheduler",
    {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0},
)
EULER = ("FlowMatchEulerDiscreteScheduler", {"shift": 5.0})


class Variant(NamedTuple):
    """A pipeline class, how its checkpoint differs, and what one request of it asks for.

    `given` are arguments of the reference's pipeline alone, `conditions` the same in a Request.
    """

    pipeline: str
    transformer: dict[str, Any]
    asked: dict[str, Any]  # arguments of the pipeline that a Request has under the same names
    index: dict[str, Any] = {}  # noqa: RUF012  # never changed
    experts: int = 1
    vae: dict[str, Any] = VAE
    scheduler: tuple[str, dict[str, Any]] = UNIPC
    pictures: tuple[str, ...] = ()  # of `image` and `last_image`
    model: str = "WanTransformer3DModel"
    given: dict[str, Any] = {}  # noqa: RUF012
    conditions: tuple[Condition, ...] = ()


def picture(seed: int, width: int = 70, height: int = 50) -> Image.Image:
    """Smooth noise, so that resizing keeps some of it."""
    small = np.random.default_rng(seed).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def mask(seed: int, width: int = 80, height: int = 48) -> Image.Image:
    """A soft edge somewhere: neither black nor white after resizing."""
    return picture(seed, width, height).convert("L")


def random_transformer(seed: int, model: str, **config: Any) -> torch.nn.Module:
    """Weights drawn at random, those that start at 0 or 1 included."""
    torch.manual_seed(seed)
    transformer = getattr(diffusers, model)(**{**TRANSFORMER, **config}).eval()
    with torch.no_grad():
        for name, weight in transformer.named_parameters():
            if "norm" in name or "bias" in name or "pos_embed" in name:
                weight.add_(0.2 * torch.randn_like(weight))
            elif "scale_shift_table" in name:
                weight.copy_(0.5 * torch.randn_like(weight))
    return transformer


def random_vae(config: dict[str, Any]) -> torch.nn.Module:
    torch.manual_seed(1)
    statistics = torch.rand(2, config["z_dim"])
    vae = diffusers.AutoencoderKLWan(
        **config,
        latents_mean=(statistics[0] - 0.5).tolist(),
        latents_std=(statistics[1] + 0.5).tolist(),
    )
    with torch.no_grad():
        for name, weight in vae.named_parameters():
            if "gamma" in name or "bias" in name:
                weight.add_(0.2 * torch.randn_like(weight))
    return vae.eval()


def text_parts() -> dict[str, Any]:
    """New ones every time: a pipeline's `to` converts its parts in place."""
    with TemporaryDirectory() as folder:
        write_tokenizer(Path(folder))
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(2)
    config = transformers.UMT5Config(
        vocab_size=len(tokenizer), d_model=TEXT_DIM, d_kv=8, d_ff=40, num_layers=2, num_heads=3
    )
    return {"tokenizer": tokenizer, "text_encoder": transformers.UMT5EncoderModel(config).eval()}


def image_parts() -> dict[str, Any]:
    torch.manual_seed(3)
    config = transformers.CLIPVisionConfig(
        hidden_size=IMAGE_DIM,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=28,
        patch_size=14,
    )
    processor = transformers.CLIPImageProcessor(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}
    )
    return {
        "image_encoder": transformers.CLIPVisionModel(config).eval(),
        "image_processor": processor,
    }


def build(variant: Variant) -> Any:
    """The reference pipeline of a variant."""
    name, options = variant.scheduler
    experts = [
        random_transformer(10 + i, variant.model, **variant.transformer)
        for i in range(variant.experts)
    ]
    parts = dict(zip(("transformer", "transformer_2"), experts, strict=False))
    if variant.transformer.get("image_dim"):
        parts.update(image_parts())
    pipeline = getattr(diffusers, variant.pipeline)(
        **text_parts(),
        **parts,
        **variant.index,
        vae=random_vae(variant.vae),
        scheduler=getattr(diffusers, name)(**options),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def request(variant: Variant, **fields: Any) -> Request:
    """The request of a variant, as ours takes it."""
    pictures = {name: picture(i) for i, name in enumerate(variant.pictures)}
    asked = {"prompt": PROMPT, "negative_prompt": NEGATIVE, "seed": 7, **variant.asked}
    return Request(**{**asked, **pictures, "conditions": variant.conditions, **fields})


@torch.no_grad()
def reference_run(pipeline: Any, variant: Variant) -> tuple[list[torch.Tensor], np.ndarray]:
    """Latents after each step, and frames from 0 to 1, as the reference makes them."""
    trajectory = []

    def keep(pipeline, step, timestep, tensors):
        trajectory.append(tensors["latents"].clone())
        return {}

    pictures = {name: picture(i) for i, name in enumerate(variant.pictures)}
    frames = pipeline(
        prompt=PROMPT,
        negative_prompt=NEGATIVE,
        generator=torch.Generator("cpu").manual_seed(7),
        callback_on_step_end=keep,
        **variant.asked,
        **variant.given,
        **pictures,
    ).frames[0]
    return trajectory, frames
