"""A denoising step of diffusers and of ours on the same random weights, and what it denoises.

A step is both branches of guidance: two forwards of diffusers' `WanTransformer3DModel`, text padded
to 512 tokens, and one `predict` of ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from .. import kernels
from ..runtime.checkpoints.presets import TEXT_LENGTH
from ..runtime.graphs.shells import TransformerGraphs
from ..runtime.models.wan.config import WanConfig
from ..runtime.models.wan.sizes import Wan
from ..runtime.models.wan.transformer import WanTransformer

if TYPE_CHECKING:
    from diffusers import WanTransformer3DModel

TOKENS = (42, 1)  # of the prompt and of the negative one, which is empty


class Size(NamedTuple):
    """A transformer and what it denoises."""

    config: dict[str, Any]
    latent_shape: tuple[int, int, int, int]


SIZES = {
    "tiny": Size(
        {
            "num_attention_heads": 2,
            "attention_head_dim": 32,
            "text_dim": 16,
            "freq_dim": 16,
            "ffn_dim": 64,
            "num_layers": 2,
        },
        (16, 3, 4, 6),
    ),
    "small": Size(
        {
            "num_attention_heads": 8,
            "attention_head_dim": 64,
            "text_dim": 512,
            "ffn_dim": 2048,
            "num_layers": 12,
        },
        (16, 5, 30, 40),  # 1,500 tokens
    ),
    # https://huggingface.co/Wan-AI/Wan2.1-T2V-1.3B-Diffusers/blob/main/transformer/config.json
    "1.3b": Size(
        {"num_attention_heads": 12, "attention_head_dim": 128, "ffn_dim": 8960, "num_layers": 30},
        (16, 21, 60, 104),  # 832x480, 81 frames: 32,760 tokens
    ),
}


def tokens_of(latent_shape: Sequence[int]) -> int:
    """Of self-attention: patches are 2 by 2."""
    _, frames, height, width = latent_shape
    return frames * (height // 2) * (width // 2)


def apart(found: Tensor, wanted: Tensor) -> float:
    """Root mean square of the difference over that of what is wanted; 0 for the same bits."""
    return float((found - wanted).square().mean().sqrt() / wanted.square().mean().sqrt())


def reference(
    config: dict[str, Any], device: torch.device, dtype: torch.dtype
) -> WanTransformer3DModel:
    """diffusers' transformer with random weights."""
    from diffusers import WanTransformer3DModel

    with torch.device(device):
        model = WanTransformer3DModel(**config).eval().requires_grad_(False)
    return round_to(model, dtype)


def round_to(model: WanTransformer3DModel, dtype: torch.dtype) -> WanTransformer3DModel:
    """diffusers' transformer itself, its weights in a dtype as it loads them: some stay fp32."""
    for name, parameter in model.named_parameters():
        if not Wan.KEEP_FP32 & set(name.split(".")):
            parameter.data = parameter.data.to(dtype)
    return model


def ours(
    model: WanTransformer3DModel,
    device: torch.device,
    dtype: torch.dtype,
    backends: Mapping[str, str] | None = None,
) -> WanTransformer:
    """The same weights in our transformer, as the engine opens it."""
    config = WanConfig.from_dict(model.config)
    ops = kernels.bind(device, dtype, config.attention_head_dim, backends)
    with torch.device("meta"):
        native = WanTransformer(config, ops).eval().requires_grad_(False)
    native.load_state_dict(native.from_published(model.state_dict()), assign=True)
    return native


def bind(
    native: WanTransformer | TransformerGraphs,
    latents: Tensor,
    texts: list[Tensor],
    timestep: Tensor,
) -> Callable[[Tensor, int], Tensor]:
    """Our step, what is constant in a request computed."""
    longest = max(text.shape[1] for text in texts)
    rows = torch.cat([padded(text, longest) for text in texts])
    counts = torch.tensor([TEXT_LENGTH - text.shape[1] for text in texts])
    return native.bind(tuple(latents.shape), timestep, rows, counts)


def reference_step(
    model: WanTransformer3DModel,
    latents: Tensor,
    texts: list[Tensor],
    timestep: Tensor,
    compiled: bool = False,
) -> Callable[[], Tensor]:
    """Both branches, one after the other, as `WanPipeline` runs them."""
    dtype = model.proj_out.weight.dtype
    forward = torch.compile(model) if compiled else model
    prompts = [padded(text, TEXT_LENGTH).to(dtype) for text in texts]

    def step() -> Tensor:
        given = latents.to(dtype), timestep
        return torch.cat([forward(*given, prompt, return_dict=False)[0] for prompt in prompts])

    return step


def padded(text: Tensor, length: int) -> Tensor:
    """Embeddings with zeros to `length` tokens."""
    return torch.nn.functional.pad(text, (0, 0, 0, length - text.shape[1]))
