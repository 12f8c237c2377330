"""The parts of a checkpoint, opened when they are first needed, and where their weights are."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from .. import kernels
from ..kernels import Operations
from . import opening
from .checkpoints.checkpoint import TRANSFORMERS, Checkpoint
from .conditioning.text import TextEncoder
from .conditioning.text_cache import EmbeddingCache
from .conditioning.vision import ImageEncoder
from .errors import UsageError
from .execution import executor as executors
from .execution.offload import MODES, Offload, Placed
from .graphs.opening import check_executor, open_graphs
from .graphs.shells import Runner
from .lora.loaded import LoraSet
from .vaes.preview import Projection, projection_of


@dataclass(frozen=True)
class Options:
    """How an engine runs, whatever the request; `kinema.load` says what each is."""

    backends: Mapping[str, str]
    executor: str | None
    offload: str | None
    tile: tuple[int, int] | None
    two_passes: bool
    text_cache: str | Path | None
    max_batch: int
    engines: str | Path | None


class Components:
    """What a checkpoint holds, on a device: each part is read when it is first asked for."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: torch.device,
        dtype: torch.dtype | None,
        options: Options,
    ) -> None:
        executor, engines, offload = options.executor, options.engines, options.offload
        check_executor(executor, engines, offload, options.tile)
        self.checkpoint, self.device, self.options = checkpoint, device, options
        self.graphs = None
        if engines is not None:
            self.graphs = open_graphs(engines, executor, checkpoint, device, dtype)
            self.executor, self.dtype, offload = self.graphs.executor, self.graphs.dtype, "none"
        else:
            assert dtype is not None
            self.executor, self.dtype = executors.choose(executor, device, offload or "none"), dtype
        self.offload = Offload(device, offload or "none")
        if self.offload.mode != "none" and device.type == "cpu":
            raise UsageError(
                f"offload is {offload!r}, which moves weights between the host and a device; on a"
                " CPU they are one: 'none' works"
            )
        self.placed: dict[str, Placed] = {}
        self.text_cache = EmbeddingCache(options.text_cache)
        self._at_work, self._moving = 0, threading.Lock()

    @property
    def asked(self) -> frozenset[str]:
        """What of a setting was asked for, or follows from what was: a plan leaves it alone."""
        options, exported = self.options, self.graphs is not None  # those have no tiles
        stays = options.offload is not None or exported
        stays = stays or self.executor == "graph"  # reads weights where they were
        whole = options.tile is not None or exported
        fixed = {"guidance": options.two_passes, "tile": whole, "offload": stays}
        return frozenset(name for name, is_fixed in fixed.items() if is_fixed)

    @cached_property
    def operations(self) -> Operations:
        """What the transformer computes with on this device."""
        head_dim = opening.config_of(self.checkpoint, "transformer").attention_head_dim
        try:
            return kernels.bind(self.device, self.dtype, head_dim, self.options.backends)
        except (ValueError, RuntimeError) as error:
            raise UsageError(str(error)) from None

    def open_components(self) -> None:
        """Read every component that is not open yet."""
        _ = self.transformer, self.text_encoder, self.vae, self.sound

    @cached_property
    def scheduler_config(self) -> dict[str, Any]:
        """What the checkpoint says of its schedule and solver."""
        return self.checkpoint.component("scheduler").config

    @cached_property
    def transformer(self) -> Any:
        """The denoising transformer; on a CPU its linear layers are packed for it."""
        return self._transformer("transformer")

    @cached_property
    def transformer_2(self) -> Any:
        """The expert of low noise, in a model of two; opened when the first step needs it."""
        return self._transformer("transformer_2")

    def _transformer(self, name: str) -> Any:
        if self.graphs is not None and self.graphs.has(name):
            config = opening.config_of(self.checkpoint, name)
            return self.graphs.transformer(name, config)
        model, executor = self._open(name, self.dtype), self.executor
        if self.graphs is not None:
            executor = executors.choose(None, self.device)
        executors.apply(executor, model)
        return model

    def use(self, name: str) -> Any:
        """A component, ready to work; where weights are offloaded, until another is used."""
        module = getattr(self, name)
        if self.graphs is not None:  # all is on the device
            return module
        if name not in self.placed:
            self.placed[name] = self.offload.place(module)
        return self.placed[name].use()

    @contextmanager
    def working(self) -> Iterator[None]:
        """A session is at work inside, and weights stay where they are but for its own doing."""
        with self._moving:
            self._at_work += 1
        try:
            yield
        finally:
            with self._moving:
                self._at_work -= 1

    def offload_as(self, mode: str) -> bool:
        """Keep weights as a session that is at work needs them: what is open goes home, if that is
        not so yet. False where another session is at work, or another mode was asked for."""
        with self._moving:
            if MODES.index(mode) <= MODES.index(self.offload.mode):
                return True
            if self._at_work > 1 or "offload" in self.asked:
                return False
            for name in (*TRANSFORMERS, "vae"):
                if name in vars(self) and name not in self.placed:
                    self.placed[name] = self.offload.place(vars(self)[name])
            self.offload.adopt(mode)
            return True

    def _open(self, name: str, dtype: torch.dtype) -> Any:
        return opening.open_component(
            self.checkpoint, name, self.device, dtype, self.options.backends, self.offload.home
        )

    @cached_property
    def loras(self) -> LoraSet:
        """The LoRAs on the transformer, or on both of a model of two."""
        found = self.checkpoint.components
        names = [name for name in TRANSFORMERS if name in found]
        return LoraSet(
            names, lambda name: opening.open_loras(self.checkpoint, name, getattr(self, name))
        )

    @cached_property
    def vae(self) -> Any:
        """The picture autoencoder, in float32 as the reference keeps it."""
        if self.graphs is not None and self.graphs.has("vae_decoder"):
            return self.graphs.vae(self.checkpoint.component("vae").config)
        return self._open("vae", torch.float32)

    @cached_property
    def sound(self) -> Any:
        """The sound codec, or None for a silent model."""
        if self.checkpoint.presets.sound is None:
            return None
        return opening.open_component(self.checkpoint, "audio", self.device, torch.float32)

    @cached_property
    def projection(self) -> Projection:
        """Latents to RGB, for previews."""
        fixed = self.graphs is not None and self.graphs.executor == "tensorrt"
        vae = self._open("vae", torch.float32) if fixed else self.use("vae")  # of one size alone
        return projection_of(self.checkpoint.component("vae"), vae)

    @cached_property
    def image_encoder(self) -> ImageEncoder:
        """The picture encoder of a model that is shown pictures beside the text, in float32 as the
        published examples keep it."""
        component = self.checkpoint.component
        return ImageEncoder(
            component("image_processor"),
            component("image_encoder"),
            self.device,
            torch.float32,
            self.offload,
            self._graph("image_encoder"),
        )

    @cached_property
    def text_encoder(self) -> TextEncoder:
        """The tokenizer and the text encoder."""
        component = self.checkpoint.component
        return TextEncoder(
            component("tokenizer"),
            component("text_encoder"),
            self.device,
            self.dtype,
            self.offload,
            self.text_cache,
            self._graph("text_encoder"),
            self.checkpoint.presets.text_length,
        )

    def _graph(self, name: str) -> Runner | None:
        """What runs an encoder as it was exported, if it was."""
        if self.graphs is None or not self.graphs.has(name):
            return None
        return self.graphs.runner(name)
