"""What runs a transformer: applied from outside to an open one, whose forward stays as it is.

`eager`: as it is. `packed`: its linear layers laid out for the CPU by oneDNN. `compiled`: its
blocks by torch.compile, kept on disk, so that a second process starts warm. `graph`: its forward
as a CUDA graph for each size.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.util import find_spec
from shutil import which
from tempfile import gettempdir
from typing import Any

import torch

from ..errors import UsageError
from ..files import cache_folder
from . import cuda_graph, pack

# Shapes of latents that stay compiled side by side; torch goes back to eager beyond its own 8.
BUCKETS = 64
CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"


def choose(name: str | None, device: torch.device, offload: str = "none") -> str:
    """The executor to use: the named one, else packed on a CPU that can, else eager.

    `offload`: where weights are while they do not work (`offload.py`). Raises `UsageError` where
    the named one is unknown or cannot run here, saying why.
    """
    if name is None:
        return "eager" if _missing_for_packed(device) else "packed"
    if name not in EXECUTORS:
        raise UsageError(f"executor {name!r} is not known; known: {', '.join(EXECUTORS)}")
    if reason := MISSING[name](device) or _missing_for_offload(name, offload):
        raise UsageError(f"executor {name} cannot run here: {reason}")
    return name


def apply(name: str, model: Any) -> None:
    """Make an open transformer run so, in place; `block_lists()` are its modules of blocks."""
    EXECUTORS[name](model)


def _eager(model: Any) -> None:
    pass


def _packed(model: Any) -> None:
    for blocks in model.block_lists():
        pack.pack_linears(blocks)


def _compiled(model: Any) -> None:
    import torch._dynamo.config as dynamo

    # Unless told otherwise, the compiler settles on a folder that a reboot empties.
    if os.environ.get(CACHE_VARIABLE, "").startswith(f"{gettempdir()}/torchinductor_"):
        del os.environ[CACHE_VARIABLE]
    os.environ.setdefault(CACHE_VARIABLE, str(cache_folder() / "compiled"))
    dynamo.recompile_limit = max(dynamo.recompile_limit, BUCKETS)
    for blocks in model.block_lists():
        for block in blocks:  # they share their code: all but the first are compiled as one
            block.compile(fullgraph=True, dynamic=False)


def _nothing(device: torch.device) -> str | None:
    return None


def _missing_for_packed(device: torch.device) -> str | None:
    if device.type != "cpu":
        return f"it is for the CPU, not for {device.type}"
    return None if pack.can_pack() else "this build of PyTorch lacks oneDNN's packed layers"


def _missing_for_compiled(device: torch.device) -> str | None:
    if device.type == "cpu" and not any(map(which, ("g++", "clang++", os.environ.get("CXX", "")))):
        return "torch.compile needs a C++ compiler on a CPU: install g++"
    if device.type == "cuda" and find_spec("triton") is None:
        return "torch.compile needs Triton on a GPU: pip install triton"
    return None


def _missing_for_offload(name: str, offload: str) -> str | None:
    return cuda_graph.missing_for_offload(offload) if name == "graph" else None


EXECUTORS: dict[str, Callable[[Any], None]] = {
    "eager": _eager,
    "packed": _packed,
    "compiled": _compiled,
    "graph": cuda_graph.apply,
}
MISSING: dict[str, Callable[[torch.device], str | None]] = {
    "eager": _nothing,
    "packed": _missing_for_packed,
    "compiled": _missing_for_compiled,
    "graph": cuda_graph.missing,
}

REASONS = {
    "eager": "nothing to set up",
    "packed": "linear layers laid out for this CPU by oneDNN, GELU within them",
    "compiled": "asked for",
    "graph": "asked for",
}
