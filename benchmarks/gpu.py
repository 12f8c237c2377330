"""A whole table of one GPU in ten minutes: `python -m kinema.benchmarks.gpu`.

Wan2.1-1.3B at 832x480, 81 frames, with random weights of the true size, in bf16. First every kernel
that it runs on is checked on the chip, in a process of its own; then a guided step (two forwards of
diffusers' transformer, one of ours) by executor, by attention and by technique, and both compilers,
each taking turns with diffusers eager, beside the floor at the rates that this GPU reached a moment
before. What matters most comes first, what no time is left for is said, and every row is written as
it comes, into `results/<device>.csv`. `--dry-run` does all of it on a CPU, on next to nothing.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ..kernels import dispatch
from ..runtime.errors import KinemaError
from ..runtime.execution import executor as executors
from . import chip, floors, rows, step
from .kernels.timing import PREDICTED_GBPS, PREDICTED_TFLOPS
from .measure import Bounds, turns
from .rows import Row

if TYPE_CHECKING:
    from diffusers import WanTransformer3DModel

NAME = {"1.3b": "Wan2.1-1.3B", "tiny": "tiny"}
PACKAGES = ("diffusers", "triton", "flash-attn", "fa3-fwd", "flash-attn-4")
BASE = "diffusers eager"
TURNS_SECONDS = 45.0

Step = Callable[[], Tensor]


class Ready(NamedTuple):
    """A step, and the bytes that were held when its weights, and no more of it, were."""

    run: Step
    before: int


Make = Callable[[], Ready]


@dataclass
class Keeper:
    """Rows so far, written whenever some come, and the time that is left."""

    out: Path
    until: float
    found: list[Row] = field(default_factory=list)

    def add(self, new: Sequence[Row]) -> None:
        """Take rows, in place of older ones of their runs; say and write them."""
        anew = {row.run for row in new}
        self.found = [row for row in self.found if row.run not in anew] + list(new)
        for row in new:
            print(rows.said(row), flush=True)
        if new:
            rows.merge(list(new), self.out)

    @property
    def left(self) -> float:
        """Seconds."""
        return self.until - time.monotonic()


@dataclass(frozen=True)
class Work:
    """The model and what it denoises, on a device."""

    size: str
    device: torch.device
    dtype: torch.dtype
    model: WanTransformer3DModel
    given: tuple[Tensor, list[Tensor], Tensor]
    tflops: float
    gbps: float

    @property
    def tokens(self) -> int:
        """Of self-attention."""
        _, frames, height, width = step.SIZES[self.size].latent_shape
        return frames * (height // 2) * (width // 2)

    @property
    def floor(self) -> float:
        """Seconds of a guided step, two forwards."""
        config = step.SIZES[self.size].config
        return 2 * floors.floor_seconds(config, self.tokens, self.tflops, self.gbps)

    def about(self, bench: str) -> Row:
        """A row with nothing measured."""
        shape = "x".join(map(str, step.SIZES[self.size].latent_shape))
        dtype = str(self.dtype).removeprefix("torch.")
        sizes = f"latents={shape} tokens={self.tokens} forwards=2"
        return rows.about(bench, NAME[self.size], sizes, dtype, *PACKAGES, on=self.device)

    @property
    def weight_bytes(self) -> int:
        """Of the model."""
        return sum(weight.nbytes for weight in self.model.parameters())

    def ours(self, executor: str = "eager", backends: dict[str, str] | None = None) -> Ready:
        """Our step, ready to go."""
        native = step.ours(self.model, self.device, self.dtype, backends)
        before = _allocated(self.device)
        executors.apply(executor, native)
        return Ready(partial(step.bind(native, *self.given), self.given[0], 0), before)

    def theirs(self, compiled: bool = False) -> Ready:
        """diffusers' step."""
        run = step.reference_step(self.model, *self.given, compiled=compiled)
        return Ready(run, _allocated(self.device))


def main(arguments: list[str] | None = None) -> int:
    """Measure; 0 if every kernel that ran was right."""
    options = _options(arguments)
    gpu = torch.cuda.is_available() and not options.dry_run
    if not gpu and not options.dry_run:
        print("python -m kinema.benchmarks.gpu needs an NVIDIA GPU; --dry-run shows what it does")
        return 1
    device = torch.device("cuda" if gpu else "cpu")
    out = options.out or rows.path_of(rows.about("", on=device).device)
    if options.dry_run and not options.out:
        raise SystemExit("--dry-run needs --out FILE: its rows are of no use to anyone")
    keeper = Keeper(out, time.monotonic() + 60 * options.minutes)
    if options.check:
        return chip.check(keeper.out, device)
    return run(keeper, device, "1.3b" if gpu else "tiny", not options.no_compile)


@torch.inference_mode()
def run(keeper: Keeper, device: torch.device, size: str, compiled: bool) -> int:
    """All of it, in order of importance."""
    tflops, gbps = ceilings(keeper, device)
    wrong = chip.check_apart(keeper.out, device)
    work = open_work(size, device, tflops, gbps)
    predicted = 2 * floors.floor_seconds(
        step.SIZES[size].config, work.tokens, PREDICTED_TFLOPS, PREDICTED_GBPS
    )
    print(
        f"the floor of a step is {work.floor:.4g} s at these rates; predicted before, of"
        f" {PREDICTED_TFLOPS:g} TFLOP/s and {PREDICTED_GBPS:g} GB/s: {predicted:.4g} s",
        flush=True,
    )
    parts: list[tuple[str, float, Callable[[], list[Row]]]] = [
        ("executors", 45, partial(by_executor, work, False)),
        ("attention", 120, partial(by_attention, work, wrong)),
        ("techniques", 60, partial(by_technique, work)),
        ("compilers", 240, partial(by_executor, work, True)),
    ]
    for name, needs, part in parts:
        if name == "compilers" and not compiled:
            continue
        if device.type == "cuda" and keeper.left < needs:
            print(f"left out for time: {name}, which needs {needs} s of {keeper.left:.0f}")
            continue
        keeper.add(part())
        _free(device)
    print(f"rows are in {keeper.out}; {keeper.left:.0f} s were left")
    return 1 if wrong else 0


# ---- what the device can do ----------------------------------------------------------------------


def ceilings(keeper: Keeper, device: torch.device) -> tuple[float, float]:
    """TFLOP/s of a dense product in bf16 and GB/s of a copy, measured now."""
    from ..runtime.profiling import ceilings as of_device

    found = of_device.ceilings(device, remeasure=True)
    tflops, gbps = found.flops("bfloat16") / 1e12, found.copy / 1e9
    about = rows.about("ceilings", "device", "", "bfloat16", *PACKAGES, on=device)
    rates = {"product": (tflops, "TFLOP/s"), "copy": (gbps, "GB/s")}
    keeper.add([rows.one(about, name, "rate", unit, rate) for name, (rate, unit) in rates.items()])
    return tflops, gbps


# ---- a step --------------------------------------------------------------------------------------


def open_work(size: str, device: torch.device, tflops: float, gbps: float) -> Work:
    """Random weights of the true size, and what is denoised."""
    torch.manual_seed(0)
    config, shape = step.SIZES[size]
    dtype = torch.bfloat16
    model = step.reference(config, device, dtype)
    latents = torch.randn(1, *shape, device=device)
    width = model.config["text_dim"]
    texts = [torch.randn(1, count, width, device=device) for count in step.TOKENS]
    timestep = torch.tensor([700.0], device=device)
    return Work(size, device, dtype, model, (latents, texts, timestep), tflops, gbps)


def by_executor(work: Work, compiled: bool) -> list[Row]:
    """By diffusers, and by ours under each executor."""
    makes: dict[str, Make] = {BASE: work.theirs}
    names = [name for name in executors.EXECUTORS if compiled or name != "compiled"]
    makes |= {f"kinema {name}": partial(work.ours, name) for name in names}
    missing = {f"kinema {name}": executors.MISSING[name](work.device) for name in names}
    if compiled:
        makes["diffusers compiled"] = partial(work.theirs, True)
    return _measured(work, "step", makes, missing)


def by_attention(work: Work, wrong: set[str]) -> list[Row]:
    """By ours under each backend of attention, eager and, where that runs, as a CUDA graph."""
    head_dim = step.SIZES[work.size].config["attention_head_dim"]
    needs = {"dtype": work.dtype, "head_dim": head_dim, "bias": False}
    graph = executors.MISSING["graph"](work.device) is None
    makes: dict[str, Make] = {BASE: work.theirs}
    missing: dict[str, str | None] = {}
    for entry in dispatch.backends("attention"):
        for executor in ("eager", "graph") if graph else ("eager",):
            title = f"kinema {executor}, attention {entry.name}"
            missing[title] = entry.missing(work.device, needs)
            if f"attention {entry.name}" in wrong:
                missing[title] = "its check failed on this device"
            makes[title] = partial(work.ours, executor, {"attention": entry.name})
    return _measured(work, "attention", makes, missing)


def by_technique(work: Work) -> list[Row]:
    """One technique on top of another."""
    plain = {op: "torch" for op in _of_kernels()}
    graph = executors.MISSING["graph"](work.device)
    makes: dict[str, Make] = {
        BASE: work.theirs,
        "constants once, both branches in one forward": partial(work.ours, "eager", plain),
        "fused kernels": partial(work.ours, "eager", {"attention": "torch"}),
        "fastest attention": work.ours,
        "CUDA graph": partial(work.ours, "graph"),
    }
    return _measured(work, "waterfall", makes, {"CUDA graph": graph})


def _of_kernels() -> list[str]:
    """Operations of a forward whose backend can be chosen."""
    from ..kernels.operations import BOUND

    tables = {op: dispatch.backends(op.removeprefix("biased_")) for op in BOUND}
    return [op for op, table in tables.items() if any(entry.name == "torch" for entry in table)]


def _measured(
    work: Work,
    bench: str,
    makes: dict[str, Make],
    missing: dict[str, str | None],
) -> list[Row]:
    """Seconds in turns, ratios, errors beside diffusers, peak memory and share of the floor."""
    about = work.about(bench)
    steps: dict[str, Step] = {}
    errors: dict[str, float] = {}
    found: list[Row] = []
    wanted: Tensor | None = None
    for name, make in makes.items():
        if reason := missing.get(name):
            found.append(rows.skipped(about, name, reason))
            continue
        try:
            ready = make()
            result = _done(ready.run).float()  # compiles and captures
            peak = _peak(ready, work)
        except (RuntimeError, ValueError, KinemaError) as error:
            found.append(rows.skipped(about, name, str(error).splitlines()[0][:200]))
            continue
        wanted = result if wanted is None else wanted
        steps[name], errors[name] = partial(_done, ready.run), step.apart(result, wanted)
        found += [] if peak is None else [rows.one(about, name, "peak_bytes", "B", peak)]
    timed = rows.timed(about, turns(steps, Bounds(7, TURNS_SECONDS)), BASE)
    of_floor = [
        rows.one(about, row.runner, "share_of_floor", "1", work.floor / row.value)
        for row in rows.select(timed, quantity="seconds")
    ]
    return [*timed, *rows.apart(about, errors, BASE), *of_floor, *found]


def _peak(ready: Ready, work: Work) -> int | None:
    """Bytes at a step's worst moment, weights and what a graph keeps included, as if it were alone;
    None on a CPU."""
    if work.device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats()
    _done(ready.run)
    return torch.cuda.max_memory_allocated() - ready.before + work.weight_bytes


def _allocated(device: torch.device) -> int:
    return torch.cuda.memory_allocated() if device.type == "cuda" else 0


def _done(run_it: Step) -> Tensor:
    """What a step gives, once the device has it."""
    result = run_it()
    if result.is_cuda:
        torch.cuda.synchronize()
    return result


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m kinema.benchmarks.gpu")
    parser.add_argument("--minutes", type=float, default=9.5, help="stop beginning parts by then")
    parser.add_argument("--check", action="store_true", help="only whether the kernels are right")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--dry-run", action="store_true", help="on a CPU, at tiny sizes")
    parser.add_argument("--out", type=Path, help="a CSV file, not the committed one")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
