"""Runs a TensorRT engine on torch's tensors, each shape with buffers and a CUDA graph of its own.

When buffers are made and graphs captured is decided here, and tested with a machine made up for
that. What touches TensorRT and CUDA is `tensorrt_machine`, which has not run on a GPU.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import UsageError
from .tensorrt import check, pick
from .tensorrt_machine import Machine

if TYPE_CHECKING:
    from .manifest import GraphEntry

KEPT = 4  # shapes whose buffers and graphs are kept


@dataclass
class Bound:
    """A context with buffers for one shape: run at first, then captured and replayed."""

    context: Any
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    warm: bool = False
    replay: Callable[[], None] | None = None

    def run(self, machine: Any) -> None:
        if self.warm and self.replay is None and self.context.can_be_captured():
            self.replay = machine.capture(self.context.enqueue)
        (self.replay or self.context.enqueue)()
        self.warm = True


class TensorRTRunner:
    """One engine: `runner(inputs)` gives its outputs by name, in memory of their own.

    `facts` are those that `export.tensorrt.build` gave: "flavour", "version", "arches".
    `weight_budget`: bytes of weights that stay on the device, for an engine that was built to
    stream them; None keeps all. `machine`: what it runs on, by default the device's `Machine`.
    Raises `UsageError` for an engine that cannot run here, before it is opened, and for shapes it
    was not built for.
    """

    def __init__(
        self,
        engine_path: Path,
        device: torch.device,
        *,
        facts: Mapping[str, Any],
        weight_budget: int | None = None,
        machine: Any = None,
    ) -> None:
        self.machine = machine or Machine(device)
        check(facts, self.machine.arch(), self.machine.version)
        self.engine = self.machine.open(Path(engine_path), facts["flavour"], weight_budget)
        self.bound: OrderedDict[tuple[tuple[int, ...], ...], Bound] = OrderedDict()

    @torch.no_grad()
    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        bound = self._bound(self._shapes(inputs))
        for name, buffer in bound.inputs.items():
            buffer.copy_(inputs[name])
        with self.machine.own_stream():
            bound.run(self.machine)
        # Solvers and text contexts keep results beyond the next call.
        return {name: x.clone() for name, x in bound.outputs.items()}

    def _shapes(self, inputs: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
        if inputs.keys() != self.engine.inputs.keys():
            odd = sorted(inputs.keys() ^ self.engine.inputs.keys())[0]
            state = "is missing" if odd in self.engine.inputs else "is not one of them"
            raise UsageError(f"the engine takes {', '.join(self.engine.inputs)}; {odd!r} {state}")
        return {name: tuple(inputs[name].shape) for name in self.engine.inputs}

    def _bound(self, shapes: dict[str, tuple[int, ...]]) -> Bound:
        key = tuple(shapes.values())
        if key not in self.bound:
            profile = pick(self.engine.profiles, shapes)
            if len(self.bound) == KEPT:
                self.machine.finish()
                self.bound.popitem(last=False)
            self.bound[key] = self._bind(profile, shapes)
        self.bound.move_to_end(key)
        return self.bound[key]

    def _bind(self, profile: int, shapes: dict[str, tuple[int, ...]]) -> Bound:
        context = self.engine.context(profile, shapes)
        empty = self.machine.empty
        inputs = {name: empty(shape, self.engine.inputs[name]) for name, shape in shapes.items()}
        outputs = {
            name: empty(context.shape(name), dtype) for name, dtype in self.engine.outputs.items()
        }
        for name, buffer in {**inputs, **outputs}.items():
            context.bind(name, buffer)
        return Bound(context, inputs, outputs)


def open_engine(file: Path, entry: GraphEntry, device: torch.device) -> TensorRTRunner:
    """The engine of a manifest's entry."""
    if device.type != "cuda":
        raise UsageError(f"TensorRT engines run on a GPU, not on {device.type}; onnx runs there")
    return TensorRTRunner(file, device, facts=entry.built)
