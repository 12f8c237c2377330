"""Steps in 8 bits with a fault put into the graph: each is refused, and without one it is not."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx_ir.tensor_adapters import TorchTensor

from kinema.export.calibration import Sampler
from kinema.export.exporting import _engine
from kinema.export.graphs import graphs_of
from kinema.export.onnx import describe, save
from kinema.export.options import Options
from kinema.export.quantized_step import QuantizedStep
from kinema.runtime.checkpoints.checkpoint import open_checkpoint
from kinema.runtime.errors import KinemaError

pytest.importorskip("diffusers")

from ..parity.checkpoints import build
from ..parity.test_pipelines import VARIANTS


@pytest.fixture(scope="module", params=["int8", "fp8"])
def unchecked(request, tmp_path_factory):
    """A step's graph in 8 bits before it is checked, its constants, and what checks it."""
    folder = tmp_path_factory.mktemp("unchecked")
    build(VARIANTS["t2v"]).save_pretrained(folder / "checkpoint")
    checkpoint = open_checkpoint(folder / "checkpoint")
    graph = list(graphs_of(_engine(checkpoint, "float32"), "transformer"))[1]
    options = Options("onnx", "float32", request.param)
    step = QuantizedStep(graph, graph, options, Sampler.of(checkpoint, "transformer"))
    program, found = step._converted(graph)
    step._settle(found)
    step._quantize(program, found, torch.float32)
    place = folder / "transformer"
    place.mkdir()
    save(program, place / "model.onnx")
    entry = describe("transformer", program, place)
    return SimpleNamespace(
        graph=program.model.graph,
        constants=program.model.graph.initializers,
        check=lambda: step._checked(program, found, folder, entry),
    )


def test_a_graph_without_a_fault_is_accepted(unchecked):
    entry, moved = unchecked.check()
    assert len(entry.checks) == 3
    assert moved < 1e-3


@pytest.mark.parametrize(
    ("constant", "factor", "refusal"),
    [
        ("blocks.1.attn1.qkv.x_scale", 1.05, "rounds what goes into blocks.1.attn1.qkv "),
        ("blocks.1.ffn_out.x_scale", 1.001, "rounds what goes into blocks.1.ffn_out "),
        ("blocks.0.ffn_in.weight_scale", 1.05, "rounds what goes into blocks.0.ffn_out "),
        ("blocks.1.ffn_out.weight_scale", 1.05, "transformer is not the model"),  # none comes after
    ],
)
def test_a_scale_that_is_off_is_refused(unchecked, monkeypatch, constant, factor, refusal):
    value = unchecked.constants[constant]
    off = torch.tensor(value.const_value.numpy() * np.float32(factor))
    monkeypatch.setattr(value, "const_value", TorchTensor(off, constant))
    with pytest.raises(KinemaError, match=refusal):
        unchecked.check()


def test_layers_whose_weights_are_exchanged_are_refused(unchecked, monkeypatch):
    for kind in ("weight_8", "weight_scale"):
        first, second = (
            unchecked.constants[f"blocks.0.{layer}.{kind}"] for layer in ("attn1.out", "attn2.out")
        )
        held = first.const_value, second.const_value
        monkeypatch.setattr(first, "const_value", held[1])
        monkeypatch.setattr(second, "const_value", held[0])
    with pytest.raises(KinemaError, match=r"rounds what goes into blocks.0.attn2.q "):
        unchecked.check()


@pytest.mark.parametrize("by", ["INT32", "FLOAT16"])
def test_inputs_that_are_rounded_otherwise_are_refused(unchecked, by):
    """To whole steps towards zero, or to half precision before."""
    graph, dtype = unchecked.graph, getattr(ir.DataType, by)
    rows = next(
        node for node in graph if [x.name for x in node.inputs[1:2]] == ["blocks.0.ffn_in.x_scale"]
    )
    x, scale = rows.inputs[:2]
    steps = ir.node("Div", [x, scale])
    there = ir.node("Cast", steps.outputs, {"to": int(dtype)})
    back = ir.node("Cast", there.outputs, {"to": int(ir.DataType.FLOAT)})
    again = ir.node("Mul", [back.outputs[0], scale])
    nodes = [steps, there, back, again]
    graph.insert_before(rows, nodes)
    rows.replace_input_with(0, again.outputs[0])
    try:
        with pytest.raises(KinemaError, match=r"rounds what goes into blocks.0.ffn_in "):
            unchecked.check()
    finally:
        rows.replace_input_with(0, x)
        graph.remove(nodes, safe=True)
