"""The benchmark of everything that runs a step, on next to nothing."""

from __future__ import annotations

import json

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("onnxruntime")

from kinema.benchmarks import executors, measure, report, step
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


@pytest.fixture
def steps():
    return {name: lambda value=value: torch.tensor(value) for name, value in CONSTANTS.items()}


def test_a_row_has_ratios_to_one_and_errors_beside_another(steps):
    row = executors.measure(steps, executors.Bounds(3, 60), "base", "wanted")
    assert set(row["seconds"]) == set(row["faster"]) == set(CONSTANTS)
    assert row["faster"]["base"] == {"median": 1.0, "p20": 1.0, "p80": 1.0}
    # RMS of (0, 0.5) over that of (3, 4).
    assert row["error_over_rms"] == {"base": 0.0, "wanted": 0.0, "other": pytest.approx(0.1)}


def test_ratios_of_known_samples():
    found = executors.faster([2.0, 9.0, 4.0], [1.0, 3.0, 4.0])
    assert found == {"median": 2.0, "p20": 1.0, "p80": 3.0}


def test_steps_of_every_executor_agree_and_make_a_table(tmp_path, capsys):
    executors.main(["--no-compile", "--repeats", "1", "--exports", str(tmp_path / "kept")])
    written = json.loads((tmp_path / "executors.json").read_text())
    fp32, bf16, decode = written["rows"]
    assert {"diffusers eager", "kinema eager", "onnxruntime"} <= set(fp32["error_over_rms"])
    assert max(fp32["error_over_rms"].values()) < ROUNDINGS * 2**-24
    assert "onnxruntime" not in bf16["seconds"] and bf16["error_over_rms"]["diffusers eager"] > 0
    assert max(bf16["error_over_rms"].values()) < ROUNDINGS * 2**-8
    assert decode["error_over_rms"]["onnxruntime"] < ROUNDINGS * 2**-24
    table = report.executors(written)
    assert table.count("\n| ") == 3 + sum(len(row["seconds"]) for row in written["rows"])
    assert "times as fast" in capsys.readouterr().out


def test_exports_are_made_once_for_the_same_weights(tmp_path):
    model = executors.small().model
    runs = [executors.as_graphs(model, "onnx", "float32", tmp_path) for _ in range(2)]
    made = (tmp_path / FILE).stat().st_mtime_ns
    assert runs[0].ports == runs[1].ports
    executors.as_graphs(model, "onnx", "float32", tmp_path)
    assert (tmp_path / FILE).stat().st_mtime_ns == made
    model.proj_out.bias.data += 1
    executors.as_graphs(model, "onnx", "float32", tmp_path)
    assert (tmp_path / FILE).stat().st_mtime_ns != made


def test_one_part_alone_is_put_beside_rows_written_under_the_same_terms(tmp_path, monkeypatch):
    told = {"device": "this"}
    monkeypatch.setattr(executors, "provenance", lambda *_: told)
    monkeypatch.setattr(executors, "decode", lambda *_: {"what": "decode"})
    monkeypatch.setattr(executors, "compare", lambda name, *_: {"what": name})
    monkeypatch.setattr(executors, "describe", str)

    def parts(*options):
        executors.main(list(options))
        return [
            row["what"] for row in json.loads((tmp_path / "executors.json").read_text())["rows"]
        ]

    assert parts("--only", "decode") == ["decode"]
    assert parts("--only", "12 layers", "--dtype", "float32") == ["12 layers", "decode"]
    told = {"device": "another"}
    assert parts("--only", "decode") == ["decode"]
    assert parts("--only", "decode", "--no-write") == ["decode"]


@pytest.mark.parametrize(
    ("took", "turns"), [(0.1, 21), (2.0, 12), (11.0, 3)], ids=["short", "bounded", "long"]
)
def test_turns_fit_their_seconds(took, turns):
    assert executors.Bounds(repeats=21, seconds=25).turns(took) == turns
