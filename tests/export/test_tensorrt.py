"""Engines from ONNX files: what TensorRT-RTX builds without a GPU, and what is refused."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from kinema.export import monitor
from kinema.export import tensorrt as building
from kinema.runtime.errors import Cancelled, KinemaError, UsageError
from kinema.runtime.graphs import tensorrt_machine
from kinema.runtime.graphs.tensorrt import ARCHES, RTX, Range, listener

onnx = pytest.importorskip("onnx")
trt = pytest.importorskip("tensorrt_rtx")

from onnx import TensorProto as Types  # noqa: E402
from onnx import helper, numpy_helper  # noqa: E402

DIMS = {"batch": (1, 2, 2), "rows": (1, 8, 64), "tokens": (1, 7, 32)}
TARGETS = ("sm_89", "sm_120")


def save(folder, nodes, inputs, outputs, weights=(), name="model", domains=()):
    """An ONNX file; inputs and outputs are (name, type, shape)."""
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info(*port) for port in inputs],
        [helper.make_tensor_value_info(*port) for port in outputs],
        list(weights),
    )
    opsets = [helper.make_opsetid("", 23), *(helper.make_opsetid(d, 1) for d in domains)]
    file = folder / "graph" / f"{name}.onnx"
    file.parent.mkdir(exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), file)
    return file


def attention(folder, dtype=Types.FLOAT16, head_dim=64):
    query, key = ["batch", 2, "2*rows", head_dim], ["batch", 2, "tokens", head_dim]
    inputs = [("query", dtype, query), ("key", dtype, key), ("value", dtype, key)]
    node = helper.make_node("Attention", ["query", "key", "value"], ["made"], name="attend")
    return save(folder, [node], inputs, [("made", dtype, query)])


def product(folder, dtype=Types.FLOAT):
    weight = helper.make_tensor("weight", dtype, [16, 8], np.linspace(-1, 1, 128))
    node = helper.make_node("MatMul", ["x", "weight"], ["y"], name="product")
    return save(folder, [node], [("x", dtype, ["rows", 16])], [("y", dtype, ["rows", 8])], [weight])


def build(file, arches=TARGETS, profiles=None, **options):
    target = file.with_suffix(".engine")
    profiles = profiles or [{"x": ((1, 16), (8, 16), (64, 16))}]
    return building.build(file, target, arches, profiles, **options), target


def test_shapes_are_those_of_the_file_with_sizes_put_in(tmp_path):
    assert building.shapes(attention(tmp_path), DIMS) == {
        "query": Range((1, 2, 2, 64), (2, 2, 16, 64), (2, 2, 128, 64)),
        "key": Range((1, 2, 1, 64), (2, 2, 7, 64), (2, 2, 32, 64)),
        "value": Range((1, 2, 1, 64), (2, 2, 7, 64), (2, 2, 32, 64)),
    }


@pytest.mark.parametrize(
    ("dims", "told"),
    [
        ({"batch": (1, 2, 2), "rows": (1, 8, 64)}, "batch, rows, tokens; tokens has no range"),
        ({**DIMS, "frames": (1, 2, 3)}, "batch, rows, tokens; frames is not one of them"),
    ],
)
def test_sizes_that_are_not_the_files_are_refused(tmp_path, dims, told):
    with pytest.raises(UsageError, match=told):
        building.shapes(attention(tmp_path), dims)


@pytest.mark.parametrize(
    ("dtype", "head_dim", "decomposed"),
    [
        (Types.FLOAT16, 64, 0),
        (Types.BFLOAT16, 128, 0),
        (Types.FLOAT, 64, 1),
        (Types.FLOAT16, 8, 1),
        (Types.FLOAT16, 7, 1),
        (Types.BFLOAT16, 320, 1),
    ],
)
def test_attention_builds_in_parts_where_there_is_no_kernel(tmp_path, dtype, head_dim, decomposed):
    file = attention(tmp_path, dtype, head_dim)
    wide = building.shapes(file, DIMS)
    single = building.shapes(file, {**DIMS, "batch": (1, 1, 1)})
    told = []
    built, target = build(file, profiles=[single, wide], progress=told.append)
    assert (built.flavour, built.version, built.arches) == (RTX, trt.__version__, TARGETS)
    assert built.decomposed == decomposed
    assert built.bytes == target.stat().st_size > 0
    assert built.layers >= 1
    assert built.profiles == (single, wide)
    assert told == sorted(told)
    assert told[-1] == 1.0
    assert len(set(told)) > 5
    assert [f.name for f in target.parent.iterdir() if f.name.startswith(".")] == []


@pytest.mark.parametrize("arch", ARCHES[RTX])
def test_every_architecture_of_tensorrt_rtx_builds(tmp_path, arch):
    built, _ = build(product(tmp_path, Types.FLOAT16), [arch])
    assert built.arches == (arch,)


def test_options_reach_the_builder(tmp_path):
    """fp32 is fp32; what a CUDA graph needs is asked for, unless weights are streamed."""
    builder = trt.Builder(listener(trt))
    for streaming in (False, True):
        config = builder.create_builder_config()
        building._set_options(trt, config, RTX, streaming)
        assert not config.get_flag(trt.BuilderFlag.TF32)
        assert config.get_flag(trt.BuilderFlag.WEIGHT_STREAMING) == streaming
        assert config.get_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION) != streaming
    plain, _ = build(product(tmp_path), ["sm_89"])
    streamed, _ = build(product(tmp_path), ["sm_89"], weight_streaming=True)
    assert streamed.layers == plain.layers


def quantized(folder, dtype, largest):
    """A product of activations quantized whole and weights quantized for each of their columns."""
    channels = np.random.default_rng(0).uniform(0.5, 2, 32).astype(np.float32)
    weight = np.random.default_rng(1).uniform(-1, 1, (64, 32)).astype(np.float32) * channels
    weights = [
        numpy_helper.from_array(np.float32(4 / largest), "x_scale"),
        helper.make_tensor("x_zero", dtype, [], [0]),
        numpy_helper.from_array(channels / np.float32(largest), "w_scale"),
        helper.make_tensor("w_zero", dtype, [32], [0] * 32),
        numpy_helper.from_array(weight, "w"),
    ]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "x_scale", "x_zero"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "x_scale", "x_zero"], ["xd"]),
        helper.make_node("QuantizeLinear", ["w", "w_scale", "w_zero"], ["wq"], axis=1),
        helper.make_node("DequantizeLinear", ["wq", "w_scale", "w_zero"], ["wd"], axis=1),
        helper.make_node("MatMul", ["xd", "wd"], ["y"]),
    ]
    x, y = ("x", Types.FLOAT, ["rows", 64]), ("y", Types.FLOAT, ["rows", 32])
    return save(folder, nodes, [x], [y], weights)


WIDE = [{"x": ((1, 64), (8, 64), (128, 64))}]


@pytest.mark.parametrize(
    ("dtype", "largest"), [(Types.INT8, 127), (Types.FLOAT8E4M3FN, 448)], ids=["int8", "fp8"]
)
def test_quantized_products_build(tmp_path, dtype, largest):
    built, _ = build(quantized(tmp_path, dtype, largest), profiles=WIDE)
    assert built.arches == TARGETS


def test_types_an_architecture_has_not_are_refused(tmp_path):
    file = quantized(tmp_path, Types.FLOAT8E4M3FN, 448)
    with pytest.raises(UsageError, match=r"computes in fp8, which sm_86 has not; sm_89 and later"):
        build(file, ["sm_86"], WIDE)
    with pytest.raises(UsageError, match="computes in bf16, which sm_75 has not; sm_80"):
        build(product(tmp_path, Types.BFLOAT16), ["sm_75"])
    assert not file.with_suffix(".engine").exists()


@pytest.mark.parametrize(
    ("profiles", "told"),
    [
        ([{}], "inputs are x; x is not in the profile"),
        ([{"x": ((1, 16),) * 3, "z": ((1,),) * 3}], "inputs are x; z is not one of them"),
        ([{"x": ((9, 16), (8, 16), (64, 16))}], "axis 0 of x is 9, 8, 64; 0 < min <= opt <= max"),
        ([{"x": ((0, 16), (8, 16), (64, 16))}], "axis 0 of x is 0, 8, 64"),
        ([{"x": ((1, 12), (8, 12), (64, 12))}], r"\(1, 12\) to \(64, 12\); \(rows, 16\) works"),
        ([{"x": ((1,), (8,), (64,))}], r"\(1,\) to \(64,\); \(rows, 16\) works"),
    ],
)
def test_profiles_that_the_graph_cannot_take_are_refused(tmp_path, profiles, told):
    with pytest.raises(UsageError, match=told):
        build(product(tmp_path), profiles=profiles)
    with pytest.raises(UsageError, match="there are 0 profiles"):
        building.build(product(tmp_path), tmp_path / "engine", TARGETS, [])


def test_one_size_in_two_inputs_has_one_range(tmp_path):
    file = attention(tmp_path)
    profile = building.shapes(file, DIMS)
    profile["value"] = Range((1, 2, 1, 64), (2, 2, 7, 64), (2, 2, 31, 64))
    with pytest.raises(
        UsageError, match=r"tokens is \(1, 7, 32\) in key and \(1, 7, 31\) in value"
    ):
        build(file, profiles=[profile])


def test_what_cannot_be_parsed_names_the_node(tmp_path):
    x, y = ("x", Types.FLOAT, ["rows", 16]), ("y", Types.FLOAT, ["rows", 16])
    node = helper.make_node("Whirl", ["x"], ["y"], name="odd", domain="kinema")
    file = save(tmp_path, [node], [x], [y], domains=["kinema"])
    with pytest.raises(
        KinemaError, match=r"cannot take Whirl \('odd'\): .*Plugin not found"
    ) as told:
        build(file)
    assert "\n" not in str(told.value)
    file.write_bytes(b"hello")
    with pytest.raises(KinemaError):
        build(file)
    file.unlink()
    with pytest.raises(UsageError, match="is no file"):
        build(file)
    assert not file.with_suffix(".engine").exists()


@pytest.mark.parametrize("error", [Cancelled("stopped"), KeyboardInterrupt()])
def test_what_progress_raises_stops_the_build(tmp_path, error):
    def stop(done):
        raise error

    file = product(tmp_path)
    with pytest.raises(type(error)):
        build(file, progress=stop)
    assert [f.name for f in file.parent.iterdir()] == [file.name]


def test_a_signal_waits_for_tensorrt_to_return():
    """It drops what a callback raises: a handler may raise only after."""
    seen = []
    with pytest.raises(KeyboardInterrupt), monitor.signals_kept(lambda: seen.append("stop")):
        signal.raise_signal(signal.SIGINT)
        seen.append("returned")
    assert seen == ["stop", "returned"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_failed_build_says_tensorrts_reason(tmp_path, monkeypatch):
    """Attention in fp32 that may not be decomposed."""
    monkeypatch.setattr(building, "_allow_decomposition", lambda trt, network: 0)
    file = attention(tmp_path, Types.FLOAT)
    with pytest.raises(KinemaError, match=r"cannot build graph: .*not supported by a dedicated"):
        build(file, profiles=[building.shapes(file, DIMS)])
    assert not file.with_suffix(".engine").exists()


def test_what_an_architecture_cannot_compute_is_told(tmp_path):
    with pytest.raises(KinemaError, match=r"'product' for Turing .*FP32 GEMM is not supported"):
        build(product(tmp_path), ["sm_75"])


def test_plain_tensorrt_builds_only_for_the_gpu_that_is_there(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(building, "find", lambda flavour: trt)
    with pytest.raises(UsageError, match="for the GPU that is there; that is none, not sm_90"):
        build(product(tmp_path), ["sm_90"])


class Config:
    """Takes timing caches as a builder's configuration does: not those of another GPU."""

    def __init__(self, device):
        self.device, self.cache = device, None

    def create_timing_cache(self, data):
        return data or self.device

    def set_timing_cache(self, cache, ignore_mismatch):
        if cache.startswith(self.device) and not ignore_mismatch:
            self.cache = cache
            return True
        return False

    def get_timing_cache(self):
        return self

    def serialize(self):
        return self.cache + b"+"


def test_timings_are_kept_and_those_of_another_gpu_left(tmp_path):
    file = tmp_path / "timings"
    for device, wanted in [(b"h200", b"h200+"), (b"h200", b"h200++"), (b"b200", b"b200+")]:
        config = Config(device)
        building.read_timings(config, file)
        building.write_timings(config, file)
        assert file.read_bytes() == wanted


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_attention_as_pytorch_exports_it_builds(tmp_path, dtype):
    pytest.importorskip("onnxscript")

    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.into, self.out = torch.nn.Linear(128, 384), torch.nn.Linear(128, 128)

        def forward(self, x):
            q, k, v = self.into(x).unflatten(-1, (3, 2, 64)).permute(2, 0, 3, 1, 4)
            made = torch.nn.functional.scaled_dot_product_attention(q, k, v)
            return x + self.out(made.transpose(1, 2).flatten(2))

    dims = {0: torch.export.Dim("batch"), 1: torch.export.Dim("tokens")}
    program = torch.onnx.export(
        Block().to(dtype).eval(),
        (torch.zeros(2, 5, 128, dtype=dtype),),
        dynamo=True,
        opset_version=23,
        input_names=["x"],
        dynamic_shapes=(dims,),
        verbose=False,
    )
    assert "Attention" in [node.op_type for node in program.model.graph]
    file = tmp_path / "graph" / "model.onnx"
    file.parent.mkdir()
    program.save(file, external_data=True)
    ranges = building.shapes(file, {"batch": (1, 2, 2), "tokens": (1, 64, 512)})
    built, _ = build(file, profiles=[ranges])
    assert built.decomposed == (dtype == torch.float32)
    assert built.bytes > 0


def test_the_runner_calls_what_there_is():
    """Names that the part which needs a GPU uses, against the package."""
    source = Path(tensorrt_machine.__file__).read_text()
    for used, kind in {
        "self.engine": trt.ICudaEngine,
        r"(?<!\.)context": trt.IExecutionContext,
        "self.context": trt.IExecutionContext,
        r"(?<!\.)config": trt.IRuntimeConfig,
        "self.runtime": trt.Runtime,
    }.items():
        names = set(re.findall(used + r"\.([a-z]\w*)", source))
        assert names
        assert {name for name in names if not hasattr(kind, name)} == set()
    assert {kind.name for kind in trt.DataType.__members__.values()} >= set(tensorrt_machine.DTYPES)


def test_a_file_that_is_no_engine_is_told(tmp_path):
    engine = object.__new__(tensorrt_machine.Engine)
    engine.log = listener(trt)
    engine.runtime = trt.Runtime(engine.log)
    for content, told in [(b"", "cannot read '.*m.engine'"), (b"hello" * 99, "cannot open '.*:")]:
        (tmp_path / "m.engine").write_bytes(content)
        with pytest.raises(KinemaError, match=told):
            engine._read(tmp_path / "m.engine")
