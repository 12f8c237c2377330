"""Attention by kernels of others: cuDNN's and the FlashAttention packages'.

Each has the signature of `reference.attention` and takes no bias of the keys. The packages want
(B, L, N, D), which is a view of what they are given.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ._checks import check_attention
from ._operator import operator
from ._requirements import FLASH2, FLASH3, FLASH4
from ._softmax import empty_output

Attention = Callable[..., Tensor]


def cudnn(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None = None,
    *,
    scale: float | None = None,
) -> Tensor:
    """As `reference.attention`, by cuDNN through PyTorch; raises where cuDNN has no such kernel."""
    scale = _without_bias("cudnn", query, key, value, bias, scale)
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return F.scaled_dot_product_attention(query, key, value, scale=scale)


def _package(name: str, modules: tuple[str, ...]) -> Attention:
    """The `flash_attn_func` of the first of `modules` that is there, as an operator."""

    def launch(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        heads_last = (tensor.transpose(1, 2) for tensor in (query, key, value))
        out = _flash_attn_func(modules)(*heads_last, softmax_scale=scale)
        return (out[0] if isinstance(out, tuple) else out).transpose(1, 2)

    def plain(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        raise RuntimeError(f"{name} runs on cuda, not on {query.device.type}")

    op = operator(
        f"{name}_attention",
        "(Tensor query, Tensor key, Tensor value, float scale) -> Tensor",
        launch=launch,
        plain=plain,
        fake=lambda query, key, value, scale: empty_output(query),
    )

    def attention(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Tensor | None = None,
        *,
        scale: float | None = None,
    ) -> Tensor:
        return op(query, key, value, _without_bias(name, query, key, value, bias, scale))

    return attention


def _flash_attn_func(modules: tuple[str, ...]) -> Callable[..., Any]:
    for module in modules:
        try:
            return import_module(module).flash_attn_func
        except ImportError:
            continue
    raise RuntimeError(f"none of {', '.join(modules)} can be imported")


def _without_bias(
    name: str,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    scale: float | None,
) -> float:
    if bias is not None:
        raise ValueError(f"{name} takes no bias of the keys; triton and torch do")
    return check_attention(query, key, value, None, scale)


flash2 = _package("flash2", FLASH2)
flash3 = _package("flash3", FLASH3)
flash4 = _package("flash4", FLASH4)
