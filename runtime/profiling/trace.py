"""Stages, steps and operators as a trace in Chrome's format, which Perfetto opens.

Times are microseconds from the start of the request. The pass that looks inside the steps is a
process of its own: its steps took longer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from .attribution import KEPT, StepCalls
from .spans import BESIDE, MAIN, WAIT
from .watch import Stopwatch

REQUEST, PASS = 1, 2  # processes
THREADS = {MAIN: 1, BESIDE: 2}
STEPS = 3
WORDS = {WAIT: "waits for the encoder"}


def timeline(watch: Stopwatch) -> list[dict[str, Any]]:
    """Stretches of stages in seconds from the start; parts of a step have its number."""
    found = []
    for span in watch.spans:
        told: dict[str, Any] = {
            "stage": span.stage,
            "start": span.start - watch.started,
            "seconds": span.seconds,
            "thread": span.thread,
        }
        if span.step is not None:
            told["step"] = span.step
        if span.stage != WAIT:
            found.append(told)
    return found


def trace(watch: Stopwatch, inside: Sequence[StepCalls]) -> dict[str, Any]:
    """What `json.dumps` makes a trace of."""
    events = [*_names(), *_request(watch), *_steps(watch), *_inside(watch, inside)]
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _names() -> Iterator[dict[str, Any]]:
    yield _meta("process_name", REQUEST, 0, "the request, first call")
    yield _meta("thread_name", REQUEST, THREADS[MAIN], "stages")
    yield _meta("thread_name", REQUEST, THREADS[BESIDE], "encoder")
    yield _meta("thread_name", REQUEST, STEPS, "steps")
    yield _meta("process_name", PASS, 0, "inside the steps, a pass of its own")
    yield _meta("thread_name", PASS, THREADS[MAIN], "operators")
    yield _meta("thread_name", PASS, STEPS, "steps")


def _meta(kind: str, process: int, thread: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": kind, "pid": process, "tid": thread, "args": {"name": name}}


def _request(watch: Stopwatch) -> Iterator[dict[str, Any]]:
    for span in watch.spans:
        name, thread = WORDS.get(span.stage, span.stage), THREADS[span.thread]
        start = span.start - watch.started
        yield _event(name, "stage", REQUEST, thread, start, span.seconds)


def _steps(watch: Stopwatch) -> Iterator[dict[str, Any]]:
    outer = {}
    for span in watch.spans:
        if span.step is not None and span.step not in outer:  # the one that began first
            outer[span.step] = span
    for index, span in outer.items():
        start = span.start - watch.started
        yield _event(f"step {index + 1}", "step", REQUEST, STEPS, start, span.seconds)


def _inside(watch: Stopwatch, inside: Sequence[StepCalls]) -> Iterator[dict[str, Any]]:
    left, main = KEPT, THREADS[MAIN]
    for index, step in enumerate(inside):
        start = step.start - watch.started
        yield _event(f"step {index + 1}", "step", PASS, STEPS, start, step.seconds)
        for timed in step.calls[:left]:
            call = timed.call
            told = {"flops": call.flops, "bytes": call.bytes, "dtype": call.dtype}
            at, kind = timed.start - watch.started, call.kind or "view"
            yield {**_event(call.name, kind, PASS, main, at, timed.seconds), "args": told}
        left = max(0, left - len(step.calls))


def _event(
    name: str, category: str, process: int, thread: int, start: float, seconds: float
) -> dict[str, Any]:
    """A stretch; microseconds with three places are what the format has."""
    return {
        "ph": "X",
        "name": name,
        "cat": category,
        "pid": process,
        "tid": thread,
        "ts": round(1e6 * start, 3),
        "dur": round(1e6 * seconds, 3),
    }
