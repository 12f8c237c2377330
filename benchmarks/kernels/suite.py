"""What the pytest-benchmark suites share: an operation at every shape, by every backend and peer.

    pytest benchmarks/kernels

With a GPU, the models' shapes in bf16; without one, sizes of a test, in plain PyTorch.
`run_all` is the measurement to quote: cold L2, device events, ceilings of the same run.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any

import pytest
import torch

from ...kernels import dispatch
from .cases import VARIANTS, cases
from .models import AWKWARD, MODELS

GPU = torch.cuda.is_available()
DEVICE, DTYPE = ("cuda", torch.bfloat16) if GPU else ("cpu", torch.float32)
PEERS = ("eager", "compile", "bf16", "dense")


def suite(op: str) -> Callable[..., None]:
    """The test function of `bench_<op>.py`."""
    names = [entry.name for entry in dispatch.backends(op) if entry.name != "torch"]

    @pytest.mark.benchmark(group=op)
    @pytest.mark.parametrize("runs", [*names, *PEERS])
    @pytest.mark.parametrize("variant", range(VARIANTS[op]))
    @pytest.mark.parametrize("model", MODELS if GPU else [AWKWARD], ids=lambda model: model.name)
    def test(benchmark: Any, model: Any, variant: int, runs: str) -> None:
        case = next(islice(cases(op, model, DEVICE, DTYPE), variant, None), None)
        if case is None:
            pytest.skip(f"{op} has no such variant for {model.name} in {DTYPE}")
        calls = case.ours(DEVICE) | case.others(compiled=runs == "compile")
        if runs not in calls:
            pytest.skip(f"{runs} does not run {op} here")
        benchmark.extra_info |= {"variant": case.variant, "flops": case.flops, "bytes": case.bytes}
        benchmark(_finished, calls[runs])

    return test


def _finished(call: Callable[[], Any]) -> None:
    call()
    if GPU:
        torch.cuda.synchronize()
