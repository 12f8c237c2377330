"""A tiny reference, checkpoints of it, and LoRAs of it as every tool saves them.

In fp32 ours and the reference with the same change merged by hand differ by the order of sums
alone: at most 1e-4 of the output's RMS is asked for.
"""

from __future__ import annotations

import copy
import json

import pytest
import torch
from safetensors.torch import save_file

from kinema.runtime import opening
from kinema.runtime.checkpoints.checkpoint import open_checkpoint
from kinema.runtime.execution import pack
from kinema.runtime.models.wan.original import ORIGINAL

TOLERANCE = 1e-4
RANK, ALPHA = 3, 6.0
STYLES = ["peft", "diffusers", "original", "lightx2v", "kohya", "diffsynth", "bare"]
SCALED = ("kohya", "lightx2v")  # those that write alpha
TINY = {
    "num_attention_heads": 2,
    "attention_head_dim": 24,
    "text_dim": 40,
    "freq_dim": 64,
    "ffn_dim": 80,
    "num_layers": 2,
}
MODULES = [
    *(
        f"blocks.{number}.{name}"
        for number in (0, 1)
        for name in (
            *(f"{attention}.to_{part}" for attention in ("attn1", "attn2") for part in "qkv"),
            "attn1.to_out.0",
            "attn2.to_out.0",
            "ffn.net.0.proj",
            "ffn.net.2",
        )
    ),
    "condition_embedder.time_embedder.linear_1",
    "condition_embedder.time_proj",
    "condition_embedder.text_embedder.linear_2",
    "proj_out",
]
MODULE = "blocks.0.attn1.to_q"
PAIR = {
    f"base_model.model.{MODULE}.lora_A.weight": torch.ones(4, 48),
    f"base_model.model.{MODULE}.lora_B.weight": torch.ones(48, 4),
}


@pytest.fixture(scope="session")
def reference():
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    model = diffusers.WanTransformer3DModel(**TINY).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return model


@pytest.fixture(scope="session")
def folder(reference, tmp_path_factory):
    return saved(reference, tmp_path_factory.mktemp("checkpoint"))


def saved(model, folder):
    """A checkpoint of a transformer alone."""
    model.save_pretrained(folder / "transformer")
    index = {"_class_name": "WanPipeline", "transformer": ["diffusers", type(model).__name__]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def opened(folder, dtype=torch.float32, packed=False):
    """The native transformer, and what loads LoRAs onto it."""
    checkpoint = open_checkpoint(folder)
    model = opening.open_component(checkpoint, "transformer", torch.device("cpu"), dtype)
    if packed:
        pack.pack_linears(model.blocks)
    return model, opening.open_loras(checkpoint, "transformer", model)


def factors(reference, seed=1, names=MODULES):
    """Module: (up, down), random, large enough to change the output by about its size."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for name in names:
        rows, columns = reference.get_submodule(name).weight.shape
        up, down = (
            torch.randn(*shape, generator=generator) for shape in ((rows, RANK), (RANK, columns))
        )
        made[name] = (0.2 * up, 0.2 * down)
    return made


def keyed(made, style):
    """The factors as a tool saves them, scaled by ALPHA / RANK where the style says so."""
    tensors = {}
    for name, (up, down) in made.items():
        original = ORIGINAL.name(name)
        stem, up_end, down_end = {
            "peft": (f"base_model.model.{name}", "lora_B.weight", "lora_A.weight"),
            "diffusers": (f"transformer.{name}", "lora_B.weight", "lora_A.weight"),
            "original": (f"diffusion_model.{original}", "lora_B.weight", "lora_A.weight"),
            "lightx2v": (f"diffusion_model.{original}", "lora_up.weight", "lora_down.weight"),
            "kohya": (
                f"lora_unet_{original}".replace(".", "_"),
                "lora_up.weight",
                "lora_down.weight",
            ),
            "diffsynth": (
                f"pipe.dit.{original}",
                "lora_B.default.weight",
                "lora_A.default.weight",
            ),
            "bare": (original, "lora_B.weight", "lora_A.weight"),
        }[style]
        tensors[f"{stem}.{up_end}"], tensors[f"{stem}.{down_end}"] = up.clone(), down.clone()
        if style in SCALED:
            tensors[f"{stem}.alpha"] = torch.tensor(ALPHA)
    return tensors


def scale_of(style):
    """What a style's factors are scaled by."""
    return ALPHA / RANK if style in SCALED else 1.0


def written(tmp_path, tensors, name="style.safetensors", **metadata):
    save_file(
        {key: tensor.contiguous() for key, tensor in tensors.items()}, tmp_path / name, metadata
    )
    return tmp_path / name


@torch.no_grad()
def merged(reference, made, scale=1.0):
    """The reference with the change merged by hand."""
    model = copy.deepcopy(reference)
    for name, (up, down) in made.items():
        model.get_submodule(name).weight += scale * up @ down
    return model


@torch.no_grad()
def outputs(reference, native):
    """Predictions of both for the same latents and text."""
    generator = torch.manual_seed(2)
    latents = torch.randn(2, 16, 2, 6, 8, generator=generator)
    embeds = torch.zeros(2, 512, TINY["text_dim"])
    embeds[:, :9] = torch.randn(2, 9, TINY["text_dim"], generator=generator)
    timesteps = torch.tensor([900.0, 300.0])
    wanted = reference(latents, timesteps, embeds, return_dict=False)[0]
    weight = native.patch_embedding.weight
    found = native.denoise(
        latents.to(weight), timesteps, embeds[:, :9].to(weight), torch.tensor([503, 503])
    )
    return found.float(), wanted


def error(found, wanted):
    """Largest absolute difference in units of the wanted RMS."""
    return float((found - wanted).abs().max() / wanted.square().mean().sqrt())


def bits(model):
    """A copy of every weight, the packed ones as plain ones."""
    state = {name: weight.clone() for name, weight in model.state_dict().items()}
    for name, module in model.named_modules():
        if isinstance(module, pack.PackedLinear):
            state[name] = module.packed.to_dense()
    return state


def same(found, wanted):
    return found.keys() == wanted.keys() and all(
        torch.equal(found[name], wanted[name]) for name in found
    )
