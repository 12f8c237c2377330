"""gate_residual against its definition, and the laws it keeps."""

from __future__ import annotations

import pytest
import torch

from kinema import kernels
from kinema.kernels import reference
from kinema.kernels.gate_residual import run, tiles


@pytest.mark.parametrize("gate_shape", [(40,), (2, 1, 1, 40), (2, 3, 1, 40), (2, 3, 7, 40)])
def test_parity(dtype, gate_shape, truth, assert_as_accurate) -> None:
    x, y = torch.randn(2, 2, 3, 7, 40, dtype=dtype)
    gate = torch.randn(gate_shape)
    exact = truth(reference.gate_residual, x, y, gate)
    assert_as_accurate(run(x, y, gate), reference.gate_residual(x, y, gate), exact)


@pytest.mark.parametrize("tokens", [1, 31, 257])
@pytest.mark.parametrize("channels", [1, 31, 192])
def test_any_size(tokens, channels) -> None:
    x, y, gate = torch.randn(tokens, channels), torch.randn(tokens, channels), torch.randn(channels)
    for tile in tiles(channels):
        assert torch.equal(run(x, y, gate, tile), reference.gate_residual(x, y, gate))


def test_strided(dtype) -> None:
    x = torch.randn(5, 2, 80, dtype=dtype).transpose(0, 1)[..., ::2]
    y = torch.randn(2, 1, 40, dtype=dtype).expand(2, 5, 40)
    gate = torch.randn(2, 6, 40)[:, 2:3]
    assert torch.equal(run(x, y, gate), reference.gate_residual(x, y, gate))


def test_gates_of_zero_and_one(dtype) -> None:
    x, y = torch.randn(2, 7, 40, dtype=dtype)
    assert torch.equal(run(x, y, torch.zeros(40)), x)
    assert torch.equal(run(x, y, torch.ones(40)), run(x, y, None))


def test_no_tokens(dtype) -> None:
    x = torch.empty(2, 0, 40, dtype=dtype)
    assert run(x, x, None).shape == x.shape


@pytest.mark.parametrize(
    ("y", "gate", "message"),
    [
        (torch.zeros(2, 8, dtype=torch.int64), None, "y is torch.int64; torch.bfloat16, "),
        (torch.zeros(3, 8), None, r"y has shape \(3, 8\); \(2, 8\) works"),
        (
            torch.zeros(2, 8),
            torch.zeros(3, 8),
            r"gate has shape \(3, 8\), which does not broadcast",
        ),
    ],
)
def test_refuses(y, gate, message) -> None:
    with pytest.raises(ValueError, match=message):
        kernels.gate_residual(torch.zeros(2, 8), y, gate)
