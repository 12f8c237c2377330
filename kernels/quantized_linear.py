"""A linear layer of 8-bit factors: a scale for each token and each output channel, bias, GELU.

Shape legend: x (..., K), weight (M, K), bias (M,).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import product as pairs

import torch
from torch import Tensor

from . import torch_backend
from ._checks import check_contiguous_channels, check_fp8, check_quantized_linear
from ._chip import capability
from ._compilations import ARCHES, WGMMA, Compilation, record
from ._operator import operator
from ._product import configs, product
from ._quantize import quantize_rows
from .formats import FORMATS, Quantized, format_of, quantize_tokens


def _launch(x, x_scale, weight, weight_scale, bias, gelu, dtype):
    to = format_of(Quantized(weight, weight_scale))
    check_fp8(to, x.device)
    if x_scale is None:
        x, x_scale = quantize_rows(x, to)
    config = configs(capability(x.device), x.dtype)[0]
    scales = (x_scale, weight_scale)
    return product(x, weight, bias, dtype, gelu=gelu, config=config, scales=scales)


def _plain(x, x_scale, weight, weight_scale, bias, gelu, dtype):
    x = x if x_scale is None else Quantized(x, x_scale)
    weight = Quantized(weight, weight_scale)
    return torch_backend.quantized_linear(x, weight, bias, gelu=gelu, dtype=dtype)


def _fake(x, x_scale, weight, weight_scale, bias, gelu, dtype):
    return x.new_empty(*x.shape[:-1], weight.shape[0], dtype=dtype)


_op = operator(
    "quantized_linear",
    "(Tensor x, Tensor? x_scale, Tensor weight, Tensor weight_scale, Tensor? bias, bool gelu,"
    " ScalarType dtype) -> Tensor",
    launch=_launch,
    plain=_plain,
    fake=_fake,
)


def quantized_linear(
    x: Tensor | Quantized,
    weight: Quantized,
    bias: Tensor | None = None,
    *,
    gelu: bool = False,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """As `reference.quantized_linear`, by Triton's persistent product; `ValueError` names misfits.

    Scales, bias and GELU are in its epilogue; an x that is not quantized yet takes one pass before.
    fp8 needs compute capability 8.9.
    """
    dtype = check_quantized_linear(x, weight, bias, dtype)
    values, scale = x if isinstance(x, Quantized) else (x, None)
    check_contiguous_channels(x=values, weight=weight.values)
    return _op(values, scale, *weight, bias, gelu, dtype)


def scaled_mm(
    x: Tensor | Quantized,
    weight: Quantized,
    bias: Tensor | None = None,
    *,
    gelu: bool = False,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """As `reference.quantized_linear`, fp8, by PyTorch's row-wise scaled product; GELU after it."""
    dtype = check_quantized_linear(x, weight, bias, dtype)
    _check_format("scaled_mm", "fp8", weight, 16)
    x = _quantized(x, weight)
    flat = x.values.reshape(-1, x.values.shape[-1])
    hidden = torch._scaled_mm(
        flat,
        weight.values.mT,
        scale_a=x.scale.reshape(-1, 1),
        scale_b=weight.scale.mT,
        bias=None if bias is None else bias.to(torch.bfloat16),
        out_dtype=torch.bfloat16,
        use_fast_accum=True,
    )
    hidden = torch.nn.functional.gelu(hidden, approximate="tanh") if gelu else hidden
    return hidden.to(dtype).view(*x.values.shape[:-1], weight.values.shape[0])


def int_mm(
    x: Tensor | Quantized,
    weight: Quantized,
    bias: Tensor | None = None,
    *,
    gelu: bool = False,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """As `reference.quantized_linear`, int8, by PyTorch's integer product; the rest after it."""
    dtype = check_quantized_linear(x, weight, bias, dtype)
    _check_format("int_mm", "int8", weight, 8)
    x = _quantized(x, weight)
    hidden = torch._int_mm(x.values.reshape(-1, x.values.shape[-1]), weight.values.mT)
    hidden = hidden * x.scale.reshape(-1, 1) * weight.scale.mT
    hidden = hidden if bias is None else hidden + bias
    hidden = torch.nn.functional.gelu(hidden, approximate="tanh") if gelu else hidden
    return hidden.to(dtype).view(*x.values.shape[:-1], weight.values.shape[0])


def _check_format(name: str, to: str, weight: Quantized, multiple: int) -> None:
    if format_of(weight) != to:
        raise ValueError(f"{name} multiplies {to}, not {format_of(weight)}; triton and torch do")
    if any(size % multiple for size in weight.values.shape):
        raise ValueError(
            f"weight has shape {tuple(weight.values.shape)}; {name} takes multiples of {multiple}"
        )


def _quantized(x: Tensor | Quantized, weight: Quantized) -> Quantized:
    """x as it is, or quantized to the weight's format."""
    return x if isinstance(x, Quantized) else quantize_tokens(x, format_of(weight))


def compilations() -> Iterator[Compilation]:
    """Every configuration and format, at the feed-forward layer of Wan2.1-14B."""
    empty = partial(torch.empty, device="meta")
    for arch, (to, (kind, _)), gelu in pairs(ARCHES, FORMATS.items(), (False, True)):
        if to == "fp8" and arch == "sm_80":
            continue  # e4m3 came with sm_89
        if not gelu:
            tokens = empty(32760, 5120, dtype=torch.bfloat16)
            run = partial(quantize_rows, tokens, to)
            name = f"{to} of tokens"
            yield from record("quantized_linear", name, run, default=(arch,), arches=(arch,))
        x, weight = empty(32760, 5120, dtype=kind), empty(13824, 5120, dtype=kind)
        scales, bias = (empty(32760, 1), empty(13824, 1)), empty(13824, dtype=torch.bfloat16)
        for index, config in enumerate(configs(int(arch[3:]) // 10, kind)):
            yield from record(
                "quantized_linear",
                f"{to}{' gelu' * gelu} {config}",
                partial(
                    product, x, weight, bias, torch.bfloat16,
                    gelu=gelu, config=config, scales=scales,
                ),
                default=(arch,) if index == 0 else (),
                needs=WGMMA,
                arches=(arch,),
            )  # fmt: skip
