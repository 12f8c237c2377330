"""quantized_attention against its definition, its parts, and the attention it stands for."""

from __future__ import annotations

import pytest
import torch

from kinema import kernels
from kinema.kernels import dispatch, reference
from kinema.kernels._quantize import quantize_heads, quantize_rows
from kinema.kernels._softmax import Config
from kinema.kernels.formats import FORMATS, KEY_BLOCK, Quantized, dequantize, quantize_tokens
from kinema.kernels.quantized_attention import configs, run, transpose_heads

CONFIG = Config(32, 16, 4, 1)
# What rounding the softmax's weights adds, relative to each: half a unit in the last place.
OF_WEIGHTS = {"int8": torch.finfo(torch.bfloat16).eps / 2, "fp8": 2.0**-4}


def heads(batch: int, count: int, length: int, head_dim: int = 16, dtype=torch.bfloat16):
    packed = torch.randn(batch, length, 3, count, head_dim).to(dtype)
    return packed.transpose(1, 3).unbind(2)


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("descriptors", [False, True], ids=["pointers", "descriptors"])
@pytest.mark.parametrize("length", [1, 33, 150])
def test_parity(to, descriptors, length) -> None:
    query, key, value = heads(2, 2, length)
    out = run(query, key, value, None, 0.25, to, CONFIG._replace(descriptors=descriptors))
    doubles = (tensor.double() for tensor in (query, key, value))
    truth = reference.quantized_attention(*doubles, scale=0.25, to=to)
    # A weighted mean of values, each weight off by at most this share; then bf16's rounding.
    # Scores of values that lie on a rounding boundary may fall to either side of it.
    bound = (OF_WEIGHTS[to] + torch.finfo(torch.bfloat16).eps) * value.abs().max()
    error = (out.double() - truth).abs()
    assert error.max() <= bound
    assert error.square().mean().sqrt() <= bound / 4


@pytest.mark.parametrize("to", FORMATS)
def test_is_a_backend_of_attention(to) -> None:
    backends = {entry.name: entry for entry in dispatch.backends("attention")}
    query, key, value = heads(2, 2, 40)
    found = backends[f"triton-{to}"].load()(query, key, value, scale=0.25)
    wanted = reference.quantized_attention(query, key, value, scale=0.25, to=to)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


@pytest.mark.parametrize("to", FORMATS)
def test_bias_masks_keys(to) -> None:
    query, key, value = heads(2, 2, 40)
    bias = torch.zeros(2, 1, 1, 40)
    bias[0, ..., 7:] = -torch.inf
    bias[1] = -torch.inf
    out = run(query, key, value, bias, 0.25, to, CONFIG)
    assert torch.equal(out[1], torch.zeros_like(out[1]))
    doubles = (tensor.double() for tensor in (query, key, value))
    truth = reference.quantized_attention(*doubles, bias, scale=0.25, to=to)
    bound = (OF_WEIGHTS[to] + torch.finfo(torch.bfloat16).eps) * value.abs().max()
    assert (out.double() - truth).abs().max() <= bound


@pytest.mark.parametrize("to", FORMATS)
def test_quantizes_as_defined(to) -> None:
    query, key, _ = heads(2, 2, 150)
    values, scales = quantize_heads(query, None, to, shared=False)
    expected = quantize_tokens(query, to)
    torch.testing.assert_close(scales[..., None], expected.scale, rtol=1e-6, atol=0)
    same_numbers(
        dequantize(Quantized(values, scales[..., None])), dequantize(expected), expected, to
    )
    mean = key.mean(2, dtype=torch.float32)
    values, scales = quantize_heads(key, mean, to, shared=True)
    assert scales.shape == (2, 2, 2)
    rows = scales.repeat_interleave(KEY_BLOCK, dim=2)[:, :, :150, None]
    smooth = key.float() - mean[:, :, None]
    error = (values.float() * rows - smooth).abs()
    half_a_step = {"int8": rows / 2, "fp8": smooth.abs() * 2.0**-4 + rows * 2.0**-10}[to]
    assert (error <= half_a_step * (1 + 1e-5)).all()


def same_numbers(actual, expected, quantized, to) -> None:
    """Alike but where a value lies on a rounding boundary: there, one step apart, and rarely."""
    step = {"int8": quantized.scale, "fp8": expected.abs() * 2.0**-3 + quantized.scale * 2.0**-9}[
        to
    ]
    error = (actual - expected).abs()
    assert (error <= step * (1 + 1e-5)).all()
    assert (error > 1e-6 * expected.abs()).double().mean() < 0.01


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("channels", [1, 31, 5000])
def test_quantizes_tokens_as_defined(to, channels) -> None:
    x = torch.randn(2, 3, channels).bfloat16()
    actual, expected = quantize_rows(x, to), quantize_tokens(x, to)
    torch.testing.assert_close(actual.scale, expected.scale, rtol=1e-6, atol=0)
    same_numbers(dequantize(actual), dequantize(expected), expected, to)
    assert not quantize_rows(torch.zeros(2, 8), to).values.float().any()


def test_values_are_transposed() -> None:
    _, _, value = heads(1, 2, 150)
    peak = value.float().abs().amax(2)
    out = transpose_heads(value, peak)
    assert out.shape == (1, 2, 16, 2 * KEY_BLOCK)
    assert not out[..., 150:].float().any()
    expected = quantize_tokens(value.mT, "fp8")
    actual = out[..., :150].float() * (peak / FORMATS["fp8"][1])[..., None]
    same_numbers(actual, dequantize(expected), expected, "fp8")


@pytest.mark.parametrize("to", FORMATS)
def test_smoothing_takes_a_common_offset_out(to) -> None:
    """An offset that all keys share must not cost precision: it does not change the softmax."""
    query, key, value = heads(1, 1, 64)
    exact = reference.attention(query, key, value)
    shifted = (key.float() + 8.0).bfloat16()
    near = run(query, shifted, value, None, 0.25, to, CONFIG)
    of_shifted = reference.attention(query, shifted, value)
    error = (near.float() - of_shifted.float()).square().mean().sqrt()
    plain = run(query, key, value, None, 0.25, to, CONFIG)
    without = (plain.float() - exact.float()).square().mean().sqrt()
    assert error <= 2 * without


@pytest.mark.parametrize("to", FORMATS)
def test_stands_for_attention(to) -> None:
    query, key, value = heads(1, 2, 150, 64)
    out = kernels.quantized_attention(query, key, value, to=to)
    exact = reference.attention(query, key, value)
    error = (
        out.float() - exact.float()
    ).square().mean().sqrt() / exact.float().square().mean().sqrt()
    # Scores s have unit variance; their error is that of two 8-bit factors, and moves weights by as
    # much, relatively: 1 / 127 of a peak of about 3 deviations, or half of e4m3's last place.
    of_factor = {"int8": 3 / 127 / 12**0.5, "fp8": 2.0**-4 / 3**0.5}[to]
    of_values = {"int8": 0.0, "fp8": of_factor * 2}[to]
    assert error <= 3 * ((2 * of_factor**2) ** 0.5 + of_values)


def test_every_chip_has_configurations() -> None:
    assert all(
        configs(major, dim, to) for major in (8, 9, 10, 12) for dim in (64, 256) for to in FORMATS
    )


@pytest.mark.parametrize(
    ("head_dim", "dtype", "to", "says"),
    [
        (16, torch.bfloat16, "fp4", "to='fp4' is not known; fp8, int8 work"),
        (16, torch.float32, "int8", "query is torch.float32; torch.bfloat16, torch.float16 work"),
        (24, torch.bfloat16, "int8", "head dim is 24; multiples of 16"),
    ],
)
def test_refuses(head_dim, dtype, to, says) -> None:
    query, key, value = heads(1, 2, 20, head_dim, dtype)
    with pytest.raises(ValueError, match=says):
        kernels.quantized_attention(query, key, value, to=to)
