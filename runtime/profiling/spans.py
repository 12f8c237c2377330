"""Stretches of time that stages took, and whose time each moment was.

Stages nest on the thread that makes the request: the innermost one has the moment. Where that
thread waits for the one that encodes, the moment is that of what it waits for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

MAIN, BESIDE = "main", "encode"
WAIT = "wait"  # a stage of the main thread that stands for what the other thread does
WAITED_FOR = "mux"  # and that is this, where the other says nothing
OTHER = "other"


class Span(NamedTuple):
    """A stretch of a stage, in seconds of one clock; `step` is that of a denoising step."""

    stage: str
    start: float
    end: float
    thread: str = MAIN
    step: int | None = None

    @property
    def seconds(self) -> float:
        return self.end - self.start


def exclusive(spans: Iterable[Span], start: float, end: float) -> dict[str, float]:
    """Seconds of each stage between two moments, every moment given to one: they sum to all."""
    found: dict[str, float] = {}
    for stage, begin, until in _moments(spans, start, end):
        found[stage] = found.get(stage, 0.0) + until - begin
    return found


def _moments(spans: Iterable[Span], start: float, end: float) -> Iterable[tuple[str, float, float]]:
    """Pieces between two moments, and the stage of each."""
    inside = [s for s in spans if s.end > start and s.start < end and s.end > s.start]
    edges = sorted(
        [(s.start, 1, i) for i, s in enumerate(inside)]
        + [(s.end, 0, i) for i, s in enumerate(inside)]
    )
    running: set[int] = set()
    before = start
    for moment, begins, index in [*edges, (end, 0, -1)]:
        moment = min(max(moment, start), end)
        if moment > before:
            yield _stage_of([inside[i] for i in running]), before, moment
            before = moment
        (running.add if begins else running.discard)(index)


def _stage_of(running: Sequence[Span]) -> str:
    own = _innermost(running, MAIN)
    if own is None:
        return OTHER
    if own.stage != WAIT:
        return own.stage
    beside = _innermost(running, BESIDE)
    return WAITED_FOR if beside is None else beside.stage


def _innermost(running: Sequence[Span], thread: str) -> Span | None:
    own = (span for span in running if span.thread == thread)
    return max(own, key=lambda span: (span.start, -span.end), default=None)
