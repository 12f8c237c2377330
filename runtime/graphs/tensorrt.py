"""Which TensorRT an engine is for, what refuses it here, and which of its profiles takes a shape.

TensorRT comes as two packages of one API: TensorRT-RTX, which builds for any of its GPUs on any
machine, and TensorRT, which builds where the GPU is. The architecture says which.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ..errors import KinemaError, UsageError

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


def check(facts: Mapping[str, Any], arch: str, version: Callable[[str], str]) -> None:
    """Refuse an engine that this GPU or this package cannot open, saying what to make instead.

    `facts`: its "flavour", "version" and "arches"; `version(flavour)`: what is installed.
    """
    line = f"{EXPORT} --arch {arch}"
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


def pick(profiles: Sequence[Profile], shapes: Mapping[str, Shape]) -> int:
    """The profile that takes the shapes; of several, the one whose best shapes are nearest.

    Raises `UsageError` where none does, naming what the nearest takes.
    """
    fits = [i for i, profile in enumerate(profiles) if not _outside(profile, shapes)]
    if fits:
        return min(fits, key=lambda i: _far_from_best(profiles[i], shapes))
    nearest = min(profiles, key=lambda profile: _far_outside(profile, shapes))
    told = "; ".join(
        f"{name} has shape {tuple(shapes[name])}, {nearest[name].min} to {nearest[name].max} work"
        for name in _outside(nearest, shapes)
    )
    raise UsageError(f"{told} in the nearest bucket; build one with: {EXPORT} --shapes")


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
