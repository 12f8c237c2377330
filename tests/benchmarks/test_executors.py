"""The benchmark of everything that runs a step, on next to nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("diffusers")
pytest.importorskip("onnxruntime")

from kinema.benchmarks import bench, executors, measure, rows, step, tables
from kinema.export.graphs import Graph
from kinema.runtime.graphs.manifest import FILE

TINY = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "text_dim": 16,
    "freq_dim": 16,
    "ffn_dim": 32,
    "num_layers": 2,
    "in_channels": 4,
    "out_channels": 4,
    "rope_max_seq_len": 32,
}
# A hundred roundings one after another walk ten of them away, in each of the two compared.
ROUNDINGS = 20
CONSTANTS = {"base": [3.0, 4.0], "wanted": [3.0, 4.0], "other": [3.0, 4.5]}


@pytest.fixture(autouse=True)
def tiny(monkeypatch, tmp_path):
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    monkeypatch.setitem(step.SIZES, "small", step.Size(TINY, (4, 2, 6, 4)))
    monkeypatch.setattr(executors, "CASES", {"12 layers": executors.small})
    monkeypatch.setattr(measure, "FEWEST", 1)


@pytest.fixture
def steps():
    return {name: lambda value=value: torch.tensor(value) for name, value in CONSTANTS.items()}


def test_rows_have_ratios_to_one_and_errors_beside_another(steps):
    bounds = measure.Bounds(3, 60)
    found = executors.measure(rows.Row(bench="step"), steps, bounds, "base", "wanted")
    seconds, ratios, errors = (
        {row.runner: row for row in rows.select(found, quantity=quantity)}
        for quantity in ("seconds", "ratio", "error_over_rms")
    )
    assert set(seconds) == set(errors) == set(CONSTANTS) == {"base", *ratios}
    assert {row.base for row in ratios.values()} == {"base"}
    # RMS of (0, 0.5) over that of (3, 4).
    wanted = {"base": 0.0, "wanted": 0.0, "other": pytest.approx(0.1)}
    assert {name: row.median for name, row in errors.items()} == wanted


def test_steps_of_every_executor_agree_and_make_a_table(tmp_path):
    asked = bench.Asked(repeats=1, compiled=False, exports=Path(tmp_path / "kept"))
    found = bench.run(["step", "decode"], asked, tmp_path / "rows.csv")
    assert len(rows.read(tmp_path / "rows.csv")) == len(found)
    errors = {
        (row.bench, row.dtype, row.runner): row.median
        for row in rows.select(found, quantity="error_over_rms")
    }
    fp32 = {runner for kind, dtype, runner in errors if (kind, dtype) == ("step", "float32")}
    assert {"diffusers eager", "kinema eager", "onnxruntime"} <= fp32
    assert ("step", "bfloat16", "onnxruntime") not in errors
    assert errors["step", "bfloat16", "diffusers eager"] > 0
    for (_, dtype, _), error in errors.items():
        assert error < ROUNDINGS * (2**-24 if dtype == "float32" else 2**-8)
    table = tables.step_cpu(found) + tables.executors(found)
    assert table.count("\n| ") == 3 + len(rows.select(found, quantity="seconds"))


class Layer(nn.Linear):
    """As graphs are: its outputs by order."""

    def forward(self, input):
        return (super().forward(input),)


def test_exports_are_made_once_for_the_same_weights(tmp_path):
    layer = Layer(4, 3).requires_grad_(False)
    graph = Graph("layer", layer, lambda sizes: {"input": torch.randn(sizes.batch, 4)}, ("y",))

    def made() -> int:
        weights = executors.fingerprint(layer)
        executors.exported([(graph, None)], "onnx", "float32", weights, tmp_path)
        return (tmp_path / FILE).stat().st_mtime_ns

    first = made()
    assert made() == first
    layer.bias += 1
    assert made() != first


@pytest.mark.parametrize(
    ("took", "turns"), [(0.1, 21), (2.0, 12), (11.0, 3)], ids=["short", "bounded", "long"]
)
def test_turns_fit_their_seconds(took, turns, monkeypatch):
    monkeypatch.setattr(measure, "FEWEST", 3)
    assert measure.Bounds(repeats=21, seconds=25).turns(took) == turns
