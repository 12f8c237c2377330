"""A transformer's graph in 8 bits: its blocks' products between Quantize- and DequantizeLinear.

Weights are stored in 8 bits with a scale for each output channel; inputs are rounded with one
scale, settled by `calibration`. Embeddings, modulation and the head stay as they are: little of the
work, and where errors reach the whole video.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import onnx_ir as ir
import torch
from onnx_ir.passes.common import RemoveUnusedNodesPass
from onnx_ir.tensor_adapters import TorchTensor
from torch import Tensor, nn

from ..runtime.errors import KinemaError, UsageError
from .eight_bits import Scales
from .nodes import EIGHT_BIT, Value

LEAST_OPSET = 19  # before, only fp32 is quantized, and there is no fp8
FOLDED = "pkg.onnxscript.optimizer.folded_from"  # where a constant's parameters are written down
ROOT, WEIGHT = "module.model.", ".weight"  # of a step's graph


class Product(NamedTuple):
    """A node that multiplies with a layer's weight."""

    node: Any  # onnx_ir.Node
    name: str


def layers(model: Any) -> dict[str, nn.Linear]:
    """The linear layers of a transformer's blocks by name."""
    ours = {id(module) for blocks in model.block_lists() for module in blocks.modules()}
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and id(module) in ours
    }


def products(program: Any, model: Any) -> tuple[Product, ...]:
    """The products of a step's graph that are with weights of blocks."""
    known = layers(model)
    found = tuple(
        Product(node, name)
        for node in program.model.graph
        if node.op_type == "MatMul" and (name := _layer_of(node.inputs[1])) in known
    )
    if not found:
        raise KinemaError("the transformer's graph has no products of blocks to quantize")
    return found


def _layer_of(columns: Value) -> str | None:
    """The layer whose weight these are: transposed in a node, or beforehand."""
    while (node := columns.producer()) is not None:
        if node.op_type not in ("Transpose", "Cast"):
            return None
        columns = node.inputs[0]
    names = ast.literal_eval(columns.metadata_props.get(FOLDED, "[]")) or [columns.name]
    return names[0].removeprefix(ROOT).removesuffix(WEIGHT)


# ---- nodes ---------------------------------------------------------------------------------------


def quantize(
    program: Any,
    found: tuple[Product, ...],
    scales: Mapping[str, Scales],
    to: str,
    dtype: torch.dtype,
) -> None:
    """Put products between nodes that quantize and dequantize; weights become 8-bit.

    dtype: what the graph computes in.
    """
    graph = program.model.graph
    check_opset(graph.opset_imports[""], to)
    for product in found:
        x, weight = scales[product.name]
        name, node = product.name, product.node
        held = {
            "x_scale": x.to(dtype),
            "x_zero": torch.zeros((), dtype=weight.values.dtype),
            "weight_scale": weight.scale.to(dtype),
            "weight_zero": torch.zeros(weight.scale.shape, dtype=weight.values.dtype),
            "weight_8": weight.values.t().contiguous(),
        }
        values = {kind: _held(graph, f"{name}.{kind}", tensor) for kind, tensor in held.items()}
        x_parts, weight_parts = (
            (values[f"{kind}_scale"], values[f"{kind}_zero"]) for kind in ("x", "weight")
        )
        exact_x = node.inputs[0]
        rows = _made("QuantizeLinear", [exact_x, *x_parts], EIGHT_BIT[to], exact_x.shape)
        x_exact = _made("DequantizeLinear", [rows, *x_parts], values["x_scale"].dtype, rows.shape)
        columns = [values["weight_8"], *weight_parts]
        shape = values["weight_8"].shape
        exact = _made("DequantizeLinear", columns, values["x_scale"].dtype, shape, axis=1)
        graph.insert_before(node, [value.producer() for value in (rows, x_exact, exact)])
        node.replace_input_with(0, x_exact)
        node.replace_input_with(1, exact)
    RemoveUnusedNodesPass()(program.model)


def check_opset(opset: int, to: str) -> None:
    """Raise `UsageError` for an opset that cannot say it."""
    if opset < LEAST_OPSET:
        raise UsageError(f"opset {opset} has no {to} as it is written here; 23 works")


def _held(graph: ir.Graph, name: str, tensor: Tensor) -> Value:
    """A constant of the graph; layers that are used twice share theirs."""
    if name not in graph.initializers:
        made = TorchTensor(tensor, name)
        value = ir.Value(
            name=name, shape=made.shape, type=ir.TensorType(made.dtype), const_value=made
        )
        graph.register_initializer(value)
    return graph.initializers[name]


def _made(
    kind: str, inputs: list[Value], dtype: ir.DataType, shape: Any, **attributes: int
) -> Value:
    node = ir.node(kind, inputs, attributes or None)
    value = node.outputs[0]
    value.type, value.shape = ir.TensorType(dtype), shape
    return value


@contextmanager
def told_steps(program: Any, found: tuple[Product, ...]) -> Iterator[None]:
    """Inside, the graph also gives each product's rounded input: `<layer>.steps`, in fp32."""
    graph, count = program.model.graph, len(program.model.graph.outputs)
    for node, name in found:
        rows = node.inputs[0].producer().inputs[0]
        steps = _made("Cast", [rows], ir.DataType.FLOAT, rows.shape, to=ir.DataType.FLOAT)
        steps.name = f"{name}.steps"
        graph.insert_after(rows.producer(), steps.producer())
        graph.outputs.append(steps)
    try:
        yield
    finally:
        told = graph.outputs[count:]
        del graph.outputs[count:]
        graph.remove([steps.producer() for steps in told], safe=True)
