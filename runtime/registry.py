"""Names in a checkpoint's index and what opens them; nothing is imported before it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .. import kernels
from .checkpoints import weights
from .checkpoints.originals import Original
from .checkpoints.shards import Entry, read_entries
from .errors import KinemaError, UsageError
from .lora.changes import Changes
from .lora.loaded import Loras

if TYPE_CHECKING:
    from .checkpoints.checkpoint import Checkpoint, Component

Opener = Callable[
    ["Component", torch.device, torch.dtype, Mapping[str, str], torch.device], nn.Module
]


def native(module: str, model: str, config: str) -> Opener:
    """Opens a module of our own: `model(config.from_dict(...))`, with streamed weights."""

    def open_native(component, device, dtype, backends, home) -> nn.Module:
        found = _import(module)
        values = getattr(found, config).from_dict(component.config)
        create = getattr(found, model)
        return weights.load(lambda: create(values), component.folder, None, home, dtype)

    return open_native


@dataclass(frozen=True)
class Transformer:
    """Opens a transformer of our own, its operations bound for the device.

    Its config has `weight_table()`, which names published weights, and `attention_head_dim`. The
    module `original` holds the names (`ORIGINAL`) that the repository of the model's authors gives
    them, if it is given: weights named so open as well.
    """

    module: str
    model: str
    config: str
    original: str | None = None

    def __call__(self, component, device, dtype, backends, home) -> nn.Module:
        values, entries = self.read(component)
        create = getattr(_import(self.module), self.model)
        try:
            ops = kernels.bind(device, dtype, values.attention_head_dim, backends)
        except (ValueError, RuntimeError) as error:
            raise UsageError(str(error)) from None
        table = values.weight_table()
        return weights.load(lambda: create(values, ops), entries, table, home, dtype)

    def read(self, component: Component) -> tuple[Any, dict[str, Entry]]:
        """The config, and what the files hold by published name."""
        entries = self.names().published(read_entries(component.folder))
        return self.config_of(component), entries

    def names(self) -> Original:
        """The names that its authors give its weights; none where they are the published ones."""
        if self.original is None:
            return Original({}, frozenset())
        return _import(self.original).ORIGINAL

    def config_of(self, component: Component) -> Any:
        """The config."""
        return getattr(_import(self.module), self.config).from_dict(component.config)

    def loras(self, component: Component, module: nn.Module, name: str) -> Loras:
        """What loads LoRAs onto the opened transformer; none is loaded yet."""
        values, entries = self.read(component)
        with torch.device("meta"):
            like = getattr(_import(self.module), self.model)(values).state_dict()
        changes = Changes(module, like, values.weight_table(), entries)
        return Loras(changes, self.names(), name)


def function(module: str, name: str) -> Opener:
    """Opens through `name(folder, device, dtype)`, where another library holds the class."""

    def open_foreign(component, device, dtype, backends, home) -> nn.Module:
        return getattr(_import(module), name)(component.folder, home, dtype)

    return open_foreign


OPENERS: dict[str, Opener] = {
    "WanTransformer3DModel": Transformer(
        "models.wan", "WanTransformer", "WanConfig", "models.wan_original"
    ),
    "WanVACETransformer3DModel": Transformer(
        "models.wan_vace", "WanVaceTransformer", "WanVaceConfig", "models.wan_original"
    ),
    "AutoencoderKinema": native("vaes.kinema", "AutoencoderKinema", "KinemaVAEConfig"),
    "AutoencoderKLWan": function("vaes.wan", "open_wan_vae"),
    "KinemaSound": native("vaes.audio", "KinemaSound", "SoundConfig"),
}


def open_component(
    checkpoint: Checkpoint,
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    backends: Mapping[str, str] | None = None,
    home: torch.device | None = None,
) -> Any:
    """Open one part of a checkpoint; raises `KinemaError` naming the known classes for another.

    `backends`: what runs an operation of a transformer, by name; see `kernels.bind`. `home`: where
    its weights go, if not to the device that it works on.
    """
    component, home = checkpoint.component(name), device if home is None else home
    return _opener(checkpoint, name, component)(component, device, dtype, backends or {}, home)


def config_of(checkpoint: Checkpoint, name: str) -> Any:
    """The config of a transformer, as its module has it; no weight is read."""
    component = checkpoint.component(name)
    return _opener(checkpoint, name, component).config_of(component)


def open_loras(checkpoint: Checkpoint, name: str, module: nn.Module) -> Loras:
    """What loads LoRAs onto a part opened before; raises `UsageError` for one that takes none."""
    component = checkpoint.component(name)
    opener = _opener(checkpoint, name, component)
    if not isinstance(opener, Transformer):
        raise UsageError(f"{name} of {checkpoint.name!r} takes no LoRA: {component.class_name}")
    return opener.loras(component, module, name)


def _opener(checkpoint: Checkpoint, name: str, component: Component) -> Opener:
    if component.class_name not in OPENERS:
        kind, known = component.class_name[:80].split("\n")[0], ", ".join(sorted(OPENERS))
        raise KinemaError(
            f"{name} of {checkpoint.name!r} is a {kind}, which is not known; known: {known}"
        )
    return OPENERS[component.class_name]


def _import(module: str) -> Any:
    return import_module(f".{module}", __package__)
