"""Runs a TensorRT engine on torch's tensors, each shape with buffers and a CUDA graph of its own.

TensorRT comes as two packages of one API: TensorRT-RTX, which builds for any of its GPUs on any
machine, and TensorRT, which builds where the GPU is. The architecture says which.

What decides is here: which profile, what is refused, when buffers are made and graphs captured. It
is tested with a machine made up for that. What touches TensorRT and CUDA is `tensorrt_machine`,
which has not run on a GPU.
"""

from __future__ import annotations

import importlib
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ..errors import KinemaError, UsageError

if TYPE_CHECKING:
    from .manifest import GraphEntry

RTX, PLAIN = "tensorrt_rtx", "tensorrt"
ARCHES = {
    RTX: ("sm_75", "sm_80", "sm_86", "sm_89", "sm_120", "sm_121"),
    PLAIN: ("sm_90", "sm_100"),
}
PACKAGES = {RTX: "tensorrt-rtx-cu13", PLAIN: "tensorrt-cu13"}
INSTALL = {
    RTX: "pip install 'kinema[tensorrt]'",
    PLAIN: "pip install tensorrt-cu13 --extra-index-url https://pypi.nvidia.com",
}
EXPORT = "kinema export MODEL --to tensorrt"
KEPT = 4  # shapes whose buffers and graphs are kept


class Range(NamedTuple):
    """Shapes of an input that a profile takes, and the one it is best at."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


Shape = Sequence[int]
Profile = Mapping[str, Range]


def flavour_of(arches: Sequence[str]) -> str:
    """The package that builds for all of these: `RTX` or `PLAIN`."""
    for flavour, known in ARCHES.items():
        if arches and set(arches) <= set(known):
            return flavour
    every = [arch for known in ARCHES.values() for arch in known]
    for arch in arches or [""]:
        if arch not in every:
            raise UsageError(f"arch is {arch!r}; {', '.join(every)} work")
    raise UsageError(
        f"no one engine serves {', '.join(arches)}: {', '.join(ARCHES[RTX])} are TensorRT-RTX's,"
        f" {', '.join(ARCHES[PLAIN])} TensorRT's; export each to a folder of its own"
    )


def find(flavour: str) -> Any:
    """The module of a flavour; raises `KinemaError` saying how to install it."""
    if flavour not in PACKAGES:
        raise UsageError(f"flavour is {flavour!r}; {', '.join(PACKAGES)} work")
    try:
        return importlib.import_module(flavour)
    except ImportError:
        raise KinemaError(f"{flavour} is not installed: {INSTALL[flavour]}") from None


def listener(trt: Any) -> Any:
    """A logger that keeps errors, in `errors`, and drops the rest."""

    class Listener(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR:
                self.errors.append(" ".join(message.split()))

        def reason(self) -> str:
            return self.errors[-1] if self.errors else "TensorRT gave no reason"

    return Listener()


def check(
    facts: Mapping[str, Any], arch: str, version: Callable[[str], str], rebuild: str = EXPORT
) -> None:
    """Refuse an engine that this GPU or this package cannot open, saying what to make instead.

    `facts`: its "flavour", "version" and "arches"; `version(flavour)`: what is installed.
    """
    line = f"{rebuild} --arch {arch}"
    if arch not in facts["arches"]:
        known = any(arch in arches for arches in ARCHES.values())
        instead = f"rebuild: {line}" if known else "TensorRT is not offered for it"
        built = ", ".join(facts["arches"])
        raise UsageError(f"the engine is for {built}, this GPU is {arch}; {instead}")
    flavour = flavour_of([arch])
    if facts["flavour"] != flavour:
        raise UsageError(
            f"the engine is of {facts['flavour']}, {arch} is run by {flavour}; rebuild: {line}"
        )
    installed = version(flavour)
    if facts["version"] != installed:
        package = f"{PACKAGES[flavour]}=={facts['version']}"
        raise UsageError(
            f"the engine is of {flavour} {facts['version']}, {installed} is installed;"
            f" rebuild: {line} (or pip install {package})"
        )


def pick(profiles: Sequence[Profile], shapes: Mapping[str, Shape], rebuild: str = EXPORT) -> int:
    """The profile that takes the shapes; of several, the one whose best shapes are nearest."""
    fits = [i for i, profile in enumerate(profiles) if not _outside(profile, shapes)]
    if fits:
        return min(fits, key=lambda i: _far_from_best(profiles[i], shapes))
    nearest = min(profiles, key=lambda profile: _far_outside(profile, shapes))
    told = "; ".join(
        f"{name} has shape {tuple(shapes[name])}, {nearest[name].min} to {nearest[name].max} work"
        for name in _outside(nearest, shapes)
    )
    raise UsageError(f"{told} in the nearest bucket; build one with: {rebuild} --shapes")


def _outside(profile: Profile, shapes: Mapping[str, Shape]) -> list[str]:
    return [name for name, shape in shapes.items() if _excess(profile[name], shape) > 0]


def _excess(known: Range, shape: Shape) -> float:
    """How far a shape is outside, in factors of e summed over axes; 0 is inside."""
    if len(shape) != len(known.min):
        return math.inf
    inside = (
        min(max(size, least), most)
        for size, least, most in zip(shape, known.min, known.max, strict=True)
    )
    return _distance(shape, tuple(inside))


def _distance(shape: Shape, other: Shape) -> float:
    return sum(abs(math.log(max(a, 0.5) / max(b, 0.5))) for a, b in zip(shape, other, strict=True))


def _far_outside(profile: Profile, shapes: Mapping[str, Shape]) -> float:
    return sum(_excess(profile[name], shape) for name, shape in shapes.items())


def _far_from_best(profile: Profile, shapes: Mapping[str, Shape]) -> float:
    return sum(_distance(shape, profile[name].opt) for name, shape in shapes.items())


# ---- running -------------------------------------------------------------------------------------


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

    `facts` are those that `export.tensorrt.build` gave: "flavour", "version", "arches". `flavour`,
    where it is given, must be the engine's. `weight_budget`: bytes of weights that stay on the
    device, for an engine that was built to stream them; None keeps all. Raises `UsageError` for an
    engine that cannot run here, before it is opened, and for shapes it was not built for.
    """

    def __init__(
        self,
        engine_path: Path,
        device: torch.device,
        *,
        facts: Mapping[str, Any],
        flavour: str | None = None,
        weight_budget: int | None = None,
        rebuild: str = EXPORT,
        machine: Any = None,
    ) -> None:
        if flavour not in (None, facts["flavour"]):
            raise UsageError(f"the engine is of {facts['flavour']}, not {flavour}")
        self.rebuild, self.machine = rebuild, machine or _machine(device)
        check(facts, self.machine.arch(), self.machine.version, rebuild)
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
            profile = pick(self.engine.profiles, shapes, self.rebuild)
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


def _machine(device: torch.device) -> Any:
    from .tensorrt_machine import Machine

    return Machine(device)
