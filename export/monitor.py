"""What a TensorRT build tells while it runs, and how it is stopped."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Phases:
    """Steps of phases within phases, as the part of it all that is done; it never goes back."""

    def __init__(self) -> None:
        self.open: dict[str, list[Any]] = {}
        self.done = 0.0

    def start(self, name: str, parent: str | None, steps: int) -> None:
        self.open[name] = [parent, steps, 0]

    def step(self, name: str, index: int) -> float:
        self.open[name][2] = index + 1
        part, inner = 0.0, name
        while inner in self.open:
            parent, steps, done = self.open[inner]
            part, inner = (done + part) / steps, parent
        self.done = max(self.done, min(part, 1.0))
        return self.done

    def finish(self, name: str) -> None:
        self.open.pop(name)


@contextmanager
def signals_kept(stop: Callable[[], None]) -> Iterator[None]:
    """A signal inside calls `stop` at once and its own handler after: what that raises in a
    callback, TensorRT drops."""
    kept: list[tuple[int, Any]] = []

    def keep(number: int, frame: Any) -> None:
        kept.append((number, frame))
        stop()

    handlers: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():  # no other may have handlers
        known = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        handlers = {number: handler for number, handler in known.items() if callable(handler)}
    for number in handlers:
        signal.signal(number, keep)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    for number, frame in kept[:1]:
        handlers[number](number, frame)


def monitor(trt: Any, progress: Callable[[float], None] | None) -> Any:
    """Tells `progress` the part that is done; what that raises is kept in `raised`, for it may not
    cross TensorRT."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.phases, self.raised, self.stopped = Phases(), None, False

        def stop(self) -> None:
            self.stopped = True

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            self.phases.start(name, parent, steps)

        def step_complete(self, name: str, index: int) -> bool:
            try:
                done = self.phases.step(name, index)
                if progress:
                    progress(done)
            except BaseException as error:
                self.raised = error
            return self.raised is None and not self.stopped

        def phase_finish(self, name: str) -> None:
            self.phases.finish(name)

    return Monitor()
