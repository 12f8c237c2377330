"""Names in a checkpoint's index and what opens them; nothing is imported before it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .. import kernels
from . import weights
from .errors import KinemaError, UsageError

if TYPE_CHECKING:
    from .checkpoint import Checkpoint, Component

Opener = Callable[["Component", torch.device, torch.dtype, Mapping[str, str]], nn.Module]


def native(module: str, model: str, config: str) -> Opener:
    """Opens a module of our own: `model(config.from_dict(...))`, with streamed weights."""

    def open_native(component, device, dtype, backends) -> nn.Module:
        home = _import(module)
        values = getattr(home, config).from_dict(component.config)
        create = getattr(home, model)
        return weights.load(lambda: create(values), component.folder, None, device, dtype)

    return open_native


def transformer(module: str, model: str, config: str) -> Opener:
    """Opens a transformer of our own, its operations bound for the device.

    Its config has `weight_table()`, which names published weights, and `attention_head_dim`.
    """

    def open_transformer(component, device, dtype, backends) -> nn.Module:
        home = _import(module)
        values = getattr(home, config).from_dict(component.config)
        create = getattr(home, model)
        try:
            ops = kernels.bind(device, dtype, values.attention_head_dim, backends)
        except (ValueError, RuntimeError) as error:
            raise UsageError(str(error)) from None
        table = values.weight_table()
        return weights.load(lambda: create(values, ops), component.folder, table, device, dtype)

    return open_transformer


def function(module: str, name: str) -> Opener:
    """Opens through `name(folder, device, dtype)`, where another library holds the class."""

    def open_foreign(component, device, dtype, backends) -> nn.Module:
        return getattr(_import(module), name)(component.folder, device, dtype)

    return open_foreign


OPENERS: dict[str, Opener] = {
    "WanTransformer3DModel": transformer("models.wan", "WanTransformer", "WanConfig"),
    "AutoencoderKinema": native("vaes.kinema", "AutoencoderKinema", "KinemaVAEConfig"),
    "AutoencoderKLWan": function("vaes.wan", "open_wan_vae"),
    "KinemaSound": native("audio", "KinemaSound", "SoundConfig"),
}


def open_component(
    checkpoint: Checkpoint,
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    backends: Mapping[str, str] | None = None,
) -> nn.Module:
    """Open one part of a checkpoint; raises `KinemaError` naming the known classes for another.

    `backends`: what runs an operation of a transformer, by name; see `kernels.bind`.
    """
    component = checkpoint.component(name)
    if component.class_name not in OPENERS:
        raise KinemaError(
            f"{name} of {checkpoint.name!r} is a {component.class_name}, which is not known;"
            f" known: {', '.join(sorted(OPENERS))}"
        )
    return OPENERS[component.class_name](component, device, dtype, backends or {})


def _import(module: str) -> Any:
    return import_module(f".{module}", __package__)
