"""Fused operations of video diffusion transformers, each defined in `reference`.

`norm_modulate(...)` and the others run Triton kernels on CUDA tensors and plain PyTorch on any
other; `choose` binds a backend once, by name or automatically, and `bind` all that a transformer
calls. Nothing is imported before use.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .attention import attention
    from .block_sparse_attention import block_sparse_attention
    from .dispatch import Backend, Choice, choose, listing
    from .formats import Quantized, quantize_tokens
    from .gate_residual import gate_residual
    from .guided_step import guided_step
    from .linear_gelu import linear_gelu
    from .norm_modulate import norm_modulate
    from .norm_silu import norm_silu
    from .operations import Operations, bind
    from .patchify import patchify
    from .qk_norm_rope import qk_norm_rope
    from .quantized_attention import quantized_attention
    from .quantized_linear import quantized_linear
    from .rope import Rope, rope_tables
    from .tiles import TileMask, best_tile, sliding_tiles, tile_mask, tile_rows
    from .unpatchify import unpatchify

_HOMES = {
    "Backend": "dispatch",
    "Choice": "dispatch",
    "Operations": "operations",
    "Quantized": "formats",
    "Rope": "rope",
    "TileMask": "tiles",
    "attention": "attention",
    "best_tile": "tiles",
    "bind": "operations",
    "block_sparse_attention": "block_sparse_attention",
    "choose": "dispatch",
    "gate_residual": "gate_residual",
    "guided_step": "guided_step",
    "linear_gelu": "linear_gelu",
    "listing": "dispatch",
    "norm_modulate": "norm_modulate",
    "norm_silu": "norm_silu",
    "patchify": "patchify",
    "qk_norm_rope": "qk_norm_rope",
    "quantize_tokens": "formats",
    "quantized_attention": "quantized_attention",
    "quantized_linear": "quantized_linear",
    "rope_tables": "rope",
    "sliding_tiles": "tiles",
    "tile_mask": "tiles",
    "tile_rows": "tiles",
    "unpatchify": "unpatchify",
}
__all__ = [
    "Backend",
    "Choice",
    "Operations",
    "Quantized",
    "Rope",
    "TileMask",
    "attention",
    "best_tile",
    "bind",
    "block_sparse_attention",
    "choose",
    "gate_residual",
    "guided_step",
    "linear_gelu",
    "listing",
    "norm_modulate",
    "norm_silu",
    "patchify",
    "qk_norm_rope",
    "quantize_tokens",
    "quantized_attention",
    "quantized_linear",
    "rope_tables",
    "sliding_tiles",
    "tile_mask",
    "tile_rows",
    "unpatchify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Importing the module of an operation must not hide the function of the same name."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (isinstance(value, ModuleType) and name in _HOMES):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
