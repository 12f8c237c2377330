"""What a plan says beside what then happens: memory and seconds of each stage.

`python -m kinema.benchmarks.plan`: the embedded model in fp32 and bf16 and, with `--random`, a Wan
of 500 M random weights, written to a temporary folder. Memory is bytes of tensors: on a CPU the
weights that are open, and what PyTorch's allocator hands out beyond them (its profiler's memory
events, summed in order); on a GPU `torch.cuda.max_memory_allocated`. Seconds are the least of
several runs, weights open. Two clocks: seconds that pass, for which the machine must be idle; and
with `--cpu-time` those that one thread works, which others' work does not lengthen.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch.autograd.profiler import profile

from ..runtime.checkpoints.checkpoint import EMBEDDED_FOLDER
from ..runtime.engine import Engine, load
from ..runtime.execution.pack import PackedLinear
from ..runtime.models.wan.config import WanConfig
from ..runtime.models.wan.transformer import WanTransformer
from ..runtime.planning import cost, device
from ..runtime.requests.request import Request
from . import rows
from .measure import PROMPT
from .rows import Row

RANDOM: dict[str, Any] = {
    "num_attention_heads": 10,
    "attention_head_dim": 128,
    "text_dim": 256,
    "ffn_dim": 5120,
    "num_layers": 19,
    "in_channels": 16,
    "out_channels": 16,
}
RANDOM_PRESETS = {
    "num_frames": 9,
    "height": 96,
    "width": 128,
    "fps": 8,
    "num_inference_steps": 3,
    "guidance_scale": 5.0,
    "max_num_frames": 81,
    "min_size": 16,
    "max_size": 256,
}
STAGES: tuple[str, ...] = ("encode", "denoise", "decode")


def main(arguments: list[str] | None = None) -> None:
    """Measure, print the tables and, if asked, write the rows."""
    parser = argparse.ArgumentParser(prog="python -m kinema.benchmarks.plan")
    parser.add_argument("--random", action="store_true", help="the random Wan too")
    parser.add_argument("--device", default=None)
    parser.add_argument("--dtype", action="append", choices=["float32", "bfloat16"])
    parser.add_argument("--steps", type=int, default=None, help="by default the model's own")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cpu-time", action="store_true", help="count one thread's own seconds")
    parser.add_argument("--write", action="store_true", help="keep the rows in results/")
    options = parser.parse_args(arguments)
    clock = time.thread_time if options.cpu_time else time.perf_counter
    if options.cpu_time:
        torch.set_num_threads(1)
    ceilings = device.measure(
        options.device or ("cuda" if torch.cuda.is_available() else "cpu"), clock
    )
    request, found = Request(PROMPT, num_inference_steps=options.steps), []
    with tempfile.TemporaryDirectory() as folder:
        sources = {"embedded": EMBEDDED_FOLDER}
        if options.random:
            sources["random, 500 M"] = write_random(Path(folder))
        for name, source in sources.items():
            for dtype in options.dtype or ("float32", "bfloat16"):
                engine = load(source, options.device, dtype)
                row = compare(engine, request, ceilings, clock, options.repeats)
                print(describe({"model": name, "dtype": dtype, **row}), flush=True)
                found += rows_of(rows.about("plan", name, "", dtype, on=engine.device), row)
                del engine
    if options.write:
        print(f"wrote {rows.merge(found)[0]}")


def compare(
    engine: Engine,
    request: Request,
    ceilings: device.Ceilings,
    clock: Callable[[], float],
    repeats: int,
) -> dict[str, Any]:
    """One row: predicted and measured bytes and seconds."""
    plan = engine.plan(request)
    fused = engine.device.type == "cuda"
    runner = cost.Runner(engine.device.type, engine.executor, fused)
    counted = cost.count(plan, engine.checkpoint, runner, cost.guess_tokens(PROMPT))
    engine.session(request).finish()  # opens everything
    measured = [timed(engine, request, clock) for _ in range(repeats)]
    seconds = {stage: min(run[stage] for run in measured) for stage in STAGES}
    return {
        "peak_bytes": {
            "predicted": counted.peak_memory_bytes,
            "measured": peak_of(engine, request),
        },
        "seconds": {
            "predicted": predicted_seconds(counted, ceilings),
            "measured": seconds,
        },
    }


def rows_of(about: Row, row: dict[str, Any]) -> list[Row]:
    """Peak, and seconds of each stage, as predicted and as measured."""
    found = []
    for side in ("predicted", "measured"):
        found.append(rows.one(about, side, "peak_bytes", "B", row["peak_bytes"][side]))
        for stage, seconds in row["seconds"][side].items():
            found.append(rows.one(about, side, f"{stage}_seconds", "s", seconds))
    return found


def predicted_seconds(counted: cost.Cost, ceilings: device.Ceilings) -> dict[str, float]:
    """By the stages that are timed: what is bound belongs to encoding, sound to decoding."""
    found = dict.fromkeys(STAGES, 0.0)
    for stage in counted.stages:
        name = {"bind": "encode", "sound": "decode"}.get(stage.name, stage.name)
        found[name] += ceilings.seconds(stage.work)
    return found


def timed(engine: Engine, request: Request, clock: Callable[[], float]) -> dict[str, float]:
    """Seconds of each stage of one run."""
    engine.text_encoder.cache.clear()
    found, work = dict.fromkeys(STAGES, 0.0), engine.session(request).work()
    started = clock()
    for part in work:
        if engine.device.type == "cuda":
            torch.cuda.synchronize()
        found[part.stage] += clock() - started
        started = clock()
    found["decode"] += clock() - started  # what follows the last frames: the sound
    return found


def peak_of(engine: Engine, request: Request) -> int:
    """Most bytes of tensors that are held at once in a run, weights included."""
    engine.text_encoder.cache.clear()
    if engine.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        engine.session(request).finish()
        return torch.cuda.max_memory_allocated()
    return open_bytes(engine) + allocated(lambda: engine.session(request).finish())


def allocated(run: Callable[[], Any]) -> int:
    """Most bytes that PyTorch's CPU allocator had handed out beyond those at the start."""
    profiler = profile(use_cpu=True, profile_memory=True)
    with profiler:
        run()
    assert profiler.kineto_results is not None  # it has ended
    changes = sorted(
        (event.start_ns(), event.nbytes())  # pyright: ignore[reportAttributeAccessIssue]  # no stub
        for event in profiler.kineto_results.events()
        if event.name() == "[memory]"
    )
    held = most = 0
    for _, change in changes:
        held += change
        most = max(most, held)
    return most


def open_bytes(engine: Engine) -> int:
    """Bytes of the weights that are open, each storage once."""
    storages, packed = {}, 0
    for module in _modules(engine):
        for tensor in (*module.parameters(), *module.buffers()):
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
        for layer in module.modules():
            if isinstance(layer, PackedLinear):
                packed += layer.packed.numel() * layer.packed.element_size()
    return packed + sum(storages.values())


def _modules(engine: Engine) -> Iterator[torch.nn.Module]:
    text = engine.text_encoder.open().module
    parts = (engine.transformer, engine.vae, engine.sound, text)
    return (part for part in parts if part is not None)


def write_random(folder: Path) -> Path:
    """A checkpoint of random weights in bf16; text encoder and schedule are the embedded model's,
    the autoencoder is Wan's, narrow."""
    from diffusers import AutoencoderKLWan

    for name in ("text_encoder", "tokenizer", "scheduler"):
        shutil.copytree(EMBEDDED_FOLDER / name, folder / name)
    AutoencoderKLWan(base_dim=32).save_pretrained(folder / "vae")
    place = folder / "transformer"
    place.mkdir()
    with torch.device("meta"):
        model = WanTransformer(WanConfig(**RANDOM))
    model = model.to(torch.bfloat16).to_empty(device="cpu").requires_grad_(False)
    for weight in model.parameters():
        weight.normal_(std=0.02)
    save_file(model.to_published(), place / "diffusion_pytorch_model.safetensors")
    config = {"_class_name": "WanTransformer3DModel", **RANDOM}
    (place / "config.json").write_text(json.dumps(config))
    index = json.loads((EMBEDDED_FOLDER / "model_index.json").read_text())
    index = {key: value for key, value in index.items() if key != "audio"}
    index["vae"] = ["diffusers", "AutoencoderKLWan"]
    index["kinema"] = {"name": "random", "presets": RANDOM_PRESETS}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def describe(row: dict[str, Any]) -> str:
    """A row as a small table."""
    memory, seconds = row["peak_bytes"], row["seconds"]
    lines = [
        f"{row['model']}, {row['dtype']}",
        f"  {'':12}{'predicted':>12}{'measured':>12}{'ratio':>8}",
    ]
    pairs = {"peak, MB": [memory[side] / 1e6 for side in ("predicted", "measured")]}
    for stage in STAGES:
        pairs[f"{stage}, s"] = [seconds[side][stage] for side in ("predicted", "measured")]
    pairs["all, s"] = [sum(seconds[side].values()) for side in ("predicted", "measured")]
    for name, (predicted, measured) in pairs.items():
        lines.append(f"  {name:12}{predicted:12.4g}{measured:12.4g}{predicted / measured:8.2f}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
