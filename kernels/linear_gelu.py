"""A linear layer and its tanh-GELU in one matrix product.

Shape legend: x (..., K), weight (M, K), bias (M,).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from . import torch_backend
from ._checks import DTYPES, check_contiguous_channels, check_linear, check_tensors
from ._chip import capability
from ._compilations import ARCHES, WGMMA, Compilation, defaults, record
from ._operator import operator
from ._product import configs, product


def _launch(x, weight, bias):
    config = configs(capability(x.device), x.dtype)[0]
    return product(x, weight, bias, x.dtype, gelu=True, config=config)


def _fake(x, weight, bias):
    return x.new_empty(*x.shape[:-1], weight.shape[0])


_op = operator(
    "linear_gelu",
    "(Tensor x, Tensor weight, Tensor? bias) -> Tensor",
    launch=_launch,
    plain=torch_backend.linear_gelu,
    fake=_fake,
)


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """As `reference.linear_gelu`, by Triton's persistent product; `ValueError` names what misfits.

    Leading axes of x that do not merge into one are copied.
    """
    check_linear(x, weight, bias)
    check_tensors(DTYPES, x=x)
    check_tensors((x.dtype,), x=x, weight=weight, bias=bias)
    check_contiguous_channels(x=x, weight=weight)
    return _op(x, weight, bias)


def _addmm_gelu(x, weight, bias):
    bias = weight.new_zeros(weight.shape[0]) if bias is None else bias
    out = torch._addmm_activation(bias, x.reshape(-1, x.shape[-1]), weight.mT, use_gelu=True)
    return out.view(*x.shape[:-1], weight.shape[0])


# An operator of its own, because compilers take the one in PyTorch apart again.
_addmm_gelu_op = operator(
    "linear_gelu_cublaslt",
    "(Tensor x, Tensor weight, Tensor? bias) -> Tensor",
    launch=_addmm_gelu,
    plain=torch_backend.linear_gelu,
    fake=_fake,
)


def cublaslt(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """As `reference.linear_gelu`, by cublasLt, whose epilogue is the tanh form."""
    check_linear(x, weight, bias)
    check_tensors((x.dtype,), x=x, weight=weight, bias=bias)
    return _addmm_gelu_op(x, weight, bias)


def compilations() -> Iterator[Compilation]:
    """Every configuration, at the feed-forward layer of Wan2.1-1.3B."""
    for arch in ARCHES:
        for dtype in DTYPES:
            x = torch.empty(32760, 1536, dtype=dtype, device="meta")
            weight, bias = x.new_empty(8960, 1536), x.new_empty(8960)
            for index, config in enumerate(configs(int(arch[3:]) // 10, dtype)):
                yield from record(
                    "linear_gelu",
                    f"{str(dtype)[6:]} {config}",
                    partial(product, x, weight, bias, dtype, gelu=True, config=config),
                    default=defaults(dtype) if index == 0 else (),
                    needs=frozenset() if dtype == torch.float32 else WGMMA,
                    arches=(arch,),
                )
