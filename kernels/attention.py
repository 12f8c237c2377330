"""Dense attention: full spacetime, cross and joint, heads where the projections left them.

The online softmax of FlashAttention-2 (Dao, 2023), kept in base 2. Chips with a tensor copy engine
(sm_90 and later) read 4-D tensor descriptors, so a strided view needs no copy and an edge no mask.

Shape legend: B batch, N heads, L queries, S keys, D head size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import torch_backend
from ._checks import added_to_scores, check_attention, check_contiguous_channels
from ._operator import DTYPES, operator
from ._triton import ceil_div, launch, power_of_2, tl, triton
from .aot import ARCHES, WGMMA, Compilation, defaults, record

LOG2_E = 1.4426950408889634
MAX_HEAD_DIM = 256


class Config(NamedTuple):
    """One way to launch: queries and keys a program holds at a time, warps, pipeline depth."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    descriptors: bool = False
    warp_specialize: bool = False

    def __str__(self) -> str:
        extra = "-desc" * self.descriptors + "-ws" * self.warp_specialize
        return f"m{self.block_m}n{self.block_n}w{self.num_warps}s{self.num_stages}{extra}"


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


def fp32_config(head_dim: int) -> Config:
    """The tile of three TF32 products that spills least; none at head dims up to 64."""
    if head_dim > 64:
        return Config(16, 32, 4 if head_dim <= 128 else 8, 1)
    return Config(64, 16, 8, 1)


@triton.jit
def gather(
    source, row, inside, stride,
    D: tl.constexpr, BLOCK_D: tl.constexpr, EDGE: tl.constexpr,
):  # fmt: skip
    """Rows (M,) of a head, (M, BLOCK_D): zeros beyond D, and where not `inside` (M,) if EDGE."""
    channel = tl.arange(0, BLOCK_D)
    pointers = source + row[:, None].to(tl.int64) * stride + channel[None, :]
    if EDGE:
        tile = tl.load(pointers, mask=inside[:, None] & (channel[None, :] < D), other=0.0)
    elif D < BLOCK_D:
        tile = tl.load(pointers, mask=channel[None, :] < D, other=0.0)
    else:
        tile = tl.load(pointers)
    return tile


@triton.jit
def scatter(out, row, inside, stride, acc, total, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Write `acc / total` to rows (M,) of a head; zeros where every key was masked."""
    channel = tl.arange(0, BLOCK_D)
    pointers = out + row[:, None].to(tl.int64) * stride + channel[None, :]
    result = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    tl.store(
        pointers,
        result.to(out.dtype.element_ty),
        mask=inside[:, None] & (channel[None, :] < D),
    )


@triton.jit
def load_rows(
    source, batch, head, first, rows, stride_b, stride_n, stride_l,
    ROWS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, DESCRIPTORS: tl.constexpr,
    EDGE: tl.constexpr,
):  # fmt: skip
    """Rows `first` and on of one head, (ROWS, BLOCK_D); zeros beyond D, and `rows` if EDGE."""
    if DESCRIPTORS:
        tile = source.load([batch, head, first, 0]).reshape(ROWS, BLOCK_D)
    else:
        row = first + tl.arange(0, ROWS)
        source += batch.to(tl.int64) * stride_b + head.to(tl.int64) * stride_n
        tile = gather(source, row, row < rows, stride_l, D, BLOCK_D, EDGE)
    return tile


@triton.jit
def attend(
    acc, total, peak, query, key, value, scale, bias,
    BIASED: tl.constexpr, HEADROOM: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Take one tile of keys (BLOCK_N, D) and values (BLOCK_N, D) into the running softmax.

    `scale` (BLOCK_M,) of the scores and `bias` (BLOCK_N,), -inf where masked, are in base 2.
    `acc`, `total` and `peak` are the weighted values, the weights' sum and the largest score.
    Weights are at most 2**HEADROOM, which cancels in acc / total.
    """
    if query.dtype == tl.int8:
        # 1.5 * 2**23 as bits: adding an integer of up to 22 bits to it is converting it to float.
        magic = tl.full([query.shape[0], key.shape[0]], 0x4B400000, tl.int32)
        scores = tl.dot(query, key.T, magic, out_dtype=tl.int32).to(tl.float32, bitcast=True)
        scores -= 12582912.0
    else:
        scores = tl.dot(query, key.T, input_precision=PRECISION)
    if BIASED:
        scores = scores * scale[:, None] + bias[None, :]
        new_peak = tl.maximum(peak, tl.max(scores, 1))
        # A row that has met no key yet has no peak to subtract: -inf - -inf would be NaN.
        origin = tl.where(new_peak == float("-inf"), 0.0, new_peak)
        weights = tl.exp2(scores - (origin - HEADROOM)[:, None])
    else:
        new_peak = tl.maximum(peak, tl.max(scores, 1) * scale)
        origin = new_peak
        weights = tl.exp2(scores * scale[:, None] - (origin - HEADROOM)[:, None])
    keep = tl.exp2(peak - origin)
    total = total * keep + tl.sum(weights, 1)
    acc = tl.dot(weights.to(value.dtype), value, acc * keep[:, None], input_precision=PRECISION)
    return acc, total, new_peak


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
    column = tl.arange(0, BLOCK_N)
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
        added = column * 0.0
        if BIASED:
            added = tl.load(bias + start + column).to(tl.float32) * 1.4426950408889634
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
        inside = whole + column < keys
        added = tl.where(inside, 0.0, float("-inf"))
        if BIASED:
            added = tl.load(bias + whole + column, mask=inside, other=float("-inf")).to(tl.float32)
            added *= 1.4426950408889634
        acc, total, peak = attend(
            acc, total, peak, query, key, value, scales, added, True, 0, PRECISION
        )
    out += batch.to(tl.int64) * out_b + head.to(tl.int64) * out_n
    row = first + tl.arange(0, BLOCK_M)
    scatter(out, row, row < queries, out_l, acc, total, D, BLOCK_D)


def describable(*tensors: Tensor) -> bool:
    """Whether the tensor copy engine can address them: 16-byte steps, the last axis contiguous."""
    return all(
        tensor.stride(-1) == 1
        and tensor.data_ptr() % 16 == 0
        and all(step * tensor.itemsize % 16 == 0 for step in tensor.stride()[:-1])
        for tensor in tensors
    )


def describe(
    tensors: Sequence[Tensor], blocks: Sequence[Sequence[int]], descriptors: bool
) -> Sequence[Any]:
    """What a kernel reads tensors through: host tensor descriptors, or the tensors themselves."""
    if not descriptors:
        return tensors
    from triton.tools.tensor_descriptor import TensorDescriptor

    pairs = zip(tensors, blocks, strict=True)
    return [TensorDescriptor.from_tensor(tensor, list(block)) for tensor, block in pairs]


def capability(device: torch.device) -> int:
    """Major compute capability; 8, the least, on AMD and for tensors of Triton's interpreter."""
    nvidia = device.type == "cuda" and torch.version.hip is None
    return torch.cuda.get_device_capability(device)[0] if nvidia else 8


def empty_output(query: Tensor) -> Tensor:
    """(B, N, L, D) laid out as (B, L, N, D), so that the output projection reads it in place."""
    batch, heads, queries, head_dim = query.shape
    return query.new_empty(batch, queries, heads, head_dim).transpose(1, 2)


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


def check_heads(**tensors: Tensor) -> None:
    """What the kernels ask beyond the definition; raises `ValueError`."""
    for name, tensor in tensors.items():
        if tensor.shape[-1] > MAX_HEAD_DIM:
            raise ValueError(f"{name} has head dim {tensor.shape[-1]}; up to {MAX_HEAD_DIM} work")
    check_contiguous_channels(**tensors)


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
