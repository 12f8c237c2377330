"""Packed layers compute what the plain ones do."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from kinema.runtime.execution.pack import PackedLinear, can_pack, pack_linears
from kinema.runtime.models.wan.config import WanConfig
from kinema.runtime.models.wan.transformer import WanTransformer

pytestmark = pytest.mark.skipif(not can_pack(), reason="this build of PyTorch cannot pack")


@torch.no_grad()
@pytest.mark.parametrize("rows", [(1,), (7,), (2, 3, 5), (600,)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_any_shape(rows, dtype):
    """Against fp64 on the same weights: no further off than plain layers, with 1.5 for chance."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(24, 40), nn.GELU("tanh"), nn.Linear(40, 8)).to(dtype)
    packed = copy.deepcopy(layers)
    assert pack_linears(packed) == 2
    x = torch.randn(*rows, 24, dtype=dtype)
    wanted = copy.deepcopy(layers).double()(x.double())
    plain = (layers(x) - wanted).square().mean().sqrt()
    epsilon = torch.finfo(dtype).eps * wanted.square().mean().sqrt()
    assert (packed(x) - wanted).square().mean().sqrt() < 1.5 * plain + epsilon


@torch.no_grad()
def test_a_transformer():
    torch.manual_seed(0)
    config = WanConfig(
        num_attention_heads=2,
        attention_head_dim=12,
        text_dim=8,
        freq_dim=8,
        ffn_dim=40,
        num_layers=2,
    )
    model = WanTransformer(config).eval()
    packed = copy.deepcopy(model)
    assert pack_linears(packed.blocks) == 2 * 7
    assert not any(isinstance(module, nn.Linear) for module in packed.blocks.modules())
    latents, timesteps = torch.randn(1, 16, 3, 6, 4), torch.tensor([700.0])
    text = torch.randn(2, 5, 8), torch.tensor([507, 509])
    wanted = model.bind(latents.shape, timesteps, *text)(latents, 0)
    found = packed.bind(latents.shape, timesteps, *text)(latents, 0)
    assert (found - wanted).abs().max() < 1e-5 * wanted.square().mean().sqrt()


@torch.no_grad()
def test_other_activations_stay():
    layers = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8), nn.SiLU())
    pack_linears(layers)
    kinds = [type(layer) for layer in layers]
    assert kinds == [PackedLinear, nn.GELU, PackedLinear, nn.SiLU]
