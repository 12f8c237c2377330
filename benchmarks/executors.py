"""One denoising step by everything that can run it, and a decode: the same weights and inputs.

`kinema bench --only step` and `--only decode`: diffusers' `WanTransformer3DModel` eager and
compiled, our transformer by each executor of PyTorch, and its graphs by onnxruntime and by
AOTInductor, taking turns in one process on a CPU: the embedded model at its default size, and 12
layers, 512 wide, at 1,500 tokens. A step is both branches of guidance. Then the embedded model's
VAE decoder by PyTorch and by onnxruntime.
"""

from __future__ import annotations

import copy
import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from importlib import import_module
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from ..export.exporting import WRITERS, Writer
from ..export.graphs import Graph, graphs_of, transformer_graphs
from ..export.options import Options, as_options
from ..runtime import engine as engines
from ..runtime.checkpoints.checkpoint import open_checkpoint
from ..runtime.execution import executor as executors
from ..runtime.graphs import manifest
from ..runtime.graphs.opening import Graphs
from ..runtime.graphs.shells import TransformerGraphs
from ..runtime.models.wan.transformer import WanTransformer
from ..runtime.sampling.latents import initial_noise
from . import rows, step
from .measure import BASE, PROMPT, Bounds, turns
from .rows import Row

if TYPE_CHECKING:
    from diffusers import WanTransformer3DModel

CPU = torch.device("cpu")
WANTED = "kinema eager"
GRAPHS = {"onnx": "onnxruntime", "aoti": "AOTInductor"}
PACKAGES = ("diffusers", "onnxruntime", "onnx")
DTYPES = {"float32": "fp32", "bfloat16": "bf16"}
COMPUTES = {"onnx": ("float32",), "aoti": ("float32", "bfloat16")}  # on a CPU


class Case(NamedTuple):
    """diffusers' transformer in fp32, and what it denoises."""

    model: WanTransformer3DModel
    latents: Tensor
    texts: list[Tensor]


# ---- a step --------------------------------------------------------------------------------------


def embedded() -> Case:
    """The embedded model at its default size, with a prompt and an empty one."""
    from diffusers import WanTransformer3DModel

    engine = engines.load(device="cpu", dtype="float32")
    folder = engine.checkpoint.component("transformer").folder
    model = WanTransformer3DModel.from_pretrained(folder).eval().requires_grad_(False)
    texts = [engine.text_encoder.encode([prompt]).embeds.clone() for prompt in (PROMPT, "")]
    return Case(model, initial_noise(engine.plan(PROMPT).latent_shape, seed=0), texts)


def small() -> Case:
    """12 layers of random weights, at 1,500 tokens."""
    torch.manual_seed(0)
    config, latent_shape = step.SIZES["small"]
    model = step.reference(config, CPU, torch.float32)
    latents = torch.randn(1, *latent_shape)
    texts = [torch.randn(1, count, model.config["text_dim"]) for count in step.TOKENS]
    return Case(model, latents, texts)


CASES: dict[str, Callable[[], Case]] = {"embedded": embedded, "12 layers": small}


def compare(name: str, dtype: str, bounds: Bounds, compiled: bool, folder: Path) -> list[Row]:
    """Seconds of a guided step of each, ratios to diffusers', errors beside ours eager."""
    case, kind = CASES[name](), getattr(torch, dtype)
    model = rounded(case.model, kind)
    given = case.latents, case.texts, torch.tensor([700.0])
    models: dict[str, WanTransformer | TransformerGraphs] = {}
    models.update(native(model, kind, compiled))
    for to, title in graphs_for(dtype, compiled).items():
        place = folder / f"{name.replace(' ', '_')}_{dtype}_{to}"
        models[title] = as_graphs(model, to, dtype, place)
    with torch.inference_mode():
        steps = {BASE: step.reference_step(model, *given)}
        if compiled:
            own = copy.deepcopy(model)
            steps["diffusers compiled"] = step.reference_step(own, *given, compiled=True)
        for title, ours in models.items():
            steps[title] = partial(step.bind(ours, *given), case.latents, 0)
        about = rows.about("step", name, sizes_of(case.latents), dtype, *PACKAGES)
        return measure(about, steps, bounds, BASE, WANTED)


def native(
    model: WanTransformer3DModel, kind: torch.dtype, compiled: bool
) -> Iterator[tuple[str, WanTransformer]]:
    """Our transformer by each executor that can run it here."""
    for name in ("eager", "packed", "compiled") if compiled else ("eager", "packed"):
        if executors.MISSING[name](CPU) is None:
            ours = step.ours(model, CPU, kind)
            executors.apply(name, ours)
            yield f"kinema {name}", ours


def graphs_for(dtype: str, compiled: bool) -> dict[str, str]:
    """Formats whose graphs run in a dtype, and what runs them."""
    out = set() if compiled else {"aoti"}
    return {to: title for to, title in GRAPHS.items() if dtype in COMPUTES[to] and to not in out}


def as_graphs(model: WanTransformer3DModel, to: str, dtype: str, place: Path) -> TransformerGraphs:
    """Our transformer as graphs, opened."""
    ours = step.ours(model, CPU, getattr(torch, dtype))
    graphs, twins = transformer_graphs(ours, "transformer"), repeat(None)
    if dtype == "bfloat16":  # the same rounded weights, to know what rounding the rest costs
        exact = step.ours(rounded(model, torch.float32), CPU, torch.float32)
        twins = transformer_graphs(exact, "transformer")
    opened = exported(zip(graphs, twins, strict=False), to, dtype, fingerprint(model), place)
    return opened.transformer("transformer", ours.config)


def rounded(model: WanTransformer3DModel, dtype: torch.dtype) -> WanTransformer3DModel:
    """A copy in a dtype."""
    return step.round_to(copy.deepcopy(model), dtype)


# ---- a decode ------------------------------------------------------------------------------------


def decode(bounds: Bounds, folder: Path) -> list[Row]:
    """Seconds of the embedded model's whole decode, a latent frame at a time."""
    engine = engines.load(open_checkpoint(), device="cpu", dtype="float32", executor="eager")
    pairs = ((g, None) for g in graphs_of(engine, "vae") if g.name.startswith("vae_decoder"))
    config = engine.checkpoint.component("vae").config
    hashed = fingerprint(engine.vae)
    graphs = exported(pairs, "onnx", "float32", hashed, folder / "decoder_float32_onnx")
    latents = initial_noise(engine.plan(PROMPT).latent_shape, seed=0)
    decoders = {"kinema eager": engine.vae, "onnxruntime": graphs.vae(config)}
    with torch.inference_mode():
        steps = {name: partial(whole, vae, latents) for name, vae in decoders.items()}
        about = rows.about("decode", "embedded", sizes_of(latents), "float32", *PACKAGES)
        return measure(about, steps, bounds, WANTED, WANTED)


def whole(vae: Any, latents: Tensor) -> Tensor:
    """A clip's pixels, as they come from one latent frame after another."""
    return torch.cat(list(vae.decode_chunks(latents)), dim=2)


# ---- exports -------------------------------------------------------------------------------------


def exported(
    pairs: Iterable[tuple[Graph, Graph | None]], to: str, dtype: str, weights: str, folder: Path
) -> Graphs:
    """Graphs, each with its twin in fp32 or None, written, checked and opened; those that `folder`
    holds, if they are of these weights."""
    if not (folder / manifest.FILE).is_file() or of_other_weights(folder, to, weights):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        options = as_options(to, dtype=DTYPES[dtype])
        writer = writer_of(options)
        graphs = {
            graph.name: writer.write(graph, twin, folder, lambda _: None) for graph, twin in pairs
        }
        model = {"name": folder.name, "weights": weights}
        written = manifest.Manifest(to, options.dtype, model, writer.versions(), graphs)
        (folder / manifest.FILE).write_text(written.as_json())
    return Graphs(manifest.read(folder, to), CPU)


def writer_of(options: Options) -> Writer:
    """What writes graphs in a format."""
    module, name = WRITERS[options.to].split(":")
    kind = getattr(import_module(f"..export.{module}", __package__), name)
    return kind(open_checkpoint(), options)


def of_other_weights(folder: Path, to: str, weights: str) -> bool:
    """Whether an export is not the one to run."""
    return manifest.read(folder, to).manifest.model["weights"] != weights


def fingerprint(model: nn.Module) -> str:
    """Of all weights."""
    digest = hashlib.sha256()
    for name, weight in model.state_dict().items():
        digest.update(name.encode() + weight.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


# ---- rows ----------------------------------------------------------------------------------------


def measure(
    about: Row, steps: dict[str, Callable[[], Tensor]], bounds: Bounds, base: str, wanted: str
) -> list[Row]:
    """Seconds, how many times faster than `base`, and the error beside what `wanted` gives."""
    results = {name: run().float() for name, run in steps.items()}
    errors = {name: step.apart(result, results[wanted]) for name, result in results.items()}
    seconds = turns(steps, bounds)
    return [*rows.timed(about, seconds, base), *rows.apart(about, errors, wanted)]


def sizes_of(latents: Tensor) -> str:
    """Of a row."""
    return f"latents={'x'.join(map(str, latents.shape[1:]))}"
