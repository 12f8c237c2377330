"""An open checkpoint on a device, ready to make videos."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from .checkpoints.checkpoint import TRANSFORMERS, Checkpoint, open_checkpoint
from .components import Components, Options
from .errors import UsageError
from .execution import executor as executors
from .lora.loaded import LoraReport
from .media.video import Video
from .planning import device as devices
from .planning.cost import Choice, Runner, Setting, guess_tokens
from .planning.fit import Fit, check_tile, fit
from .planning.plan import Plan, resolve
from .provenance.marking import Provenance
from .requests.request import Request
from .sessions import saved
from .sessions.job import Job
from .sessions.progress import Progress
from .sessions.scheduler import StepScheduler
from .sessions.session import Session

DEVICES = ("cpu", "cuda")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load(
    source: str | Path | Checkpoint | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    *,
    base: str | Path | Checkpoint | None = None,
    backends: Mapping[str, str] | None = None,
    executor: str | None = None,
    offload: str | None = None,
    tile: tuple[int, int] | None = None,
    two_passes: bool = False,
    text_cache: str | Path | None = None,
    max_batch: int = 1,
    engines: str | Path | None = None,
) -> Engine:
    """Open a checkpoint: the embedded one by default, a folder, or a hub id.

    device: CUDA where there is one, else the CPU. dtype: float32 on a CPU, bfloat16 elsewhere.
    base: the checkpoint that all but the transformer comes from, where `source` is a transformer
        alone, as the original repositories have it (a safetensors file, a folder or a hub id).
    backends: what runs an operation of the transformer, such as {"attention": "flash3"}, where
        it should not be the first that works; `kinema kernels list` names them.
    executor: what runs the transformer: "packed" on a CPU that can, else "eager"; or "compiled",
        or "graph" on CUDA; or, with `engines`, "onnx", "tensorrt" or "aoti".
    engines: a folder that `kinema export` wrote of this checkpoint; components that are there run
        as they were exported, the others in PyTorch (`backends` are theirs alone).
    offload: where weights are while they do not work: "none" on the device, "model" on the host,
        one component at a time on the device, "block" the same, and of a transformer two blocks;
        left out, the first of these with which a request fits, and from then on no other before it.
    tile: (height, width) in pixels that pictures are coded in, for less memory; left out, frames
        are whole where they fit.
    two_passes: both branches of guidance one after the other, for less memory; else only where
        memory is short.
    text_cache: a folder that keeps what prompts were encoded to for the next process.
    max_batch: how many submitted requests of one shape may share a forward; see `StepScheduler`.

    Raises `UsageError` for a name that opens nothing and an option that is not known or cannot be
    had here, `KinemaError` for a damaged checkpoint.
    """
    device = _device(device)
    options = Options(
        backends=dict(backends or {}),
        executor=executor,
        offload=offload,
        tile=tile,
        two_passes=two_passes,
        text_cache=text_cache,
        max_batch=max_batch,
        engines=engines,
    )
    of_graphs = dtype is None and engines is not None  # they say which they were exported in
    found = open_checkpoint(source, base)
    return Engine(found, device, None if of_graphs else _dtype(dtype, device), options)


class Engine(Components):
    """Makes videos from requests. Components are read when the first request needs them.

    It is a context, also for `async with`, and closed at the end of it.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: torch.device,
        dtype: torch.dtype | None,
        options: Options,
    ) -> None:
        checkpoint.check()
        check_tile(options.tile, checkpoint)
        super().__init__(checkpoint, device, dtype, options)
        memory = devices.memory_bytes(device)
        self.scheduler = StepScheduler(self, options.max_batch, memory)

    def plan(self, request: Request | str, **fields: Any) -> Plan:
        """Every number of a request, settled, with what it needs and how it will run.

        Raises `UsageError` for one that cannot run; where memory is short, with the nearest that
        can. The first plan on a device takes a second or two more, to measure it.
        """
        request = _as_request(request, fields)
        plan, found = self._fitted(request)
        return replace(plan, seconds=found.cost.seconds(devices.ceilings(self.device)))

    def costs(self, request: Request | str, **fields: Any) -> list[dict[str, Any]]:
        """What each stage of a request needs: FLOPs, bytes moved, peak bytes, seconds.

        Raises as `plan` does.
        """
        _, found = self._fitted(_as_request(request, fields))
        return found.cost.rows(devices.ceilings(self.device))

    def _fitted(self, request: Request) -> tuple[Plan, Fit]:
        """A plan without its seconds, which need the device measured."""
        dtype, where = str(self.dtype).removeprefix("torch."), str(self.device)

        def settle(num_frames: int, height: int, width: int) -> Plan:
            sizes = {"num_frames": num_frames, "height": height, "width": width}
            asked = replace(request, **sizes, seconds=None, latents=None)
            return resolve(asked, self.checkpoint, where, dtype)

        plan = resolve(request, self.checkpoint, where, dtype)
        tokens = guess_tokens(request.prompt, self.checkpoint.presets.text_length)
        memory = devices.memory_bytes(self.device)
        found = fit(plan, self.checkpoint, self.runner, tokens, memory, settle)
        own = found.choices
        if self.graphs is not None:  # which have neither tiles nor weights that move
            own = [choice for choice in own if choice.what == "guidance"]
        cost, choices = found.cost, (*self._chosen, *own)
        return replace(
            plan,
            peak_memory_bytes=cost.peak_memory_bytes,
            working_bytes=cost.working_bytes,
            setting=found.runner.setting,
            choices=choices,
        ), found

    @property
    def runner(self) -> Runner:
        """What runs a request now, and what of its setting was asked for."""
        fused = self.operations.backends["norm_modulate"] != "torch"
        options = self.options
        guidance = "two passes" if options.two_passes else "batched"
        setting = Setting(guidance, options.tile, self.offload.mode)
        return Runner(self.device.type, self.executor, fused, setting, self.asked)

    @property
    def _chosen(self) -> tuple[Choice, ...]:
        """What was chosen with the engine, whatever the request."""
        if self.graphs is not None:
            return (Choice("executor", self.executor, f"graphs in {self.graphs.engines.folder}"),)
        attention = next(c for c in self.operations.choices if c.op == "attention")
        return (
            Choice("executor", self.executor, executors.REASONS[self.executor]),
            Choice("attention", attention.backend, attention.reason),
        )

    def generate(
        self,
        request: Request | str,
        progress: Callable[[Progress], None] | None = None,
        path: str | Path | None = None,
        overwrite: bool = True,
        provenance: Provenance | None = None,
        **fields: Any,
    ) -> Video:
        """Make a video from a `Request`, or from a prompt and the fields of one.

        `progress` is called with what was just finished, after every step. With a `path` an MP4 is
        written too, its frames encoded while the next ones decode; `provenance` is how it says
        where it comes from, by default signed and marked invisibly. Raises `UsageError` for a
        request that cannot run and a path that cannot be written, before any work, and
        `KinemaError` where memory or the disk gives out.
        """
        session = self.session(request, **fields)
        if path is None:
            return session.finish(progress)
        return session.record(path, progress, overwrite, provenance)

    def session(self, request: Request | str, **fields: Any) -> Session:
        """One request, not begun: iterate over it for its steps; see `Session`."""
        request = _as_request(request, fields)
        return Session(self, request, self._fitted(request)[0])

    def resume(self, path: str | Path) -> Session:
        """Go on with a run that `Session.save` wrote, to the same bits.

        Raises `UsageError` for a file of another model, dtype or version, or that is cut or not a
        session's.
        """
        request, state, setting = saved.read(path, self.identity, self.device)
        session = self.session(request)
        shape = tuple(state.latents.shape[1:])
        if shape != tuple(session.plan.latent_shape) or state.index > session.total:
            raise UsageError(
                f"{path} does not fit its request: latents {shape}, step {state.index}"
            )
        setting = replace(
            setting, offload=session.plan.setting.offload
        )  # the one part without bits
        return Session(self, request, replace(session.plan, setting=setting), state)

    def submit(
        self,
        request: Request | str,
        priority: int = 0,
        deadline: float | None = None,
        **fields: Any,
    ) -> Job:
        """Hand a request in, to be worked on in turns with others; safe from any thread.

        priority: higher first. deadline: seconds from now; the earliest goes first. Raises
        `UsageError` for one that cannot run, `KinemaError` once the engine is closed.
        """
        return self.scheduler.submit(_as_request(request, fields), priority, deadline)

    def close(self) -> None:
        """Cancel submitted requests that are not done, and wait for the step under way."""
        self.scheduler.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Engine:
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self.close)

    def load_lora(
        self,
        path: str | Path,
        weight: float = 1.0,
        name: str | None = None,
        *,
        component: str | None = None,
        merged: bool = True,
        allow_unmatched: bool = False,
    ) -> LoraReport:
        """Load a LoRA, from a safetensors file or a folder, between requests; see `LoraSet.load`.

        Raises `UsageError` for one of another family or size, or with keys that match nothing, and
        while requests are worked on.
        """
        self._settle("load a LoRA")
        return self.loras.load(
            path,
            weight,
            name,
            component=component,
            merged=merged,
            allow_unmatched=allow_unmatched,
        )

    def unload_lora(self, name: str) -> None:
        """Remove a LoRA; the weights are again what they were, to the bit."""
        self._settle("unload a LoRA")
        self.loras.unload(name)

    def _settle(self, what: str) -> None:
        """Weights may change now: nobody reads them, and they are at home."""
        if self.graphs is not None:
            raise UsageError(f"cannot {what}: exported graphs have the weights that they have")
        if self.scheduler.busy:
            raise UsageError(f"cannot {what} while requests are worked on; wait for their jobs")
        self.offload.leave()
        for name in TRANSFORMERS:
            forward: Any = getattr(vars(self).get(name), "forward", None)
            if hasattr(forward, "forget"):
                forward.forget()  # what was captured has the weights as they were

    @property
    def identity(self) -> dict[str, str]:
        """What a saved run must go on with: the weights, by their hash, and the dtype."""
        loras = (f"{lora.sha256}:{lora.weight:g}" for lora in self.loras.reports.values())
        return {
            "weights": self.checkpoint.weight_hash(),
            "dtype": str(self.dtype)[6:],
            "loras": " ".join(loras) or "none",
        }

    def origin(self, request: Request) -> dict[str, Any]:
        """What a video follows from, however it is made: the request, the weights, their LoRAs."""
        checkpoint = self.checkpoint
        return {
            "request": request.as_dict(),
            "model": {"name": checkpoint.name, "weights": checkpoint.weight_hash()},
            "loras": [lora.as_dict() for lora in self.loras.reports.values()],
        }


def _as_request(request: Request | str, fields: dict[str, Any]) -> Request:
    if isinstance(request, str):
        return Request(request, **fields)
    if fields:
        raise UsageError(f"fields beside a Request: {', '.join(fields)}; put them into it")
    return request


def _device(device: str | torch.device | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if (kind := str(device).partition(":")[0]) not in DEVICES:
        raise UsageError(f"device {kind!r} is not known; {', '.join(DEVICES)} work")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n")[0]
        raise UsageError(f"device {str(device)!r} cannot be used: {reason}") from None
    return chosen


def _dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    if dtype is None:
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise UsageError(f"dtype {name!r} is not known; known: {', '.join(DTYPES)}")
    return DTYPES[name]
