"""Attention of 8-bit queries and keys, and with fp8 of 8-bit values: lossy, so never automatic.

As SageAttention (arXiv 2410.02367): keys are smoothed by their mean, int8 or fp8 scores are scaled
back inside the softmax. A query's scale multiplies a row of scores, which costs nothing there, and
128 keys share theirs.

Shape legend: B batch, N heads, L queries, S keys, D head size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import product

import torch
from torch import Tensor

from . import torch_backend
from ._checks import (
    added_to_scores,
    check_attention,
    check_fp8,
    check_heads,
    check_one_of,
    check_tensors,
)
from ._chip import capability, describable, describe
from ._compilations import ARCHES, WGMMA, Compilation, defaults, record
from ._operator import operator
from ._quantize import quantize_heads
from ._requirements import HALVES
from ._softmax import (
    LOG2_E,
    Config,
    attend,
    bias_of_keys,
    empty_output,
    gather,
    load_rows,
    scatter,
)
from ._triton import ceil_div, launch, power_of_2, tl, triton
from .formats import FORMATS, KEY_BLOCK, LEAST_PEAK


def configs(major: int, head_dim: int, to: str) -> tuple[Config, ...]:
    """Those worth trying on a chip of compute capability `major`, the default first."""
    if head_dim > 128:
        return (Config(128, 64, 8, 2, major >= 9),)
    if major in (9, 10):
        wide, narrow = Config(128, 128, 8, 2, True), Config(128, 64, 8, 3, True)
        first = (narrow, wide) if major == 10 and to == "int8" else (wide, narrow)
        return (*first, Config(128, 128, 8, 3, True))
    return (Config(128, 64, 8, 2), Config(64, 64, 4, 3))


@triton.jit
def _transpose_heads(
    out, x, peak, x_b, x_n, x_l, heads, rows, padded_rows, limit, least_peak,
    D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Rows of a head as fp8 columns, each channel scaled by its peak; zeros where there are none.

    8-bit matrix products of sm_90 take their second factor along the summed axis only.
    """
    pair = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, BLOCK_D)
    x += pair // heads * x_b + pair % heads * x_n
    value = gather(x, row, row < rows, x_l, D, BLOCK_D, True).to(tl.float32)
    largest = tl.load(peak + pair * D + channel, mask=channel < D, other=1.0)
    value *= (limit / tl.maximum(largest, least_peak))[None, :]
    value = tl.trans(tl.minimum(tl.maximum(value, -limit), limit))
    pointers = out + (pair * D + channel[:, None]) * padded_rows + row[None, :]
    inside = (channel[:, None] < D) & (row[None, :] < padded_rows)
    tl.store(pointers, value.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _quantized(
    out, q, k, v, q_scale, k_scale, v_peak, bias,
    out_b, out_n, out_l, q_b, q_n, q_l, k_b, k_n, k_l, v_b, v_n, v_l, bias_b, bias_n,
    heads, queries, keys, padded_keys, scale, v_limit,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    KEY_BLOCK: tl.constexpr, FP8: tl.constexpr, BIASED: tl.constexpr, DESCRIPTORS: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0) * BLOCK_M
    batch = tl.program_id(1) // heads
    head = tl.program_id(1) % heads
    pair = tl.program_id(1).to(tl.int64)
    # Largest weight 2**8, of at most 448 that e4m3 holds: small weights keep more of their bits.
    HEADROOM: tl.constexpr = 8 if FP8 else 0
    query = load_rows(
        q, batch, head, first, queries, q_b, q_n, q_l, BLOCK_M, D, BLOCK_D, DESCRIPTORS, True
    )
    row = first + tl.arange(0, BLOCK_M)
    q_scales = tl.load(q_scale + pair * queries + row, mask=row < queries, other=0.0) * scale
    k_scale += pair * tl.cdiv(keys, KEY_BLOCK)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    peak = tl.full([BLOCK_M], float("-inf"), tl.float32)
    if BIASED:
        bias += batch.to(tl.int64) * bias_b + head.to(tl.int64) * bias_n
    whole = keys // BLOCK_N * BLOCK_N
    for start in tl.range(0, whole, BLOCK_N):
        key = load_rows(
            k, batch, head, start, keys, k_b, k_n, k_l, BLOCK_N, D, BLOCK_D, DESCRIPTORS, False
        )
        value = _values(
            v, batch, head, start, keys, padded_keys, v_b, v_n, v_l,
            BLOCK_N, D, BLOCK_D, FP8, DESCRIPTORS, False,
        )  # fmt: skip
        scales = q_scales * tl.load(k_scale + start // KEY_BLOCK)
        added = bias_of_keys(bias, start, keys, BLOCK_N, BIASED, False)
        acc, total, peak = attend(
            acc, total, peak, query, key, value, scales, added, BIASED, HEADROOM, "tf32"
        )
    if whole < keys:
        key = load_rows(
            k, batch, head, whole, keys, k_b, k_n, k_l, BLOCK_N, D, BLOCK_D, DESCRIPTORS, True
        )
        value = _values(
            v, batch, head, whole, keys, padded_keys, v_b, v_n, v_l,
            BLOCK_N, D, BLOCK_D, FP8, DESCRIPTORS, True,
        )  # fmt: skip
        scales = q_scales * tl.load(k_scale + whole // KEY_BLOCK)
        added = bias_of_keys(bias, whole, keys, BLOCK_N, BIASED, True)
        acc, total, peak = attend(
            acc, total, peak, query, key, value, scales, added, True, HEADROOM, "tf32"
        )
    if FP8:
        channel = tl.arange(0, BLOCK_D)
        acc *= (tl.load(v_peak + pair * D + channel, mask=channel < D, other=0.0) / v_limit)[
            None, :
        ]
    out += batch.to(tl.int64) * out_b + head.to(tl.int64) * out_n
    scatter(out, row, row < queries, out_l, acc, total, D, BLOCK_D)


@triton.jit
def _values(
    v, batch, head, first, keys, padded_keys, v_b, v_n, v_l,
    ROWS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    FP8: tl.constexpr, DESCRIPTORS: tl.constexpr, EDGE: tl.constexpr,
):  # fmt: skip
    """Values (ROWS, BLOCK_D), which fp8 keeps as (D, S), padded with zeros."""
    if not FP8:
        tile = load_rows(
            v, batch, head, first, keys, v_b, v_n, v_l, ROWS, D, BLOCK_D, DESCRIPTORS, EDGE
        )
    elif DESCRIPTORS:
        tile = v.load([batch, head, 0, first]).reshape(BLOCK_D, ROWS).T
    else:
        channel = tl.arange(0, BLOCK_D)
        column = first + tl.arange(0, ROWS)
        v += batch.to(tl.int64) * v_b + head.to(tl.int64) * v_n
        pointers = v + channel[:, None].to(tl.int64) * v_l + column[None, :]
        inside = (channel[:, None] < D) & (column[None, :] < padded_keys)
        tile = tl.load(pointers, mask=inside, other=0.0).T
    return tile


def transpose_heads(x: Tensor, peak: Tensor) -> Tensor:
    """x (B, N, S, D) with peaks (B, N, D) as fp8 (B, N, D, S rounded up to `KEY_BLOCK`)."""
    batch, heads, rows, head_dim = x.shape
    dtype, limit = FORMATS["fp8"]
    padded = ceil_div(rows, KEY_BLOCK) * KEY_BLOCK
    out = torch.empty(batch, heads, head_dim, padded, dtype=dtype, device=x.device)
    launch(
        _transpose_heads,
        (padded // KEY_BLOCK, batch * heads),
        *(out, x, peak, *x.stride()[:3], heads, rows, padded, limit, LEAST_PEAK),
        D=head_dim,
        BLOCK_D=max(16, power_of_2(head_dim)),
        ROWS=KEY_BLOCK,
        num_warps=8,
    )
    return out


def run(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    scale: float,
    to: str,
    config: Config,
) -> Tensor:
    """Quantize and launch one configuration, checks left out."""
    batch, heads, queries, head_dim = query.shape
    keys = key.shape[2]
    out = empty_output(query)
    if out.numel() == 0 or keys == 0:
        return out.zero_()
    fp8 = to == "fp8"
    q, q_scale = quantize_heads(query, None, to, shared=False)
    mean = key.mean(dim=2, dtype=torch.float32)
    k, k_scale = quantize_heads(key, mean, to, shared=True)
    peak = value.new_empty(0) if not fp8 else torch.linalg.vector_norm(value, torch.inf, dim=2)
    peak = peak.float()
    v = transpose_heads(value, peak) if fp8 else value
    block_d = max(16, power_of_2(head_dim))
    rows = [[1, 1, count, block_d] for count in (config.block_m, config.block_n, config.block_n)]
    if fp8:
        rows[2] = [1, 1, block_d, config.block_n]
    descriptors = config.descriptors and describable(q, k, v)
    if bias is not None:
        bias = bias.contiguous().expand(batch, heads, 1, keys)
    launch(
        _quantized,
        (ceil_div(queries, config.block_m), batch * heads),
        out,
        *describe((q, k, v), rows, descriptors),
        *(q_scale, k_scale, peak if fp8 else None, bias),
        *(step for tensor in (out, q, k, v) for step in tensor.stride()[:3]),
        *((0, 0) if bias is None else bias.stride()[:2]),
        heads,
        queries,
        keys,
        v.shape[3] if fp8 else keys,
        scale * LOG2_E,
        FORMATS["fp8"][1],
        D=head_dim,
        BLOCK_D=block_d,
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
        KEY_BLOCK=KEY_BLOCK,
        FP8=fp8,
        BIASED=bias is not None,
        DESCRIPTORS=descriptors,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    return out


def _launch(query, key, value, bias, scale, to):
    check_fp8(to, query.device)
    config = configs(capability(query.device), query.shape[-1], to)[0]
    return run(query, key, value, bias, scale, to, config)


def _plain(query, key, value, bias, scale, to):
    out = torch_backend.quantized_attention(query, key, value, bias, scale=scale, to=to)
    return empty_output(query).copy_(out)


def _fake(query, key, value, bias, scale, to):
    return empty_output(query)


_op = operator(
    "quantized_attention",
    "(Tensor query, Tensor key, Tensor value, Tensor? bias, float scale, str to) -> Tensor",
    launch=_launch,
    plain=_plain,
    fake=_fake,
)


def quantized_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None = None,
    *,
    scale: float | None = None,
    to: str = "int8",
) -> Tensor:
    """As `reference.quantized_attention`; raises `ValueError` naming what does not fit.

    bf16 or fp16, head dims up to 256 in steps of 16. fp8 needs compute capability 8.9.
    """
    scale = check_attention(query, key, value, bias, scale)
    check_one_of("to", to, tuple(FORMATS))
    check_tensors(HALVES, query=query)
    check_heads(query=query, key=key, value=value)
    if query.shape[-1] % 16:
        raise ValueError(f"head dim is {query.shape[-1]}; multiples of 16 work in 8 bits")
    added = None if bias is None else added_to_scores(bias)
    return _op(query, key, value, added, scale, to)


# Backends of dense attention.
int8_attention = partial(quantized_attention, to="int8")
fp8_attention = partial(quantized_attention, to="fp8")


def compilations() -> Iterator[Compilation]:
    """Every configuration and format at the models' head dims, with what quantizes before it."""
    for arch, head_dim, dtype, to in product(ARCHES, (64, 128), HALVES, FORMATS):
        if to == "fp8" and arch == "sm_80":
            continue  # e4m3 came with sm_89
        packed = torch.empty(1, 32760, 3, 12, head_dim, dtype=dtype, device="meta")
        query, key, value = packed.transpose(1, 3).unbind(2)
        for index, config in enumerate(configs(int(arch[3:]) // 10, head_dim, to)):
            found = record(
                "quantized_attention",
                f"{to} {str(dtype)[6:]} head dim {head_dim} {config}",
                partial(run, query, key, value, None, 0.1, to, config),
                default=defaults(dtype) if index == 0 else (),
                arches=(arch,),
            )
            for compilation in found:
                if compilation.kernel is _quantized:
                    yield replace(compilation, needs=WGMMA)
                elif compilation.default:  # what quantizes does not depend on the configuration
                    shared = " of key blocks" * compilation.constexprs.get("SHARED", False)
                    yield replace(compilation, config=compilation.config + shared)
