"""linear_gelu against its definition."""

from __future__ import annotations

import pytest
import torch

from kinema import kernels
from kinema.kernels import dispatch, reference, torch_backend
from kinema.kernels._product import Config, configs, product

POINTERS = Config(16, 16, 16, 4, 1)
CONFIGS = {"pointers": POINTERS, "descriptors": POINTERS._replace(descriptors=True)}


def launch(x, weight, bias=None, config=POINTERS):
    return product(x, weight, bias, x.dtype, gelu=True, config=config)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("biased", [True, False])
def test_parity(dtype, config, biased, truth, assert_as_accurate) -> None:
    x = torch.randn(2, 3, 9, 40).to(dtype)
    weight, bias = torch.randn(56, 40).to(dtype), torch.randn(56).to(dtype)
    arguments = (x, weight, bias if biased else None)
    out = launch(*arguments, config=CONFIGS[config])
    exact = truth(reference.linear_gelu, *arguments)
    assert_as_accurate(out, torch_backend.linear_gelu(*arguments), exact)


@pytest.mark.parametrize(
    ("rows", "inputs", "outputs"), [(1, 1, 1), (31, 7, 2), (2, 1023, 17), (1023, 3, 5)]
)
def test_any_size(rows, inputs, outputs, truth, assert_as_accurate) -> None:
    x, weight = torch.randn(rows, inputs), torch.randn(outputs, inputs)
    bias = torch.randn(outputs)
    out = launch(x, weight, bias)
    exact = truth(reference.linear_gelu, x, weight, bias)
    assert_as_accurate(out, torch_backend.linear_gelu(x, weight, bias), exact)


def test_strided_rows(truth, assert_as_accurate) -> None:
    x, weight = torch.randn(20, 64)[::2, 16:48], torch.randn(24, 96)[:, :32]
    for config in CONFIGS.values():
        out = launch(x, weight, config=config)
        exact = truth(reference.linear_gelu, x, weight)
        assert_as_accurate(out, torch_backend.linear_gelu(x, weight), exact)


def test_nothing_in_nothing_out() -> None:
    weight = torch.randn(8, 4)
    assert launch(torch.randn(2, 0, 4), weight).shape == (2, 0, 8)
    assert kernels.linear_gelu(torch.randn(2, 0, 4), weight).shape == (2, 0, 8)


def test_far_from_zero_it_is_linear_or_zero() -> None:
    x, weight = torch.tensor([[1e4], [-1e4]]), torch.ones(1, 1)
    assert launch(x, weight).tolist() == [[1e4], [0.0]]


def test_every_chip_has_configurations() -> None:
    dtypes = (torch.int8, torch.float8_e4m3fn, torch.bfloat16, torch.float32)
    assert all(configs(major, dtype) for major in (8, 9, 10, 12) for dtype in dtypes)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"x": torch.zeros(2, 7)}, r"x has shape \(2, 7\); weight \(16, 8\) takes \(..., 8\)"),
        ({"weight": torch.zeros(16)}, r"weight has shape \(16,\)"),
        ({"bias": torch.zeros(8)}, r"bias has shape \(8,\); \(16,\) works"),
        ({"x": torch.zeros(2, 8).double()}, "x is torch.float64"),
        ({"weight": torch.zeros(16, 8).half()}, "weight is torch.float16; torch.float32"),
        ({"weight": torch.zeros(8, 16).mT}, "weight has channels 16 elements apart"),
    ],
)
def test_refuses(change, says) -> None:
    arguments = {"x": torch.zeros(2, 8), "weight": torch.zeros(16, 8), "bias": torch.zeros(16)}
    with pytest.raises(ValueError, match=says):
        kernels.linear_gelu(**(arguments | change))


def test_backends() -> None:
    assert dispatch.choose("linear_gelu", "cpu").backend == "torch"
    with pytest.raises(RuntimeError, match="cannot use cublaslt: it runs on cuda"):
        dispatch.choose("linear_gelu", "cpu", "cublaslt")
