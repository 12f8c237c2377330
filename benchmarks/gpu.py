"""A whole table of one GPU in ten minutes: `python -m kinema.benchmarks.gpu`.

Wan2.1-1.3B at 832x480, 81 frames, with random weights of the true size, in bf16. First every kernel
that it runs on is checked on the chip, in a process of its own; then a guided step (two forwards of
diffusers' transformer, one of ours) by executor, by attention and by technique, and both compilers,
each taking turns with diffusers eager, beside the floor at the rates that this GPU reached a moment
before. What matters most comes first, what no time is left for is said, and every row is written as
it comes, into `results/<device>.csv`. `--dry-run` does all of it on a CPU, on next to nothing.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from . import chip, gpu_step, rows
from .gpu_step import PACKAGES
from .kernels.timing import PREDICTED_GBPS, PREDICTED_TFLOPS
from .rows import Row


@dataclass
class Keeper:
    """Where rows are written as they come, and the time that is left."""

    out: Path
    until: float

    def add(self, new: Sequence[Row]) -> None:
        """Say rows and write them, in place of older ones of their runs."""
        for row in new:
            print(rows.said(row), flush=True)
        rows.merge(new, self.out)

    @property
    def left(self) -> float:
        """Seconds."""
        return self.until - time.monotonic()


def main(arguments: list[str] | None = None) -> int:
    """Measure; 0 if every kernel that ran was right."""
    options = _options(arguments)
    gpu = torch.cuda.is_available() and not options.dry_run
    if not gpu and not options.dry_run:
        print("python -m kinema.benchmarks.gpu needs an NVIDIA GPU; --dry-run shows what it does")
        return 1
    device = torch.device("cuda" if gpu else "cpu")
    out = options.out or rows.path_of(rows.about("", on=device).device)
    if options.dry_run and not options.out:
        raise SystemExit("--dry-run needs --out FILE: its rows are of no use to anyone")
    keeper = Keeper(out, time.monotonic() + 60 * options.minutes)
    if options.check:
        return chip.check(keeper.out, device)
    return run(keeper, device, "1.3b" if gpu else "tiny", not options.no_compile)


@torch.inference_mode()
def run(keeper: Keeper, device: torch.device, size: str, compiled: bool) -> int:
    """All of it, in order of importance."""
    tflops, gbps = ceilings(keeper, device)
    wrong = chip.check_apart(keeper.out, device)
    work = gpu_step.open_work(size, device, tflops, gbps)
    predicted = work.floor_at(PREDICTED_TFLOPS, PREDICTED_GBPS)
    print(
        f"the floor of a step is {work.floor:.4g} s at these rates; predicted before, of"
        f" {PREDICTED_TFLOPS:g} TFLOP/s and {PREDICTED_GBPS:g} GB/s: {predicted:.4g} s",
        flush=True,
    )
    parts: list[tuple[str, float, Callable[[], list[Row]]]] = [
        ("executors", 45, partial(gpu_step.by_executor, work, False)),
        ("attention", 120, partial(gpu_step.by_attention, work, wrong)),
        ("techniques", 60, partial(gpu_step.by_technique, work)),
        ("compilers", 240, partial(gpu_step.by_executor, work, True)),
    ]
    for name, needs, part in parts:
        if name == "compilers" and not compiled:
            continue
        if device.type == "cuda" and keeper.left < needs:
            print(f"left out for time: {name}, which needs {needs} s of {keeper.left:.0f}")
            continue
        keeper.add(part())
        _free(device)
    print(f"rows are in {keeper.out}; {keeper.left:.0f} s were left")
    return 1 if wrong else 0


def ceilings(keeper: Keeper, device: torch.device) -> tuple[float, float]:
    """TFLOP/s of a dense product in bf16 and GB/s of a copy, measured now."""
    from ..runtime.profiling import ceilings as of_device

    found = of_device.ceilings(device, remeasure=True)
    tflops, gbps = found.flops("bfloat16") / 1e12, found.copy / 1e9
    about = rows.about("ceilings", "device", "", "bfloat16", *PACKAGES, on=device)
    rates = {"product": (tflops, "TFLOP/s"), "copy": (gbps, "GB/s")}
    keeper.add([rows.one(about, name, "rate", unit, rate) for name, (rate, unit) in rates.items()])
    return tflops, gbps


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m kinema.benchmarks.gpu")
    parser.add_argument("--minutes", type=float, default=9.5, help="stop beginning parts by then")
    parser.add_argument("--check", action="store_true", help="only whether the kernels are right")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--dry-run", action="store_true", help="on a CPU, at tiny sizes")
    parser.add_argument("--out", type=Path, help="a CSV file, not the committed one")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
