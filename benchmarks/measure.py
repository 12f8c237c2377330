"""Measuring: functions interleaved in one process, medians with their spread, where and on what."""

from __future__ import annotations

import datetime
import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..runtime.files import whole_or_nothing

RESULTS = Path(__file__).parent / "results"
BASE = "diffusers eager"  # what all else is beside
PROMPT = "a red ball bounces on the grass"
FEWEST = 3


def interleave(
    functions: dict[str, Callable[[], Any]],
    repeats: int,
    warmup: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of every call, taking turns, so that a slow minute of the machine hits all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(warmup + repeats):
        for name, function in functions.items():
            started = clock()
            function()
            if turn >= warmup:
                seconds[name].append(clock() - started)
    return seconds


def finished(result: Tensor) -> Tensor:
    """What a timed call gives, once the device has it."""
    if result.is_cuda:
        torch.cuda.synchronize()
    return result


class Bounds(NamedTuple):
    """How often all take a turn: so many times, or as fit in so many seconds, yet three times."""

    repeats: int
    seconds: float

    def turns(self, took: float) -> int:
        """Where one turn takes so long."""
        return min(self.repeats, max(FEWEST, int(self.seconds / took)))


def turns(functions: dict[str, Callable[[], Any]], bounds: Bounds) -> dict[str, list[float]]:
    """`interleave`, within bounds that a first turn, of warm functions, is measured for."""
    started = time.perf_counter()
    interleave(functions, repeats=1, warmup=0)
    return interleave(functions, bounds.turns(time.perf_counter() - started), warmup=0)


class Spread(NamedTuple):
    """What values are like."""

    median: float
    p20: float
    p80: float


def spread(values: Sequence[float]) -> Spread:
    """The median with the 20th and the 80th percentile, which are two of the values."""
    ordered = sorted(values)
    last = len(ordered) - 1
    low, high = ordered[round(0.2 * last)], ordered[round(0.8 * last)]
    return Spread(statistics.median(ordered), low, high)


def ratios(slower: Sequence[float], faster: Sequence[float]) -> list[float]:
    """Of neighbouring calls: how many times as fast the second is."""
    return [a / b for a, b in zip(slower, faster, strict=True)]


def summary(seconds: Sequence[float]) -> dict[str, float]:
    """A spread in seconds, as the files of results that are no rows have it."""
    found = {f"{name}_s": round(value, 5) for name, value in spread(seconds)._asdict().items()}
    return {**found, "repeats": len(seconds)}


def provenance(*packages: str) -> dict[str, Any]:
    """Device, versions, commit and date of a row."""
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else cpu(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in ("torch", "kinema", *packages)},
        "commit": _commit(),
        "date": datetime.date.today().isoformat(),
    }


def write_rows(name: str, rows: dict[str, Any]) -> Path:
    """Write `results/NAME.json`; returns its path."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    with whole_or_nothing(path) as unfinished:
        unfinished.write_text(json.dumps(rows, indent=2) + "\n")
    return path


def cpu() -> str:
    """The processor's name, and whether it multiplies matrices in bf16."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    model = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), "CPU")
    amx = " with AMX" if any("amx_bf16" in x for x in lines) else ""
    return f"{model}{amx}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


@lru_cache
def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    found = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent)
    return found.stdout.strip() or "unknown"
