"""Exported graphs in place of a checkpoint's components."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from threading import Lock
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import KinemaError, UsageError
from ..vaes.streaming import StreamedVAE
from . import manifest
from .manifest import Engines
from .shells import Coding, Runner, TransformerGraphs

if TYPE_CHECKING:
    from ..checkpoints.checkpoint import Checkpoint

# What runs the graphs of a format: `Runner(file, entry, device)`.
RUNNERS = {
    "onnx": "onnx:OnnxRunner",
    "tensorrt": "tensorrt_runner:open_engine",
    "aoti": "aoti:AotiRunner",
}


class Graphs:
    """An opened export of a checkpoint, that stands in for those of its components that it has."""

    def __init__(self, engines: Engines, device: torch.device) -> None:
        self.engines, self.device = engines, device
        self.executor = engines.manifest.to

    @property
    def dtype(self) -> torch.dtype:
        """What the transformer and the text encoder compute in."""
        return getattr(torch, self.engines.manifest.dtype)

    def told(self) -> dict[str, Any]:
        """What a report says of them."""
        manifest = self.engines.manifest
        return {
            "graphs": list(manifest.graphs),
            "to": manifest.to,
            "dtype": manifest.dtype,
            "quantize": manifest.options.get("quantize"),
            "versions": dict(manifest.versions),
        }

    def has(self, graph: str) -> bool:
        """Whether a graph was exported."""
        return graph in self.engines.manifest.graphs

    def runner(self, graph: str) -> Runner:
        """A graph, opened; any thread may call it."""
        module, name = RUNNERS[self.executor].split(":")
        kind = getattr(import_module(f".{module}", __package__), name)
        if not self.has(graph):
            raise KinemaError(f"{self.engines.folder} has no {graph}, so it is no whole export")
        entry = self.engines.manifest.graphs[graph]
        return in_turn(kind(self.engines.path(graph), entry, self.device))

    def transformer(self, name: str, config: Any) -> TransformerGraphs:
        """A transformer of the two graphs that it was exported as."""
        text = name.replace("transformer", "text_context")
        entry = self.engines.manifest.graphs[name]
        return TransformerGraphs(config, entry, self.runner(name), self.runner(text), self.executor)

    def vae(self, config: dict[str, Any]) -> StreamedVAE:
        """An autoencoder; without its encoder, if that was not exported."""
        like = torch.empty(0, device=self.device)
        values = SimpleNamespace(**{"latents_mean": None, "latents_std": None, **config})
        decode = self._coding("decoder", "latents", "pixels")
        encode = (None, None)
        if self.has("vae_encoder"):
            encode = self._coding("encoder", "pixels", "latents")
        return StreamedVAE(values, *decode, *encode, like=like)

    def _coding(self, coder: str, given: str, made: str) -> tuple[Any, Any]:
        names = f"vae_{coder}_first", f"vae_{coder}"
        coding = Coding(given, made, *map(self.runner, names))
        return coding.first, coding.next


def in_turn(runner: Runner) -> Runner:
    """One call at a time: what a runner has bound is that of the call under way."""
    turn = Lock()

    def run(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        with turn:
            return runner(inputs)

    return run


def open_graphs(
    folder: str | Path,
    executor: str | None,
    checkpoint: Checkpoint,
    device: torch.device,
    dtype: torch.dtype | None = None,
) -> Graphs:
    """The graphs in a folder; `executor` names their format and `dtype` theirs, if asked for.

    Raises `UsageError` for a folder with no such export of this checkpoint, `KinemaError` for a
    damaged one.
    """
    graphs = Graphs(manifest.read(folder, executor, checkpoint), device)
    if graphs.executor not in RUNNERS:
        raise UsageError(
            f"{folder} is for {graphs.executor!r}, which this version does not run;"
            f" {', '.join(RUNNERS)} work"
        )
    if dtype not in (None, graphs.dtype):
        raise UsageError(
            f"{folder} was exported in {graphs.engines.manifest.dtype}; leave dtype out, or export"
            f" in {str(dtype).removeprefix('torch.')}"
        )
    return graphs


def check_executor(
    executor: str | None, engines: object | None, offload: str | None, tile: object | None
) -> None:
    """Raise `UsageError` where one of the first two is there without the other, or with what
    exported graphs cannot do."""
    if executor in RUNNERS and engines is None:
        raise UsageError(
            f"executor {executor} runs exported graphs; give their folder as engines, made by"
            f" kinema export MODEL --to {executor} -o FOLDER"
        )
    if engines is None:
        return
    if executor is not None and executor not in RUNNERS:
        raise UsageError(
            f"executor {executor} runs PyTorch's modules, not exported graphs; {', '.join(RUNNERS)}"
            " run those, or leave engines out"
        )
    if offload not in (None, "none"):
        raise UsageError(f"offload is {offload!r}; exported graphs stay where they are: 'none'")
    if tile is not None:
        raise UsageError("exported autoencoders work on whole frames; leave tile out")
