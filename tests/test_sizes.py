"""What models need, told from sizes alone, against what the modules themselves do."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from kinema import kernels
from kinema.benchmarks.plan import allocated
from kinema.runtime.execution import pack
from kinema.runtime.ledger import Ledger, Shapes
from kinema.runtime.models.wan.config import WanConfig
from kinema.runtime.models.wan.sizes import Wan, WanVace
from kinema.runtime.models.wan.transformer import WanTransformer
from kinema.runtime.models.wan.vace import WanVaceConfig, WanVaceTransformer
from kinema.runtime.vaes.decode import to_uint8
from kinema.runtime.vaes.wan_sizes import WanVae

CONFIG = {
    "num_attention_heads": 3,
    "attention_head_dim": 64,
    "text_dim": 64,
    "ffn_dim": 512,
    "num_layers": 3,
    "in_channels": 16,
    "out_channels": 16,
}


def flops(work):
    return sum(one.flops * times for one, times in work.items())


# ---- the transformer -----------------------------------------------------------------------------


def transformer(dtype=torch.float32, packed=False):
    torch.manual_seed(0)
    config = WanConfig(**CONFIG)
    ops = kernels.bind("cpu", dtype, config.attention_head_dim)
    model = WanTransformer(config, ops).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if not Wan.KEEP_FP32 & set(name.split(".")):
            parameter.data = parameter.data.to(dtype)
    if packed:
        pack.pack_linears(model.blocks)
    return model


def bound(model, shapes):
    text = torch.zeros(shapes.rows, shapes.text_tokens, CONFIG["text_dim"])
    pads = torch.full((shapes.rows,), 512 - shapes.text_tokens)
    return model.bind((1, *shapes.latents), torch.linspace(1000, 1, shapes.steps), text, pads)


def bound_step(sizes):
    """Counts a step, what is bound being held."""
    held = sizes.bind()
    return lambda: sizes.step() if held is not None else None


@pytest.mark.parametrize("rows", [1, 2])
def test_flops_of_a_step_are_those_that_torch_counts(rows):
    shapes = Shapes((16, 3, 12, 16), 4, rows, 9)
    model, latents = transformer(), torch.zeros(1, 16, 3, 12, 16)
    with torch.inference_mode():
        predict = bound(model, shapes)
        with FlopCounterMode(display=False) as counter:
            predict(latents, 0)
    ledger = Ledger()
    step = bound_step(Wan(ledger, CONFIG, shapes, 4))
    ledger.take()
    step()
    # (It has no formula for the attention kernel of a CPU.)
    counted = {one: n for one, n in ledger.work.items() if one.kind not in ("attention", "lookup")}
    assert flops(counted) == counter.get_total_flops()
    tokens, width, blocks = 3 * 6 * 8, 3 * 64, 3
    queries = tokens * (1 + (blocks - 1) * rows), tokens * blocks * rows  # the first are shared
    attention = 4 * width * (queries[0] * tokens + queries[1] * 16)
    assert flops(ledger.work) - flops(counted) == attention


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    "shapes",
    [
        Shapes((16, 3, 12, 16), 4, 2, 9),
        Shapes((16, 1, 32, 32), 30, 1, 40),
    ],
)
def test_memory_of_a_step_is_what_the_allocator_hands_out(dtype, packed, shapes, one_thread):
    # (Of each thread a CPU's attention holds about a megabyte, which only a small model notices.)
    if packed and not pack.can_pack():
        pytest.skip("this build of PyTorch cannot pack")
    model, latents = transformer(dtype, packed), torch.zeros(1, *shapes.latents)
    with torch.inference_mode():
        predict = bound(model, shapes)
        predict(latents, 0)
        measured = allocated(lambda: predict(latents, 0))
    ledger = Ledger(packed=packed)
    step = bound_step(Wan(ledger, CONFIG, shapes, dtype.itemsize))
    ledger.take()
    held = ledger.live
    step()
    assert ledger.live == held
    # A plan promises 15 percent.
    assert (ledger.peak - held) / measured == pytest.approx(1, abs=0.12)


def test_a_step_with_blocks_of_control():
    config = {**CONFIG, "vace_layers": (0, 2), "vace_in_channels": 96}
    model = WanVaceTransformer(WanVaceConfig(**config)).eval()
    shapes = Shapes((16, 3, 12, 16), 4, 2, 9)
    control, latents = torch.zeros(1, 96, 3, 12, 16), torch.zeros(1, 16, 3, 12, 16)
    with torch.inference_mode():
        text, pads = torch.zeros(2, 9, 64), torch.tensor([503, 503])
        predict = model.bind((1, *shapes.latents), torch.ones(4), text, pads, control=control)
        predict(latents, 0)
        measured = allocated(lambda: predict(latents, 0))
        with FlopCounterMode(display=False) as counter:
            predict(latents, 0)
    ledger = Ledger()
    step = bound_step(WanVace(ledger, config, shapes, 4))
    ledger.take()
    held = ledger.live
    step()
    counted = {one: n for one, n in ledger.work.items() if one.kind not in ("attention", "lookup")}
    assert flops(counted) == counter.get_total_flops()
    assert (ledger.peak - held) / measured == pytest.approx(1, abs=0.08)


def test_memory_that_stays_bound_is_what_the_allocator_keeps():
    shapes = Shapes((16, 3, 12, 16), 20, 2, 9)
    model, kept = transformer(), []
    with torch.inference_mode():
        bound(model, shapes)
        top = allocated(lambda: kept.append(bound(model, shapes)))
    ledger = Ledger()
    step = bound_step(Wan(ledger, CONFIG, shapes, 4))
    assert step and ledger.peak / top == pytest.approx(1, abs=0.15)


# ---- autoencoders --------------------------------------------------------------------------------

NARROW = {"base_dim": 16}
NARROW_22 = {
    "base_dim": 16,
    "decoder_base_dim": 16,
    "z_dim": 48,
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_spatial": 16,
    "latents_mean": [0.0] * 48,
    "latents_std": [1.0] * 48,
}


@pytest.mark.parametrize("tile", [None, (64, 64)])
@pytest.mark.parametrize(
    ("config", "shape"), [(NARROW, (16, 3, 12, 10)), (NARROW_22, (48, 3, 6, 6))]
)
def test_decoding_with_wans_autoencoders(config, shape, tile):
    diffusers = pytest.importorskip("diffusers")
    from kinema.runtime.vaes.wan import WanVAE

    vae = WanVAE(diffusers.AutoencoderKLWan(**config).eval().requires_grad_(False))
    latents, tiled = torch.zeros(1, *shape), {} if tile is None else {"tile": tile}

    def decode():
        return [to_uint8(pixels[0]) for pixels in vae.decode_chunks(latents, **tiled)]

    with torch.inference_mode():
        decode()
        measured = allocated(decode)
        with FlopCounterMode(display=False) as counter:
            decode()
    ledger = Ledger()
    WanVae(ledger, dict(vae.config)).decode(shape, tile)
    assert ledger.peak / measured == pytest.approx(1, abs=0.1)
    assert flops(ledger.work) / counter.get_total_flops() == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(
    ("config", "latents"), [(NARROW, (16, 3, 12, 10)), (NARROW_22, (48, 3, 6, 6))]
)
def test_encoding_with_wans_autoencoders(config, latents):
    diffusers = pytest.importorskip("diffusers")
    from kinema.runtime.vaes.wan import WanVAE

    vae = WanVAE(diffusers.AutoencoderKLWan(**config).eval().requires_grad_(False))
    sides = [side * vae.config.scale_factor_spatial for side in latents[2:]]
    chunks = [torch.zeros(1, 3, frames, *sides) for frames in (1, *[4] * (latents[1] - 1))]
    with torch.inference_mode():
        vae.encode_chunks(chunks)
        measured = allocated(lambda: vae.encode_chunks(chunks))
        with FlopCounterMode(display=False) as counter:
            vae.encode_chunks(chunks)
    ledger = Ledger()
    WanVae(ledger, dict(vae.config)).encode(latents)
    assert flops(ledger.work) / counter.get_total_flops() == pytest.approx(1, abs=0.01)
    assert ledger.peak / measured == pytest.approx(1, abs=0.15)
