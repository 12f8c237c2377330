"""Graphs against the modules they were made of, at sizes the exporter saw and did not see."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..runtime.errors import KinemaError
from ..runtime.models.layers import Sizes
from .graphs import Graph

if TYPE_CHECKING:
    from ..runtime.graphs.manifest import GraphEntry

SEED = 0
ROUNDING = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
WALK = 4.0

Run = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]


def sizes_to_check(base: Sizes) -> tuple[Sizes, ...]:
    """The exporter's own; a larger grid and longer text; one row of a batch on another grid."""
    larger = Sizes(
        base.batch + 1, base.frames + 2, base.rows + 1, base.columns + 3, 2 * base.tokens
    )
    single = Sizes(1, base.frames + 1, base.rows + 2, base.columns, base.tokens + 1)
    return base, larger, single


def tolerance(nodes: int, dtype: str) -> float:
    """What two ways of rounding the same graph may differ by, as a part of the result's RMS.

    Each node rounds once, by at most half a unit in the last place, and independent errors add up
    as a random walk; `WALK` is for nodes that round more than once (sums, exponentials).
    """
    return WALK * ROUNDING[dtype] * math.sqrt(nodes)


def tolerance_of(entry: GraphEntry) -> float:
    """That of a graph in the dtype that its inputs and outputs say: fp16, or else fp32."""
    return tolerance(entry.nodes, "float16" if "float16" in dtypes_of(entry) else "float32")


def dtypes_of(entry: GraphEntry) -> set[str]:
    """Of all its inputs and outputs."""
    return {port.dtype for port in entry.inputs + entry.outputs}


def rounding(graph: Graph, twin: Graph) -> float:
    """What PyTorch itself is off by in the graph's dtype, as a part of the result's RMS; `twin` is
    the same in fp32."""
    torch.manual_seed(SEED)
    inputs = dict(graph.examples(graph.base))
    exact = {name: x.float() if x.is_floating_point() else x for name, x in inputs.items()}
    found, wanted = graph.run(inputs), twin.run(exact)
    return max(_error(found[name], wanted[name]) for name in graph.outputs)


def verify(graph: Graph, run: Run, allowed: float) -> tuple[dict[str, Any], ...]:
    """Errors at each size; raises `KinemaError` where one is beyond `allowed`, or no number."""
    checks = []
    for sizes in sizes_to_check(graph.base):
        torch.manual_seed(SEED)
        inputs = dict(graph.examples(sizes))
        wanted, found = graph.run(inputs), run(inputs)
        errors = [_error(found[name], wanted[name]) for name in graph.outputs]
        worst = max(errors, key=lambda error: math.inf if math.isnan(error) else error)
        largest = max(_largest(found[name], wanted[name]) for name in graph.outputs)
        if not worst <= allowed:
            raise KinemaError(
                f"the exported {graph.name} is not the model: it is off by {worst:.2g} of its RMS"
                f" at {_told(graph, sizes)}, and {allowed:.2g} is allowed"
            )
        checks.append(
            {"sizes": _told(graph, sizes), "relative_rms": worst, "largest_absolute": largest}
        )
    return tuple(checks)


def _error(found: Tensor, wanted: Tensor) -> float:
    """RMS of the difference over RMS of what is wanted; equal infinities differ by nothing."""
    found, wanted = found.double(), wanted.double()
    difference = torch.where(found == wanted, 0.0, found - wanted)
    finite = wanted[wanted.isfinite()]
    scale = finite.square().mean().sqrt().item() if finite.numel() else 0.0
    return difference.square().mean().sqrt().item() / (scale or 1.0)


def _largest(found: Tensor, wanted: Tensor) -> float:
    found, wanted = found.double(), wanted.double()
    return torch.where(found == wanted, 0.0, found - wanted).abs().max().item()


def _told(graph: Graph, sizes: Sizes) -> dict[str, int]:
    """The sizes that the graph has."""
    used = {axis.size for varying in graph.axes().values() for axis in varying.values()}
    return {name: size for name, size in sizes._asdict().items() if name in used}
