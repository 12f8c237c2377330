"""attention against its definition, the laws it keeps, and the choice of its backend."""

from __future__ import annotations

import pytest
import torch

from kinema import kernels
from kinema.kernels import dispatch, reference, torch_backend
from kinema.kernels._chip import describable
from kinema.kernels._softmax import Config
from kinema.kernels.attention import configs, run

POINTERS = Config(32, 16, 4, 1)
DESCRIPTORS = POINTERS._replace(descriptors=True)


def heads(*shape: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """Query, key and value as they lie in a packed projection: (B, L, 3, N, D)."""
    batch, count, length, head_dim = shape
    packed = torch.randn(batch, length, 3, count, head_dim).to(dtype)
    return list(packed.transpose(1, 3).unbind(2))


@pytest.mark.parametrize("config", [POINTERS, DESCRIPTORS], ids=["pointers", "descriptors"])
@pytest.mark.parametrize("head_dim", [16, 40])
def test_parity(dtype, config, head_dim, truth, assert_as_accurate) -> None:
    query, key, value = heads(2, 3, 50, head_dim, dtype=dtype)
    assert describable(query, key, value)
    out = run(query, key, value, None, 0.3, config)
    plain = torch_backend.attention(query, key, value, scale=0.3)
    assert_as_accurate(out, plain, truth(reference.attention, query, key, value, scale=0.3))


@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (2, 31), (33, 7), (1, 1023), (17, 64)])
def test_any_token_count(queries, keys, truth, assert_as_accurate) -> None:
    query = torch.randn(1, 2, queries, 16)
    key, value = torch.randn(2, 1, 2, keys, 16)
    out = run(query, key, value, None, 0.25, DESCRIPTORS)
    plain = torch_backend.attention(query, key, value)
    assert_as_accurate(out, plain, truth(reference.attention, query, key, value))


@pytest.mark.parametrize("shape", [(2, 3, 1, 40), (1, 1, 1, 40), (2, 1, 1, 40)])
def test_bias_of_keys(dtype, shape, truth, assert_as_accurate) -> None:
    query, key, value = heads(2, 3, 40, 16, dtype=dtype)
    bias = torch.randn(shape).masked_fill(torch.rand(shape) < 0.3, -torch.inf)
    out = run(query, key, value, bias, 0.25, POINTERS)
    plain = torch_backend.attention(query, key, value, bias)
    exact = truth(reference.attention, query, key, value, bias)
    assert_as_accurate(out, plain, exact)


def test_a_bias_merges_equal_keys() -> None:
    """One key biased by log(n) counts as n keys like it."""
    query, key, value = heads(1, 2, 24, 16)
    repeated = torch.tensor([5] * 7 + list(range(24)))
    bias = torch.zeros(1, 1, 1, 24)
    bias[..., 5] = torch.tensor(8.0).log()
    merged = run(query, key, value, bias, 0.25, POINTERS)
    whole = run(query, key[:, :, repeated], value[:, :, repeated], None, 0.25, POINTERS)
    # Both sum the same terms in another order.
    torch.testing.assert_close(merged, whole, rtol=0, atol=8 * torch.finfo(torch.float32).eps)


def test_masked_keys_do_not_count() -> None:
    query, key, value = heads(2, 2, 24, 16)
    keep = torch.rand(2, 1, 1, 24) < 0.5
    key, value = (tensor.masked_fill(~keep.mT, 1e4) for tensor in (key, value))
    bias = torch.zeros(keep.shape).masked_fill(~keep, -torch.inf)
    out = run(query, key, value, bias, 0.25, POINTERS)
    zeroed = (tensor.masked_fill(~keep.mT, 0.0) for tensor in (key, value))
    torch.testing.assert_close(out, run(query, *zeroed, bias, 0.25, POINTERS), rtol=0, atol=0)
    assert torch.equal(
        kernels.attention(query, key, value, keep), kernels.attention(query, key, value, bias)
    )


def test_a_query_without_keys_gets_zeros() -> None:
    query, key, value = heads(2, 2, 20, 16)
    bias = torch.zeros(2, 1, 1, 20)
    bias[1] = -torch.inf
    out = run(query, key, value, bias, 0.25, POINTERS)
    assert out[0].abs().min() > 0
    assert torch.equal(out[1], torch.zeros_like(out[1]))
    assert torch.equal(reference.attention(query, key, value, bias)[1], out[1])
    nothing = run(query, key[:, :, :0], value[:, :, :0], None, 0.25, POINTERS)
    assert torch.equal(nothing, torch.zeros_like(nothing))


def test_rows_of_weights_sum_to_one() -> None:
    query, key, _ = heads(1, 2, 37, 16)
    out = run(query, key, torch.ones_like(key), None, 0.25, POINTERS)
    torch.testing.assert_close(out, torch.ones_like(out), rtol=0, atol=1e-6)


def test_large_scores_stay_finite(truth, assert_as_accurate) -> None:
    query, key, value = heads(1, 1, 33, 16)
    query = query * 1e4
    out = run(query, key, value, None, 0.25, POINTERS)
    plain = torch_backend.attention(query, key, value)
    assert_as_accurate(out, plain, truth(reference.attention, query, key, value))


def test_output_is_laid_out_for_the_projection() -> None:
    query, key, value = heads(2, 3, 20, 16)
    out = kernels.attention(query, key, value)
    assert out.transpose(1, 2).is_contiguous()
    flat = out.transpose(1, 2).flatten(2)
    assert flat.data_ptr() == out.data_ptr()


def test_views_off_16_bytes_take_pointers(truth, assert_as_accurate) -> None:
    query, key, value = (torch.randn(1, 2, 20, 19)[..., 1:18] for _ in range(3))
    assert not describable(query, key, value)
    out = run(query, key, value, None, 0.25, DESCRIPTORS)
    plain = torch_backend.attention(query, key, value, scale=0.25)
    assert_as_accurate(out, plain, truth(reference.attention, query, key, value, scale=0.25))


def test_every_chip_has_configurations() -> None:
    for major in (8, 9, 10, 12):
        for head_dim in (16, 64, 128, 256):
            for dtype in (torch.bfloat16, torch.float16, torch.float32):
                found = configs(major, head_dim, dtype)
                assert found
                assert len(set(found)) == len(found)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"query": torch.zeros(2, 20, 16)}, r"\(B, N, L, D\)"),
        ({"key": torch.zeros(1, 2, 20, 8)}, r"key has shape \(1, 2, 20, 8\).*\(1, 2, 20, 16\)"),
        ({"value": torch.zeros(1, 2, 21, 16)}, r"value has shape \(1, 2, 21, 16\)"),
        ({"key": torch.zeros(1, 2, 20, 16).half()}, "key is torch.float16.*float32"),
        ({"bias": torch.zeros(1, 1, 20, 20)}, r"bias has shape.*\(1 or 1, 1 or 2, 1, 20\)"),
        ({"bias": torch.zeros(1, 1, 1, 20).long()}, "bias is torch.int64"),
        ({"scale": -1.0}, "scale is -1.0; it must be positive"),
        ({"value": torch.zeros(1, 2, 16, 20).mT}, "20 elements apart"),
    ],
)
def test_refuses(change, says) -> None:
    arguments = dict(zip(("query", "key", "value"), heads(1, 2, 20, 16), strict=True)) | change
    with pytest.raises(ValueError, match=says):
        kernels.attention(**arguments)


def test_refuses_wide_heads() -> None:
    with pytest.raises(ValueError, match="head dim 320; up to 256"):
        kernels.attention(*heads(1, 1, 4, 320))


def test_automatic_choice_says_what_it_took() -> None:
    choice = dispatch.choose("attention", "cpu", dtype=torch.float32, head_dim=16)
    assert choice.backend == "torch"
    assert "flash3" in choice.reason
    query, key, value = heads(1, 2, 20, 16)
    torch.testing.assert_close(
        choice.function(query, key, value), reference.attention(query, key, value)
    )


@pytest.mark.parametrize("name", ["flash3", "cudnn", "flash4", "flash2", "triton", "triton-fp8"])
def test_explicit_choice_raises_with_the_reason(name) -> None:
    with pytest.raises(RuntimeError, match=rf"cannot use {name}: .*cuda"):
        dispatch.choose("attention", "cpu", name)


def test_8_bits_are_never_automatic() -> None:
    automatic = {entry.name: entry.automatic for entry in dispatch.backends("attention")}
    assert not automatic["triton-int8"]
    assert not automatic["triton-fp8"]
    assert automatic["triton"]


@pytest.mark.parametrize(
    ("needs", "says"),
    [
        ({"dtype": torch.float32}, "dtype is torch.float32"),
        ({"head_dim": 320}, "head dim is 320; multiples of 8 up to 256"),
        ({"bias": True}, "takes no bias"),
        ({}, "pip install fa3-fwd"),
    ],
)
def test_what_a_package_lacks_is_named(needs, says, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    table = {entry.name: entry for entry in dispatch.backends("attention")}
    if needs:
        monkeypatch.setattr("kinema.kernels._requirements.find_spec", lambda name: object())
    flash3 = dispatch.Backend("flash3", "", table["flash3"].missing)
    assert says in flash3.missing(torch.device("cuda"), needs)
