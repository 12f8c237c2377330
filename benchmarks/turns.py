"""What taking turns costs and brings: `python -m kinema.benchmarks.turns`.

On the embedded model: the scheduler's own time beside a step; eight equal requests one after
another and in shared forwards; and how long short requests wait beside a long one, when sessions
take turns and when they do not. Writes results/turns.json.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch

from ..runtime import engine as engines
from ..runtime.checkpoint import open_checkpoint
from ..runtime.progress import Progress
from ..runtime.request import Request
from .measure import interleave, median_ratio, provenance, summary, write_rows

PROMPTS = ("a red ball bounces", "a blue square moves left", "a cone rises", "a green ball rests")
EQUAL = 8
SHORTS = 12
SHORT_STEPS, LONG_STEPS = 4, 100


def main(arguments: list[str] | None = None) -> None:
    """Measure, print and write the rows."""
    parser = argparse.ArgumentParser(prog="python -m kinema.benchmarks.turns")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args(arguments)
    rows = {
        "provenance": provenance(),
        "overhead": overhead(options.repeats),
        "throughput": [throughput(dtype, options.repeats) for dtype in ("float32", "bfloat16")],
        "latency": latency(),
    }
    for name, found in rows.items():
        print(f"{name}: {found}")
    print(f"wrote {write_rows('turns', rows)}")


def overhead(repeats: int) -> dict[str, float]:
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

    pretend = Pretend(open_checkpoint(), torch.device("cpu"), torch.float32)
    engine = engines.load(device="cpu")

    def turns() -> None:
        pretend.submit(PROMPTS[0]).result()

    def steps() -> None:
        for _ in engine.session(PROMPTS[0], num_inference_steps=20):
            pass

    seconds = interleave({"turns": turns, "steps": steps}, repeats)
    turn, step = (
        median(seconds[name]) / count for name, count in (("turns", parts), ("steps", 20))
    )
    return {"turn_us": round(1e6 * turn, 2), "step_ms": round(1e3 * step, 2), "ratio": turn / step}


def throughput(dtype: str, repeats: int) -> dict[str, Any]:
    """Eight equal requests, one after another and in shared forwards."""
    engine = engines.load(device="cpu", dtype=dtype, max_batch=EQUAL)
    requests = [
        Request(PROMPTS[i % 4], seed=i, num_inference_steps=20, output="latents")
        for i in range(EQUAL)
    ]

    def alone() -> None:
        for request in requests:
            engine.generate(request)

    def together() -> None:
        for job in [engine.submit(request) for request in requests]:
            job.result()

    seconds = interleave({"one after another": alone, "together": together}, repeats)
    engine.close()
    ratio = median_ratio(seconds["one after another"], seconds["together"])
    return {
        "dtype": dtype,
        "seconds": {name: summary(values) for name, values in seconds.items()},
        "ratio": round(ratio, 3),
    }


def latency() -> list[dict[str, Any]]:
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

    rows = []
    for name, measure in (("in turns", in_turns), ("one after another", one_after_another)):
        ordered = sorted(measure())
        p50, p95 = (ordered[round(part * (len(ordered) - 1))] for part in (0.5, 0.95))
        rows.append({"how": name, "p50_s": round(p50, 3), "p95_s": round(p95, 3)})
    engine.close()
    return rows


def _each(count: int, work: Callable[[], Any]) -> Sequence[float]:
    seconds = []
    for _ in range(count):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return seconds


if __name__ == "__main__":
    main()
