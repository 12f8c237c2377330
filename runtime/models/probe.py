"""A step of a transformer too small to compute much: what it takes is what its calls take."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ... import kernels
from ..ledger import Ledger, Shapes, Work
from .wan.config import WanConfig
from .wan.sizes import Wan
from .wan.transformer import WanTransformer

CONFIG: dict[str, Any] = {
    "num_attention_heads": 1,
    "attention_head_dim": 32,
    "text_dim": 16,
    "ffn_dim": 64,
    "num_layers": 4,
}
SHAPES = Shapes(latents=(16, 1, 2, 2), steps=1, rows=1, text_tokens=4)


def small_step(device: torch.device) -> tuple[Callable[[], Tensor], Mapping[Work, int]]:
    """The step on a device, ready to run, and its work."""
    ops = kernels.bind(device, torch.float32, CONFIG["attention_head_dim"])
    model = WanTransformer(WanConfig(**CONFIG), ops).to(device).eval()
    text = torch.zeros(1, SHAPES.text_tokens, CONFIG["text_dim"], device=device)
    pads, timesteps = torch.tensor([500], device=device), torch.zeros(1, device=device)
    predict = model.bind((1, *SHAPES.latents), timesteps, text, pads)
    latents = torch.zeros(1, *SHAPES.latents, device=device)
    ledger = Ledger(on_host=device.type == "cpu", fused=device.type == "cuda")
    Wan(ledger, CONFIG, SHAPES, item=4).step()
    return lambda: predict(latents, 0), ledger.take()[0]
