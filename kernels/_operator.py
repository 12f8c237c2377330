"""Registers operations with PyTorch, and refuses what they cannot take."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

LEAST_EPS = 1e-30
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def operator(
    name: str, schema: str, *, launch: Callable, plain: Callable, fake: Callable
) -> Callable[..., Any]:
    """The operator `torch.ops.kinema.<name>`: `launch` on CUDA devices, `plain` on any other.

    `fake` gives outputs of the right shape, dtype and layout, so that torch.compile and
    torch.export pass through.
    """
    op = torch.library.custom_op(f"kinema::{name}", plain, mutates_args=(), schema=schema)
    op.register_kernel("cuda")(launch)
    op.register_fake(fake)
    return getattr(torch.ops.kinema, name).default


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
