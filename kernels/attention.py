"""Dense attention: full spacetime, cross and joint, heads where the projections left them.

Chips with a tensor copy engine (sm_90 and later) read 4-D tensor descriptors, so a strided view
needs no copy and an edge no mask.

Shape legend: B batch, N heads, L queries, S keys, D head size.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import product

import torch
from torch import Tensor

from . import torch_backend
from ._checks import DTYPES, added_to_scores, check_attention, check_heads
from ._chip import capability, describable, describe
from ._compilations import ARCHES, WGMMA, Compilation, defaults, record
from ._operator import operator
from ._softmax import (
    LOG2_E,
    Config,
    attend,
    bias_of_keys,
    empty_output,
    fp32_config,
    load_rows,
    scatter,
)
from ._triton import ceil_div, launch, power_of_2, tl, triton


def configs(major: int, head_dim: int, dtype: torch.dtype) -> tuple[Config, ...]:
    """Those worth trying on a chip of compute capability `major`, the default first."""
    if dtype == torch.float32:
        return (fp32_config(head_dim),)
    if head_dim > 128:
        return (Config(128, 64, 8, 2, True),) if major in (9, 10) else (Config(64, 32, 4, 2),)
    if major == 9:
        return (
            Config(128, 128, 8, 2, True),
            Config(128, 64, 8, 3, True),
            Config(64, 64, 4, 3, True),  # two programs a multiprocessor
            Config(64, 128, 4, 2, True),
            Config(128, 128, 8, 2),
        )
    if major == 10:
        return (
            Config(128, 128, 8, 2, True),
            Config(128, 64, 4 if head_dim <= 64 else 8, 3, True),
            Config(256, 64, 8, 3, True, True),
        )
    if head_dim > 64:
        return (Config(128, 32, 8, 3), Config(128, 64, 8, 2))
    return (Config(128, 64, 8, 3), Config(128, 64, 8, 2), Config(128, 32, 8, 3))


@triton.jit
def _dense(
    out, q, k, v, bias, out_b, out_n, out_l, q_b, q_n, q_l, k_b, k_n, k_l, v_b, v_n, v_l, bias_b,
    bias_n, heads, queries, keys, scale,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BIASED: tl.constexpr, DESCRIPTORS: tl.constexpr, WARP_SPECIALIZE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0) * BLOCK_M
    batch = tl.program_id(1) // heads
    head = tl.program_id(1) % heads
    query = load_rows(
        q, batch, head, first, queries, q_b, q_n, q_l, BLOCK_M, D, BLOCK_D, DESCRIPTORS, True
    )
    scales = tl.full([BLOCK_M], scale, tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    peak = tl.full([BLOCK_M], float("-inf"), tl.float32)
    if BIASED:
        bias += batch.to(tl.int64) * bias_b + head.to(tl.int64) * bias_n
    whole = keys // BLOCK_N * BLOCK_N
    for start in tl.range(0, whole, BLOCK_N, warp_specialize=WARP_SPECIALIZE):
        key = load_rows(
            k, batch, head, start, keys, k_b, k_n, k_l, BLOCK_N, D, BLOCK_D, DESCRIPTORS, False
        )
        value = load_rows(
            v, batch, head, start, keys, v_b, v_n, v_l, BLOCK_N, D, BLOCK_D, DESCRIPTORS, False
        )
        added = bias_of_keys(bias, start, keys, BLOCK_N, BIASED, False)
        acc, total, peak = attend(
            acc, total, peak, query, key, value, scales, added, BIASED, 0, PRECISION
        )
    if whole < keys:
        key = load_rows(
            k, batch, head, whole, keys, k_b, k_n, k_l, BLOCK_N, D, BLOCK_D, DESCRIPTORS, True
        )
        value = load_rows(
            v, batch, head, whole, keys, v_b, v_n, v_l, BLOCK_N, D, BLOCK_D, DESCRIPTORS, True
        )
        added = bias_of_keys(bias, whole, keys, BLOCK_N, BIASED, True)
        acc, total, peak = attend(
            acc, total, peak, query, key, value, scales, added, True, 0, PRECISION
        )
    out += batch.to(tl.int64) * out_b + head.to(tl.int64) * out_n
    row = first + tl.arange(0, BLOCK_M)
    scatter(out, row, row < queries, out_l, acc, total, D, BLOCK_D)


def run(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scale: float, config: Config
) -> Tensor:
    """Launch one configuration, checks left out."""
    batch, heads, queries, head_dim = query.shape
    keys = key.shape[2]
    out = empty_output(query)
    if out.numel() == 0 or keys == 0:
        return out.zero_()
    block_d = max(16, power_of_2(head_dim))
    tensors = (query, key, value)
    blocks = (config.block_m, config.block_n, config.block_n)
    descriptors = config.descriptors and describable(*tensors)
    handles = describe(tensors, [[1, 1, rows, block_d] for rows in blocks], descriptors)
    if bias is not None:
        bias = bias.contiguous().expand(batch, heads, 1, keys)
    launch(
        _dense,
        (ceil_div(queries, config.block_m), batch * heads),
        out,
        *handles,
        bias,
        *(step for tensor in (out, *tensors) for step in tensor.stride()[:3]),
        *((0, 0) if bias is None else bias.stride()[:2]),
        heads,
        queries,
        keys,
        scale * LOG2_E,
        D=head_dim,
        BLOCK_D=block_d,
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
        BIASED=bias is not None,
        DESCRIPTORS=descriptors,
        WARP_SPECIALIZE=config.warp_specialize,
        PRECISION="tf32x3" if query.dtype == torch.float32 else "tf32",
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    return out


def _launch(query, key, value, bias, scale):
    config = configs(capability(query.device), query.shape[-1], query.dtype)[0]
    return run(query, key, value, bias, scale, config)


def _plain(query, key, value, bias, scale):
    out = torch_backend.attention(query, key, value, bias, scale=scale)
    return empty_output(query).copy_(out)


def _fake(query, key, value, bias, scale):
    return empty_output(query)


_op = operator(
    "attention",
    "(Tensor query, Tensor key, Tensor value, Tensor? bias, float scale) -> Tensor",
    launch=_launch,
    plain=_plain,
    fake=_fake,
)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None = None,
    *,
    scale: float | None = None,
) -> Tensor:
    """As `reference.attention`; raises `ValueError` naming what does not fit.

    Head dims up to 256, channels contiguous, every other axis strided as it may be.
    """
    scale = check_attention(query, key, value, bias, scale)
    check_heads(query=query, key=key, value=value)
    added = None if bias is None else added_to_scores(bias)
    return _op(query, key, value, added, scale)


def compilations() -> Iterator[Compilation]:
    """Every configuration at the models' head dims, on strided views of a packed projection."""
    for arch, head_dim, dtype, biased in product(ARCHES, (64, 128), DTYPES, (False, True)):
        packed = torch.empty(1, 32760, 3, 12, head_dim, dtype=dtype, device="meta")
        query, key, value = packed.transpose(1, 3).unbind(2)
        bias = packed.new_empty(1, 1, 1, 32760, dtype=torch.float32) if biased else None
        for index, config in enumerate(configs(int(arch[3:]) // 10, head_dim, dtype)):
            yield from record(
                "attention",
                f"{str(dtype)[6:]} head dim {head_dim}{' bias' * biased} {config}",
                partial(run, query, key, value, bias, 0.1, config),
                default=defaults(dtype) if index == 0 else (),
                needs=frozenset() if dtype == torch.float32 else WGMMA,
                arches=(arch,),
            )
