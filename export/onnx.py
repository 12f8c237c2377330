"""Graphs to ONNX files, through torch.export, run once by onnxruntime before they count."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import onnx_ir
import onnxruntime
import onnxscript
import torch

from ..runtime.graphs.manifest import GraphEntry, Port
from ..runtime.graphs.onnx import OnnxRunner
from ..runtime.hashes import file_hash
from .axes import Axes, symbolic_shape
from .graphs import StepGraph
from .nodes import shape_of
from .quantize import check_opset
from .tracing import quiet, trace
from .translations import translations
from .verify import dtypes_of, tolerance_of, verify

if TYPE_CHECKING:
    from ..runtime.checkpoints.checkpoint import Checkpoint
    from .graphs import Graph
    from .options import Options

SYMBOL = re.compile(r"\bs\d+\b")
ELEMENTS = {"FLOAT": "float32", "FLOAT16": "float16", "BFLOAT16": "bfloat16", "INT64": "int64"}
FILE = "model.onnx"
LARGEST = 2_000_000_000  # bytes of weights in one file; a protocol buffer ends at 2 GiB
WITHOUT_BF16 = "verified as its fp32 twin: onnxruntime's CPU has no bf16"


class OnnxWriter:
    """Writes `<graph>/model.onnx`, its weights beside it."""

    copies = 1

    def __init__(self, checkpoint: Checkpoint, options: Options) -> None:
        self.checkpoint, self.options = checkpoint, options
        # The twin is there for a while, and what a quantized graph is checked with.
        self.copies = 3 if options.dtype == "bfloat16" or options.quantize else 1
        if options.quantize:
            check_opset(options.opset, options.quantize)

    def write(
        self, graph: Graph, twin: Graph | None, folder: Path, told: Callable[[str], None]
    ) -> GraphEntry:
        """Convert, save and check a graph; see `verify`."""
        if self.options.quantize and isinstance(graph.module, StepGraph):
            from .quantized_step import write_quantized

            prompts = self.options.calibration
            return write_quantized(
                self.checkpoint, self.options, graph, twin, folder, told, prompts
            )
        told("converting")
        program = convert(graph, self.options.opset)
        place = folder / graph.name
        place.mkdir()
        save(program, place / FILE)
        entry = describe(graph.name, program, place)
        del program
        told("checking")
        if twin is None or "bfloat16" not in dtypes_of(entry):
            return check(graph, place / FILE, entry)
        with TemporaryDirectory(dir=folder) as room:
            own = convert(twin, self.options.opset)
            save(own, Path(room) / FILE)
            checked = check(twin, Path(room) / FILE, describe(graph.name, own, Path(room)))
        return replace(
            entry, tolerance=checked.tolerance, checks=checked.checks, notes=(WITHOUT_BF16,)
        )

    def versions(self) -> dict[str, str]:
        """Of all that had a part in it."""
        from .. import __version__

        packages = torch, onnxscript, onnx_ir, onnxruntime
        return {"kinema": __version__, **{p.__name__: p.__version__ for p in packages}}


def describe(name: str, program: Any, place: Path) -> GraphEntry:
    """A saved program, before it is checked."""
    inputs, outputs = ports(program)
    files = sorted(place.iterdir())  # model.onnx, model.onnx.data
    counts = operators(program)
    return GraphEntry(
        name=name,
        files={f"{place.name}/{file.name}": file_hash(file) for file in files},
        inputs=inputs,
        outputs=outputs,
        bytes=sum(file.stat().st_size for file in files),
        nodes=sum(counts.values()),
        operators=counts,
    )


def check(graph: Graph, file: Path, entry: GraphEntry) -> GraphEntry:
    """The entry with what onnxruntime's results differ from PyTorch's by."""
    allowed = tolerance_of(entry)
    runner = OnnxRunner(file, entry, torch.device("cpu"))
    return replace(entry, tolerance=allowed, checks=verify(graph, runner, allowed))


def convert(graph: Graph, opset: int) -> Any:
    """A graph as an ONNX program (torch.onnx.ONNXProgram), named axes and all."""
    inputs = graph.examples(graph.base)
    with quiet():
        program = torch.onnx.export(
            trace(graph),
            dynamo=True,
            opset_version=opset,
            input_names=list(inputs),
            output_names=list(graph.outputs),
            custom_translation_table=translations(opset),
            verbose=False,
        )
    assert program is not None  # as there is where a graph is traced with dynamo
    _name_axes(program.model, inputs, graph.axes())
    _mend_norms(program.model)
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # where in whose files it was traced
    return program


def save(program: Any, file: Path) -> None:
    """Write a program in one file, or its weights beside it where that would be too large."""
    weights = program.model.graph.initializers.values()
    size = sum(value.const_value.nbytes for value in weights)
    program.save(file, external_data=size > LARGEST)


def ports(program: Any) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
    """What goes in and what comes out."""
    graph = program.model.graph
    return _ports(graph.inputs), _ports(graph.outputs)


def _ports(values: Iterable[Any]) -> tuple[Port, ...]:
    return tuple(Port(v.name, ELEMENTS[v.dtype.name], shape_of(v)) for v in values)


def operators(program: Any) -> dict[str, int]:
    """How often each operator is there, the commonest first."""
    counts = Counter(node.op_type for node in program.model.graph.all_nodes())
    return dict(counts.most_common())


def _name_axes(model: Any, inputs: Mapping[str, torch.Tensor], axes: Axes) -> None:
    """Names of sizes in place of torch's symbols, in every shape."""
    known: dict[str, str] = {}
    for value, (name, example) in zip(model.graph.inputs, inputs.items(), strict=True):
        for i, axis in axes[name].items():
            found = str(shape_of(value)[i])
            symbol = SYMBOL.search(found)
            if symbol and found.replace(symbol[0], axis.size) == str(axis):
                known[symbol[0]] = axis.size
        value.shape = onnx_ir.Shape(symbolic_shape(example.shape, axes[name]))
    for value in _values(model):
        if value.shape is not None:
            value.shape = onnx_ir.Shape([_named(axis, known) for axis in shape_of(value)])


def _mend_norms(model: Any) -> None:
    """One type for a norm, its weights and its result, and casts around it: the optimizer fuses
    norms whose three differ, and runtimes refuse them."""
    for norm in list(model.graph):
        if norm.op_type != "RMSNormalization":
            continue
        (x, weight), (made,) = norm.inputs, norm.outputs
        if weight.dtype != x.dtype:
            cast = cast_node(weight, x.dtype)
            model.graph.insert_before(norm, cast)
            norm.replace_input_with(1, cast.outputs[0])
        if made.dtype != x.dtype:
            cast = cast_node(made, made.dtype)
            made.replace_all_uses_with(cast.outputs[0], replace_graph_outputs=True)
            cast.replace_input_with(0, made)
            model.graph.insert_after(norm, cast)
            name, made.dtype = made.name, x.dtype
            made.name = f"{name}_normed"
            cast.outputs[0].name = name  # which may be an output's


def cast_node(value: Any, dtype: Any) -> Any:
    """A node that casts a value, in no graph yet."""
    cast = onnx_ir.node("Cast", [value], {"to": int(dtype)})
    cast.outputs[0].dtype, cast.outputs[0].shape = dtype, value.shape
    return cast


def _named(axis: int | str | None, known: Mapping[str, str]) -> int | str | None:
    if not isinstance(axis, str):
        return axis
    return SYMBOL.sub(lambda symbol: known.get(symbol[0], symbol[0]), axis)


def _values(model: Any) -> Iterator[Any]:
    for node in model.graph.all_nodes():
        yield from node.outputs
