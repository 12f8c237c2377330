"""One denoising step by everything that can run it, and a decode: the same weights and inputs.

`python -m kinema.benchmarks.executors`: diffusers' `WanTransformer3DModel` eager and compiled, our
transformer by each executor of PyTorch, and its graphs by onnxruntime and by AOTInductor, taking
turns in one process on a CPU: the embedded model at its default size, and 12 layers, 512 wide, at
1,500 tokens. A step is both branches of guidance. Then the embedded model's VAE decoder by PyTorch
and by onnxruntime. Compiling takes minutes: `--exports FOLDER` keeps the graphs for another run.
Writes results/executors.json.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from importlib import import_module
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..export.exporting import WRITERS, Writer
from ..export.graphs import Graph, graphs_of, transformer_graphs
from ..export.options import Options, as_options
from ..runtime import engine as engines
from ..runtime import executor as executors
from ..runtime.checkpoint import open_checkpoint
from ..runtime.graphs import manifest
from ..runtime.graphs.opening import Graphs
from ..runtime.graphs.shells import TransformerGraphs
from ..runtime.latents import initial_noise
from ..runtime.models.wan import WanTransformer
from . import measure as measuring
from . import step
from .measure import interleave, provenance, summary, write_rows

CPU = torch.device("cpu")
PROMPT = "a red ball bounces on the grass"
REFERENCE, WANTED = "diffusers eager", "kinema eager"
GRAPHS = {"onnx": "onnxruntime", "aoti": "AOTInductor"}
DTYPES = {"float32": "fp32", "bfloat16": "bf16"}
FEWEST = 3
COMPUTES = {"onnx": ("float32",), "aoti": ("float32", "bfloat16")}  # on a CPU


class Case(NamedTuple):
    """diffusers' transformer in fp32, and what it denoises."""

    model: nn.Module
    latents: Tensor
    texts: list[Tensor]


class Bounds(NamedTuple):
    """How often all take a turn: so many times, or as fit in so many seconds, yet three times."""

    repeats: int
    seconds: float

    def turns(self, took: float) -> int:
        """Where one turn takes so long."""
        return min(self.repeats, max(FEWEST, int(self.seconds / took)))


def main(arguments: list[str] | None = None) -> None:
    """Measure, print the ratios and write the rows."""
    parser = argparse.ArgumentParser(prog="python -m kinema.benchmarks.executors")
    parser.add_argument("--only", choices=[*CASES, "decode"])
    parser.add_argument("--dtype", action="append", choices=list(DTYPES))
    parser.add_argument("--repeats", type=int, default=21, help="at most")
    parser.add_argument("--seconds", type=float, default=25, help="of a row's turns, once warm")
    parser.add_argument("--no-compile", action="store_true", help="leave all compilers out")
    parser.add_argument("--exports", type=Path, help="where to keep graphs, and find them again")
    parser.add_argument("--no-write", action="store_true", help="leave the committed rows alone")
    options = parser.parse_args(arguments)
    compiled, rows = not options.no_compile, []
    bounds = Bounds(options.repeats, options.seconds)
    with tempfile.TemporaryDirectory() as room:
        folder = options.exports or Path(room)
        for name in CASES:
            if options.only not in (None, name):
                continue
            for dtype in options.dtype or DTYPES:
                rows.append(compare(name, dtype, bounds, compiled, folder))
                print(describe(rows[-1]), flush=True)
        if options.only in (None, "decode"):
            rows.append(decode(bounds, folder))
            print(describe(rows[-1]), flush=True)
    if not options.no_write:
        told = provenance("diffusers", "onnxruntime", "onnx")
        rows = in_order([*rows_kept(told, {row["what"] for row in rows}), *rows])
        print(f"wrote {write_rows('executors', {'provenance': told, 'rows': rows})}")


def rows_kept(told: dict[str, Any], anew: set[str]) -> list[dict[str, Any]]:
    """Rows of the parts that were not measured now, if they were written under the same terms."""
    path = measuring.RESULTS / "executors.json"
    written = json.loads(path.read_text()) if path.is_file() else {}
    if written.get("provenance") != told:
        return []
    return [row for row in written["rows"] if row["what"] not in anew]


def in_order(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Steps, then the decode."""
    return sorted(rows, key=lambda row: [*CASES, "decode"].index(row["what"]))


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
    texts = [torch.randn(1, count, model.config.text_dim) for count in step.TOKENS]
    return Case(model, latents, texts)


CASES: dict[str, Callable[[], Case]] = {"embedded": embedded, "12 layers": small}


def compare(name: str, dtype: str, bounds: Bounds, compiled: bool, folder: Path) -> dict[str, Any]:
    """One row: seconds of a guided step of each, ratios to diffusers', errors beside ours eager."""
    case, kind = CASES[name](), getattr(torch, dtype)
    model = rounded(case.model, kind)
    given = case.latents, case.texts, torch.tensor([700.0])
    models = dict(native(model, kind, compiled))
    for to, title in graphs_for(dtype, compiled).items():
        place = folder / f"{name.replace(' ', '_')}_{dtype}_{to}"
        models[title] = as_graphs(model, to, dtype, place)
    with torch.inference_mode():
        steps = {REFERENCE: step.reference_step(model, *given)}
        if compiled:
            own = torch.compile(copy.deepcopy(model))
            steps["diffusers compiled"] = step.reference_step(own, *given)
        for title, ours in models.items():
            steps[title] = partial(step.bind(ours, *given), case.latents, 0)
        row = {"what": name, "dtype": dtype, "latent_shape": list(case.latents.shape[1:])}
        return row | measure(steps, bounds, REFERENCE, WANTED)


def native(
    model: nn.Module, kind: torch.dtype, compiled: bool
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


def as_graphs(model: nn.Module, to: str, dtype: str, place: Path) -> TransformerGraphs:
    """Our transformer as graphs, opened."""
    ours = step.ours(model, CPU, getattr(torch, dtype))
    graphs, twins = transformer_graphs(ours, "transformer"), repeat(None)
    if dtype == "bfloat16":  # the same rounded weights, to know what rounding the rest costs
        exact = step.ours(rounded(model, torch.float32), CPU, torch.float32)
        twins = transformer_graphs(exact, "transformer")
    opened = exported(zip(graphs, twins, strict=False), to, dtype, fingerprint(model), place)
    return opened.transformer("transformer", ours.config)


def rounded(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy in a dtype, some layers in fp32 as diffusers loads them."""
    model = copy.deepcopy(model)
    for name, parameter in model.named_parameters():
        if dtype == torch.float32 or not step.KEEP_FP32 & set(name.split(".")):
            parameter.data = parameter.data.to(dtype)
    return model


# ---- a decode ------------------------------------------------------------------------------------


def decode(bounds: Bounds, folder: Path) -> dict[str, Any]:
    """One row: seconds of the embedded model's whole decode, a latent frame at a time."""
    engine = engines.load(open_checkpoint(), device="cpu", dtype="float32", executor="eager")
    pairs = ((g, None) for g in graphs_of(engine, "vae") if g.name.startswith("vae_decoder"))
    config = engine.checkpoint.component("vae").config
    hashed = fingerprint(engine.vae)
    graphs = exported(pairs, "onnx", "float32", hashed, folder / "decoder_float32_onnx")
    latents = initial_noise(engine.plan(PROMPT).latent_shape, seed=0)
    decoders = {"kinema eager": engine.vae, "onnxruntime": graphs.vae(config)}
    with torch.inference_mode():
        steps = {name: partial(whole, vae, latents) for name, vae in decoders.items()}
        row = {"what": "decode", "dtype": "float32", "latent_shape": list(latents.shape[1:])}
        return row | measure(steps, bounds, WANTED, WANTED)


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
    steps: dict[str, Callable[[], Tensor]], bounds: Bounds, base: str, wanted: str
) -> dict[str, Any]:
    """Seconds, how many times faster than `base`, and the error beside what `wanted` gives."""
    results = {name: run().float() for name, run in steps.items()}
    started = time.perf_counter()
    interleave(steps, repeats=1, warmup=0)
    seconds = interleave(steps, bounds.turns(time.perf_counter() - started), warmup=0)
    return {
        "seconds": {name: summary(values) for name, values in seconds.items()},
        "base": base,
        "faster": {name: faster(seconds[base], values) for name, values in seconds.items()},
        "error_over_rms": {
            name: step.apart(result, results[wanted]) for name, result in results.items()
        },
    }


def faster(base: list[float], other: list[float]) -> dict[str, float]:
    """Median of the ratios of neighbouring calls, with the 20th and the 80th percentile."""
    ratios = summary([a / b for a, b in zip(base, other, strict=True)])
    return {name: round(ratios[f"{name}_s"], 3) for name in ("median", "p20", "p80")}


def describe(row: dict[str, Any]) -> str:
    """A row in one line."""
    parts = [
        f"{name} {1e3 * value['median_s']:.1f} ms ({row['faster'][name]['median']:.2f} times as"
        f" fast, off by {row['error_over_rms'][name]:.1e})"
        for name, value in row["seconds"].items()
    ]
    return f"{row['what']}, {row['dtype']}, beside {row['base']}: {', '.join(parts)}"


if __name__ == "__main__":
    main()
