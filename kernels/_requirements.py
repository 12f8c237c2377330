"""What the backends of operations ask for; nothing of them is imported.

Each takes (device, needs) and says what is missing, or None. `needs` may have dtype, head_dim, bias
(whether keys get one) and to ("fp8" or "int8").
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

import torch

Missing = Callable[[torch.device, Mapping[str, Any]], "str | None"]
HALVES = (torch.bfloat16, torch.float16)
FP8 = (8, 9)  # compute capability from which NVIDIA's chips multiply e4m3
FLASH2, FLASH3, FLASH4 = (
    ("flash_attn.flash_attn_interface",),
    ("flash_attn_interface", "fa3_fwd_interface"),
    ("flash_attn.cute.interface",),
)


def anywhere(device: torch.device, needs: Mapping[str, Any]) -> str | None:
    """Nothing is missing."""
    return None


def triton(device: torch.device, needs: Mapping[str, Any]) -> str | None:
    """A GPU, and the compiler."""
    if device.type != "cuda":
        return f"Triton kernels run on cuda, not on {device.type}"
    if not torch.cuda.is_available():
        return "no GPU is present"
    return None if _found("triton") else "Triton is not installed: pip install triton (Linux)"


def gpu(least: tuple[int, int], most: tuple[int, int] = (99, 0)) -> Missing:
    """An NVIDIA GPU of a compute capability within bounds."""

    def missing(device: torch.device, needs: Mapping[str, Any]) -> str | None:
        if device.type != "cuda":
            return f"it runs on cuda, not on {device.type}"
        if not torch.cuda.is_available():
            return "no GPU is present"
        if torch.version.hip is not None:
            return "it is for NVIDIA GPUs"
        own = torch.cuda.get_device_capability(device)
        if not least <= own <= most:
            bound = "" if most[0] == 99 else f" to {most[0]}.{most[1]}"
            return f"compute capability is {own[0]}.{own[1]}; {least[0]}.{least[1]}{bound} works"
        return None

    return missing


def heads(dtypes: tuple[torch.dtype, ...], most: int, multiple: int, bias: bool) -> Missing:
    """A head dim and dtype the kernel has, and whether it takes a bias of the keys."""

    def missing(device: torch.device, needs: Mapping[str, Any]) -> str | None:
        dtype, head_dim = needs.get("dtype"), needs.get("head_dim")
        if dtype is not None and dtype not in dtypes:
            return f"dtype is {dtype}; {', '.join(map(str, dtypes))} work"
        if head_dim is not None and (head_dim > most or head_dim % multiple):
            return f"head dim is {head_dim}; multiples of {multiple} up to {most} work"
        if needs.get("bias") and not bias:
            return "it takes no bias of the keys; triton and torch do"
        return None

    return missing


def package(modules: tuple[str, ...], install: str) -> Missing:
    """One of some modules."""

    def missing(device: torch.device, needs: Mapping[str, Any]) -> str | None:
        return None if any(_found(module) for module in modules) else f"not installed: {install}"

    return missing


def flash3_dtype(device: torch.device, needs: Mapping[str, Any]) -> str | None:
    """The wheel of FlashAttention 3 is built for bf16 alone."""
    if needs.get("dtype", torch.bfloat16) == torch.bfloat16 or _found(FLASH3[0]):
        return None
    return f"fa3-fwd takes torch.bfloat16, not {needs['dtype']}; a build of FlashAttention 3 does"


def formats(*known: str) -> Missing:
    """An 8-bit format the kernel has."""

    def missing(device: torch.device, needs: Mapping[str, Any]) -> str | None:
        to = needs.get("to")
        if to is not None and to not in known:
            return f"it multiplies {' and '.join(known)}, not {to}"
        return None

    return missing


def both(*requirements: Missing) -> Missing:
    """The first of several that is not met."""

    def missing(device: torch.device, needs: Mapping[str, Any]) -> str | None:
        reasons = (requirement(device, needs) for requirement in requirements)
        return next((reason for reason in reasons if reason is not None), None)

    return missing


def fp8_chip(device: torch.device, needs: Mapping[str, Any]) -> str | None:
    """e4m3 products, where they are asked for."""
    return gpu(FP8)(device, needs) if needs.get("to") == "fp8" else None


def _found(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ImportError:  # a parent is absent, or cannot be imported here
        return False
