"""norm_modulate against its definition, and the laws it keeps."""

from __future__ import annotations

import pytest
import torch

from kinema import kernels
from kinema.kernels import formats, reference
from kinema.kernels.norm_modulate import run, tiles

MODULATIONS = {"sample": (2, 1, 1, 40), "frame": (2, 3, 1, 40), "token": (2, 3, 7, 40)}


def launch(x, scale=None, shift=None, norm="layer", weight=None, bias=None, eps=1e-6, residual=None,
           gate=None, quantize=None, **options):  # fmt: skip
    """The kernel's outputs, with the definition's defaults."""
    return run(
        x, scale, shift, norm, weight, bias, eps, residual, gate, quantize, **options
    )  # fmt: skip


@pytest.mark.parametrize("norm", ["layer", "rms"])
@pytest.mark.parametrize("modulation", MODULATIONS)
def test_parity(dtype, norm, modulation, truth, assert_as_accurate) -> None:
    x = torch.randn(2, 3, 7, 40).add(1).to(dtype)
    scale, shift = torch.randn(2, *MODULATIONS[modulation])
    (out,) = launch(x, scale, shift, norm)
    exact = truth(reference.norm_modulate, x, scale, shift, norm=norm)
    assert_as_accurate(out, reference.norm_modulate(x, scale, shift, norm=norm), exact)


@pytest.mark.parametrize("given", ["affine", "weight", "scale", "shift", "nothing"])
def test_what_is_absent_is_left_out(dtype, given, truth, assert_as_accurate) -> None:
    x, vector = torch.randn(5, 40, dtype=dtype), torch.randn(40, dtype=dtype)
    options = {
        "affine": {"weight": vector, "bias": vector},
        "nothing": {},
    }.get(given, {given: vector})
    (out,) = launch(x, **options)
    exact = truth(reference.norm_modulate, x, **options)
    assert_as_accurate(out, reference.norm_modulate(x, **options), exact)


@pytest.mark.parametrize("tokens", [1, 2, 31, 1023])
@pytest.mark.parametrize("per_token", [False, True])
def test_any_token_count(tokens, per_token, truth, assert_as_accurate) -> None:
    x = torch.randn(1, tokens, 128)
    scale = torch.randn(1, tokens if per_token else 1, 128)
    (out,) = launch(x, scale, scale)
    exact = truth(reference.norm_modulate, x, scale, scale)
    assert_as_accurate(out, reference.norm_modulate(x, scale, scale), exact)


@pytest.mark.parametrize("channels", [1, 2, 31, 1023, 1536])
def test_any_width(channels, truth, assert_as_accurate) -> None:
    x = torch.randn(3, channels)
    for tile in tiles(2048)[:2]:
        (out,) = launch(x, x, x, tile=tile)
        exact = truth(reference.norm_modulate, x, x, x)
        assert_as_accurate(out, reference.norm_modulate(x, x, x), exact)


@pytest.mark.parametrize("layout", ["channels", "tokens", "slice", "broadcast"])
def test_strided(dtype, layout, truth, assert_as_accurate) -> None:
    x = {
        "channels": torch.randn(2, 5, 80)[..., ::2],
        "tokens": torch.randn(5, 2, 40).transpose(0, 1),
        "slice": torch.randn(4, 7, 3, 40)[::2, 1:6, 1],
        "broadcast": torch.randn(2, 1, 40).expand(2, 5, 40),
    }[layout].to(dtype)
    table = torch.randn(2, 6, 40)  # as a block's six vectors lie side by side
    scale, shift, gate = table[:, None, 0], table[:, None, 1], table[:, None, 2]
    new_x, out = launch(x, scale, shift, residual=x, gate=gate)
    plain, _ = reference.norm_modulate(x, scale, shift, residual=x, gate=gate)
    torch.testing.assert_close(new_x, plain, rtol=torch.finfo(dtype).eps, atol=1e-6)
    exact = truth(reference.norm_modulate, new_x, scale, shift)
    assert_as_accurate(out, reference.norm_modulate(new_x, scale, shift), exact)


def test_the_residual_is_the_operation_before(dtype) -> None:
    x, y = torch.randn(2, 3, 7, 40, dtype=dtype), torch.randn(2, 3, 7, 40, dtype=dtype)
    gate, scale, shift = torch.randn(3, 2, 3, 1, 40)
    new_x, out = launch(x, scale, shift, "rms", residual=y, gate=gate)
    from kinema.kernels.gate_residual import run as gate_residual

    assert torch.equal(new_x, gate_residual(x, y, gate))
    assert torch.equal(out, launch(new_x, scale, shift, "rms")[0])
    ungated, _ = launch(x, scale, shift, "rms", residual=y)
    assert torch.equal(ungated, x + y)


@pytest.mark.parametrize("to", ["fp8", "int8"])
def test_quantized(dtype, to) -> None:
    x, scale = torch.randn(2, 31, 40).mul(30).to(dtype), torch.randn(2, 1, 40)
    values, peaks = launch(x, scale, scale, quantize=to)
    exact = reference.norm_modulate(x.float(), scale, scale)
    limit = formats.FORMATS[to][1]
    torch.testing.assert_close(peaks, exact.abs().amax(-1, keepdim=True) / limit)
    assert (values.float().abs().amax(-1) == limit).all()
    # Half a step: of 1 for int8; for e4m3 of 2^-3 of the value, or of the least step, 2^-9. fp32
    # noise of the norm comes on top.
    step = exact.div(peaks).abs().mul(2**-4).clamp(min=2**-10) if to == "fp8" else 0.5
    error = (values.float() - exact / peaks).abs()
    assert (error <= step + limit * 1e-5).all()


@pytest.mark.parametrize("to", ["fp8", "int8"])
def test_quantized_values_before_the_cast(to, monkeypatch) -> None:
    x = torch.randn(31, 40)
    unrounded = [x.new_empty(x.shape), x.new_empty(31, 1)]
    monkeypatch.setitem(run.__globals__, "_fake", lambda *_: unrounded)
    values, peaks = launch(x, quantize=to)
    expected = reference.norm_modulate(x) / peaks
    expected = expected.round() if to == "int8" else expected
    near_half = (reference.norm_modulate(x) / peaks).frac().abs().sub(0.5).abs() < 1e-4
    error = (values - expected).abs()
    assert (error[~near_half] <= 448 * 1e-6).all()
    assert (error <= 1).all()


@pytest.mark.parametrize("to", ["fp8", "int8"])
def test_a_token_of_zeros_stays_zero(to) -> None:
    values, peaks = launch(torch.zeros(2, 40), norm="rms", quantize=to)
    assert (values.float() == 0).all()
    assert ((peaks > 0) & peaks.isfinite()).all()


def test_statistics() -> None:
    (out,) = launch(torch.randn(31, 1023).mul(3).add(1000), eps=1e-12)
    torch.testing.assert_close(out.mean(-1), torch.zeros(31), atol=1e-4, rtol=0)
    torch.testing.assert_close(out.square().mean(-1), torch.ones(31), atol=1e-4, rtol=0)


def test_no_tokens(dtype) -> None:
    x = torch.empty(2, 0, 40, dtype=dtype)
    new_x, out, peaks = launch(x, residual=x, quantize="int8")
    assert new_x.shape == out.shape == x.shape
    assert peaks.shape == (2, 0, 1)


X = torch.zeros(2, 3, 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "batch"}, "norm='batch' is not known; layer, rms work"),
        ({"quantize": "int4"}, "quantize='int4' is not known; None, fp8, int8 work"),
        ({"scale": torch.zeros(8, dtype=torch.float64)}, "scale is torch.float64"),
        ({"scale": torch.zeros(2, 2, 8)}, r"scale has shape \(2, 2, 8\), which does not broadcast"),
        ({"shift": torch.zeros(2, 3, 1)}, "its last axis must be 8"),
        ({"weight": torch.zeros(7)}, r"weight has shape \(7,\); \(8,\) works"),
        ({"residual": torch.zeros(2, 3, 7)}, "residual has shape"),
        ({"gate": torch.zeros(8)}, "gate is given without residual"),
        ({"scale": torch.zeros(8, device="meta")}, "scale is on meta, but x on cpu"),
    ],
)
def test_refuses(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        kernels.norm_modulate(X, **options)


def test_refuses_too_many_channels() -> None:
    with pytest.raises(ValueError, match="1 to 16384 channels"):
        kernels.norm_modulate(torch.zeros(1, 16385))
