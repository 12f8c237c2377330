"""quantized_linear against its definition."""

from __future__ import annotations

import pytest
import torch

from kinema import kernels
from kinema.kernels import dispatch, reference
from kinema.kernels._product import Config, product
from kinema.kernels.formats import FORMATS, Quantized, quantize_tokens

POINTERS = Config(16, 16, 32, 4, 1)
CONFIGS = {"pointers": POINTERS, "descriptors": POINTERS._replace(descriptors=True)}


def launch(x, weight, bias=None, gelu=False, dtype=torch.float32, config=POINTERS):
    scales = (x.scale, weight.scale)
    return product(x.values, weight.values, bias, dtype, gelu=gelu, config=config, scales=scales)


def exact(x, weight, bias=None, gelu=False):
    """The definition in float64."""
    double = [Quantized(factor.values, factor.scale.double()) for factor in (x, weight)]
    bias = None if bias is None else bias.double()
    return reference.quantized_linear(*double, bias, gelu=gelu, dtype=torch.float64)


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("gelu", [False, True])
def test_parity(dtype, to, config, gelu, assert_as_accurate) -> None:
    x = quantize_tokens(torch.randn(2, 9, 48), to)
    weight, bias = quantize_tokens(torch.randn(32, 48), to), torch.randn(32)
    out = launch(x, weight, bias, gelu, dtype, CONFIGS[config])
    plain = reference.quantized_linear(x, weight, bias, gelu=gelu, dtype=dtype)
    assert_as_accurate(out, plain, exact(x, weight, bias, gelu))


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(1, 1, 1), (31, 7, 2), (2, 1023, 17)])
def test_any_size(to, rows, inputs, outputs, assert_as_accurate) -> None:
    x = quantize_tokens(torch.randn(rows, inputs), to)
    weight = quantize_tokens(torch.randn(outputs, inputs), to)
    out = launch(x, weight)
    plain = reference.quantized_linear(x, weight, dtype=torch.float32)
    assert_as_accurate(out, plain, exact(x, weight))


def test_int8_products_are_exact() -> None:
    """Whole numbers below 2**24 have one answer."""
    x = Quantized(torch.randint(-127, 128, (20, 64)).to(torch.int8), torch.ones(20, 1))
    weight = Quantized(torch.randint(-127, 128, (17, 64)).to(torch.int8), torch.ones(17, 1))
    expected = x.values.long() @ weight.values.long().mT
    assert torch.equal(launch(x, weight), expected.float())


@pytest.mark.parametrize("to", FORMATS)
def test_stands_for_the_linear_layer(to) -> None:
    x, weight, bias = torch.randn(20, 256), torch.randn(64, 256), torch.randn(64)
    out = kernels.quantized_linear(x, quantize_tokens(weight, to), bias)
    expected = torch.nn.functional.linear(x, weight, bias)
    assert out.dtype == x.dtype
    error = (out - expected).square().mean().sqrt() / expected.square().mean().sqrt()
    # Two factors' rounding, independent: a step of peak / 127 with peaks of 3 to 4 deviations, or
    # up to half of e4m3's last place.
    of_factor = {"int8": 4 / 127 / 12**0.5, "fp8": 2.0**-4 / 3**0.5}[to]
    assert error <= 2**0.5 * of_factor


@pytest.mark.parametrize("to", FORMATS)
def test_takes_what_norm_modulate_gives(to) -> None:
    x = torch.randn(2, 10, 48).bfloat16()
    weight = quantize_tokens(torch.randn(32, 48), to)
    out = kernels.quantized_linear(kernels.norm_modulate(x, quantize=to), weight)
    expected = kernels.quantized_linear(reference.norm_modulate(x), weight)
    assert out.dtype == torch.bfloat16
    # The second is quantized after one more rounding to bf16.
    error = (out - expected).float().square().mean().sqrt()
    assert error <= 2.0**-4 * expected.float().square().mean().sqrt()


def test_refuses() -> None:
    x, weight = torch.randn(4, 32), quantize_tokens(torch.randn(16, 32), "int8")
    with pytest.raises(
        ValueError, match=r"weight is a Tensor; quantize_tokens\(weight, to\) works"
    ):
        kernels.quantized_linear(x, torch.randn(16, 32))
    with pytest.raises(ValueError, match=r"x is torch.float8_e4m3fn, but weight torch.int8"):
        kernels.quantized_linear(quantize_tokens(x, "fp8"), weight)
    with pytest.raises(ValueError, match=r"weight.scale has shape \(16,\); \(16, 1\) works"):
        kernels.quantized_linear(x, Quantized(weight.values, weight.scale[:, 0]))
    with pytest.raises(ValueError, match=r"quantized values are torch.float32; fp8, int8 work"):
        kernels.quantized_linear(x, Quantized(weight.values.float(), weight.scale))
    with pytest.raises(ValueError, match=r"x has shape \(4, 31\)"):
        kernels.quantized_linear(x[:, :31], weight)


def test_backends() -> None:
    assert dispatch.choose("quantized_linear", "cpu", to="fp8").backend == "torch"
    with pytest.raises(RuntimeError, match="cannot use scaled_mm: it runs on cuda"):
        dispatch.choose("quantized_linear", "cpu", "scaled_mm", to="fp8")
    from kinema.kernels.quantized_linear import int_mm, scaled_mm

    weight = quantize_tokens(torch.randn(16, 32), "int8")
    with pytest.raises(ValueError, match="scaled_mm multiplies fp8, not int8"):
        scaled_mm(torch.randn(32, 32), weight)
    out = int_mm(torch.randn(32, 32), weight)
    assert out.shape == (32, 16)
