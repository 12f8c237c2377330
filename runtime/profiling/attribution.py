"""Inside a step by class of operation: a pass of its own, which sees every operator that is called.

On a host an operator is timed where it is called. A GPU computes later than it is called: there a
profile of its kernels says how long they took, and a mark around each call, whose they are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from . import kineto
from .classes import CLASSES, GAPS, HIDDEN
from .operators import Call, class_of_kernel, describe

if TYPE_CHECKING:
    from ..engine import Engine
    from .ceilings import Ceilings

HIDING = ("compiled", "graph")  # executors that call no operator that could be seen
KEPT = 200_000  # calls that a trace shows at most


class Timed(NamedTuple):
    """One call and its seconds; `start` by the host's clock."""

    call: Call
    start: float
    seconds: float


@dataclass
class Total:
    """What calls of one kind did together."""

    count: int = 0
    seconds: float = 0.0
    flops: int = 0
    bytes: int = 0
    floor_seconds: float = 0.0

    def add(self, timed: Timed, floor: float) -> None:
        self.count += 1
        self.seconds += timed.seconds
        self.flops += timed.call.flops
        self.bytes += timed.call.bytes
        self.floor_seconds += floor

    def as_dict(self) -> dict[str, Any]:
        return dict(vars(self))


@dataclass
class StepCalls:
    """One step of the pass: its seconds, and every call in it."""

    seconds: float
    start: float
    calls: list[Timed] = field(default_factory=list)


class Watching(TorchDispatchMode):
    """Sees every operator that Python or PyTorch calls inside, whole: not what it is made of."""

    def __init__(self, on_device: bool) -> None:
        super().__init__()
        self.on_device = on_device
        self.seen: list[Timed] = []

    def __torch_dispatch__(
        self,
        function: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if self.on_device:
            with torch.profiler.record_function(f"{kineto.MARK}{len(self.seen)}"):
                result = function(*args, **kwargs)
            started, seconds = time.perf_counter(), 0.0
        else:
            started = time.perf_counter()
            result = function(*args, **kwargs)
            seconds = time.perf_counter() - started
        self.seen.append(Timed(describe(function, args, kwargs, result), started, seconds))
        return result


def steps_of(engine: Engine, steps: Iterator[Any]) -> list[StepCalls]:
    """Run all steps that an iterator makes, and see what each calls."""
    _warm_up(engine)
    found = []
    while True:
        with _watched(engine) as step:
            if next(steps, None) is None:
                return found
        found.append(step)


def _warm_up(engine: Engine) -> None:
    """What PyTorch opens when it is first looked at, a second's worth, is no step's."""
    with _watched(engine):
        torch.zeros(1, device=engine.device).add_(1.0)


@contextmanager
def _watched(engine: Engine) -> Iterator[StepCalls]:
    """A step inside, whose seconds and calls are known when it is over."""
    device, step = engine.device, StepCalls(0.0, time.perf_counter())
    seen = None if hides(engine) else Watching(device.type == "cuda")
    if device.type == "cuda":
        with kineto.profiled(device) as profile:
            yield from _run(step, seen, lambda: torch.cuda.synchronize(device))
        step.calls = _by_kernels(step, seen, profile)
        return
    yield from _run(step, seen, lambda: None)
    step.calls = [] if seen is None else seen.seen


def _run(step: StepCalls, seen: Watching | None, wait: Callable[[], None]) -> Iterator[StepCalls]:
    wait()
    step.start = time.perf_counter()
    if seen is None:
        yield step
    else:
        with seen:
            yield step
    wait()
    step.seconds = time.perf_counter() - step.start


def _by_kernels(step: StepCalls, seen: Watching | None, profile: kineto.Profile) -> list[Timed]:
    """Calls with the seconds of their kernels; a kernel of no call by its name."""
    calls = [] if seen is None else seen.seen
    timed = [one._replace(seconds=profile.calls.get(i, 0.0)) for i, one in enumerate(calls)]
    begun = min((kernel.start for kernel in profile.loose), default=0.0)
    for kernel in profile.loose:  # by the profile's clock, which begins elsewhere
        call = Call(kernel.name, class_of_kernel(kernel.name), 0, 0, "float32")
        timed.append(Timed(call, step.start + kernel.start - begun, kernel.seconds))
    return list(_in_turn(timed))


def _in_turn(timed: list[Timed]) -> Iterator[Timed]:
    """Calls as a device works on them: one begins when it was asked for and the last is done."""
    done = 0.0
    for one in timed:
        start = max(done, one.start)
        done = start + one.seconds
        yield one._replace(start=start)


def hides(engine: Engine) -> str | None:
    """Why an engine's steps cannot be seen into, operator by operator; None where they can."""
    if engine.graphs is not None and engine.graphs.has("transformer"):
        return f"the transformer runs as {engine.executor}, which calls no operator of PyTorch"
    if engine.graphs is None and engine.executor in HIDING:
        return f"executor {engine.executor} calls no operator of PyTorch that could be seen"
    return None


# ---- sums ----------------------------------------------------------------------------------------


class Split(NamedTuple):
    """A step by class, and what its operators' seconds were multiplied by to fit it."""

    classes: dict[str, dict[str, Any]]
    scale: float


def split(step: StepCalls, plain_seconds: float, ceilings: Ceilings) -> Split:
    """A step's classes, and what is left of the step as it takes when nobody looks.

    Looking takes time around operators, not in them, so gaps are what the plain step has beside
    them. Where operators took longer than all of it, they are scaled to fit.
    """
    totals: dict[str, Total] = {}
    for timed in step.calls:
        kind = timed.call.kind
        if kind is not None:
            floor = ceilings.floor(timed.call)
            totals.setdefault(kind, Total()).add(timed, floor)
    busy = sum(total.seconds for total in totals.values())
    if not step.calls:
        whole = Total(seconds=plain_seconds).as_dict()
        return Split({HIDDEN: whole}, 1.0)
    scale = min(1.0, plain_seconds / busy) if busy else 1.0
    for total in totals.values():
        total.seconds *= scale
    rest = max(0.0, plain_seconds - busy * scale)
    totals[GAPS] = Total(count=len(step.calls), seconds=rest)
    order = [*CLASSES, *totals]
    named = {name: totals[name].as_dict() for name in order if name in totals}
    return Split(named, scale)


def operators(steps: list[StepCalls], ceilings: Ceilings, most: int = 20) -> list[dict[str, Any]]:
    """Sums over all steps of each operator, longest first."""
    totals: dict[tuple[str, str], Total] = {}
    for step in steps:
        for timed in step.calls:
            name, kind = timed.call.name, timed.call.kind
            if kind is not None:
                floor = ceilings.floor(timed.call)
                totals.setdefault((name, kind), Total()).add(timed, floor)
    found = sorted(totals.items(), key=lambda item: -item[1].seconds)[:most]
    return [{"name": name, "class": kind, **total.as_dict()} for (name, kind), total in found]
