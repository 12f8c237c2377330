"""A guided step on one GPU by everything that can run it, in turns: see `gpu`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ..kernels import dispatch
from ..runtime.errors import KinemaError
from ..runtime.execution import executor as executors
from . import floors, rows, step
from .measure import BASE, Bounds, finished, turns
from .rows import Row

if TYPE_CHECKING:
    from diffusers import WanTransformer3DModel

NAME = {"1.3b": "Wan2.1-1.3B", "tiny": "tiny"}
PACKAGES = ("diffusers", "triton", "flash-attn", "fa3-fwd", "flash-attn-4")
TURNS_SECONDS = 45.0

Step = Callable[[], Tensor]


class Ready(NamedTuple):
    """A step, and the bytes that were held when its weights, and no more of it, were."""

    run: Step
    before: int


Make = Callable[[], Ready]


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
        return step.tokens_of(step.SIZES[self.size].latent_shape)

    @property
    def floor(self) -> float:
        """Seconds that a guided step takes at least, at the rates that were measured."""
        return self.floor_at(self.tflops, self.gbps)

    def floor_at(self, tflops: float, gbps: float) -> float:
        """The same at other rates; of two forwards."""
        config = step.SIZES[self.size].config
        return 2 * floors.floor_seconds(config, self.tokens, tflops, gbps)

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
            result = finished(ready.run()).float()  # compiles and captures
            peak = _peak(ready, work)
        except (RuntimeError, ValueError, KinemaError) as error:
            found.append(rows.skipped(about, name, str(error).splitlines()[0][:200]))
            continue
        wanted = result if wanted is None else wanted
        errors[name] = step.apart(result, wanted)
        steps[name] = lambda run=ready.run: finished(run())
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
    finished(ready.run())
    return torch.cuda.max_memory_allocated() - ready.before + work.weight_bytes


def _allocated(device: torch.device) -> int:
    return torch.cuda.memory_allocated() if device.type == "cuda" else 0
