"""Operations are torch operators: torch.compile and torch.export pass through them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from kinema import kernels
from kinema.kernels import reference


def calls() -> dict[str, tuple[tuple[Any, ...], dict[str, Any]]]:
    """Arguments that exercise every output of every operation."""
    x, y = torch.randn(2, 2, 3, 16)
    vector = torch.randn(16)
    latents, kernel = torch.randn(2, 3, 2, 4, 6), torch.randn(16, 12)
    pixels = torch.randn(1, 8, 2, 3, 4)
    q, k = torch.randn(2, 12, 3, 3, 16).unbind(2)[:2]
    rope = reference.rope_tables((2, 3, 2), (4, 2, 2))
    affine = {"residual": y, "gate": vector}
    return {
        "norm_modulate": ((x, vector, vector), affine),
        "norm_modulate quantized": ((x, vector), {**affine, "quantize": "fp8"}),
        "qk_norm_rope": ((q, k, rope), {"q_weight": torch.ones(48)}),
        "gate_residual": ((x, y, vector), {}),
        "patchify": ((latents, (1, 2, 2), kernel), {}),
        "unpatchify": ((torch.randn(1, 2, 2, 3, 16), (1, 2, 2), kernel.T), {"norm": "layer"}),
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


@pytest.mark.parametrize("name", calls())
def test_compiles_whole(name) -> None:
    args, kwargs = calls()[name]
    call = Call(name, kwargs)
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
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


def test_compiles_for_any_token_count() -> None:
    compiled = torch.compile(
        kernels.gate_residual, fullgraph=True, dynamic=True, backend="aot_eager"
    )
    for tokens in (3, 31):
        x = torch.randn(2, tokens, 16)
        torch.testing.assert_close(compiled(x, x, x), reference.gate_residual(x, x, x))


@pytest.mark.parametrize("name", calls())
def test_operator_keeps_its_promises(name, monkeypatch) -> None:
    """Schema, fake implementation and functionalization, as PyTorch itself checks them."""
    args, kwargs = calls()[name]
    module = __import__(f"kinema.kernels.{name.split()[0]}", fromlist=["_op"])
    seen = []
    operator = module._op
    monkeypatch.setattr(module, "_op", lambda *given: seen.append(given) or operator(*given))
    getattr(kernels, name.split()[0])(*args, **kwargs)
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(operator, seen[0], test_utils=checks)
