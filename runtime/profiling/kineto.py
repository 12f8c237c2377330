"""A GPU's kernels by the calls that launched them, read from a profile of PyTorch.

The profile is read as the file that PyTorch writes of it: a kernel names the launch it came from,
and a launch lies in time within the mark around its call, on the same thread.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch

MARK = "kinema:"
ON_DEVICE = frozenset({"kernel", "gpu_memcpy", "gpu_memset"})
LAUNCHING = frozenset({"cuda_runtime", "cuda_driver"})
MARKING = frozenset({"user_annotation", "cpu_op"})


class Kernel(NamedTuple):
    """Something that the device did; `start` in seconds of the profile's clock."""

    name: str
    start: float
    seconds: float


@dataclass
class Profile:
    """Seconds of the device by the number of the call, and what no call launched."""

    calls: dict[int, float] = field(default_factory=dict)
    loose: list[Kernel] = field(default_factory=list)


@contextmanager
def profiled(device: torch.device) -> Iterator[Profile]:
    """What a device does inside; known when it is over. Calls are marked with `MARK` and a number.

    The device is waited for before the profile ends.
    """
    from torch.profiler import ProfilerActivity, profile

    found = Profile()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as running:
        yield found
        torch.cuda.synchronize(device)
    with TemporaryDirectory(prefix="kinema-") as folder:
        file = Path(folder) / "trace.json"
        running.export_chrome_trace(str(file))
        read = assign(json.loads(file.read_text(errors="replace")))
    found.calls, found.loose = read.calls, read.loose


def assign(trace: Mapping[str, Any]) -> Profile:
    """Each kernel of a trace to the marked call that launched it."""
    events = [event for event in trace["traceEvents"] if event.get("ph") == "X"]
    marks = _marks(events)
    launches = {
        event["args"]["correlation"]: event
        for event in events
        if event.get("cat") in LAUNCHING and "correlation" in event.get("args", {})
    }
    found = Profile()
    for event in events:
        if event.get("cat") not in ON_DEVICE:
            continue
        launch = launches.get(event.get("args", {}).get("correlation"))
        call = None if launch is None else _call_of(launch, marks)
        seconds = event["dur"] / 1e6
        if call is None:
            found.loose.append(Kernel(event["name"], event["ts"] / 1e6, seconds))
        else:
            found.calls[call] = found.calls.get(call, 0.0) + seconds
    return found


Marks = dict[Any, tuple[list[float], list[tuple[float, int]]]]


def _marks(events: list[dict[str, Any]]) -> Marks:
    """By thread: where marks begin, in order, and where each ends and what it marks."""
    found: dict[Any, list[tuple[float, float, int]]] = {}
    for event in events:
        if event.get("cat") in MARKING and event["name"].startswith(MARK):
            number = int(event["name"][len(MARK) :])
            begin, end = float(event["ts"]), float(event["ts"]) + float(event["dur"])
            found.setdefault(event["tid"], []).append((begin, end, number))
    return {
        thread: ([m[0] for m in sorted(marks)], [m[1:] for m in sorted(marks)])
        for thread, marks in found.items()
    }


def _call_of(launch: Mapping[str, Any], marks: Marks) -> int | None:
    """The mark that a launch lies in."""
    begins, rest = marks.get(launch["tid"], ([], []))
    at = bisect_right(begins, float(launch["ts"])) - 1
    if at < 0 or float(launch["ts"]) > rest[at][0]:
        return None
    return rest[at][1]
