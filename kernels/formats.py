"""Formats of numbers: what definitions compute in, and 8-bit values with their scales."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# 8-bit formats: torch's dtype and the largest value used.
FORMATS = {"fp8": (torch.float8_e4m3fn, 448.0), "int8": (torch.int8, 127.0)}
KEY_BLOCK = 128  # keys of 8-bit attention that share a scale
LEAST_PEAK = 1e-12  # of a token's values, where a scale is made from them


def fp32(x: Tensor) -> Tensor:
    """x in fp32; but float64 stays, so that a test can ask a definition for the truth."""
    return x if x.dtype == torch.float64 else x.float()


class Quantized(NamedTuple):
    """8-bit `values` (..., C) and the fp32 `scale` (..., 1) of each token, to be multiplied."""

    values: Tensor
    scale: Tensor


def quantize_tokens(x: Tensor, to: str) -> Quantized:
    """x (..., C) as "fp8" (e4m3) or "int8", each token scaled so that its peak is the largest."""
    dtype, limit = FORMATS[to]
    peak = fp32(x).abs().amax(dim=-1, keepdim=True).clamp(min=LEAST_PEAK)
    values = (fp32(x) * (limit / peak)).clamp(-limit, limit)
    values = values if dtype.is_floating_point else values.round()
    return Quantized(values.to(dtype), peak / limit)


def dequantize(x: Quantized) -> Tensor:
    """The tensor that 8-bit values and their scales stand for, fp32."""
    return x.values.float() * x.scale


def format_of(x: Quantized) -> str:
    """ "fp8" or "int8"; raises `ValueError` for other values."""
    for name, (dtype, _) in FORMATS.items():
        if x.values.dtype == dtype:
            return name
    raise ValueError(f"quantized values are {x.values.dtype}; {', '.join(FORMATS)} work")
