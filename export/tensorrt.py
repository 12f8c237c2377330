"""ONNX files to TensorRT engines, for TensorRT-RTX and for TensorRT: one builder, one API.

TensorRT-RTX builds without a GPU, for several architectures at once, and its engines are compiled
to the last instruction where they run. TensorRT builds for the GPU that is there; that path (its
timing cache with it) shares all but a few lines and has not run.
"""

from __future__ import annotations

import ast
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..runtime.errors import KinemaError, UsageError
from ..runtime.files import reason_of, whole_or_nothing
from ..runtime.graphs.shapes import evaluate
from ..runtime.graphs.tensorrt import PLAIN, RTX, Profile, Range, find, flavour_of, listener
from .monitor import monitor, signals_kept

# The oldest architecture that computes in a type.
LEAST = {"BF16": 80, "FP8": 89, "FP4": 100}
HALVES = ("HALF", "BF16")
HEAD_DIMS = range(16, 257, 8)  # of which fused attention is known to build


@dataclass(frozen=True)
class Built:
    """An engine's facts. `decomposed`: layers of attention that no fused kernel computes."""

    flavour: str
    version: str
    arches: tuple[str, ...]
    seconds: float
    bytes: int
    layers: int
    decomposed: int
    profiles: tuple[Profile, ...]


def shapes(onnx: Path, dims: Mapping[str, tuple[int, int, int]]) -> dict[str, Range]:
    """A profile: the shapes of a file's inputs where each named size has a (min, opt, max).

    Axes may be expressions of names, such as 2*rows. Raises `UsageError` for a name that is in one
    and not in the other.
    """
    ports = _symbolic_inputs(onnx)
    used = {name for shape in ports.values() for axis in shape for name in _names(axis)}
    for name in sorted(used ^ dims.keys()):
        state = "has no range" if name in used else "is not one of them"
        raise UsageError(
            f"sizes of {onnx.parent.name} are {', '.join(sorted(used))}; {name} {state}"
        )
    at = [{name: sizes[i] for name, sizes in dims.items()} for i in range(3)]
    return {
        name: Range(*(tuple(evaluate(axis, sizes) for axis in shape) for sizes in at))
        for name, shape in ports.items()
    }


def build(
    onnx: Path,
    target: Path,
    arches: Sequence[str],
    profiles: Sequence[Mapping[str, tuple[Sequence[int], Sequence[int], Sequence[int]]]],
    *,
    timing_cache: Path | None = None,
    weight_streaming: bool = False,
    progress: Callable[[float], None] | None = None,
) -> Built:
    """Build an engine for `arches` (such as "sm_89") and write it to `target`.

    A profile has (min, opt, max) for each input; several are buckets of shapes. `timing_cache` is
    read and written by TensorRT; TensorRT-RTX has none. Streamed weights exclude CUDA graphs there.
    `progress` gets the part that is done, 0 to 1; what it raises stops the build. Raises
    `UsageError` for what cannot be built as asked, `KinemaError` where TensorRT is missing or
    fails, with its reason.
    """
    began = time.monotonic()
    arches = tuple(arches)
    flavour = flavour_of(arches)
    if not onnx.is_file():
        raise UsageError(f"{str(onnx)!r} is no file; an exported model.onnx works")
    trt = find(flavour)
    timings = timing_cache if flavour == PLAIN else None
    log = listener(trt)
    builder = trt.Builder(log)
    network, parser = _parse(trt, builder, log, onnx)
    buckets = _checked(network, profiles)
    _check_types(network, arches)
    decomposed = _allow_decomposition(trt, network)
    config = builder.create_builder_config()
    _set_targets(trt, config, flavour, arches)
    _set_options(trt, config, flavour, weight_streaming)
    _add_profiles(builder, config, buckets)
    if timings:
        read_timings(config, timings)
    plan = _serialized(trt, builder, network, config, progress)
    del parser  # weights were its own until now
    if plan is None:
        raise KinemaError(f"{flavour} cannot build {onnx.parent.name}: {log.reason()}")
    with whole_or_nothing(target) as unfinished, unfinished.open("wb") as file:
        file.write(plan)
    if timings:
        write_timings(config, timings)
    seconds = round(time.monotonic() - began, 2)
    return Built(
        flavour,
        trt.__version__,
        arches,
        seconds,
        target.stat().st_size,
        network.num_layers,
        decomposed,
        buckets,
    )


def _serialized(
    trt: Any, builder: Any, network: Any, config: Any, progress: Callable[[float], None] | None
) -> Any:
    """The engine's bytes, or None; raises what progress raised."""
    watching = config.progress_monitor = monitor(trt, progress)
    with signals_kept(watching.stop):
        plan = builder.build_serialized_network(network, config)
    if watching.raised:
        raise watching.raised
    if plan is not None and progress:
        progress(1.0)
    return plan


# ---- networks ------------------------------------------------------------------------------------


def _parse(trt: Any, builder: Any, log: Any, onnx: Path) -> tuple[Any, Any]:
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(onnx)):
        raise KinemaError(_told(parser, onnx))
    if not network.num_outputs:
        raise KinemaError(f"{str(onnx)!r} holds no graph; export it again")
    return network, parser


def _told(parser: Any, onnx: Path) -> str:
    """The node that stopped the parser, and why."""
    error = parser.get_error(0)
    reason = " ".join(error.desc().split())
    if not error.node_operator():
        return f"cannot read {str(onnx)!r}: {reason}"
    return f"TensorRT cannot take {error.node_operator()} ({error.node_name()!r}): {reason}"


def _layers(network: Any) -> Iterator[Any]:
    return map(network.get_layer, range(network.num_layers))


def _allow_decomposition(trt: Any, network: Any) -> int:
    """Let attention that has no kernel of its own be computed in parts; how many layers do so."""
    count = 0
    for layer in _layers(network):
        if layer.type != trt.LayerType.ATTENTION_INPUT:
            continue
        query = layer.get_input(0)
        if query.dtype.name in HALVES and query.shape[-1] in HEAD_DIMS:
            continue
        layer.__class__ = trt.IAttentionInputLayer  # get_layer knows none of the subclasses
        layer.attention.decomposable = True
        count += 1
    return count


def _check_types(network: Any, arches: Sequence[str]) -> None:
    tensors = (layer.get_output(i) for layer in _layers(network) for i in range(layer.num_outputs))
    used = {tensor.dtype.name for tensor in tensors}
    for arch in arches:
        for name, least in LEAST.items():
            if name in used and int(arch[3:]) < least:
                raise UsageError(
                    f"the graph computes in {name.lower()}, which {arch} has not;"
                    f" sm_{least} and later work"
                )


# ---- shapes --------------------------------------------------------------------------------------


def _symbolic_inputs(onnx: Path) -> dict[str, tuple[int | str, ...]]:
    try:
        import onnx_ir

        from .nodes import shape_of
    except ImportError as error:
        raise KinemaError(
            f"reading shapes needs {error.name}: pip install 'kinema[export]'"
        ) from None
    try:
        graph = onnx_ir.load(onnx).graph
    except Exception as error:  # of what reads it: kinds of its own
        raise UsageError(f"cannot read {str(onnx)!r}: {reason_of(error)}") from error
    return {str(value.name): shape_of(value) for value in graph.inputs}


def _names(axis: int | str) -> set[str]:
    if isinstance(axis, int):
        return set()
    return {
        node.id for node in ast.walk(ast.parse(axis, mode="eval")) if isinstance(node, ast.Name)
    }


def _checked(network: Any, profiles: Sequence[Any]) -> tuple[Profile, ...]:
    """Refuse what the network's inputs cannot be; TensorRT itself notices some of it, and late."""
    if not profiles:
        raise UsageError("there are 0 profiles; 1 or more work")
    inputs = {tensor.name: tensor for tensor in map(network.get_input, range(network.num_inputs))}
    buckets = []
    for profile in profiles:
        for name in sorted(inputs.keys() ^ profile.keys()):
            state = "is not in the profile" if name in inputs else "is not one of them"
            raise UsageError(f"inputs are {', '.join(inputs)}; {name} {state}")
        bucket = {name: Range(*map(tuple, sizes)) for name, sizes in profile.items()}
        named: dict[str, tuple[tuple[int, ...], str]] = {}
        for name, tensor in inputs.items():
            _check_input(tensor, bucket[name], named)
        buckets.append(bucket)
    return tuple(buckets)


def _check_input(tensor: Any, sizes: Range, named: dict[str, tuple[tuple[int, ...], str]]) -> None:
    """One input; `named`: what names of axes stood for in the inputs before it, and where."""
    wanted = tuple(tensor.shape)
    shown = tuple(tensor.get_dimension_name(i) or size for i, size in enumerate(wanted))
    works = f"({', '.join(map(str, shown))}) works"
    if any(len(shape) != len(wanted) for shape in sizes):
        raise UsageError(f"{tensor.name} has shapes {sizes.min} to {sizes.max}; {works}")
    for axis, lengths in enumerate(zip(*sizes, strict=True)):
        if not 0 < lengths[0] <= lengths[1] <= lengths[2]:
            raise UsageError(
                f"axis {axis} of {tensor.name} is {lengths[0]}, {lengths[1]}, {lengths[2]};"
                " 0 < min <= opt <= max works"
            )
        if wanted[axis] >= 0 and set(lengths) != {wanted[axis]}:
            raise UsageError(f"{tensor.name} has shapes {sizes.min} to {sizes.max}; {works}")
        name = tensor.get_dimension_name(axis) if wanted[axis] < 0 else None
        before, where = named.setdefault(name, (lengths, tensor.name)) if name else (lengths, "")
        if before != lengths:
            raise UsageError(f"{name} is {before} in {where} and {lengths} in {tensor.name}")


def _add_profiles(builder: Any, config: Any, buckets: Sequence[Profile]) -> None:
    for bucket in buckets:
        profile = builder.create_optimization_profile()
        for name, sizes in bucket.items():
            profile.set_shape(name, *sizes)
        config.add_optimization_profile(profile)


# ---- options -------------------------------------------------------------------------------------


def _set_targets(trt: Any, config: Any, flavour: str, arches: Sequence[str]) -> None:
    if flavour == RTX:
        config.num_compute_capabilities = len(arches)
        for i, arch in enumerate(arches):
            config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{arch[3:]}"), i)
        return
    import torch

    here = "none"
    if torch.cuda.is_available():
        here = "sm_{}{}".format(*torch.cuda.get_device_capability())
    if tuple(arches) != (here,):
        raise UsageError(
            f"TensorRT builds for the GPU that is there; that is {here}, not {', '.join(arches)}"
        )


def _set_options(trt: Any, config: Any, flavour: str, weight_streaming: bool) -> None:
    config.clear_flag(trt.BuilderFlag.TF32)  # on by default, and not what fp32 means elsewhere
    if weight_streaming:
        config.set_flag(trt.BuilderFlag.WEIGHT_STREAMING)
    elif flavour == RTX:  # without it a CUDA graph cannot be captured; streaming excludes it
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)


def read_timings(config: Any, file: Path) -> None:
    """Give a builder the timings of earlier builds; those of another GPU or version are left."""
    known = file.read_bytes() if file.is_file() else b""
    if not config.set_timing_cache(config.create_timing_cache(known), False):
        config.set_timing_cache(config.create_timing_cache(b""), False)


def write_timings(config: Any, file: Path) -> None:
    """Keep a builder's timings for later builds."""
    with whole_or_nothing(file) as unfinished:
        unfinished.write_bytes(config.get_timing_cache().serialize())
