"""An open checkpoint on a device, ready to make videos."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from . import pack, pipeline, registry
from .checkpoint import Checkpoint, open_checkpoint
from .errors import UsageError
from .given import Given, bearing_frame
from .media import Video
from .plan import Plan, resolve
from .progress import Progress
from .request import Request
from .text import TextEncoder

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load(
    source: str | Path | Checkpoint | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    backends: Mapping[str, str] | None = None,
) -> Engine:
    """Open a checkpoint: the embedded one by default, a folder, or a hub id.

    `device`: CUDA where there is one, else the CPU. `dtype`: float32 on a CPU, bfloat16 elsewhere.
    `backends`: what runs an operation of the transformer, such as {"attention": "flash3"}, where
    it should not be the first that works; `kinema kernels list` names them.
    Raises `UsageError` for a name that opens nothing, `KinemaError` for a damaged checkpoint.
    """
    chosen = _device(device)
    return Engine(open_checkpoint(source), chosen, _dtype(dtype, chosen), backends)


class Engine:
    """Makes videos from requests. Components are read when the first request needs them."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: torch.device,
        dtype: torch.dtype,
        backends: Mapping[str, str] | None = None,
    ) -> None:
        self.checkpoint, self.device, self.dtype = checkpoint, device, dtype
        self.backends = dict(backends or {})
        checkpoint.presets  # noqa: B018  # a checkpoint that cannot run is refused here

    def plan(self, request: Request | str, **fields: Any) -> Plan:
        """Every number of a request, settled; raises `UsageError` for one that cannot run."""
        dtype = str(self.dtype).removeprefix("torch.")
        return resolve(_as_request(request, fields), self.checkpoint, str(self.device), dtype)

    def generate(
        self,
        request: Request | str,
        progress: Callable[[Progress], None] | None = None,
        **fields: Any,
    ) -> Video:
        """Make a video from a `Request`, or from a prompt and the fields of one.

        `progress` is called with what was just finished, after every step.
        """
        request = _as_request(request, fields)
        plan = self.plan(request)
        seconds: dict[str, float] = {}

        def show(stage: str, index: int, total: int) -> None:
            if progress is not None:
                progress(Progress(stage, index, total))

        frames, audio, latents = pipeline.generate(
            self, request, plan, show, lambda stage: _timed(seconds, stage)
        )
        return Video(
            frames=frames,
            fps=plan.fps,
            audio=audio,
            sample_rate=None if audio is None else plan.sample_rate,
            latents=latents,
            report=self._report(request, plan, seconds),
        )

    def open_components(self) -> None:
        """Read every component that is not open yet."""
        _ = self.transformer, self.text_encoder, self.vae, self.sound

    @cached_property
    def executor(self) -> str:
        """What runs the transformer: "eager", or "packed" where oneDNN can lay out its weights."""
        return "packed" if self.device.type == "cpu" and pack.can_pack() else "eager"

    @cached_property
    def scheduler_config(self) -> dict[str, Any]:
        """What the checkpoint says of its schedule and solver."""
        return self.checkpoint.component("scheduler").config

    @cached_property
    def transformer(self) -> Any:
        """The denoising transformer; on a CPU its linear layers are packed for it."""
        model = registry.open_component(
            self.checkpoint, "transformer", self.device, self.dtype, self.backends
        )
        if self.executor == "packed":
            pack.pack_linears(model.blocks)
        return model

    @cached_property
    def vae(self) -> Any:
        """The picture autoencoder, in float32 as the reference keeps it."""
        return registry.open_component(self.checkpoint, "vae", self.device, torch.float32)

    @cached_property
    def sound(self) -> Any:
        """The sound codec, or None for a silent model."""
        if self.checkpoint.presets.sound is None:
            return None
        return registry.open_component(self.checkpoint, "audio", self.device, torch.float32)

    def given(self, plan: Plan) -> Given | None:
        """What the transformer is shown besides the noise of a request; None for most models."""
        if not self.checkpoint.presets.bearings:
            return None
        channels, frames, rows, columns = plan.latent_shape
        mask = torch.zeros(plan.latent_shape, dtype=torch.bool)
        values = torch.zeros(plan.latent_shape)
        if self.sound is not None:
            strip = (..., plan.tracks[-1].rows, slice(None))
            mask[strip], values[strip] = self.sound.given(frames)
        after = bearing_frame(channels, rows, columns)
        return Given(*(x.to(self.device) for x in (mask, values, after)))

    @cached_property
    def text_encoder(self) -> TextEncoder:
        """The tokenizer and the text encoder."""
        component = self.checkpoint.component
        return TextEncoder(
            component("tokenizer"), component("text_encoder"), self.device, self.dtype
        )

    def _report(self, request: Request, plan: Plan, seconds: dict[str, float]) -> dict[str, Any]:
        from .. import __version__

        checkpoint = self.checkpoint
        return {
            "request": request.as_dict(),
            "plan": plan.as_dict(),
            "executor": self.executor,
            "backends": self.transformer.ops.backends,
            "model": {"name": checkpoint.name, "weights": checkpoint.weight_hash()},
            "versions": {
                "kinema": __version__,
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
            "seconds": {stage: round(value, 4) for stage, value in seconds.items()},
            "warnings": self.text_encoder.warnings(request.prompt),
        }


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    started = time.perf_counter()
    try:
        yield
    finally:
        seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - started


def _as_request(request: Request | str, fields: dict[str, Any]) -> Request:
    if isinstance(request, str):
        return Request(request, **fields)
    if fields:
        raise UsageError(f"fields beside a Request: {', '.join(fields)}; put them into it")
    return request


def _device(device: str | torch.device | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
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
