"""Whether kinema has lost speed beside diffusers: `kinema bench gate`.

A small suite on one thread runs twice, and its ratios to diffusers eager, not its times, are
compared with the committed ones. The clock counts what the thread itself works, which the work of
others on the machine lengthens little, and both sides alike. What is lost is told from noise by
what was measured: see `judge`. docs/numbers.md has the reasoning.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from ..runtime.execution import executor as executors
from . import rows
from .measure import BASE, PROMPT, interleave
from .rows import Row
from .samplers import Terms, kinema_sampler, reference_sampler

DTYPES = ("float32", "bfloat16")
TURNS = {"step": 21, "video": 9}
STEPS = 5  # of a video, whose encoding, binding and solver are then a good part of it
MATTER = ("torch", "diffusers")  # other versions of these have other ratios
PACKAGES = ("diffusers", "transformers")

Suite = Callable[[], Sequence[Row]]


@dataclass(frozen=True)
class Verdict:
    """A ratio as committed, as found in each run, and how much less is noise, as a part of it."""

    what: str
    committed: float | None
    found: tuple[float, ...]
    noise: float = 0.0
    lost: bool = False
    note: str = ""

    def __str__(self) -> str:
        found = " and ".join(f"{value:.3f}" for value in self.found)
        if self.committed is None:
            return f"{self.what}: {found} times as fast as {BASE}; not compared: {self.note}"
        change = max(self.found) / self.committed - 1
        said = "LOST" if self.lost else "kept"
        return (
            f"{self.what}: {said}; {found} times as fast as {BASE}, committed {self.committed:.3f}"
            f" ({change:+.1%}, of which {self.noise:.1%} may be noise)"
        )


def check(say: Callable[[str], None] = print, suite: Suite | None = None) -> list[Verdict]:
    """Run the suite twice and judge each of its ratios against the committed row."""
    committed = rows.read()
    say("measuring twice, on one thread")
    first, second = [(suite or measure)() for _ in range(2)]
    return [judge(row, again, committed) for row, again in zip(first, second, strict=True)]


def write(suite: Suite | None = None) -> str:
    """Measure what is committed: both runs of the suite as one; returns the file."""
    first, second = [(suite or measure)() for _ in range(2)]
    pairs = zip(first, second, strict=True)
    return str(rows.merge([_both(row, again) for row, again in pairs])[0])


def _both(row: Row, again: Row) -> Row:
    """Two runs as one row: the mean of their medians, and the spread of the wider."""
    middle = (row.value + again.value) / 2
    lows, highs = zip(_percentiles(row), _percentiles(again), strict=True)
    assert row.n is not None and again.n is not None  # both were timed
    return replace(row, median=middle, p20=min(lows), p80=max(highs), n=row.n + again.n)


def _percentiles(row: Row) -> tuple[float, float]:
    assert row.percentiles is not None, row  # a ratio is of many turns
    return row.percentiles


# ---- judging -------------------------------------------------------------------------------------


def judge(first: Row, second: Row, committed: Sequence[Row]) -> Verdict:
    """A loss is what both runs have, beyond the noise that was measured.

    Noise is what either side may be off by, half of its spread (20th to 80th percentile of single
    ratios, of the wider run), and what the runs differ by. A median of n ratios is known some
    n ** 0.5 times better than that: the rest is for what stays alike within a run and changes from
    one to the next, such as others' work. It is worse to fail falsely than to miss a loss of 5 %.
    """
    what = f"{first.name}, {first.dtype}"
    found = (first.value, second.value)
    wanted, reason = _comparable(first, committed)
    if wanted is None:
        return Verdict(what, None, found, note=reason)
    theirs, *own = (_either_way(row) for row in (wanted, first, second))
    noise = theirs + max(own) + abs(found[0] - found[1]) / wanted.value
    lost = max(found) < wanted.value * (1 - noise)
    return Verdict(what, wanted.value, found, noise, lost)


def _either_way(row: Row) -> float:
    """Half of a spread, as a part of the median."""
    low, high = _percentiles(row)
    return (high - low) / row.value / 2


def _comparable(row: Row, committed: Sequence[Row]) -> tuple[Row | None, str]:
    """The committed row that tells what this one should be, or why there is none."""
    same = {name: getattr(row, name) for name in ("bench", "name", "dtype", "quantity")}
    known = rows.select(committed, **same)
    here = rows.select(known, device=row.device)
    if not here:
        return None, f"no such row of {row.device} is committed; kinema bench gate --write"
    if versions(here[0]) != versions(row):
        ours, theirs = (", ".join(versions(each).values()) for each in (row, here[0]))
        return None, f"measured with {' and '.join(MATTER)} {theirs}, and here are {ours}"
    return here[0], ""


def versions(row: Row) -> dict[str, str]:
    """Of the packages that decide a ratio."""
    parts = (part.rpartition(" ") for part in row.versions.split("; "))
    named = {name: version for name, _, version in parts}
    return {name: named.get(name, "not recorded") for name in MATTER}


# ---- measuring -----------------------------------------------------------------------------------


def measure() -> list[Row]:
    """Ratios of a step and of a short video to diffusers', in both dtypes."""
    with _one_thread():
        return [row for dtype in DTYPES for row in (step(dtype), video(dtype))]


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def step(dtype: str) -> Row:
    """A guided step of the embedded model by the executor that is chosen here."""
    from . import step as steps
    from .executors import embedded, rounded

    case, device = embedded(), torch.device("cpu")
    model = rounded(case.model, getattr(torch, dtype))
    ours = steps.ours(model, device, getattr(torch, dtype))
    executors.apply(executors.choose(None, device), ours)
    given = case.latents, case.texts, torch.tensor([700.0])
    with torch.inference_mode():
        predict = partial(steps.bind(ours, *given), case.latents, 0)
        return _ratio("step", dtype, steps.reference_step(model, *given), predict)


def video(dtype: str) -> Row:
    """A short video of the embedded model, from prompt to latents."""
    terms = Terms(steps=STEPS)
    engine = terms.engine(dtype)
    plan = engine.plan(PROMPT)
    given = engine, terms.noise(plan.latent_shape), STEPS, plan.guidance_scale
    return _ratio("video", dtype, reference_sampler(*given), kinema_sampler(*given))


def _ratio(name: str, dtype: str, reference: Callable[[], Any], ours: Callable[[], Any]) -> Row:
    seconds = interleave({BASE: reference, "kinema": ours}, TURNS[name], clock=time.thread_time)
    about = rows.about("gate", name, "", dtype, *PACKAGES)
    found = rows.timed(about, seconds, BASE)
    return replace(rows.select(found, quantity="ratio")[0], note="by thread_time")
