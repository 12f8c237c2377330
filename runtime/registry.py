"""Names in a checkpoint's index and what opens them; nothing is imported before it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from . import weights
from .errors import KinemaError

if TYPE_CHECKING:
    from .checkpoint import Checkpoint, Component

Opener = Callable[["Component", torch.device, torch.dtype], nn.Module]


def native(module: str, model: str, config: str) -> Opener:
    """Opens a module of our own: `model(config.from_dict(...))`, with streamed weights.

    A config class with a method `weight_table` renames published weights.
    """

    def open_native(component: Component, device: torch.device, dtype: torch.dtype) -> nn.Module:
        home = _import(module)
        values = getattr(home, config).from_dict(component.config)
        table = values.weight_table() if hasattr(values, "weight_table") else None
        create = getattr(home, model)
        return weights.load(lambda: create(values), component.folder, table, device, dtype)

    return open_native


def function(module: str, name: str) -> Opener:
    """Opens through `name(folder, device, dtype)`, where another library holds the class."""

    def open_foreign(component: Component, device: torch.device, dtype: torch.dtype) -> nn.Module:
        return getattr(_import(module), name)(component.folder, device, dtype)

    return open_foreign


OPENERS: dict[str, Opener] = {
    "WanTransformer3DModel": native("models.wan", "WanTransformer", "WanConfig"),
    "AutoencoderKinema": native("vaes.kinema", "AutoencoderKinema", "KinemaVAEConfig"),
    "AutoencoderKLWan": function("vaes.wan", "open_wan_vae"),
    "KinemaSound": native("audio", "KinemaSound", "SoundConfig"),
}


def open_component(
    checkpoint: Checkpoint, name: str, device: torch.device, dtype: torch.dtype
) -> nn.Module:
    """Open one part of a checkpoint; raises `KinemaError` naming the known classes for another."""
    component = checkpoint.component(name)
    if component.class_name not in OPENERS:
        raise KinemaError(
            f"{name} of {checkpoint.name!r} is a {component.class_name}, which is not known;"
            f" known: {', '.join(sorted(OPENERS))}"
        )
    return OPENERS[component.class_name](component, device, dtype)


def _import(module: str) -> Any:
    return import_module(f".{module}", __package__)
