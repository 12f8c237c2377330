"""Operations are torch operators: torch.compile and torch.export pass through them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, is_tensor, nn
from torch.utils._pytree import tree_leaves

from kinema import kernels
from kinema.kernels import dispatch, quantize_tokens, sliding_tiles


def calls() -> dict[str, tuple[tuple[Any, ...], dict[str, Any]]]:
    """Arguments that exercise every output of every operation."""
    x, y = torch.randn(2, 2, 3, 16)
    vector, weight = torch.randn(16), torch.randn(24, 16)
    latents, kernel = torch.randn(2, 3, 2, 4, 6), torch.randn(16, 12)
    pixels = torch.randn(1, 8, 2, 3, 4)
    q, k, v = torch.randn(2, 12, 3, 3, 16).unbind(2)
    rope = kernels.rope_tables((2, 3, 2), (4, 2, 2))
    heads = [tensor.transpose(1, 2) for tensor in (q, k, v)]
    halves = [tensor.bfloat16() for tensor in heads]
    affine = {"residual": y, "gate": vector}
    return {
        "norm_modulate": ((x, vector, vector), affine),
        "norm_modulate quantized": ((x, vector), {**affine, "quantize": "fp8"}),
        "qk_norm_rope": ((q, k, rope), {"q_weight": torch.ones(48)}),
        "gate_residual": ((x, y, vector), {}),
        "linear_gelu": ((x, weight, torch.randn(24)), {}),
        "attention": ((*heads, torch.zeros(2, 1, 1, 12)), {}),
        "attention masked": ((*heads, torch.rand(2, 1, 1, 12) < 0.5), {}),
        "block_sparse_attention": ((*heads, sliding_tiles((2, 3, 2), (1, 3, 2), (1, 1, 1))), {}),
        "quantized_attention": (tuple(halves), {"to": "fp8"}),
        "patchify": ((latents, (1, 2, 2), kernel), {}),
        "unpatchify": ((torch.randn(1, 2, 2, 3, 16), (1, 2, 2), kernel.T), {"norm": "layer"}),
        "quantized_linear": ((x, quantize_tokens(weight, "int8")), {"gelu": True}),
        "quantized_linear quantized": (
            (quantize_tokens(x, "fp8"), quantize_tokens(weight, "fp8"), torch.randn(24)),
            {},
        ),
        "guided_step": (
            (latents, latents, latents, torch.ones(2, 3), [latents]),
            {"guidance_scale": 3.0, "rescale": 0.5},
        ),
        "norm_silu": ((pixels,), {"norm": "group", "groups": 2, "padding": (2, 1, 1)}),
    }


class Call(nn.Module):
    """One operation with all arguments but its tensors bound."""

    def __init__(self, name: str, kwargs: dict[str, Any]) -> None:
        super().__init__()
        self.function, self.kwargs = getattr(kernels, name.split()[0]), kwargs

    def forward(self, *args: Any) -> list[Tensor]:
        return tree_leaves(self.function(*args, **self.kwargs))


def test_every_operation_is_called() -> None:
    assert {name.split()[0] for name in calls()} == dispatch.TABLE.keys()


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("name", calls())
def test_compiles_whole(name, dynamic) -> None:
    torch.compiler.reset()
    args, kwargs = calls()[name]
    call = Call(name, kwargs)
    compiled = torch.compile(call, fullgraph=True, dynamic=dynamic)
    for ours, expected in zip(compiled(*args), call(*args), strict=True):
        assert ours.stride() == expected.stride()
        torch.testing.assert_close(ours.float(), expected.float())


@pytest.mark.parametrize("name", calls())
def test_exports(name) -> None:
    args, kwargs = calls()[name]
    call = Call(name, kwargs)
    program = torch.export.export(call, args)
    op = getattr(torch.ops.kinema, name.split()[0]).default
    assert [node.target for node in program.graph.nodes if node.target is op] == [op]
    for ours, expected in zip(program.module()(*args), call(*args), strict=True):
        torch.testing.assert_close(ours.float(), expected.float())


def block(x: Tensor, weight: Tensor, keep: Tensor) -> Tensor:
    """What a transformer block is made of, for x (B, L, 16)."""
    x, hidden = kernels.norm_modulate(x, weight[0], residual=x, gate=weight[1])
    heads = hidden.unflatten(-1, (2, 8))
    query, key = kernels.qk_norm_rope(heads, heads, norm="rms_per_head")
    hidden = kernels.attention(query, key, heads.transpose(1, 2), keep)
    hidden = kernels.linear_gelu(hidden.transpose(1, 2).flatten(2), weight)
    return kernels.gate_residual(x, hidden)


def arguments(tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(2, tokens, 16), torch.randn(16, 16), torch.rand(1, 1, 1, tokens) < 0.5


def test_compiles_for_any_token_count() -> None:
    compiled = torch.compile(block, fullgraph=True, dynamic=True)
    for tokens in (3, 31):
        given = arguments(tokens)
        torch.testing.assert_close(compiled(*given), block(*given))


def test_a_batch_seen_late_broadcasts() -> None:
    """A batch that varies is a symbol while a bias not seen before has sizes."""
    torch.compiler.reset()
    compiled = torch.compile(kernels.attention, fullgraph=True)
    for batch, bias in ((3, None), (2, torch.randn(2, 1, 1, 5))):
        heads = torch.randn(3, batch, 2, 5, 8).unbind()
        torch.testing.assert_close(compiled(*heads, bias), kernels.attention(*heads, bias))


def test_exports_for_any_token_count() -> None:
    class Block(nn.Module):
        def forward(self, *args: Tensor) -> Tensor:
            return block(*args)

    tokens = torch.export.Dim("tokens", min=2)
    shapes = ({1: tokens}, None, {3: tokens})
    program = torch.export.export(Block(), arguments(20), dynamic_shapes=(shapes,))
    given = arguments(31)
    torch.testing.assert_close(program.module()(*given), block(*given))


@pytest.mark.parametrize("name", calls())
def test_operator_keeps_its_promises(name, monkeypatch) -> None:
    """Schema, fake implementation and functionalization, as PyTorch itself checks them."""
    args, kwargs = calls()[name]
    module = __import__(f"kinema.kernels.{name.split()[0]}", fromlist=["_op"])
    seen = []
    operator = module._op
    monkeypatch.setattr(module, "_op", lambda *given: seen.append(given) or operator(*given))
    getattr(kernels, name.split()[0])(*args, **kwargs)
    checks = ["test_schema", "test_faketensor", "test_aot_dispatch_dynamic"]
    if any(leaf.dtype == torch.float8_e4m3fn for leaf in tree_leaves(seen[0]) if is_tensor(leaf)):
        checks.remove("test_schema")  # it multiplies arguments, which PyTorch cannot do in fp8
    torch.library.opcheck(operator, seen[0], test_utils=checks)


@pytest.mark.parametrize("eps", [0.0, 1e-40, -1e-6, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["norm_modulate", "qk_norm_rope", "unpatchify", "norm_silu"])
def test_refuses_an_eps_that_lets_zeros_be_nan(name, eps) -> None:
    args, kwargs = calls()[name]
    with pytest.raises(ValueError, match=r"eps=.* leaves a row of zeros without a norm; 1e-30"):
        getattr(kernels, name)(*args, **kwargs, eps=eps)
