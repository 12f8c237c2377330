"""The benchmarks' cases are right, and their targets are computed from rows as they should be."""

from __future__ import annotations

import pytest
import torch

from kinema.benchmarks.kernels import run_all
from kinema.benchmarks.kernels.cases import OPS, VARIANTS, cases
from kinema.benchmarks.kernels.models import AWKWARD, BY_NAME, MODELS
from kinema.kernels import dispatch


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
    memory, dispatched, dense, eight_bit, fp8, block = run_all.targets(rows).values()
    assert (memory, dispatched, dense) == (0.8, 0.9, 0.75)
    assert (eight_bit, fp8) == (1.5, 1.5)
    # 0.16 + 1.5 * 0.32 + 2 * 0.32 + 0.24 ms over 20 units of 32760 * 5120 * 2 bytes at 4.3 TB/s
    assert block == {"Wan2.1-14B 480p": pytest.approx(1.52 / 1.5604, abs=1e-3)}
    assert run_all.targets([])["fp8 linear over bf16, 14B, worst (1.5)"] is None


def test_without_a_gpu_it_says_so(capsys, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run_all.main([]) == 1
    assert "needs an NVIDIA GPU" in capsys.readouterr().err
