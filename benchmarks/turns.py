"""What taking turns costs and brings: `python -m kinema.benchmarks.turns`.

On the embedded model: the scheduler's own time beside a step; eight equal requests of several sizes
one after another and in shared forwards; and how long short requests wait beside a long one, when
sessions take turns and when they do not. `--write` puts rows into the device's results.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

from ..runtime import engine as engines
from ..runtime.requests.request import Request
from ..runtime.sessions.progress import Progress
from . import rows
from .measure import interleave
from .rows import Row

Clock = Callable[[], float]

PROMPTS = ("a red ball bounces", "a blue square moves left", "a cone rises", "a green ball rests")
EQUAL = 8
STEPS = 20
FRAMES = (1, 9, 17, 33)
GUIDANCE = (3.0, 1.0)  # two branches, and one
SHORTS = 12
SHORT_STEPS, LONG_STEPS = 4, 100


def main(arguments: list[str] | None = None) -> None:
    """Measure, print and, if asked, keep the rows."""
    parser = argparse.ArgumentParser(prog="python -m kinema.benchmarks.turns")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", choices=["overhead", "throughput", "latency"])
    parser.add_argument("--cpu-time", action="store_true", help="of this process, on a busy host")
    parser.add_argument("--write", action="store_true", help="keep the rows in results/")
    options = parser.parse_args(arguments)
    clock = time.process_time if options.cpu_time else time.perf_counter
    parts: dict[str, Callable[[], Iterable[Row]]] = {
        "overhead": lambda: overhead(options.repeats),
        "throughput": lambda: throughputs(options.repeats, clock),
        "latency": latency,
    }
    for name, measure in parts.items():
        if options.only in (None, name):
            found = [replace(row, note=f"by {clock.__name__}") for row in measure()]
            print("\n".join(map(rows.said, found)), flush=True)
            if options.write:
                rows.merge(found)


def overhead(repeats: int) -> list[Row]:
    """The scheduler's time for a part beside a step's: with sessions that only count."""
    parts = 2000

    class Counting:
        """A session without work."""

        video = batch_key = None

        def work(self) -> Any:
            return (Progress("denoise", index + 1, parts) for index in range(parts))

        def cancel(self) -> None: ...

    class Pretend(engines.Engine):
        def session(self, request: Any, **fields: Any) -> Any:
            return Counting()

    engine = engines.load(device="cpu")
    pretend = Pretend(engine.checkpoint, engine.device, engine.dtype, engine.options)

    def turns() -> None:
        pretend.submit(PROMPTS[0]).result()

    def steps() -> None:
        for _ in engine.session(PROMPTS[0], num_inference_steps=STEPS):
            pass

    seconds = interleave({"turns": turns, "steps": steps}, repeats)
    each = {"a turn": [taken / parts for taken in seconds["turns"]]}
    each["a step"] = [taken / STEPS for taken in seconds["steps"]]
    return rows.timed(rows.about("turns", "embedded", "", "float32"), each, "a step")


def throughputs(repeats: int, clock: Clock = time.perf_counter) -> Iterator[Row]:
    """Rows by dtype, length and branches of guidance."""
    for dtype in ("float32", "bfloat16"):
        engine = engines.load(device="cpu", dtype=dtype, max_batch=EQUAL)
        engine.scheduler.shared_on_cpu = math.inf  # also where it does not pay
        for num_frames in FRAMES:
            for scale in GUIDANCE:
                yield from throughput(engine, num_frames, scale, repeats, clock)
        engine.close()


def throughput(
    engine: engines.Engine, num_frames: int, scale: float, repeats: int, clock: Clock
) -> list[Row]:
    """Eight equal requests, one after another and in shared forwards."""
    fields = {"num_frames": num_frames, "guidance_scale": scale, "num_inference_steps": STEPS}
    requests = [
        Request(PROMPTS[i % len(PROMPTS)], seed=i, output="latents", **fields) for i in range(EQUAL)
    ]

    def alone() -> None:
        for request in requests:
            engine.generate(request)

    def together() -> None:
        for job in [engine.submit(request) for request in requests]:
            job.result()

    seconds = _alternate({"one after another": alone, "together": together}, repeats, clock)
    _, frames, height, width = engine.plan(requests[0]).latent_shape
    sizes = f"positions={frames * height * width} branches={2 if scale > 1 else 1}"
    dtype = str(engine.dtype).removeprefix("torch.")
    about = rows.about("throughput", "embedded", f"{sizes} requests={EQUAL}", dtype)
    return rows.timed(about, seconds, "one after another")


def latency() -> list[Row]:
    """Seconds that short requests take beside a long one that came first."""
    engine = engines.load(device="cpu")
    engine.open_components()
    long = Request(PROMPTS[1], num_inference_steps=LONG_STEPS)
    short = Request(PROMPTS[0], num_inference_steps=SHORT_STEPS)
    engine.generate(short)

    def in_turns() -> list[float]:
        running = engine.submit(long)
        waited = _each(SHORTS, lambda: engine.submit(short).result())
        running.cancel()
        return waited

    def one_after_another() -> list[float]:
        """What arrives while the long one runs waits for its end."""
        started, arrivals = time.perf_counter(), [i / SHORTS for i in range(SHORTS)]
        engine.generate(long)
        took = time.perf_counter() - started
        own = _each(SHORTS, lambda: engine.generate(short))
        queue = [took * (1 - arrival) for arrival in arrivals]
        return [wait + sum(own[: i + 1]) for i, wait in enumerate(queue)]

    about = rows.about("latency", "embedded", f"steps={SHORT_STEPS} beside={LONG_STEPS}", "float32")
    found = []
    for name, measure in (("in turns", in_turns), ("one after another", one_after_another)):
        waited = sorted(measure())
        row = replace(about, runner=name, quantity="seconds", unit="s")
        found.append(rows.spread(row, waited))
        last = waited[round(0.95 * (len(waited) - 1))]
        found.append(rows.one(row, name, "p95_seconds", "s", last, n=len(waited)))
    engine.close()
    return found


def _alternate(
    works: dict[str, Callable[[], None]], repeats: int, clock: Clock
) -> dict[str, list[float]]:
    """As `interleave`, by a clock."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(1 + repeats):
        for name, work in works.items():
            started = clock()
            work()
            if turn > 0:
                seconds[name].append(clock() - started)
    return seconds


def _each(count: int, work: Callable[[], Any]) -> list[float]:
    seconds = []
    for _ in range(count):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return seconds


if __name__ == "__main__":
    main()
