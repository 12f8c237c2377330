"""What operations ask of their arguments; one line names the value and what works."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ._requirements import FP8, HALVES
from .formats import Quantized, format_of
from .tiles import TileMask

DTYPES = (*HALVES, torch.float32)
LEAST_EPS = 1e-30
MAX_HEAD_DIM = 256  # of kernels of attention


def check_one_of(name: str, value: Any, allowed: Sequence[Any]) -> None:
    """`ValueError` unless `value` is one of those allowed."""
    if value not in allowed:
        raise ValueError(f"{name}={value!r} is not known; {_listed(allowed)} work")


def check_eps(eps: float) -> None:
    """`ValueError` for an eps that fp32 does not tell from zero: a row of zeros would be NaN."""
    if not LEAST_EPS <= eps < math.inf:
        raise ValueError(
            f"eps={eps} leaves a row of zeros without a norm; {LEAST_EPS} or more works"
        )


def check_tensors(dtypes: Sequence[torch.dtype] = DTYPES, **tensors: Tensor | None) -> None:
    """`ValueError` unless all have one of `dtypes` and the device of the first."""
    leader = next(iter(tensors.values()))
    assert leader is not None
    device = leader.device
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if tensor.dtype not in dtypes:
            raise ValueError(f"{name} is {tensor.dtype}; {_listed(dtypes)} work")
        if tensor.device != device:
            first = next(iter(tensors))
            raise ValueError(f"{name} is on {tensor.device}, but {first} on {device}")


def check_shape(name: str, tensor: Tensor | None, *allowed: Sequence[int]) -> None:
    """`ValueError` unless an optional tensor has one of the shapes."""
    if tensor is not None and all(list(tensor.shape) != list(shape) for shape in allowed):
        shapes = " or ".join(str(tuple(shape)) for shape in allowed)
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; {shapes} works")


def check_broadcast(name: str, tensor: Tensor | None, shape: Sequence[int]) -> None:
    """`ValueError` unless an optional tensor has all channels and its other axes broadcast."""
    if tensor is None:
        return
    own = tuple(tensor.shape)
    fits = 0 < len(own) <= len(shape) and own[-1] == shape[-1]
    pairs = zip(reversed(own[:-1]), reversed(shape[:-1]), strict=False)
    if not (fits and all(one_or(*pair) for pair in pairs)):
        raise ValueError(
            f"{name} has shape {own}, which does not broadcast to {tuple(shape)}: its last axis"
            f" must be {shape[-1]}, each other 1 or that of x"
        )


def one_or(size: int, whole: int) -> bool:
    """Whether an axis broadcasts. (`in (1, whole)` fails while torch.compile traces whole.)"""
    return size == 1 or size == whole


def _listed(values: Sequence[Any]) -> str:
    return ", ".join(str(value) for value in values)


# ---- attention and products ----------------------------------------------------------------------


def check_attention(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scale: float | None
) -> float:
    """The scale to use, 1 / sqrt(D) by default; `ValueError` where an argument does not fit."""
    if query.dim() != 4:
        raise ValueError(f"query has shape {tuple(query.shape)}; it must be (B, N, L, D)")
    batch, heads, _, head_dim = query.shape
    wanted = (batch, heads, key.shape[2] if key.dim() == 4 else "S", head_dim)
    for name, tensor in (("key", key), ("value", value)):
        if tuple(tensor.shape) != wanted:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}; for query {tuple(query.shape)} it must be"
                f" {wanted}"
            )
    check_tensors((*DTYPES, torch.float64), query=query)
    check_tensors((query.dtype,), query=query, key=key, value=value)
    if bias is not None:
        check_bias(bias, query, key)
    factor = head_dim**-0.5 if scale is None else float(scale)
    if not 0 < factor < math.inf:
        raise ValueError(f"scale is {factor}; it must be positive and finite")
    return factor


def check_heads(**tensors: Tensor) -> None:
    """What kernels of attention ask beyond the definition; raises `ValueError`."""
    for name, tensor in tensors.items():
        if tensor.shape[-1] > MAX_HEAD_DIM:
            raise ValueError(f"{name} has head dim {tensor.shape[-1]}; up to {MAX_HEAD_DIM} work")
    check_contiguous_channels(**tensors)


def check_bias(bias: Tensor, query: Tensor, key: Tensor) -> None:
    """A bias of keys broadcasts to (B, N, 1, S); raises `ValueError` if this one does not."""
    batch, heads, keys = query.shape[0], query.shape[1], key.shape[2]
    fits = (
        bias.dim() == 4
        and one_or(bias.shape[0], batch)
        and one_or(bias.shape[1], heads)
        and bias.shape[2] == 1
        and bias.shape[3] == keys
    )
    if not fits:
        raise ValueError(
            f"bias has shape {tuple(bias.shape)}; it must be (1 or {batch}, 1 or {heads}, 1,"
            f" {keys})"
        )
    if bias.dtype != torch.bool:
        check_tensors((*DTYPES, torch.float64), bias=bias)
    if bias.device != query.device:
        raise ValueError(f"bias is on {bias.device}, but query on {query.device}")


def added_to_scores(bias: Tensor) -> Tensor:
    """A bias as numbers: a mask of bool, True where a key takes part, becomes 0 and -inf."""
    if bias.dtype != torch.bool:
        return bias
    return torch.zeros_like(bias, dtype=torch.float32).masked_fill(~bias, -math.inf)


def check_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """x (..., K), weight (M, K), bias (M,); raises `ValueError` for shapes that do not fit."""
    if weight.dim() != 2:
        raise ValueError(f"weight has shape {tuple(weight.shape)}; it must be (outputs, inputs)")
    outputs, inputs = weight.shape
    if x.dim() < 1 or x.shape[-1] != inputs:
        raise ValueError(
            f"x has shape {tuple(x.shape)}; weight {tuple(weight.shape)} takes (..., {inputs})"
        )
    check_shape("bias", bias, (outputs,))
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.device != x.device:
            raise ValueError(f"{name} is on {tensor.device}, but x on {x.device}")


def check_quantized_linear(
    x: Tensor | Quantized, weight: Quantized, bias: Tensor | None, dtype: torch.dtype | None
) -> torch.dtype:
    """The dtype of the product; raises `ValueError` where an argument does not fit."""
    if not isinstance(weight, Quantized):
        raise ValueError(f"weight is a {type(weight).__name__}; quantize_tokens(weight, to) works")
    format_of(weight)
    values = x.values if isinstance(x, Quantized) else x
    check_linear(values, weight.values, bias)
    check_shape("weight.scale", weight.scale, (weight.values.shape[0], 1))
    if isinstance(x, Quantized):
        check_shape("x.scale", x.scale, (*values.shape[:-1], 1))
        if values.dtype != weight.values.dtype:
            raise ValueError(f"x is {values.dtype}, but weight {weight.values.dtype}")
        return torch.bfloat16 if dtype is None else dtype
    check_tensors(x=x)
    return x.dtype if dtype is None else dtype


def check_tiles(query: Tensor, key: Tensor, tiles: TileMask) -> None:
    """Tiles of exactly these tokens, on the same device; raises `ValueError` otherwise."""
    batch, heads, tokens, _ = query.shape
    count = len(tiles.rows)
    if key.shape[2] != tokens:
        raise ValueError(f"{key.shape[2]} keys for {tokens} queries; tiles are of one token grid")
    if tiles.num_tokens != tokens:
        raise ValueError(f"tiles are of {tiles.num_tokens} tokens, query has {tokens}")
    shape, counted = tuple(tiles.keys.shape), tuple(tiles.counts.shape)
    if (
        counted != shape[:3]
        or not one_or(shape[0], batch)
        or not one_or(shape[1], heads)
        or shape[2] != count
    ):
        raise ValueError(
            f"tiles have keys {shape} and counts {counted}; they must be (1 or {batch},"
            f" 1 or {heads}, {count}, any) and the same without the last"
        )
    for name in ("rows", "keys", "counts"):
        tensor = getattr(tiles, name)
        if tensor.dtype != torch.int32 or tensor.device != query.device:
            raise ValueError(
                f"tiles.{name} is {tensor.dtype} on {tensor.device}; it must be int32 on"
                f" {query.device}"
            )


def check_contiguous_channels(**tensors: Tensor) -> None:
    """The last axis of each has stride 1; raises `ValueError` otherwise."""
    for name, tensor in tensors.items():
        if tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
            raise ValueError(
                f"{name} has channels {tensor.stride(-1)} elements apart; contiguous channels work"
            )


def check_fp8(to: str | None, device: torch.device) -> None:
    """`RuntimeError` where a GPU has no e4m3."""
    if to != "fp8" or device.type != "cuda":
        return
    own = torch.cuda.get_device_capability(device)
    if torch.version.hip is not None or own < FP8:
        raise RuntimeError(
            f"fp8 needs an NVIDIA GPU of compute capability {FP8[0]}.{FP8[1]}, {device} is"
            f" {torch.cuda.get_device_name(device)} with {own[0]}.{own[1]}; int8 works"
        )
