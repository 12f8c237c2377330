"""Runs a package of AOTInductor: compiled code and weights in one file, with no Python inside."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import KinemaError, UsageError
from ..files import reason_of
from .manifest import GraphEntry
from .shapes import sizes_of

EXPORT = "kinema export MODEL --to aoti"


class AotiRunner:
    """One graph: `runner(inputs)` gives its outputs by name, in memory of their own.

    Raises `UsageError` for a package of another device, machine or version of torch, before it is
    opened; `KinemaError` for a file that torch refuses.
    """

    def __init__(self, file: Path, entry: GraphEntry, device: torch.device) -> None:
        self.entry, self.device = entry, device
        if device.type != entry.built["device"]:
            own = entry.built["device"]
            raise UsageError(
                f"{entry.name} was compiled for {own}, not for {device.type}; device={own!r} works"
            )
        if reason := unfit(entry.built, machine()):
            raise UsageError(f"{entry.name} {reason}; rebuild it here: {EXPORT}")
        from torch._inductor import aoti_load_package

        try:
            self.package = aoti_load_package(str(file))
        except (RuntimeError, OSError) as error:
            raise KinemaError(f"torch cannot open {entry.name}: {reason_of(error)}") from error

    @torch.no_grad()
    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        # The compiled code reads wherever a shape would have it: it checks neither shape nor dtype.
        held = {
            port.name: inputs[port.name].to(self.device, getattr(torch, port.dtype)).contiguous()
            for port in self.entry.inputs
        }
        sizes_of(self.entry.inputs, {name: x.shape for name, x in held.items()})
        outputs = self.package(tuple(held.values()))
        return {port.name: x for port, x in zip(self.entry.outputs, outputs, strict=True)}


def machine() -> dict[str, Any]:
    """What code compiled here depends on."""
    return {
        "device": "cpu",
        "platform": sys.platform,
        "machine": platform.machine(),
        "instructions": _instructions(),
        "torch": torch.__version__.split("+")[0],
    }


def unfit(built: Mapping[str, Any], here: Mapping[str, Any]) -> str | None:
    """Why code that was compiled on one machine cannot run on another, or None where it can."""
    for name in ("platform", "machine", "torch"):
        if built[name] != here[name]:
            what = "torch " if name == "torch" else ""
            return f"was compiled for {what}{built[name]}, and this is {what}{here[name]}"
    if lacking := sorted(set(built["instructions"]) - set(here["instructions"])):
        return f"was compiled for a CPU with {', '.join(lacking)}, which this one lacks"
    return None


def _instructions() -> list[str]:
    """The extensions that the CPU has: the compiler uses any of them."""
    told = getattr(torch.cpu, "get_capabilities", None)
    if told is None:  # an older torch names the best one only
        return [torch.backends.cpu.get_cpu_capability()]
    return sorted(name for name, there in told().items() if there is True)
