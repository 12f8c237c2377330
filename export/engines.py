"""TensorRT engines of a checkpoint: its ONNX graphs, built for the sizes that will be asked for."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir

from ..runtime.checkpoints.presets import PICTURE_TOKENS
from ..runtime.files import cache_folder
from ..runtime.graphs.tensorrt import find, flavour_of
from ..runtime.hashes import file_hash
from ..runtime.opening import config_of
from ..runtime.planning.cost import shapes_of
from ..runtime.planning.plan import resolve
from ..runtime.requests.request import Request
from . import tensorrt
from .onnx import OnnxWriter, cast_node
from .options import Clip

if TYPE_CHECKING:
    from ..runtime.checkpoints.checkpoint import Checkpoint
    from ..runtime.graphs.manifest import GraphEntry
    from ..runtime.planning.plan import Plan
    from .graphs import Graph
    from .options import Options

FILE = "model.engine"
COMPARED = "compared with PyTorch as ONNX, before engines were built of it"
IN_HALF = "attention to pictures runs in fp16 between bf16: TensorRT-RTX cannot fuse it otherwise"
REFERENCES = 4  # pictures of how things look, a latent frame each, before a clip
SizeRanges = dict[str, tuple[int, int, int]]  # the least, the best and the most of each


class TensorRTWriter:
    """Writes `<graph>/model.engine`, of an ONNX graph that was checked before.

    Each of the clips asked for is a profile of its own, which is best at that size and takes no
    other; without one, a single profile reaches up to the size that the checkpoint makes.
    """

    def __init__(self, checkpoint: Checkpoint, options: Options) -> None:
        self.checkpoint, self.options = checkpoint, options
        self.onnx = OnnxWriter(checkpoint, options)
        self.copies = self.onnx.copies + 1
        self.flavour = flavour_of(options.arch)
        self.trt = find(self.flavour)  # missing, it is missed before any work
        self.clips = list(clips_of(checkpoint, options.clips))

    def write(
        self, graph: Graph, twin: Graph | None, folder: Path, told: Callable[[str], None]
    ) -> GraphEntry:
        """Convert, check and build a graph."""
        room = folder / "onnx"
        room.mkdir()
        try:
            entry = self.onnx.write(graph, twin, room, told)
            file = room / entry.file
            used = {axis.size for axes in graph.axes().values() for axis in axes.values()}
            sizes = [
                sizes_of(plan, self.checkpoint, graph.name, exact) for plan, exact in self.clips
            ]
            profiles = [
                tensorrt.shapes(file, {name: size for name, size in every.items() if name in used})
                for every in sizes
            ]
            if part_sums_of_attention(file):
                entry = replace(entry, notes=(*entry.notes, IN_HALF))
            (folder / graph.name).mkdir()
            target = folder / graph.name / FILE
            built = tensorrt.build(
                file,
                target,
                self.options.arch,
                list(_different(profiles)),
                timing_cache=timings_file(),
                progress=lambda part: told(f"building, {part:.0%}"),
            )
        finally:
            shutil.rmtree(room)
        return replace(
            entry,
            notes=(*entry.notes, COMPARED),
            files={f"{graph.name}/{FILE}": file_hash(target)},
            bytes=target.stat().st_size,
            built={**entry.built, **asdict(built)},
        )

    def versions(self) -> dict[str, str]:
        """Of all that had a part in it."""
        return {**self.onnx.versions(), self.flavour: self.trt.__version__}


def timings_file() -> Path:
    """Where TensorRT keeps what it timed; TensorRT-RTX times nothing."""
    cache_folder().mkdir(parents=True, exist_ok=True)
    return cache_folder() / "tensorrt.timings"


def part_sums_of_attention(file: Path) -> bool:
    """Let the second of two attentions in bf16 that are added up run in fp16; whether there is one.

    TensorRT-RTX 1.7 ends the process (a fault, no error) where it fuses such a sum, which models
    that are shown pictures have in every block.
    """
    model = onnx_ir.load(file)
    found = False
    for node in list(model.graph):
        made_by = [value.producer() for value in node.inputs if value is not None]
        if node.op_type != "Add" or [by and by.op_type for by in made_by] != ["Attention"] * 2:
            continue
        if (first := node.inputs[0]) is not None and first.dtype == onnx_ir.DataType.BFLOAT16:
            found = True
            _in_half(model.graph, made_by[1])
    if found:
        onnx_ir.save(model, file)
    return found


def _in_half(graph: Any, node: Any) -> None:
    half, own = onnx_ir.DataType.FLOAT16, node.outputs[0].dtype
    for i, value in enumerate(node.inputs):
        if value is not None:
            cast = cast_node(value, half)
            graph.insert_before(node, cast)
            node.replace_input_with(i, cast.outputs[0])
    (made,) = node.outputs[:1]
    cast = cast_node(made, own)
    made.replace_all_uses_with(cast.outputs[0])
    cast.replace_input_with(0, made)
    graph.insert_after(node, cast)
    made.dtype = half


def clips_of(checkpoint: Checkpoint, clips: tuple[Clip, ...]) -> Iterator[tuple[Plan, bool]]:
    """Plans of the clips asked for, and whether the engine takes exactly these; refused where the
    checkpoint cannot make one."""
    presets = checkpoint.presets
    default = Clip(presets.width, presets.height, presets.num_frames)
    for width, height, num_frames in clips or (default,):
        picture, given = np.zeros((height, width, 3), np.uint8), {}
        if presets.conditions == "beside":  # it makes nothing without
            given["image"] = picture
        if presets.last_frame == "needed":
            given["last_image"] = picture
        request = Request(prompt=".", width=width, height=height, num_frames=num_frames, **given)
        yield resolve(request, checkpoint), bool(clips)


def sizes_of(plan: Plan, checkpoint: Checkpoint, graph: str, exact: bool) -> SizeRanges:
    """The sizes at which a graph works for a clip, `exact` or up to it."""
    limit = checkpoint.presets.text_length
    tokens, rows, seen = (1, 64, limit), (1, 2, 2), (1, PICTURE_TOKENS, PICTURE_TOKENS)
    if graph in ("text_encoder", "image_encoder"):
        return {"batch": (1, 1, 2), "tokens": tokens}
    if graph.startswith("vae"):
        picture = plan.tracks[0]
        grid = {"rows": picture.stop - picture.start, "columns": plan.latent_shape[3]}
        return {"batch": (1, 1, 1), **_ranges(grid, exact)}
    _, *sides = shapes_of(plan, checkpoint, limit).latents
    patch = config_of(checkpoint, "transformer").patch
    names = "frames", "rows", "columns"
    grid = {name: side // p for name, side, p in zip(names, sides, patch, strict=True)}
    sizes = {"batch": rows, "tokens": tokens, "seen": seen, **_ranges(grid, exact)}
    if checkpoint.presets.conditions == "control":
        least, best, most = sizes["frames"]
        sizes["frames"] = least, best, most + REFERENCES
    return sizes


def _ranges(grid: Mapping[str, int], exact: bool) -> SizeRanges:
    return {name: (size if exact else 1, size, size) for name, size in grid.items()}


def _different(profiles: list) -> Iterator[dict]:
    """Profiles without those that are there already: several clips may give a graph the same."""
    seen = []
    for profile in profiles:
        if profile not in seen:
            seen.append(profile)
            yield profile
