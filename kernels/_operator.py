"""Registers operations with PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


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
