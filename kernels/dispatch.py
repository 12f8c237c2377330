"""Which backend runs an operation: a table of names, and one choice made at construction.

An explicit choice succeeds or raises; the automatic one takes the first that works and says so.
Nothing of a backend is imported before it is chosen.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch

from . import _requirements as require

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Backend:
    """One way to run an operation.

    `target` is "module:function" in this package, imported when it is chosen. `missing(device,
    needs)` says why it cannot run and what to install, or None where it can; `needs` is what the
    caller wants of it, such as dtype and head_dim. A lossy one is not `automatic`.
    """

    name: str
    target: str
    missing: require.Missing
    automatic: bool = True

    def load(self) -> Callable[..., Any]:
        """Import what it runs."""
        module, function = self.target.split(":")
        return getattr(import_module(f".{module}", __package__), function)


@dataclass(frozen=True)
class Choice:
    """A backend bound to an operation; call `function` as the operation."""

    op: str
    backend: str
    reason: str
    function: Callable[..., Any]


def ours(op: str, missing: require.Missing = require.triton) -> tuple[Backend, Backend]:
    """Those that every operation has: its Triton kernel, and its twin in plain PyTorch."""
    return (
        Backend("triton", f"{op}:{op}", missing),
        Backend("torch", f"torch_backend:{op}", require.anywhere),
    )


IN_8_BITS = require.both(require.triton, require.fp8_chip)

# Best first.
TABLE: dict[str, tuple[Backend, ...]] = {
    op: ours(op)
    for op in (
        "norm_modulate",
        "qk_norm_rope",
        "gate_residual",
        "patchify",
        "unpatchify",
        "guided_step",
        "norm_silu",
    )
}

# Published rates put FlashAttention 3 before cuDNN on sm_90, and cuDNN before 4 on sm_100; the
# automatic choice should be what benchmarks/kernels finds fastest on a chip.
TABLE["attention"] = (
    Backend(
        "flash3",
        "attention_backends:flash3",
        require.both(
            require.gpu((9, 0), (9, 0)),
            require.package(
                require.FLASH3, "pip install fa3-fwd (bf16), or build FlashAttention 3"
            ),
            require.heads(require.HALVES, 256, 8, bias=False),
            require.flash3_dtype,
        ),
    ),
    Backend(
        "cudnn",
        "attention_backends:cudnn",
        require.both(require.gpu((8, 0)), require.heads(require.HALVES, 128, 8, bias=False)),
    ),
    Backend(
        "flash4",
        "attention_backends:flash4",
        require.both(
            require.gpu((9, 0), (10, 3)),
            require.package(require.FLASH4, "pip install flash-attn-4"),
            require.heads(require.HALVES, 128, 8, bias=False),
        ),
    ),
    Backend(
        "flash2",
        "attention_backends:flash2",
        require.both(
            require.gpu((8, 0)),
            require.package(require.FLASH2, "pip install flash-attn --no-build-isolation"),
            require.heads(require.HALVES, 256, 8, bias=False),
        ),
    ),
    *ours("attention"),
    Backend("matmul", "torch_backend:matmul_attention", require.anywhere, automatic=False),
    *(
        Backend(
            name,
            target,
            require.both(
                require.triton,
                require.gpu(least),
                require.heads(require.HALVES, 256, 16, bias=True),
            ),
            automatic=False,
        )
        for name, target, least in (
            ("triton-int8", "quantized_attention:int8_attention", (8, 0)),
            ("triton-fp8", "quantized_attention:fp8_attention", require.FP8),
        )
    ),
)
TABLE["block_sparse_attention"] = ours("block_sparse_attention")
TABLE["quantized_attention"] = ours("quantized_attention", IN_8_BITS)
TABLE["linear_gelu"] = (
    Backend("cublaslt", "linear_gelu:cublaslt", require.gpu((8, 0))),
    *ours("linear_gelu"),
)
KERNEL, TWIN = ours("quantized_linear", IN_8_BITS)
TABLE["quantized_linear"] = (
    Backend(
        "scaled_mm",
        "quantized_linear:scaled_mm",
        require.both(require.gpu((9, 0)), require.formats("fp8")),
    ),
    KERNEL,
    Backend(
        "int_mm",
        "quantized_linear:int_mm",
        require.both(require.gpu((8, 0)), require.formats("int8")),
    ),
    TWIN,
)


def choose(op: str, device: torch.device | str, backend: str | None = None, **needs: Any) -> Choice:
    """Pick the backend of `op` on a device, by name or (None) the first automatic one that works.

    Raises `ValueError` for an unknown op or backend, `RuntimeError` where a known backend cannot
    run here; both name what would work.
    """
    device = torch.device(device)
    table = {entry.name: entry for entry in backends(op)}
    if backend is not None:
        if backend not in table:
            raise ValueError(f"{op} has no backend {backend!r}; it has {', '.join(table)}")
        if reason := table[backend].missing(device, needs):
            raise RuntimeError(f"{op} cannot use {backend}: {reason}")
        return Choice(op, backend, "asked for", table[backend].load())
    passed: dict[str, list[str]] = {}  # names by reason
    for entry in table.values():
        if not entry.automatic:
            continue
        if reason := entry.missing(device, needs):
            passed.setdefault(reason, []).append(entry.name)
            continue
        why = "; ".join(["the first that works", *_without(passed)])
        logger.info("%s on %s takes %s: %s", op, device, entry.name, why)
        return Choice(op, entry.name, why, entry.load())
    raise RuntimeError(f"no backend of {op} works on {device}: {'; '.join(_without(passed))}")


def _without(passed: Mapping[str, list[str]]) -> list[str]:
    return [f"not {', '.join(names)} ({reason})" for reason, names in passed.items()]


def backends(op: str) -> tuple[Backend, ...]:
    """The backends of an operation, best first; raises `ValueError` for an unknown one."""
    if op not in TABLE:
        raise ValueError(f"unknown operation {op!r}; known: {', '.join(TABLE)}")
    return TABLE[op]


def listing(device: torch.device | str | None = None) -> list[dict[str, Any]]:
    """Every operation and backend: whether it is there, and if not, why. Default device: a GPU."""
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    rows = []
    for op, table in TABLE.items():
        for entry in table:
            reason = entry.missing(device, {})
            rows.append(
                {"op": op, "backend": entry.name, "available": reason is None, "reason": reason}
            )
    return rows
