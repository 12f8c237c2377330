"""One denoising step beside diffusers, on the same random weights, inputs and dtype.

`python -m kinema.benchmarks.step`: 12 layers, 512 wide, 1,500 tokens on a CPU; Wan2.1-1.3B at
832x480, 81 frames, on a GPU. A step is both branches of guidance: two forwards of diffusers'
`WanTransformer3DModel`, text padded to 512 tokens, and one `predict` of ours; on a GPU ours is
compiled and captured as a CUDA graph too. They take turns in one process. Writes
results/step_cpu.json or results/step_<GPU>.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import kernels
from ..runtime import executor as executors
from ..runtime.models.wan import KEEP_FP32, TEXT_LENGTH, WanConfig, WanTransformer
from .measure import interleave, median_ratio, provenance, summary, write_rows

TOKENS = (42, 1)  # of the prompt and of the negative one, which is empty


class Size(NamedTuple):
    """A transformer and what it denoises."""

    config: dict[str, Any]
    latent_shape: tuple[int, int, int, int]


SIZES = {
    "small": Size(
        {
            "num_attention_heads": 8,
            "attention_head_dim": 64,
            "text_dim": 512,
            "ffn_dim": 2048,
            "num_layers": 12,
        },
        (16, 5, 30, 40),  # 1,500 tokens
    ),
    # https://huggingface.co/Wan-AI/Wan2.1-T2V-1.3B-Diffusers/blob/main/transformer/config.json
    "1.3b": Size(
        {"num_attention_heads": 12, "attention_head_dim": 128, "ffn_dim": 8960, "num_layers": 30},
        (16, 21, 60, 104),  # 832x480, 81 frames: 32,760 tokens
    ),
}


def main(arguments: list[str] | None = None) -> None:
    """Measure, print the ratios and write the rows."""
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(prog="python -m kinema.benchmarks.step")
    parser.add_argument("--size", choices=SIZES, default="1.3b" if gpu else "small")
    parser.add_argument("--dtype", action="append", choices=["float32", "bfloat16"])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    options = parser.parse_args(arguments)
    device = torch.device("cuda" if gpu else "cpu")
    rows = []
    for dtype in options.dtype or (["bfloat16"] if gpu else ["float32", "bfloat16"]):
        compiled = not options.no_compile
        rows.append(compare(options.size, device, dtype, options.repeats, compiled))
        print(describe(rows[-1]), flush=True)
    name = torch.cuda.get_device_name().replace(" ", "_") if gpu else "cpu"
    results = {"provenance": provenance("diffusers", "triton"), "rows": rows}
    print(f"wrote {write_rows(f'step_{name}', results)}")


@torch.inference_mode()
def compare(
    size: str, device: torch.device, dtype: str, repeats: int, compiled: bool
) -> dict[str, Any]:
    """One row: seconds of a guided step of each, and ratios to kinema's."""
    torch.manual_seed(0)
    config, latent_shape = SIZES[size]
    kind = getattr(torch, dtype)
    model = reference(config, device, kind)
    native = ours(model, device, kind)
    latents = torch.randn(1, *latent_shape, device=device)
    texts = [torch.randn(1, count, model.config.text_dim, device=device) for count in TOKENS]
    timestep = torch.tensor([700.0], device=device)
    steps: dict[str, Callable[[], Tensor]] = {
        "diffusers eager": partial(finished, reference_step(model, latents, texts, timestep)),
    }
    executor = executors.choose(None, device)
    for name in others(device, compiled):
        other = ours(model, device, kind)
        executors.apply(name, other)
        predict = bind(other, latents, texts, timestep)
        steps[f"kinema {name}"] = partial(finished, partial(predict, latents, 0))
    executors.apply(executor, native)
    predict = bind(native, latents, texts, timestep)
    steps["kinema"] = partial(finished, lambda: predict(latents, 0))
    if compiled:
        compiled_step = reference_step(torch.compile(model), latents, texts, timestep)
        steps["diffusers compiled"] = partial(finished, compiled_step)
    results = {name: step() for name, step in steps.items()}
    seconds = interleave(steps, repeats, warmup=2)
    wanted = results["diffusers eager"].float()
    return {
        "size": size,
        "dtype": dtype,
        "latent_shape": list(latent_shape),
        "executor": executor,
        "backends": native.ops.backends,
        "seconds": {name: summary(values) for name, values in seconds.items()},
        "ratio": {
            name: round(median_ratio(values, seconds["kinema"]), 3)
            for name, values in seconds.items()
            if name != "kinema"
        },
        "rms_error_over_rms": apart(results["kinema"], wanted),
        "rms_from_kinema_over_rms": {
            name: apart(result, results["kinema"])
            for name, result in results.items()
            if name.startswith("kinema ")
        },
    }


def others(device: torch.device, compiled: bool) -> list[str]:
    """What else runs our step on a GPU."""
    return [name for name in ("compiled", "graph") if device.type == "cuda" and compiled]


def apart(found: Tensor, wanted: Tensor) -> float:
    """Root mean square of the difference over that of what is wanted; 0 for the same bits."""
    return float((found - wanted).square().mean().sqrt() / wanted.square().mean().sqrt())


def reference(config: dict[str, Any], device: torch.device, dtype: torch.dtype) -> torch.nn.Module:
    """diffusers' transformer with random weights, some of its layers in fp32 as it loads them."""
    from diffusers import WanTransformer3DModel

    with torch.device(device):
        model = WanTransformer3DModel(**config).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if not KEEP_FP32 & set(name.split(".")):
            parameter.data = parameter.data.to(dtype)
    return model


def ours(model: torch.nn.Module, device: torch.device, dtype: torch.dtype) -> WanTransformer:
    """The same weights in our transformer, as the engine opens it."""
    config = WanConfig.from_dict(model.config)
    ops = kernels.bind(device, dtype, config.attention_head_dim)
    with torch.device("meta"):
        native = WanTransformer(config, ops).eval().requires_grad_(False)
    native.load_state_dict(native.from_published(model.state_dict()), assign=True)
    return native


def bind(
    native: WanTransformer, latents: Tensor, texts: list[Tensor], timestep: Tensor
) -> Callable[[Tensor, int], Tensor]:
    """Our step, what is constant in a request computed."""
    longest = max(text.shape[1] for text in texts)
    rows = torch.cat([padded(text, longest) for text in texts])
    counts = torch.tensor([TEXT_LENGTH - text.shape[1] for text in texts])
    return native.bind(tuple(latents.shape), timestep, rows, counts)


def reference_step(
    model: torch.nn.Module, latents: Tensor, texts: list[Tensor], timestep: Tensor
) -> Callable[[], Tensor]:
    """Both branches, one after the other, as `WanPipeline` runs them."""
    dtype = model.proj_out.weight.dtype
    prompts = [padded(text, TEXT_LENGTH).to(dtype) for text in texts]

    def step() -> Tensor:
        rows = [
            model(latents.to(dtype), timestep, prompt, return_dict=False)[0] for prompt in prompts
        ]
        return torch.cat(rows)

    return step


def padded(text: Tensor, length: int) -> Tensor:
    """Embeddings with zeros to `length` tokens."""
    return torch.nn.functional.pad(text, (0, 0, 0, length - text.shape[1]))


def finished(step: Callable[[], Tensor]) -> Tensor:
    """What a step gives, once the device has it."""
    result = step()
    if result.is_cuda:
        torch.cuda.synchronize()
    return result


def describe(row: dict[str, Any]) -> str:
    """A row in one line."""
    parts = [f"{name} {1e3 * value['median_s']:.1f} ms" for name, value in row["seconds"].items()]
    ratios = [f"{value:.2f} times {name}" for name, value in row["ratio"].items()]
    error = f"apart by {row['rms_error_over_rms']:.1e} of rms"
    return f"{row['dtype']}: {', '.join(parts)}; kinema is {', '.join(ratios)}; {error}"


if __name__ == "__main__":
    main()
