"""Times of a guided step of the embedded model; see `step`."""

from __future__ import annotations

from functools import partial

import pytest
import torch

pytest.importorskip("diffusers")

from kinema.benchmarks import step
from kinema.benchmarks.executors import CPU, embedded, rounded
from kinema.benchmarks.measure import BASE
from kinema.runtime.execution import executor as executors


@pytest.fixture(scope="module")
def case():
    return embedded()


@pytest.mark.benchmark(group="step")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("runner", [BASE, "kinema eager", "kinema packed"])
@torch.inference_mode()
def test_step(benchmark, case, dtype, runner):
    model = rounded(case.model, getattr(torch, dtype))
    given = case.latents, case.texts, torch.tensor([700.0])
    if runner == BASE:
        run = step.reference_step(model, *given)
    else:
        name = runner.removeprefix("kinema ")
        if reason := executors.MISSING[name](CPU):
            pytest.skip(reason)
        ours = step.ours(model, CPU, getattr(torch, dtype))
        executors.apply(name, ours)
        run = partial(step.bind(ours, *given), case.latents, 0)
    result = benchmark(run)
    assert result.isfinite().all()
