"""Graphs to packages of AOTInductor: compiled for the CPU they are exported on, of any size."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from shutil import which
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..kernels.operations import bind
from ..runtime.errors import KinemaError
from ..runtime.files import reason_of
from ..runtime.graphs.aoti import AotiRunner, machine
from ..runtime.graphs.manifest import GraphEntry, Port
from ..runtime.hashes import file_hash
from .axes import find_axes, symbolic_shape
from .graphs import rebind
from .tracing import quiet, trace
from .verify import dtypes_of, rounding, tolerance_of, verify

if TYPE_CHECKING:
    from ..runtime.checkpoints.checkpoint import Checkpoint
    from .axes import Axes
    from .graphs import Graph
    from .options import Options

FILE = "model.pt2"
COMPILERS = ("g++", "clang++")
# As many threads as there are when it runs. Convolutions keep the order of their values: where the
# compiler changes it, torch 2.13 reads what a batch of one has made in the wrong order.
SETTINGS = {"cpp.dynamic_threads": True, "layout_optimization": False}


class AotiWriter:
    """Writes `<graph>/model.pt2`. Raises `KinemaError` where there is no C++ compiler."""

    copies = 4  # an object file, a library of it, its copy in the package, and one as it is linked

    def __init__(self, checkpoint: Checkpoint, options: Options) -> None:
        if not any(map(which, (*COMPILERS, os.environ.get("CXX", "")))):
            raise KinemaError("exporting to aoti needs a C++ compiler: install g++")
        self.operations = bind("cpu", getattr(torch, options.dtype))

    def write(
        self, graph: Graph, twin: Graph | None, folder: Path, told: Callable[[str], None]
    ) -> GraphEntry:
        """Compile and check a graph; see `verify`."""
        rebind(graph.module, self.operations)  # of PyTorch's own operators, which it fuses
        told("tracing")
        program = trace(replace(graph, examples=_packed(graph.examples)))
        place = folder / graph.name
        place.mkdir()
        told("compiling")
        compile_to(place / FILE, program, graph.name)
        entry = describe(graph, program, place / FILE)
        del program
        told("checking")
        runner = AotiRunner(place / FILE, entry, torch.device("cpu"))
        allowed = _allowed(graph, twin, entry)
        return replace(entry, tolerance=allowed, checks=verify(graph, runner, allowed))

    def versions(self) -> dict[str, str]:
        """Of all that had a part in it."""
        from .. import __version__

        return {"kinema": __version__, "torch": torch.__version__}


def _allowed(graph: Graph, twin: Graph | None, entry: GraphEntry) -> float:
    """In bf16, which a CPU computes in: what PyTorch is off by there, once for each of the two."""
    if twin is not None and "bfloat16" in dtypes_of(entry):
        return 2 * rounding(graph, twin)
    return tolerance_of(entry)


def compile_to(file: Path, program: torch.export.ExportedProgram, name: str) -> None:
    """Write a package, compiled for this machine."""
    from torch._inductor import aoti_compile_and_package
    from torch._inductor.utils import fresh_cache

    # In a folder of its own: the compiler leaves copies of all weights in the one it works in.
    with TemporaryDirectory(dir=file.parent) as room, fresh_cache(dir=room), quiet():
        try:
            aoti_compile_and_package(program, package_path=str(file), inductor_configs=SETTINGS)
        except Exception as error:  # of the compiler behind it: kinds of its own
            raise KinemaError(f"torch cannot compile {name}: {reason_of(error)}") from error


def describe(graph: Graph, program: torch.export.ExportedProgram, file: Path) -> GraphEntry:
    """A compiled graph, before it is checked."""
    counts = Counter(str(node.target) for node in program.graph.nodes if node.op == "call_function")
    inputs = graph.examples(graph.base)
    return GraphEntry(
        name=graph.name,
        files={f"{graph.name}/{FILE}": file_hash(file)},
        inputs=_inputs(inputs, graph.axes()),
        outputs=_outputs(graph, inputs),
        bytes=file.stat().st_size,
        nodes=sum(counts.values()),
        operators=dict(counts.most_common()),
        built=machine(),
    )


def _packed(examples: Callable[..., Mapping[str, Tensor]]) -> Callable[..., dict[str, Tensor]]:
    """Examples whose values lie in order: compiled code reads them so ever after."""
    return lambda sizes: {name: x.contiguous() for name, x in examples(sizes).items()}


def _inputs(inputs: Mapping[str, Tensor], axes: Axes) -> tuple[Port, ...]:
    return tuple(
        Port(name, _name(x.dtype), symbolic_shape(x.shape, axes[name]))
        for name, x in inputs.items()
    )


def _outputs(graph: Graph, inputs: Mapping[str, Tensor]) -> tuple[Port, ...]:
    """Shapes of outputs vary as an output's do, found like those of inputs."""
    axes = find_axes(lambda sizes: graph.run(graph.examples(sizes)), graph.base)
    made: dict[str, Any] = graph.run(inputs)
    return _inputs(made, axes)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
