"""A stopwatch of one request: its stages on every thread, the insides of its steps, its memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch

from .memory import Peaks, gauge_of
from .spans import BESIDE, MAIN, OTHER, WAIT, Span, exclusive

# Stages that share a peak with another, because they take turns too fast to be told apart.
TOGETHER = {"guidance": "denoise"}

Moment = Any  # of the clock of steps: seconds, or an event of a GPU


class HostClock:
    """Moments of a host that waits for what it computes."""

    def now(self) -> Moment:
        return time.perf_counter()

    def begin(self) -> None: ...

    def settle(self, moments: list[Moment]) -> list[float]:
        return moments

    def wait(self) -> None: ...


class DeviceClock:
    """Moments of a GPU's stream, which the host runs ahead of; not waited for before `settle`."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._first: tuple[Any, float] | None = None

    def begin(self) -> None:
        """Tie the stream's time to the host's, before the first of some moments."""
        if self._first is None:
            self.wait()
            self._first = self.now(), time.perf_counter()

    def now(self) -> Moment:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def settle(self, moments: list[Moment]) -> list[float]:
        self.wait()
        assert self._first is not None  # `begin` came before the first of the moments
        event, host = self._first
        return [host + event.elapsed_time(moment) / 1000 for moment in moments]

    def wait(self) -> None:
        torch.cuda.synchronize(self.device)


class Stopwatch:
    """What a request's time went to. `begin` once the device is known, `end` when all is done."""

    def __init__(self) -> None:
        self.started, self.ended = time.perf_counter(), 0.0
        self.peaks: dict[str, int] = {}
        self.how = ""
        self._spans: list[Span] = []
        self._clock: HostClock | DeviceClock = HostClock()
        self._memory: Peaks | None = None
        self._main, self._stages = threading.get_ident(), [OTHER]
        self._steps: list[tuple[str, Moment, Moment, int | None]] = []
        self.step: int | None = None

    def begin(self, device: torch.device) -> None:
        """Follow a device's memory and time, from now on those of the stage that is under way."""
        if self._memory is not None:
            return
        if device.type == "cuda":
            self._clock = DeviceClock(device)
        self._memory = Peaks(gauge_of(device), self._stages[-1])
        self.how = self._memory.gauge.how

    def end(self) -> None:
        """Stop: the request is done."""
        self._clock.wait()
        self.ended = time.perf_counter()
        if self._memory is not None:
            self.peaks = self._memory.close()
            self._memory = None

    @property
    def spans(self) -> list[Span]:
        """All stretches so far, in the order they began."""
        self._settle()
        return sorted(self._spans, key=lambda span: span.start)

    def seconds(self) -> dict[str, float]:
        """Exclusive seconds of each stage; they sum to the time between start and end."""
        return exclusive(self.spans, self.started, self.ended)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """The time inside is this stage's, but for what others inside take."""
        if threading.get_ident() != self._main:
            with self._beside(name):
                yield
            return
        started = time.perf_counter()
        self._push(name)
        try:
            yield
            self._clock.wait()
        finally:
            self._spans.append(Span(name, started, time.perf_counter()))
            self._pop()

    @contextmanager
    def inside(self, name: str) -> Iterator[None]:
        """A part of a step: by the device's own clock, which nobody waits for."""
        started = self._clock.now()
        try:
            yield
        finally:
            self._steps.append((name, started, self._clock.now(), self.step))

    @contextmanager
    def stepping(self, index: int) -> Iterator[None]:
        """A step of denoising."""
        self._clock.begin()
        if self._memory is not None:
            self._memory.enter("denoise")
        self.step = index
        try:
            with self.inside("denoise"):
                yield
        finally:
            self.step = None

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function whose time is a stage's."""

        @wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.stage(name):
                return function(*args, **kwargs)

        return timed

    # ---- inside ----------------------------------------------------------------------------------

    @contextmanager
    def _beside(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self._spans.append(Span(name, started, time.perf_counter(), BESIDE))

    def _push(self, name: str) -> None:
        self._settle()
        self._stages.append(name if name != WAIT else self._stages[-1])
        self._remember()

    def _pop(self) -> None:
        self._stages.pop()
        self._remember()

    def _remember(self) -> None:
        if self._memory is not None:
            self._memory.enter(TOGETHER.get(self._stages[-1], self._stages[-1]))

    def _settle(self) -> None:
        """Parts of steps become stretches on the host's clock."""
        if not self._steps:
            return
        steps, self._steps = self._steps, []
        moments = [moment for _, start, end, _ in steps for moment in (start, end)]
        seconds = iter(self._clock.settle(moments))
        for name, _, _, step in steps:
            self._spans.append(Span(name, next(seconds), next(seconds), MAIN, step))
