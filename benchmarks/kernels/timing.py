"""Times of work on a GPU: device events, cold L2, median with the 20th and 80th percentile."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from ..measure import spread

COLD = 256 * 2**20  # bytes written between calls: several times any L2 so far
AHEAD = 40_000_000  # cycles, some 20 ms, that the device waits while the host prepares launches
# Measured once on an NVIDIA H200 (dense bf16 product of 8192; copy, bytes read plus written): what
# predictions are made from. Each run measures its own as well.
PREDICTED_TFLOPS, PREDICTED_GBPS = 790.0, 4300.0


class Time(NamedTuple):
    """Milliseconds of one call, and the seconds the first one took, which compiles."""

    median_ms: float
    p20_ms: float
    p80_ms: float
    repeats: int
    first_s: float


def measure(call: Callable[[], Any], budget_s: float = 0.25, most: int = 50) -> Time:
    """Time calls for about `budget_s`, at least three, each after the L2 cache was overwritten.

    The host runs ahead of the device, so that what is timed is the device's work, not launches.
    """
    started = time.perf_counter()
    call()
    torch.cuda.synchronize()
    first_s = time.perf_counter() - started
    flush = torch.empty(COLD, dtype=torch.int8, device="cuda")
    estimate = statistics.median(_timed(call, flush, 2))
    count = max(3, min(most, round(1e3 * budget_s / max(estimate, 1e-3))))
    return Time(*spread(_timed(call, flush, count)), count, first_s)


def _timed(call: Callable[[], Any], flush: torch.Tensor, count: int) -> list[float]:
    """Milliseconds of each of `count` calls."""
    pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(count)]
    torch.cuda._sleep(AHEAD)
    for start, end in pairs:
        flush.zero_()
        start.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) for start, end in pairs]


def ceilings() -> dict[str, float]:
    """What this device reaches now: GB/s of a copy, TFLOP/s of an 8192 product in bf16 and fp8."""
    source = torch.empty(2**31, dtype=torch.int8, device="cuda")
    target = torch.empty_like(source)
    copy = measure(lambda: target.copy_(source))
    size = 8192
    left, right = torch.randn(2, size, size, device="cuda").bfloat16()
    found = {
        "copy_gbps": 2 * source.numel() / copy.median_ms / 1e6,
        "bf16_tflops": 2 * size**3 / measure(lambda: left @ right.mT).median_ms / 1e9,
    }
    if torch.cuda.get_device_capability() >= (8, 9):
        left8, right8 = left.to(torch.float8_e4m3fn), right.to(torch.float8_e4m3fn)
        one = torch.ones((), device="cuda")
        options = {"scale_a": one, "scale_b": one, "out_dtype": torch.bfloat16}
        fp8 = measure(lambda: torch._scaled_mm(left8, right8.mT, use_fast_accum=True, **options))
        found["fp8_tflops"] = 2 * size**3 / fp8.median_ms / 1e9
    return {name: round(value, 1) for name, value in found.items()}
