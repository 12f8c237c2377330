"""The benchmarks' cases are right, and their targets are computed from rows as they should be."""

from __future__ import annotations

import json
import sys
import time

import pytest
import torch

from kinema.benchmarks.kernels import run_all, workers
from kinema.benchmarks.kernels.cases import OPS, VARIANTS, cases
from kinema.benchmarks.kernels.configurations import CONFIGURATIONS
from kinema.benchmarks.kernels.models import AWKWARD, BY_NAME, MODELS
from kinema.benchmarks.kernels.rows import STAGES, Item
from kinema.benchmarks.kernels.targets import targets
from kinema.kernels import Quantized, dispatch


@pytest.mark.parametrize("op", OPS)
def test_cases_agree_with_the_definition(op) -> None:
    dtype = torch.bfloat16 if op == "quantized_attention" else torch.float32
    found = list(cases(op, AWKWARD, "cpu", dtype))
    assert len(found) == VARIANTS[op]
    for case in found:
        error, allowed, right = case.errors(case.call(case.eager())())
        assert right, (case.variant, error, allowed)
        assert case.bytes > 0


def test_every_operation_is_measured() -> None:
    assert set(OPS) == set(dispatch.TABLE)


def test_a_wrong_kernel_is_found() -> None:
    (case,) = cases("gate_residual", AWKWARD, "cpu", torch.bfloat16)
    right = case.call(case.eager())()
    assert case.errors(right)[2]
    wrong = right.clone()
    wrong[0, 3, 5] += 1
    assert not case.errors(wrong)[2]
    wrong[0, 3, 5] = torch.nan
    assert not case.errors(wrong)[2]


def test_shapes_are_the_models() -> None:
    assert [model.tokens for model in MODELS] == [32760, 32760, 75600, 17776, 119056, 13376, 75600]
    assert BY_NAME["Wan2.1-14B 720p"].dim == 5120
    for model in MODELS:
        rotated = model.dim if sum(model.pairs) > model.head_dim else model.head_dim
        assert 2 * sum(model.pairs) == rotated


def row(op: str, backend: str, ms: float, kind: str = "ours", **more) -> dict:
    base = {"op": op, "model": "Wan2.1-14B 480p", "variant": "", "backend": backend, "kind": kind}
    return base | {"median_ms": ms, "share_of_ceiling": 0.9, "automatic": False} | more


def test_targets() -> None:
    rows = [
        row("attention", "flash3", 30.0, variant="self", automatic=True),
        row("attention", "cudnn", 27.0, variant="self"),
        row("attention", "triton", 36.0, variant="self"),
        row("attention", "triton-fp8", 10.0, variant="self"),
        row("attention", "triton", 0.1, variant="cross", automatic=True),
        row("quantized_attention", "triton", 18.0, variant="fp8"),
        row("quantized_linear", "triton", 4.0, variant="fp8"),
        row("quantized_linear", "bf16", 6.0, kind="peer", variant="fp8"),
        row("norm_modulate", "triton", 0.16, variant="modulate"),
        row("norm_modulate", "triton", 0.32, variant="residual", share_of_ceiling=0.8),
        row("qk_norm_rope", "triton", 0.32),
        row("gate_residual", "triton", 0.24),
    ]
    memory, dispatched, dense, eight_bit, fp8, block = targets(rows).values()
    assert (memory, dispatched, dense) == (0.8, 0.9, 0.75)
    assert (eight_bit, fp8) == (1.5, 1.5)
    # 0.16 + 1.5 * 0.32 + 2 * 0.32 + 0.24 ms over 20 units of 32760 * 5120 * 2 bytes at 4.3 TB/s
    assert block == {"Wan2.1-14B 480p": pytest.approx(1.52 / 1.5604, abs=1e-3)}
    assert targets([])["fp8 linear over bf16, 14B, worst (1.5)"] is None


@pytest.mark.parametrize("op", OPS)
def test_every_configuration_is_right(op) -> None:
    """What the tuning times: each configuration of the kernel, in the interpreter."""
    dtype = torch.bfloat16 if op == "quantized_attention" else torch.float32
    for case in cases(op, AWKWARD, "cpu", dtype):
        found = dict(CONFIGURATIONS[op](case))
        assert len(found) >= 1
        for config, call in found.items():
            output = call()
            if op in ("norm_modulate", "guided_step"):  # these launch with a list of outputs
                output = _as_public(case, output)
            error, allowed, right = case.errors(output)
            assert right, (case.variant, config, error, allowed)


def _as_public(case, outputs):
    """The outputs of a launch as the operation gives them."""
    if case.op == "guided_step":
        return outputs
    return Quantized(*outputs) if case.lossy else outputs


def test_all_is_begun_in_order_of_importance() -> None:
    stages = run_all.stages(list(OPS))
    items = [item for groups, _ in stages for group in groups for item in group]
    assert len(set(items)) == len(items)
    assert {item.stage for item in items} == set(STAGES)
    order = [item.stage for item in items]
    assert order == sorted(order, key=["ceilings", "check", "time", "tune", "compile"].index)
    assert {item.model for item in items if item.stage == "check"} == set(BY_NAME)


FAKE = """
import json, os, sys, time
lines, task = sys.argv[1:]
with open(lines, "a") as file:
    for item in json.loads(task)["items"]:
        print(json.dumps({"begin": item}), file=file, flush=True)
        if item[1] == "dies":
            sys.exit("illegal memory access")
        if item[1] == "hangs":
            time.sleep(60)
        print(json.dumps({"row": {"kind": "check", "op": item[1]}}), file=file, flush=True)
        print(json.dumps({"end": item}), file=file, flush=True)
"""


def test_what_dies_or_hangs_loses_one_item(tmp_path) -> None:
    items = [Item("check", op) for op in ("good", "dies", "better", "hangs", "best")]
    command, said = (sys.executable, "-c", FAKE), []
    left_out = workers.work(
        [items, [Item("check", "other")]], {}, 1.0, said.append, tmp_path,
        slots=2, stall_s=2.0, command=command,
    )  # fmt: skip
    assert left_out == []
    rows = {row["op"]: row for row in said}
    assert set(rows) == {"good", "dies", "better", "hangs", "best", "other"}
    assert rows["dies"]["error"] == "the process ended with 1: illegal memory access"
    assert "ended with -9" in rows["hangs"]["error"]
    assert [row["op"] for row in said if "error" not in row and row["op"] != "other"] == [
        "good", "better", "best",
    ]  # fmt: skip


def test_the_clock_ends_work(tmp_path) -> None:
    items = [Item("check", op) for op in ("good", "hangs", "never")]
    command, said = (sys.executable, "-c", FAKE), []
    left_out = workers.work([items], {}, 1 / 15, said.append, tmp_path, command=command)
    assert [row["op"] for row in said] == ["good"]
    assert left_out == items[1:]


def test_a_worker_tells_what_went_wrong(tmp_path, monkeypatch) -> None:
    """The real one: an item fails, and with it the GPU."""
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: 1 / 0)
    lines = tmp_path / "lines"
    task = {
        "items": [("check", "gate_residual", "none such")],
        "limits": {},
        "until": time.time() + 60,
    }
    with pytest.raises(SystemExit, match="context is lost"):
        workers.main(str(lines), json.dumps(task))
    begun, row = map(json.loads, lines.read_text().splitlines())
    assert begun == {"begin": ["check", "gate_residual", "none such"]}
    assert row["row"]["error"] == "KeyError: 'none such'"


def test_without_a_gpu_it_says_so(capsys, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run_all.main([]) == 1
    assert "needs an NVIDIA GPU" in capsys.readouterr().err
