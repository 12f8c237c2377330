"""Steps in 8 bits: their files, what they round to, what it costs, and what TensorRT-RTX builds."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from kinema.export import eight_bits
from kinema.export.calibration import CLIPS, calibrate, psnr, ssim
from kinema.export.eight_bits import LARGEST, Twin, distance, nearest, settle
from kinema.export.exporting import _engine, _rounded
from kinema.export.graphs import graphs_of
from kinema.export.onnx import OnnxWriter
from kinema.export.options import Options
from kinema.export.quantize import Product, layers, products
from kinema.runtime.checkpoints.checkpoint import open_checkpoint
from kinema.runtime.errors import KinemaError, UsageError

pytest.importorskip("diffusers")

from ..parity.checkpoints import build
from ..parity.test_pipelines import VARIANTS

TYPES = {"int8": onnx.TensorProto.INT8, "fp8": onnx.TensorProto.FLOAT8E4M3FN}
# Rounding is by half a step at most: of the largest value in int8, of each value in fp8.
HALF_STEP = {"int8": 0.5 / 127, "fp8": 2.0**-4}
OF_A_BLOCK = ("attn1.qkv", "attn1.out", "attn2.q", "attn2.out", "ffn_in", "ffn_out")
BLOCKS = 2


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    build(VARIANTS["t2v"]).save_pretrained(folder)
    return open_checkpoint(folder)


@pytest.fixture(scope="module", params=[("int8", "float32"), ("fp8", "bfloat16")], ids=str)
def written(request, checkpoint, tmp_path_factory):
    """A step's graph in 8 bits: format, dtype of the rest, the step, its entry and its folder."""
    to, dtype = request.param
    folder = tmp_path_factory.mktemp(to)

    def step(engine):
        return list(graphs_of(engine, "transformer"))[1]

    graph = step(_engine(checkpoint, dtype))
    twin = step(_rounded(checkpoint, "transformer")) if dtype == "bfloat16" else None
    writer = OnnxWriter(checkpoint, Options("onnx", dtype, to))
    entry = writer.write(graph, twin, folder, lambda doing: None)
    return SimpleNamespace(to=to, dtype=dtype, graph=twin or graph, entry=entry, folder=folder)


def test_products_of_blocks_are_in_8_bits_and_nothing_else(written):
    model = onnx.load(written.folder / written.entry.file)
    stored = {t.name: t for t in model.graph.initializer}
    names = [f"blocks.{i}.{layer}" for i in range(BLOCKS) for layer in OF_A_BLOCK]
    eight = {name for name, t in stored.items() if t.data_type == TYPES[written.to]}
    kinds = ("weight_8", "weight_zero", "x_zero")
    assert eight == {f"{name}.{kind}" for name in names for kind in kinds}
    known = layers(written.graph.module.model)
    for name in names:
        out, into = known[name].weight.shape
        assert list(stored[f"{name}.weight_8"].dims) == [into, out]
        assert list(stored[f"{name}.weight_scale"].dims) == [out]
        assert list(stored[f"{name}.x_scale"].dims) == []
    exact = [numpy_helper.to_array(t) for t in stored.values() if len(t.dims) == 2]
    for name in names:  # the weights that were there are gone
        weight = known[name].weight.detach().numpy()
        assert not any(np.array_equal(x.astype(np.float32), weight.T) for x in exact)
    assert written.entry.operators["QuantizeLinear"] == len(names)
    assert written.entry.operators["DequantizeLinear"] == 2 * len(names)


def test_products_are_found_where_weights_are_transposed_in_nodes():
    """As the exporter leaves large ones."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks, self.head = nn.ModuleList([nn.Linear(3, 2)]), nn.Linear(2, 2)

        def block_lists(self):
            return [self.blocks]

    def weight(name):
        tensor = ir.tensor(np.zeros((2, 2), np.float32), name=f"module.model.{name}.weight")
        return ir.Value(name=tensor.name, const_value=tensor)

    x, used, head = ir.Value(name="x"), weight("blocks.0"), weight("head")
    cast = ir.node("Cast", [used], {"to": ir.DataType.FLOAT})
    columns = [ir.node("Transpose", [w]) for w in (cast.outputs[0], head)]
    multiply = [ir.node("MatMul", [x, node.outputs[0]]) for node in columns]
    nodes = [cast, *columns, *multiply, ir.node("MatMul", [x, x])]
    outputs = [node.outputs[0] for node in multiply]
    graph = ir.Graph([x], outputs, nodes=nodes, initializers=[used, head])
    program = SimpleNamespace(model=SimpleNamespace(graph=graph))
    assert products(program, Model()) == (Product(multiply[0], "blocks.0"),)


def test_a_step_is_its_twin(written):
    """As close as any other graph, once both took the same steps; few of those were a choice."""
    errors = [check["relative_rms"] for check in written.entry.checks]
    assert len(errors) == 3
    assert max(errors) <= written.entry.tolerance < 2e-5
    assert written.entry.built["quantized"]["moved"] < 1e-3


def test_the_cost_is_told(written):
    told = written.entry.built["quantized"]
    assert told["format"] == written.to
    assert told["products"] == BLOCKS * len(OF_A_BLOCK)
    # Errors of products are independent, and each is a part of what goes on beside it.
    allowed = HALF_STEP[written.to] * (2 * told["products"]) ** 0.5
    assert 0 < told["quality"]["latents_relative_rms"] < allowed
    assert told["quality"]["psnr"] >= told["quality"]["least_psnr"] > 40
    assert f"{written.to} against exact" in written.entry.notes[-1]


def test_tensorrt_rtx_builds_it(written, tmp_path):
    pytest.importorskip("tensorrt_rtx")
    from kinema.export import tensorrt

    file = written.folder / written.entry.file
    sizes = {"batch": (1, 2, 2), "frames": (1, 3, 5), "rows": (1, 4, 8), "columns": (1, 5, 8)}
    profile = tensorrt.shapes(file, {**sizes, "tokens": (1, 7, 16)})
    built = tensorrt.build(file, tmp_path / "engine", ("sm_89", "sm_120"), [profile])
    assert built.arches == ("sm_89", "sm_120")


# ---- rounding ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("to", "given", "wanted"),
    [
        ("int8", [0.5, 1.5, 2.5, -0.5, -1.5, 200, -200], [0, 2, 2, 0, -2, 127, -128]),
        ("fp8", [1.0625, 1.1875, 500, -1e9, 2**-10, 3 * 2**-10], [1, 1.25, 448, -448, 0, 2**-8]),
    ],
)
def test_rounding_is_to_the_nearest_and_even_and_saturates(to, given, wanted):
    assert nearest(torch.tensor(given, dtype=torch.float32), to).tolist() == wanted


@pytest.mark.parametrize("to", ["int8", "fp8"])
def test_onnxruntime_rounds_the_same(to):
    import onnxruntime
    from onnx import helper

    types = onnx.TensorProto
    port = helper.make_tensor_value_info("x", types.FLOAT, [None])
    made = helper.make_tensor_value_info("y", types.FLOAT, [None])
    scale = helper.make_tensor("scale", types.FLOAT, [], [0.037])
    zero = helper.make_tensor("zero", TYPES[to], [], [0])
    parts = ["scale", "zero"]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", *parts], ["q"]),
        helper.make_node("DequantizeLinear", ["q", *parts], ["y"]),
    ]
    graph = helper.make_graph(nodes, "rounding", [port], [made], [scale, zero])
    opset = [helper.make_opsetid("", 23)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=10).SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    torch.manual_seed(0)
    x = torch.cat([8 * torch.randn(10000), 0.037 * (torch.arange(-300, 300) + 0.5)])
    (found,) = session.run(None, {"x": x.numpy()})
    step = torch.tensor(0.037)
    assert torch.equal(torch.from_numpy(found), nearest(x / step, to) * step)


@pytest.mark.parametrize("to", ["int8", "fp8"])
def test_each_row_of_a_weight_reaches_the_largest_value(to):
    torch.manual_seed(0)
    layer = nn.Linear(64, 5)
    with torch.no_grad():
        layer.weight.mul_(torch.tensor([1e-3, 1, 10, 100, 0])[:, None])
    values, scale = settle(layer, 1.0, to).weight
    assert values.float().abs().amax(dim=1).tolist() == [LARGEST[to]] * 4 + [0]
    error = (values.float() * scale[:, None] - layer.weight).abs()
    reach = layer.weight.abs() if to == "fp8" else layer.weight.abs().amax(dim=1, keepdim=True)
    least = scale[:, None] * 2.0**-10  # half of fp8's least step
    # A float's nearest is off by half a unit of the last of 3 bits: 2^-4 of it at most.
    assert (error <= 1.001 * HALF_STEP[to] * reach + least).all()


@pytest.mark.parametrize("to", ["int8", "fp8"])
def test_the_distance_to_what_rounds_to_a_value(to):
    """By rounding itself: 0 where it gives the value, and that far off rounding gives it."""
    torch.manual_seed(0)
    x = torch.cat([60 * torch.randn(5000), 2.0**-9 * torch.randn(500), torch.tensor([1e3, -1e3])])
    assert not distance(x, nearest(x, to), to).any()
    given = nearest(x + 0.3 * x.abs() + 1, to)
    off = distance(x, given, to)
    assert torch.equal(off > 0, nearest(x, to) != given)
    for part in (0.999, 1.001):
        assert torch.equal(nearest(x + part * off, to) == given, (off == 0) | (part > 1))


def test_a_twin_takes_the_steps_it_is_given_where_rounding_allows_them():
    layer = nn.Linear(2, 2)
    weight = layer.weight
    twin = Twin({"a": layer}, {"a": settle(layer, 1.0, "int8")}, "int8", slack=1e-5)
    x = torch.tensor([[1.5 - 1e-6, 3.2]])
    with torch.no_grad(), twin:
        twin.steps = {"a": torch.tensor([[2.0, 3.0]])}
        bias = layer.bias
        assert torch.equal(layer(x), twin.steps["a"] @ layer.weight.t() + bias)
        assert (twin.moved, twin.seen) == (1, 2)
        for wrong in ([1.0, 4.0], [2.0, float("nan")]):
            twin.steps = {"a": torch.tensor([wrong])}
            with pytest.raises(KinemaError, match="rounds what goes into a to other values"):
                layer(x)
    assert layer.weight is weight
    assert not layer._forward_pre_hooks


def test_the_error_of_one_value_may_be_all_of_a_tensors():
    """Errors of a honest graph are of no known distribution: their RMS is what is bounded."""
    layer, slack = nn.Linear(64, 2), 1e-5
    twin = Twin({"a": layer}, {"a": settle(layer, 1.0, "int8")}, "int8", slack)
    x = torch.full((64, 64), 8.0)
    largest = slack * 8.0 * 64  # sqrt(64 * 64) times the RMS that is allowed
    for part, allowed in ((0.9, True), (1.1, False)):
        x[0, 0] = 7.5 - part * largest
        twin.steps = {"a": torch.full_like(x, 8.0)}
        with torch.no_grad(), twin, nullcontext() if allowed else pytest.raises(KinemaError):
            layer(x)


# ---- calibration ---------------------------------------------------------------------------------


class Once:
    """Runs a layer on the same values each time."""

    def __init__(self, *values):
        self.values = values

    def run(self, model):
        for x in self.values:
            model(x)


def test_fp8_reaches_to_the_largest_value_of_all_runs():
    layer = nn.Linear(2, 2)
    once = Once(torch.tensor([[1.0, -7.0]]), torch.tensor([[2.0, 3.0]]))
    assert calibrate(once, layer, {"a": layer}, "fp8") == {"a": 7.0 / 448}


def test_int8_clips_where_that_has_the_least_error():
    torch.manual_seed(0)
    layer, x = nn.Linear(64, 2), torch.randn(1000, 64)
    x[0, 0] = 6.0
    found = calibrate(Once(x), layer, {"a": layer}, "int8")["a"]
    errors = {
        part: (nearest(x * 127 / (6 * part), "int8") * 6 * part / 127 - x).square().sum().item()
        for part in CLIPS
    }
    best = min(errors, key=errors.get)
    assert found == pytest.approx(best * 6 / 127)
    assert best < 1


def test_ssim_and_psnr():
    """Against their definitions: a constant shift has a closed form, and equal frames are 1."""
    frames = torch.full((2, 16, 16, 3), 100.0, dtype=torch.float64)
    assert ssim(frames, frames) == pytest.approx(1)
    least = (0.01 * 255) ** 2
    wanted = (2 * 100 * 110 + least) / (100**2 + 110**2 + least)
    assert ssim(frames, frames + 10) == pytest.approx(wanted)
    assert psnr(frames.numpy(), frames.numpy() + 10) == pytest.approx(20 * np.log10(25.5))
    assert psnr(frames.numpy(), frames.numpy()) == 100


def test_an_opset_that_cannot_say_it_is_refused(checkpoint):
    with pytest.raises(UsageError, match=r"opset 18 has no fp8 .*; 23 works"):
        OnnxWriter(checkpoint, Options("onnx", "float32", "fp8", opset=18))


def test_formats_are_those_of_the_kernels():
    assert LARGEST == {"fp8": 448.0, "int8": 127.0}
    assert eight_bits.LEAST == {"fp8": -448.0, "int8": -128.0}
