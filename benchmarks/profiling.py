"""What a stopwatch costs: `python -m kinema.benchmarks.profiling`.

A request of the embedded model as it is, with its stages and steps timed, and with every operator
of its steps watched, taking turns. A ratio below 1 is what it costs, 0.97 being 3 percent.
`--write` puts the rows into the device's results.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from ..runtime import engine as engines
from ..runtime.profiling.attribution import steps_of
from ..runtime.profiling.watch import Stopwatch
from ..runtime.profiling.watched import Watched
from ..runtime.requests.request import Request
from . import rows
from .measure import interleave
from .rows import Row

PROMPT, STEPS = "a red ball bounces", 20
PLAIN = "not profiled"


def main(arguments: list[str] | None = None) -> None:
    """Measure, print and, if asked, keep the rows."""
    parser = argparse.ArgumentParser(prog="python -m kinema.benchmarks.profiling")
    parser.add_argument("--repeats", type=int, default=21)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cpu-time", action="store_true", help="of this process, on a busy host")
    parser.add_argument("--write", action="store_true", help="keep the rows in results/")
    options = parser.parse_args(arguments)
    clock = time.process_time if options.cpu_time else time.perf_counter
    found = [
        replace(row, note=f"by {clock.__name__}")
        for row in overhead(options.repeats, options.device, clock=clock)
    ]
    print("\n".join(map(rows.said, found)), flush=True)
    if options.write:
        rows.merge(found)


def overhead(
    repeats: int,
    device: str = "cpu",
    steps: int = STEPS,
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[Row]:
    """A whole request, and its steps alone, with and without what looks at them."""
    with engines.load(device=device) as engine:
        request = Request(PROMPT, num_inference_steps=steps)
        requests = {
            PLAIN: lambda: engine.session(request).finish(),
            "stages and steps timed": lambda: _timed(engine, request),
        }
        alone = {
            PLAIN: lambda: [*engine.session(request)],
            "operators watched": lambda: steps_of(engine, engine.session(request)),
        }
        for name, works in (("request", requests), ("steps", alone)):
            about = rows.about("profiling", name, f"steps={steps}", str(engine.dtype)[6:])
            yield from rows.timed(about, interleave(works, repeats, clock=clock), PLAIN)


def _timed(engine: engines.Engine, request: Request) -> None:
    """A request with a stopwatch, as `kinema profile` makes it."""
    watch = Stopwatch()
    watch.begin(engine.device)
    session = Watched(engine, request, engine.session(request).plan, watch)
    try:
        session.finish()
    finally:
        session.undress()
    watch.end()


if __name__ == "__main__":
    main()
