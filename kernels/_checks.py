"""What products and attention ask of their arguments; one line names the value and what works."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ._operator import DTYPES, check_shape, check_tensors, one_or
from .tiles import TileMask


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
    if torch.version.hip is not None or own < (8, 9):
        raise RuntimeError(
            f"fp8 needs an NVIDIA GPU of compute capability 8.9, {device} is"
            f" {torch.cuda.get_device_name(device)} with {own[0]}.{own[1]}; int8 works"
        )
