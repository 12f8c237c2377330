"""What a transformer computes between and in its matrix products, bound to backends once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from .dispatch import Choice, choose
from .rope import Rope

# The operations a forward calls; `biased_attention` is attention with a bias of the keys.
BOUND = (
    "norm_modulate",
    "qk_norm_rope",
    "gate_residual",
    "linear_gelu",
    "attention",
    "biased_attention",
    "patchify",
    "unpatchify",
)


@dataclass(frozen=True)
class Operations:
    """One function for each operation, called as the function of the same name in `reference`.

    `rope(tables, head_dim)` makes of compact tables what this `qk_norm_rope` reads fastest;
    `layout` is how queries and keys lie best for this `attention`.
    """

    norm_modulate: Callable[..., Any]
    qk_norm_rope: Callable[..., Any]
    gate_residual: Callable[..., Any]
    linear_gelu: Callable[..., Any]
    attention: Callable[..., Any]
    biased_attention: Callable[..., Any]
    patchify: Callable[..., Any]
    unpatchify: Callable[..., Any]
    rope: Callable[[Rope, int], Any]
    choices: tuple[Choice, ...]
    layout: str = "blnd"

    @property
    def backends(self) -> dict[str, str]:
        """The backend of each operation."""
        return {choice.op: choice.backend for choice in self.choices}


def bind(
    device: torch.device | str,
    dtype: torch.dtype = torch.float32,
    head_dim: int = 128,
    backends: Mapping[str, str] | None = None,
) -> Operations:
    """The operations for a device, dtype and head dim: those named in `backends`, else automatic.

    Raises `ValueError` for an unknown operation or backend, `RuntimeError` for one that cannot run.
    """
    backends = backends or {}
    if unknown := sorted(set(backends) - set(BOUND)):
        raise ValueError(f"no operation {unknown[0]!r} to choose a backend for: {', '.join(BOUND)}")
    choices = []
    for name in BOUND:
        needs: dict[str, Any] = {"dtype": dtype}
        if name.endswith("attention"):
            needs.update(head_dim=head_dim, bias=name == "biased_attention")
        op = name.removeprefix("biased_")
        choice = choose(op, device, backends.get(name), **needs)
        choices.append(Choice(name, choice.backend, choice.reason, choice.function))
    functions = {choice.op: choice.function for choice in choices}
    taken = {choice.op: choice.backend for choice in choices}
    layout = "bnld" if taken["attention"] in ("torch", "matmul") else "blnd"
    return Operations(
        **functions, rope=_rope(taken["qk_norm_rope"]), choices=tuple(choices), layout=layout
    )


def registered() -> Operations:
    """The same as registered operators (`torch.ops.kinema`), which run on any device and which an
    exporter knows by name."""
    from .. import kernels

    functions = {name: getattr(kernels, name.removeprefix("biased_")) for name in BOUND}
    reason = "an exporter knows it by name"
    choices = (Choice(name, "registered", reason, function) for name, function in functions.items())
    return Operations(**functions, rope=_compact, choices=tuple(choices), layout="bnld")


def _rope(backend: str) -> Callable[[Rope, int], Any]:
    from .torch_backend import expand_rope

    return expand_rope if backend == "torch" else _compact


def _compact(rope: Rope, head_dim: int) -> Rope:
    return rope
