"""Measuring: functions interleaved in one process, medians with their spread, where and on what."""

from __future__ import annotations

import datetime
import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import torch

RESULTS = Path(__file__).parent / "results"
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


def summary(seconds: list[float]) -> dict[str, float]:
    """Median with the 20th and 80th percentile, in seconds."""
    ordered = sorted(seconds)
    last = len(ordered) - 1
    return {
        "median_s": round(statistics.median(ordered), 5),
        "p20_s": round(ordered[round(0.2 * last)], 5),
        "p80_s": round(ordered[round(0.8 * last)], 5),
        "repeats": len(ordered),
    }


def median_ratio(slower: list[float], faster: list[float]) -> float:
    """The median of the ratios of neighbouring calls."""
    return statistics.median(a / b for a, b in zip(slower, faster, strict=True))


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
    part = path.with_suffix(".part")
    part.write_text(json.dumps(rows, indent=2) + "\n")
    part.replace(path)
    return path


def cpu() -> str:
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
