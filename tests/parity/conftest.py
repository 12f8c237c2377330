"""The reference's transformer and ours on the same weights: random ones, and the trained ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

import kinema.runtime
from kinema.runtime.checkpoints import weights
from kinema.runtime.models.wan.config import WanConfig
from kinema.runtime.models.wan.transformer import WanTransformer

diffusers = pytest.importorskip("diffusers")

EMBEDDED = Path(kinema.runtime.__file__).parent / "assets" / "embedded" / "transformer"
TINY = {
    "num_attention_heads": 3,
    "attention_head_dim": 28,  # RoPE splits it unevenly: 12, 8, 8
    "text_dim": 40,
    "freq_dim": 64,
    "ffn_dim": 100,
    "num_layers": 2,
    "out_channels": 16,
}


class Pair(NamedTuple):
    """The same weights in the reference's transformer and in ours."""

    reference: torch.nn.Module
    native: WanTransformer

    @property
    def text_dim(self) -> int:
        return self.native.config.text_dim

    @property
    def trained(self) -> bool:
        return self.native.config.text_dim != TINY["text_dim"]


def random_pair(**config) -> Pair:
    """Weights drawn at random, those that start at 0 or 1 included."""
    torch.manual_seed(0)
    reference = diffusers.WanTransformer3DModel(**{**TINY, **config}).eval()
    with torch.no_grad():
        for name, weight in reference.named_parameters():
            if "norm" in name or "bias" in name:
                weight.add_(0.2 * torch.randn_like(weight))
            elif "scale_shift_table" in name:
                weight.copy_(0.5 * torch.randn_like(weight))
    native = WanTransformer(WanConfig.from_dict(reference.config)).eval()
    native.load_state_dict(native.from_published(reference.state_dict()))
    return Pair(reference, native)


def trained_pair() -> Pair:
    """The embedded model's weights, each library reading the files its own way."""
    if not (EMBEDDED / "config.json").is_file():
        pytest.skip("no embedded checkpoint yet")
    config = WanConfig.from_dict(json.loads((EMBEDDED / "config.json").read_text()))
    native = weights.load(lambda: WanTransformer(config), EMBEDDED, config.weight_table())
    reference = diffusers.WanTransformer3DModel.from_pretrained(
        EMBEDDED, dtype=torch.float32, use_safetensors=True
    )
    return Pair(reference.eval(), native)


@pytest.fixture(scope="session", params=["random", "trained"])
def pair(request) -> Pair:
    return random_pair() if request.param == "random" else trained_pair()
