"""The operations bound for a transformer, and a transformer that runs on the kernels."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch

from kinema import kernels
from kinema.kernels import operations, torch_backend
from kinema.runtime.models.wan.config import WanConfig
from kinema.runtime.models.wan.sizes import Wan
from kinema.runtime.models.wan.transformer import WanTransformer

LAUNCHES = {
    "norm_modulate": "run",
    "qk_norm_rope": "run",
    "gate_residual": "run",
    "linear_gelu": "_launch",
    "attention": "_launch",
    "patchify": "run",
    "unpatchify": "run",
}
CONFIG = WanConfig(
    num_attention_heads=2,
    attention_head_dim=16,
    in_channels=4,
    out_channels=4,
    text_dim=8,
    freq_dim=8,
    ffn_dim=48,
    num_layers=2,
)


@pytest.fixture
def operators() -> kernels.Operations:
    """What `bind` gives on a GPU with Triton alone: the public functions, PyTorch operators."""
    functions = {name: getattr(kernels, name) for name in LAUNCHES}
    functions["biased_attention"] = kernels.attention
    return kernels.Operations(**functions, rope=lambda rope, head_dim: rope, choices=())


@pytest.fixture
def interpreted(operators, monkeypatch) -> kernels.Operations:
    """The same, with CPU tensors sent to the kernels."""
    for name, launch in LAUNCHES.items():
        module = import_module(f"kinema.kernels.{name}")
        monkeypatch.setattr(module, "_op", getattr(module, launch))
    return operators


@torch.no_grad()
@pytest.mark.parametrize("norm2", [True, False])
def test_a_transformer_runs_on_the_kernels(interpreted, norm2, dtype) -> None:
    """As near fp32's result as plain PyTorch in the same dtype; a timestep a frame."""
    config = WanConfig.from_dict({**vars(CONFIG), "cross_attn_norm": norm2})
    exact, plain = WanTransformer(config), WanTransformer(config)
    on_kernels = WanTransformer(config, interpreted)
    for model in (plain, on_kernels):
        model.load_state_dict(exact.state_dict())
        for name, parameter in model.named_parameters():
            if not Wan.KEEP_FP32 & set(name.split(".")):
                parameter.data = parameter.data.to(dtype)
    timesteps = torch.tensor([900.0, 0.0, 400.0]).view(1, 3, 1, 1)
    latents, text, pads = torch.randn(1, 4, 3, 4, 6), torch.randn(2, 5, 8), torch.tensor([507, 509])
    wanted, from_plain, from_kernels = (
        model.bind(latents.shape, timesteps, text, pads)(latents, 0)
        for model in (exact, plain, on_kernels)
    )
    # Roundings in two orders are draws of one size; fp32's own are some tens of a ten-millionth.
    limit = 2 * rms(from_plain - wanted) + 1e-5 * rms(wanted)
    assert rms(from_kernels - wanted) < limit


@torch.no_grad()
@pytest.mark.parametrize("plain", [True, False])
def test_a_transformer_compiles_whole_and_exports(operators, plain) -> None:
    """One graph, with the operations in it by name where they are operators."""
    model = WanTransformer(CONFIG, kernels.bind("cpu") if plain else operators).eval()
    latents, text, pads = torch.randn(1, 4, 3, 4, 6), torch.randn(2, 5, 8), torch.tensor([507, 509])
    arguments = (
        latents,
        model.modulation(torch.tensor([900.0])),
        model.text_context(text, pads),
        model.rope(model.grid(latents.shape)),
    )
    wanted = model(*arguments)
    compiled = torch.compile(model, fullgraph=True)
    assert rms(compiled(*arguments) - wanted) < 1e-5 * rms(wanted)
    exported = torch.export.export(model, arguments)
    assert rms(exported.module()(*arguments) - wanted) < 1e-5 * rms(wanted)
    named = [node for node in exported.graph.nodes if "kinema" in str(node.target)]
    assert len(named) == (0 if plain else 9 * CONFIG.num_layers + 2)


def rms(x: torch.Tensor) -> float:
    return x.square().mean().sqrt().item()


def test_a_cpu_gets_plain_pytorch() -> None:
    ops = kernels.bind("cpu")
    assert set(ops.backends) == set(operations.BOUND)
    assert set(ops.backends.values()) == {"torch"}
    assert ops.norm_modulate is torch_backend.norm_modulate


def test_a_choice_is_kept_or_refused() -> None:
    ops = kernels.bind("cpu", backends={"attention": "matmul"})
    assert ops.backends["attention"] == "matmul"
    assert ops.backends["biased_attention"] == "torch"
    with pytest.raises(RuntimeError, match="attention cannot use triton: Triton kernels run on"):
        kernels.bind("cpu", backends={"biased_attention": "triton"})
    with pytest.raises(ValueError, match="no operation 'norm' to choose a backend for: norm_mod"):
        kernels.bind("cpu", backends={"norm": "torch"})


def test_expanded_tables_turn_alike() -> None:
    """A table a token, made once, gives the bits of tables an axis."""
    q, k = torch.randn(2, 2, 7, 3, 12)
    rope = kernels.rope_tables((1, 2, 3), (2, 2, 2))
    for interleaved in (False, True):
        options = {"interleaved": interleaved, "start": 1}
        wanted = torch_backend.qk_norm_rope(q, k, rope, **options)
        found = torch_backend.qk_norm_rope(q, k, torch_backend.expand_rope(rope, 12), **options)
        assert all(map(torch.equal, found, wanted))
