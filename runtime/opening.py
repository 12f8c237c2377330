"""Opens the components of a checkpoint, as the registry says of their classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .. import kernels
from . import registry
from .checkpoints import weights
from .checkpoints.originals import Original
from .checkpoints.shards import Entry, read_entries
from .errors import UsageError
from .lora.changes import Changes
from .lora.loaded import Loras

if TYPE_CHECKING:
    from .checkpoints.checkpoint import Checkpoint, Component

OPENED = registry.TRANSFORMERS | registry.VAES | registry.SOUNDS


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
    known = registry.row(OPENED, component.class_name, f"{name} of {checkpoint.name!r}")
    if isinstance(known, registry.Transformer):
        return _open_transformer(known, component, device, dtype, backends or {}, home)
    opens = registry.at(known.opens)
    if known.config is None:
        return opens(component.folder, home, dtype)
    config = registry.at(known.config).from_dict(component.config)
    return weights.load(lambda: opens(config), component.folder, None, home, dtype)


def config_of(checkpoint: Checkpoint, name: str) -> Any:
    """The config of a transformer, as its module has it; no weight is read."""
    return _config(*_transformer(checkpoint, name))


def open_loras(checkpoint: Checkpoint, name: str, module: nn.Module) -> Loras:
    """What loads LoRAs onto a transformer opened before; none is loaded yet."""
    known, component = _transformer(checkpoint, name)
    config, entries = _read(known, component)
    with torch.device("meta"):
        like = registry.at(known.model)(config).state_dict()
    changes = Changes(module, like, config.weight_table(), entries)
    return Loras(changes, _names(known), name)


# ---- transformers --------------------------------------------------------------------------------


def _open_transformer(
    known: registry.Transformer,
    component: Component,
    device: torch.device,
    dtype: torch.dtype,
    backends: Mapping[str, str],
    home: torch.device,
) -> nn.Module:
    """Its operations bound for the device, its weights streamed to their home."""
    config, entries = _read(known, component)
    model = registry.at(known.model)
    try:
        ops = kernels.bind(device, dtype, config.attention_head_dim, backends)
    except (ValueError, RuntimeError) as error:
        raise UsageError(str(error)) from None
    return weights.load(lambda: model(config, ops), entries, config.weight_table(), home, dtype)


def _transformer(checkpoint: Checkpoint, name: str) -> tuple[registry.Transformer, Component]:
    component = checkpoint.component(name)
    what = f"{name} of {checkpoint.name!r}"
    return registry.row(registry.TRANSFORMERS, component.class_name, what), component


def _read(known: registry.Transformer, component: Component) -> tuple[Any, dict[str, Entry]]:
    """The config, and what the files hold by published name."""
    return _config(known, component), _names(known).published(read_entries(component.folder))


def _config(known: registry.Transformer, component: Component) -> Any:
    return registry.at(known.config).from_dict(component.config)


def _names(known: registry.Transformer) -> Original:
    """The names that its authors give its weights; none where they are the published ones."""
    if known.original is None:
        return Original({}, frozenset())
    return registry.at(known.original).ORIGINAL
