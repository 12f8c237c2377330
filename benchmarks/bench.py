"""The parts of `kinema bench`: each measures in turns, and gives rows as they come."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from ..runtime.errors import UsageError
from . import rows
from .measure import PROMPT, Bounds
from .rows import Row


@dataclass(frozen=True)
class Asked:
    """How a benchmark is run.

    repeats: turns of each, at most. seconds: of a step's or a decode's turns, once warm. compiled:
    whether compilers, which take minutes, take part. exports: where graphs are kept for another
    run. device, dtypes, steps and source are of the model, by default the embedded one.
    """

    repeats: int = 7
    seconds: float = 25.0
    compiled: bool = True
    exports: Path | None = None
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    steps: int = 20
    source: str | None = None
    device: str = "cpu"


def run(
    only: Sequence[str] = (),
    asked: Asked | None = None,
    out: Path | None = None,
    say: Callable[[Row], None] = lambda row: None,
) -> list[Row]:
    """Rows of the named parts, by default of those side by side.

    out: a table to put them into, or a folder with a table a device; written after each run.
    """
    for name in only:
        if name not in PARTS:
            raise UsageError(f"there is no benchmark {name!r}; known: {', '.join(PARTS)}")
    found: list[Row] = []
    for name in only or SIDE_BY_SIDE:
        for _, rows_of_run in groupby(PARTS[name](asked or Asked()), lambda row: row.run):
            new = []
            for row in rows_of_run:
                say(row)
                new.append(row)
            found += new
            if out is not None:
                rows.merge(new, out / f"{rows.slug(new[0].device)}.csv" if out.is_dir() else out)
    return found


# ---- side by side --------------------------------------------------------------------------------


def video(asked: Asked) -> Iterator[Row]:
    """Whole videos by kinema, diffusers, cache-dit and onnxruntime."""
    from .end_to_end import compare

    out = () if asked.compiled else ("diffusers compiled", "kinema compiled")
    for dtype in asked.dtypes:
        yield from compare(_terms(asked), dtype, asked.repeats, out, asked.exports)


def step(asked: Asked) -> Iterator[Row]:
    """One step by everything that can run it: the embedded model, and 12 layers."""
    from .executors import CASES, compare

    with _folder(asked) as folder:
        for name in CASES:
            for dtype in asked.dtypes:
                yield from compare(name, dtype, _bounds(asked), asked.compiled, folder)


def decode(asked: Asked) -> Iterator[Row]:
    """A decode by PyTorch and by onnxruntime."""
    from .executors import decode as whole

    with _folder(asked) as folder:
        yield from whole(_bounds(asked), folder)


# ---- of ours alone -------------------------------------------------------------------------------


def cold_start(asked: Asked) -> Iterator[Row]:
    """Seconds from starting a command to its end, nothing in memory but what the system keeps."""
    import torch

    on = "cuda" if torch.cuda.is_available() else "cpu"  # what the command takes
    with tempfile.TemporaryDirectory() as folder:
        target = str(Path(folder) / "video.mp4")
        commands = {
            "kinema --help": ["--help"],
            "kinema generate": ["generate", PROMPT, "-o", target, "--force"],
        }
        for name, arguments in commands.items():
            seconds = [_process(arguments) for _ in range(1 + asked.repeats)][1:]
            about = rows.about("cold_start", "embedded", on=on)
            yield rows.spread(rows.one(about, name, "seconds", "s", 0), seconds)


def _process(arguments: Sequence[str]) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "kinema", *arguments], check=True, capture_output=True)
    return time.perf_counter() - started


def waterfall(asked: Asked) -> Iterable[Row]:
    """A video as one technique is put on top of another."""
    from .techniques import waterfall as measured

    return measured(_terms(asked), asked.repeats)


def scaling(asked: Asked) -> Iterable[Row]:
    """Seconds of a video against tokens, steps and batch."""
    from .techniques import scaling as measured

    return measured(_terms(asked), asked.repeats)


def load(asked: Asked) -> Iterable[Row]:
    """Opening weights beside reading their bytes."""
    from .load import Loading, measure

    loading = Loading(gigabytes=1.0, device=asked.device, repeats=asked.repeats)
    with tempfile.TemporaryDirectory() as folder:
        return measure(Path(folder), loading)


def turns(asked: Asked) -> Iterator[Row]:
    """What taking turns costs and brings."""
    from . import turns as of

    yield from of.overhead(asked.repeats)
    yield from of.throughputs(asked.repeats)
    yield from of.latency()


def serve(asked: Asked) -> Iterable[Row]:
    """A server under load."""
    from .serve import measure

    return measure(asked.repeats)


SIDE_BY_SIDE = ("video", "step", "decode")
PARTS: dict[str, Callable[[Asked], Iterable[Row]]] = {
    part.__name__: part
    for part in (video, step, decode, cold_start, waterfall, scaling, load, turns, serve)
}


def _terms(asked: Asked) -> Any:
    from .samplers import Terms

    return Terms(asked.source, asked.device, asked.steps)


def _bounds(asked: Asked) -> Bounds:
    return Bounds(asked.repeats, asked.seconds)


@contextmanager
def _folder(asked: Asked) -> Iterator[Path]:
    """Where graphs are kept, or lie for now."""
    if asked.exports is not None:
        yield asked.exports
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)
