"""Packages of AOTInductor: one compiled and run in the engine, and which machine refuses one."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import kinema
from kinema.export import aoti
from kinema.export.axes import Sizes
from kinema.export.graphs import Graph
from kinema.export.options import as_options
from kinema.runtime.graphs import manifest
from kinema.runtime.graphs.aoti import AotiRunner, machine, unfit

diffusers = pytest.importorskip("diffusers")

CPU = torch.device("cpu")
ASKED = {"num_frames": 5, "height": 32, "width": 48, "num_inference_steps": 2, "seed": 5}


def checkpoints():
    path = Path(__file__).parent.parent / "parity" / "checkpoints.py"
    spec = spec_from_file_location("checkpoints", path)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    parity, folder = checkpoints(), tmp_path_factory.mktemp("aoti") / "wan"
    variant = parity.Variant("WanPipeline", {"num_layers": 1}, {})
    parity.build(variant).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def engines(source) -> Path:
    folder = source.parent / "engines"
    kinema.export(source, "aoti", folder, components=["transformer"])
    return folder


def small(dtype: torch.dtype) -> Graph:
    """Rows of any number through a layer with weights of bf16, columns last in memory."""
    torch.manual_seed(0)
    layer = nn.Linear(16, 24).bfloat16().to(dtype)

    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return (torch.nn.functional.gelu(self.layer(x)),)

    def examples(sizes: Sizes):
        return {"x": torch.randn(16, sizes.batch, dtype=dtype).T}

    return Graph("small", One(), examples, ("y",))


# ---- compiled ------------------------------------------------------------------------------------


def test_a_transformer_runs_compiled_in_the_engine_at_any_size(source, engines):
    names = {"transformer/model.pt2", "text_context/model.pt2", "kinema.json"}
    assert {f.relative_to(engines).as_posix() for f in engines.rglob("*.*")} == names
    assert not [path for path in source.parent.iterdir() if path not in (source, engines)]
    written = manifest.read(engines, "aoti").manifest
    for entry in written.graphs.values():
        assert entry.built == machine()
        assert len({tuple(check["sizes"].items()) for check in entry.checks}) == 3
        assert all(0 < check["relative_rms"] <= entry.tolerance for check in entry.checks)
        assert not [name for name in entry.operators if "kinema" in name]
    with kinema.load(source, "cpu", executor="aoti", engines=engines) as engine:
        ours = engine.generate(checkpoints().PROMPT, **ASKED)
    with kinema.load(source, "cpu", executor="eager") as engine:
        theirs = engine.generate(checkpoints().PROMPT, **ASKED)
    error = np.square(ours.frames.astype(float) - theirs.frames).mean()
    assert error <= 255**2 / 10**5  # 50 dB
    assert ours.report["executor"] == "aoti"
    assert ours.report["backends"] == {"transformer": "aoti"}


def test_bf16_is_computed_in_bf16_and_checked_as_itself(tmp_path):
    writer = aoti.AotiWriter(None, as_options("aoti", dtype="bf16"))
    graph, told = small(torch.bfloat16), []
    entry = writer.write(graph, small(torch.float32), tmp_path, told.append)
    assert told == ["tracing", "compiling", "checking"]
    assert [port.dtype for port in entry.inputs + entry.outputs] == ["bfloat16"] * 2
    assert entry.inputs[0].shape == ("batch", 16) and entry.outputs[0].shape == ("batch", 24)
    assert 0 < entry.tolerance < 4 * 2.0**-8  # two results, each of two roundings
    assert max(check["relative_rms"] for check in entry.checks) <= entry.tolerance
    runner = AotiRunner(tmp_path / "small" / "model.pt2", entry, CPU)
    x = torch.randn(16, 9).T  # neither the dtype nor the order that was compiled for
    found = runner({"x": x})["y"]
    torch.testing.assert_close(found, graph.run({"x": x.bfloat16()})["y"])
    with pytest.raises(kinema.UsageError, match=r"x has shape \(9, 15\); \(batch, 16\) works"):
        runner({"x": x[:, :15]})


# ---- refused -------------------------------------------------------------------------------------


def test_a_package_of_another_machine_is_refused_with_what_to_rebuild():
    here = {**machine(), "instructions": ["avx2", "fma3"]}
    assert unfit(here, here) is None
    assert unfit({**here, "instructions": ["avx2"]}, here) is None
    built = {**here, "instructions": ["amx_tile", "avx2", "avx512_f"]}
    assert (
        unfit(built, here) == "was compiled for a CPU with amx_tile, avx512_f, which this one lacks"
    )
    for name, other in (("machine", "aarch64"), ("platform", "darwin")):
        assert unfit({**here, name: other}, here).startswith(f"was compiled for {other}, and this")
    assert "for torch 2.0.1, and this is torch 2" in unfit({**here, "torch": "2.0.1"}, here)


def test_the_runner_refuses_before_it_opens(engines):
    opened = manifest.read(engines, "aoti")
    entry = opened.manifest.graphs["transformer"]
    other = replace(entry, built={**entry.built, "torch": "2.0.1"})
    with pytest.raises(kinema.UsageError, match="rebuild it here: kinema export MODEL --to aoti"):
        AotiRunner(Path("nowhere"), other, CPU)
    with pytest.raises(
        kinema.UsageError, match="compiled for cpu, not for cuda; device='cpu' works"
    ):
        AotiRunner(Path("nowhere"), entry, torch.device("cuda"))


def test_a_file_that_is_no_package_is_told(tmp_path):
    file = tmp_path / "model.pt2"
    file.write_bytes(b"PK but not one")
    entry = manifest.GraphEntry("transformer", {}, (), (), 0, built=machine())
    with pytest.raises(kinema.KinemaError, match="torch cannot open transformer"):
        AotiRunner(file, entry, CPU)


def test_without_a_compiler_it_stops_before_any_work(source, tmp_path, monkeypatch):
    monkeypatch.setattr(aoti, "which", lambda name: None)
    with pytest.raises(kinema.KinemaError, match=r"needs a C\+\+ compiler: install g\+\+"):
        kinema.export(source, "aoti", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_what_a_package_takes_as_it_is_cannot_be_asked_for():
    with pytest.raises(kinema.UsageError, match="shapes are for tensorrt; aoti takes any size"):
        as_options("aoti", shapes=["832x480x81"])
    with pytest.raises(kinema.UsageError, match="dtype int8 is for onnx and tensorrt"):
        as_options("aoti", dtype="int8")
