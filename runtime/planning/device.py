"""What a device can do: how long operations of a few sizes take, measured once and kept.

The file of measurements lies in the user's cache folder, under the device's name, the version of
PyTorch and the number of threads.
"""

from __future__ import annotations

import json
import math
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from ..errors import KinemaError
from ..files import cache_folder, write_cache
from ..ledger import Work
from .trials import trials

FORMAT = 1
LONGEST = 0.25  # seconds that a measurement may be expected to take; larger ones are left out
ENOUGH, LEAST = 0.012, 2  # a measurement repeats for so many seconds, and so often
MOST = 40
ROUND_BYTES = (16 << 20, 256 << 20)  # a round touches so many, on a host and on a GPU
MOST_COPIES = 16
CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")

OTHERWISE = {"packed": ("product",)}  # what stands for a kind that was not measured

Point = tuple[float, float]  # amount, seconds


@dataclass(frozen=True)
class Ceilings:
    """How fast a device is.

    points: seconds of operations by kind and bytes of an item, for amounts that rise (`Work` says
    of what). call: seconds of the host around an operation. in_turn: the device waits for that; a
    GPU works meanwhile.
    """

    device: str
    points: Mapping[str, tuple[Point, ...]]
    call: float = 0.0
    in_turn: bool = True

    def seconds(self, work: Mapping[Work, int]) -> float:
        """What operations take one after another."""
        calls = self.call * sum(times for one, times in work.items() if one.kind == "call")
        busy = sum(times * self._one(one) for one, times in work.items() if one.kind != "call")
        return busy + calls if self.in_turn else max(busy, calls)

    def rate(self, kind: str, item: int = 4) -> float:
        """The most that was measured: FLOP/s, or bytes a second."""
        return max(amount / seconds for amount, seconds in self.points[f"{kind}/{item}"])

    def _one(self, work: Work) -> float:
        return interpolate(self._points(work), work.amount)

    def _points(self, work: Work) -> tuple[Point, ...]:
        kinds = (work.kind, *OTHERWISE.get(work.kind, ()))
        names = [f"{kind}/{item}" for kind in kinds for item in (work.item, 4)]
        found = next((self.points[name] for name in names if name in self.points), None)
        if found is None:
            raise KinemaError(f"{work.kind} was not measured on {self.device}; measure it anew")
        return found


def interpolate(points: tuple[Point, ...], amount: float) -> float:
    """Seconds of an amount: as the least below it, at the largest's rate beyond it, and on straight
    lines through logarithms between."""
    amount = max(amount, points[0][0])
    if amount >= points[-1][0]:
        return points[-1][1] * amount / points[-1][0]
    (low, fast), (high, slow) = next(pair for pair in pairwise(points) if pair[1][0] > amount)
    part = math.log(amount / low) / math.log(high / low)
    return fast * (slow / fast) ** part


def ceilings(device: torch.device | str, refresh: bool = False) -> Ceilings:
    """A device's ceilings, from the cache if they are there; else measured, in two seconds or less.

    A cache that cannot be written is done without.
    """
    device = torch.device(device)
    file = cache_folder() / f"{identity(device)}.json"
    if not refresh and (known := _read(file)) is not None:
        return known
    found = measure(device)
    write_cache(file.name, json.dumps({"format": FORMAT, **asdict(found)}))
    return found


def identity(device: torch.device) -> str:
    """What measurements belong to, fit for a file name."""
    on_cpu, name = device.type == "cpu", name_of(device)
    threads = f"-{torch.get_num_threads()}-threads" if on_cpu else ""
    text = f"ceilings-{name}{threads}-torch-{torch.__version__}"
    return "".join(c if c.isalnum() or c in ".-" else "_" for c in text)


def name_of(device: torch.device) -> str:
    """What its maker calls a device."""
    return _cpu() if device.type == "cpu" else torch.cuda.get_device_name(device)


def memory_bytes(device: torch.device | str) -> int:
    """Bytes of memory a device has for us: all of a GPU's that no other process holds; of a host,
    the machine's or the container's limit."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    return min([*_host_limits(), 1 << 62])


def _host_limits() -> Iterator[int]:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        yield 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemTotal:"))
    except (OSError, StopIteration):
        pass
    for name in CGROUP_LIMITS:
        try:
            yield int(Path(name).read_text())
        except (OSError, ValueError):  # no such file, or "max"
            continue


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (x.split(":")[1].strip() for x in lines if x.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def _read(file: Path) -> Ceilings | None:
    try:
        found = json.loads(file.read_text())
        if found["format"] != FORMAT:
            return None
        points = {
            kind: tuple((float(amount), float(seconds)) for amount, seconds in points)
            for kind, points in found["points"].items()
        }
        return Ceilings(found["device"], points, float(found["call"]), bool(found["in_turn"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


# ---- measuring -----------------------------------------------------------------------------------


@torch.inference_mode()
def measure(device: torch.device | str, clock: Callable[[], float] = time.perf_counter) -> Ceilings:
    """Time operations of the sizes that models have, the least time of several repeats each.

    On a host that is busy with other work, a `clock` such as `time.process_time` with one thread
    leaves out what that work takes.
    """
    device = torch.device(device)
    points: dict[str, list[Point]] = {}
    for trial in trials(device.type):
        found = points.setdefault(f"{trial.kind}/{trial.item}", [])
        if found and interpolate(tuple(found), trial.amount) > LONGEST:
            continue
        copies = min(MOST_COPIES, 1 + ROUND_BYTES[device.type == "cuda"] // trial.bytes)
        try:
            calls = [trial.make(device) for _ in range(copies)]
            found.append((trial.amount, _time(calls, device, clock)))
        except torch.OutOfMemoryError:  # others hold the device's memory
            continue
    found = Ceilings(
        identity(device),
        {kind: rising(p) for kind, p in points.items() if p},
        in_turn=device.type == "cpu",
    )
    return replace(found, call=_call(found, device, clock))


def rising(points: Sequence[Point]) -> tuple[Point, ...]:
    """Points without what a busy moment added: less work takes no longer than more."""
    found, least = [], math.inf
    for amount, seconds in reversed(points):
        least = min(least, seconds)
        found.append((amount, least))
    return tuple(reversed(found))


def _call(found: Ceilings, device: torch.device, clock: Callable[[], float]) -> float:
    """Seconds around an operation: of a step too small to compute much, what its operations do not
    take, for each of its calls."""
    from ..models.probe import small_step

    step, work = small_step(device)
    taken = _time([step] * 4, device, clock)
    calls = sum(times for one, times in work.items() if one.kind == "call")
    return max(0.0, taken - found.seconds(work) * found.in_turn) / calls


def _time(
    calls: Sequence[Callable[[], Any]], device: torch.device, clock: Callable[[], float]
) -> float:
    """The least seconds of a call, of several rounds of all of them.

    What they give lives to the end of the round: memory is as cold as between layers of a model.
    """
    _results = [call() for call in calls]
    taken: list[float] = []
    while len(taken) < LEAST or (sum(taken) < ENOUGH and len(taken) < MOST):
        del _results
        started = _now(device, clock)
        _results = [call() for call in calls]
        taken.append(_now(device, clock) - started)
    return min(taken) / len(calls)


def _now(device: torch.device, clock: Callable[[], float]) -> float:
    """What the clock says, once the device is done with what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock()
