"""A transformer's step in 8 bits, written, checked against its PyTorch twin, and its cost measured.

No two runtimes agree on such a graph: a sum in another order moves a value over the edge between
two steps, and from there on more and more. So the twin goes in lockstep: it takes over the steps
that the graph chose, each of which must be what rounding allows, and then the results agree as
closely as those of any other graph.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import onnxruntime
import torch
from torch import Tensor, nn

from ..runtime.graphs.manifest import GraphEntry
from ..runtime.graphs.names import flatten
from ..runtime.graphs.onnx import OnnxRunner
from ..runtime.graphs.shells import TransformerGraphs
from . import onnx
from .calibration import Sampler, calibrate, quality
from .eight_bits import Scales, Twin, settle
from .quantize import Product, layers, products, quantize, told_steps
from .verify import tolerance, verify

if TYPE_CHECKING:
    from ..runtime.checkpoints.checkpoint import Checkpoint
    from .graphs import Graph
    from .options import Options


@dataclass
class QuantizedStep:
    """One of a checkpoint's steps, to be written in 8 bits. `exact` is it in fp32."""

    graph: Graph
    exact: Graph
    options: Options
    sampler: Sampler
    scales: dict[str, Scales] = field(default_factory=dict)

    @property
    def to(self) -> str:
        """The format."""
        assert self.options.quantize is not None
        return self.options.quantize

    def write(self, folder: Path, told: Callable[[str], None]) -> GraphEntry:
        """Convert, calibrate, save, check and measure; raises `KinemaError` for a failed check."""
        told("converting")
        program, found = self._converted(self.graph)
        told("calibrating")
        began = time.monotonic()
        self._settle(found)
        seconds = time.monotonic() - began
        self._quantize(program, found, getattr(torch, self.options.dtype))
        place = folder / self.graph.name
        place.mkdir()
        onnx.save(program, place / onnx.FILE)
        entry = onnx.describe(self.graph.name, program, place)
        if self.exact is not self.graph:
            del program
            program, found = self._converted(self.exact)
            self._quantize(program, found, torch.float32)
        with TemporaryDirectory(dir=folder) as room:
            told("checking")
            checked, moved = self._checked(program, found, Path(room), entry)
            told("measuring")
            measured = self._measured(program, Path(room))
        facts = {
            "format": self.to,
            "products": len(found),
            "prompts": list(self.sampler.prompts),
            "calibration_seconds": round(seconds, 1),
            "moved": moved,
            "quality": measured,
        }
        notes = () if self.exact is self.graph else (onnx.WITHOUT_BF16,)
        notes = (*notes, _told(self.to, measured))
        return replace(checked, built={"quantized": facts}, notes=notes)

    def _converted(self, graph: Graph) -> tuple[Any, tuple[Product, ...]]:
        program = onnx.convert(graph, self.options.opset)
        return program, products(program, graph.module.model)

    def _settle(self, found: tuple[Product, ...]) -> None:
        """Scales, and weights rounded with them."""
        to, known = self.to, layers(self.exact.module.model)
        used = {product.name: known[product.name] for product in found}
        steps = calibrate(self.sampler, self.exact.module.model, used, to)
        dtype = getattr(torch, self.options.dtype)
        self.scales = {n: settle(layer, steps[n], to, dtype) for n, layer in used.items()}

    def _quantize(self, program: Any, found: tuple[Product, ...], dtype: torch.dtype) -> None:
        quantize(program, found, self.scales, self.to, dtype)

    def _checked(
        self, program: Any, found: tuple[Product, ...], room: Path, entry: GraphEntry
    ) -> tuple[GraphEntry, float]:
        """The entry with errors at each size, the twin in lockstep; the part of values that the
        twin would have rounded to another step."""
        allowed, to = tolerance(entry.nodes, "float32"), self.to
        file = room / "steps.onnx"
        with told_steps(program, found):
            onnx.save(program, file)
        known = layers(self.exact.module.model)
        with Twin(known, self.scales, to, allowed) as twin:
            pair = Lockstep(file, self.exact, twin)
            graph = replace(self.exact, module=pair)
            checks = verify(graph, lambda inputs: pair.found, allowed)
        return replace(entry, tolerance=allowed, checks=checks), twin.moved / twin.seen

    def _measured(self, program: Any, room: Path) -> dict[str, float]:
        """What videos made with the written graph differ by."""
        file, model = room / onnx.FILE, self.exact.module.model
        onnx.save(program, file)
        entry = onnx.describe(self.exact.name, program, room)
        runner = OnnxRunner(file, entry, torch.device("cpu"))

        def text(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return flatten("text", model.text_context(**given))

        shell = TransformerGraphs(model.config, entry, runner, text, "onnx")
        return quality(self.sampler, model, shell)


class Lockstep(nn.Module):
    """A graph's file is run first, then its twin with the steps that the file chose."""

    def __init__(self, file: Path, graph: Graph, twin: Twin) -> None:
        super().__init__()
        self.session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        self.names = [port.name for port in self.session.get_inputs()]
        self.graph, self.twin = graph, twin
        self.found: dict[str, Tensor] = {}

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        given = {name: x.numpy() for name, x in zip(self.names, inputs, strict=True)}
        names = [port.name for port in self.session.get_outputs()]
        made = dict(zip(names, map(torch.from_numpy, self.session.run(None, given)), strict=True))
        self.found = {name: made.pop(name) for name in self.graph.outputs}
        self.twin.steps = {name.removesuffix(".steps"): x for name, x in made.items()}
        return self.graph.module(*inputs)


def write_quantized(
    checkpoint: Checkpoint,
    options: Options,
    graph: Graph,
    twin: Graph | None,
    folder: Path,
    told: Callable[[str], None],
    prompts: Sequence[str] | None = None,
) -> GraphEntry:
    """Write a step's graph to `folder/<its name>` in 8 bits; `twin` is the same graph in fp32.

    prompts: to calibrate on, and to measure with other seeds.
    """
    sampler = Sampler.of(checkpoint, graph.name, prompts)
    return QuantizedStep(graph, twin or graph, options, sampler).write(folder, told)


def _told(to: str, measured: Mapping[str, float]) -> str:
    return (
        f"{to} against exact, over {measured['videos']} videos: PSNR {measured['psnr']:.1f} dB"
        f" ({measured['least_psnr']:.1f} at least),"
        f" SSIM {measured['ssim']:.4f}, latents off by {measured['latents_relative_rms']:.1%}"
    )
