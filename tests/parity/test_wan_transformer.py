"""The Wan transformer against diffusers' on the same weights.

In fp32 the two differ by the order of sums alone: at most 1e-4 of the output's RMS is asked for,
a few 1e-6 is usual.
"""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from kinema.kernels import bind
from kinema.runtime.checkpoints import weights
from kinema.runtime.checkpoints.presets import TEXT_LENGTH
from kinema.runtime.errors import KinemaError, UsageError
from kinema.runtime.models.wan.config import WanConfig
from kinema.runtime.models.wan.transformer import WanTransformer

from .conftest import TINY, random_pair

WRITTEN_OUT = {"attention": "matmul", "biased_attention": "matmul"}
TOLERANCE = 1e-4
SHAPES = [(1, 1, 2, 2), (1, 3, 6, 10), (2, 5, 10, 6), (2, 9, 10, 8), (1, 2, 14, 2)]


def draw_text(dim, lengths, seed=1):
    """Embeddings (B, 512, dim), zero beyond each row's length, and the pads of each row."""
    generator = torch.Generator().manual_seed(seed)
    embeds = torch.zeros(len(lengths), TEXT_LENGTH, dim)
    for row, length in zip(embeds, lengths, strict=True):
        row[:length] = torch.randn(length, dim, generator=generator)
    return embeds, torch.tensor([TEXT_LENGTH - length for length in lengths])


def draw_latents(batch, frames, height, width, channels=16):
    return torch.randn(batch, channels, frames, height, width, generator=torch.manual_seed(2))


def error(found, wanted):
    """Largest absolute difference in units of the wanted RMS."""
    return float((found - wanted).abs().max() / wanted.square().mean().sqrt())


def per_token(timesteps, grid):
    """Timesteps that broadcast to the grid as the reference takes them: (B, tokens)."""
    return timesteps.expand(-1, *grid).flatten(1)


@torch.no_grad()
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_timestep_a_sample(pair, shape):
    latents, timesteps = draw_latents(*shape), 1000 * torch.rand(shape[0])
    embeds, pads = draw_text(pair.text_dim, [7, 3][: shape[0]])
    wanted = pair.reference(latents, timesteps, embeds).sample
    assert error(pair.native.denoise(latents, timesteps, embeds, pads), wanted) < TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize("axes", [(1, 0, 0), (0, 1, 0), (1, 1, 0), (1, 1, 1)], ids=str)
def test_timesteps_by_token(pair, axes):
    """Frames, rows and single tokens with timesteps of their own; zero is a given token."""
    latents = draw_latents(2, 3, 10, 6)
    grid = pair.native.grid(latents.shape)
    shape = [size if axis else 1 for size, axis in zip(grid, axes, strict=True)]
    timesteps = 1000 * torch.rand(2, *shape)
    timesteps[0, 0, 0, 0] = 0
    embeds, pads = draw_text(pair.text_dim, [7, 3])
    wanted = pair.reference(latents, per_token(timesteps, grid), embeds).sample
    assert error(pair.native.denoise(latents, timesteps, embeds, pads), wanted) < TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize("lengths", [(1, 1), (15, 16), (1, 40), (0, 512)], ids=str)
def test_pads_merge_exactly(pair, lengths):
    """Cut to the longest row or padded to 512: both are what the reference makes of the pads."""
    latents, timesteps = draw_latents(2, 1, 4, 6), torch.tensor([999.0, 1.0])
    embeds, pads = draw_text(pair.text_dim, lengths)
    wanted = pair.reference(latents, timesteps, embeds).sample
    for given in (embeds, embeds[:, : max(lengths)]):
        assert error(pair.native.denoise(latents, timesteps, given, pads), wanted) < TOLERANCE


@torch.no_grad()
def test_unpadded_text(pair):
    """With no pads the reference is called with just those tokens."""
    latents, timesteps = draw_latents(1, 3, 4, 6), torch.tensor([500.0])
    embeds = draw_text(pair.text_dim, [9])[0][:, :9]
    wanted = pair.reference(latents, timesteps, embeds).sample
    found = pair.native.denoise(latents, timesteps, embeds, torch.zeros(1, dtype=torch.int64))
    assert error(found, wanted) < TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize(
    "config",
    [
        {"cross_attn_norm": False},
        {"out_channels": 8, "in_channels": 20},
        {"patch_size": (2, 2, 1), "attention_head_dim": 40},
    ],
    ids=str,
)
def test_other_configurations(config):
    pair = random_pair(**config)
    latents = draw_latents(1, 4, 6, 4, pair.native.config.in_channels)
    embeds, pads = draw_text(pair.text_dim, [5])
    timesteps = torch.tensor([321.0])
    wanted = pair.reference(latents, timesteps, embeds).sample
    assert error(pair.native.denoise(latents, timesteps, embeds, pads), wanted) < TOLERANCE


@torch.no_grad()
def test_bound_to_a_request(pair):
    """All timesteps of a schedule prepared in one product; steps in any order; rows that differ.
    Two rows of text for one of latents are the branches of guidance."""
    latents = draw_latents(1, 3, 10, 8)
    embeds, pads = draw_text(pair.text_dim, [5, 2])
    rows = torch.rand(4, 1, 5, 1).mul(1000).repeat_interleave(2, dim=2)
    predict = pair.native.bind(latents.shape, rows, embeds[:, :5], pads)
    both = torch.cat([latents, latents])
    for step, given in ((3, both), (0, latents), (2, latents)):
        timesteps = per_token(rows[step, None, :, ::2], pair.native.grid(latents.shape))
        wanted = pair.reference(both, timesteps.expand(2, -1), embeds).sample
        assert error(predict(given, step), wanted) < TOLERANCE


@torch.no_grad()
def test_bfloat16_is_no_worse_than_the_reference():
    """Both against fp32, on weights that bfloat16 holds exactly; a factor of 1.5 for chance."""
    pair = random_pair(num_layers=4)
    for weight in pair.reference.parameters():
        weight.copy_(weight.bfloat16())
    pair.native.load_state_dict(pair.native.from_published(pair.reference.state_dict()))
    latents, timesteps = draw_latents(2, 3, 6, 10), torch.tensor([800.0, 30.0])
    embeds, pads = draw_text(pair.text_dim, [7, 3])
    latents, embeds = latents.bfloat16(), embeds.bfloat16()
    wanted = pair.reference(latents.float(), timesteps, embeds.float()).sample
    theirs = _half(pair.reference, ("time_embedder", "scale_shift_table", "norm2"))
    ours = _half(pair.native, ("time_embedder", "scale_shift_table", "norm2"))
    reference = theirs(latents, timesteps, embeds).sample.float() - wanted
    found = ours.denoise(latents, timesteps, embeds, pads).float() - wanted
    assert found.square().mean().sqrt() < 1.5 * reference.square().mean().sqrt()
    assert found.abs().max() < 1.5 * reference.abs().max()


def _half(model: nn.Module, keep: tuple[str, ...]) -> nn.Module:
    model = copy.deepcopy(model)
    for name, weight in model.named_parameters():
        if not set(keep) & set(name.split(".")):
            weight.data = weight.data.bfloat16()
    return model


def test_gradients(pair):
    """Training through ours is training the reference, written-out attention included."""
    if pair.trained:
        pytest.skip("one set of weights is enough")
    native = WanTransformer(pair.native.config, bind("cpu", backends=WRITTEN_OUT))
    native.load_state_dict(pair.native.state_dict())
    latents, timesteps = draw_latents(2, 3, 6, 4), 1000 * torch.rand(2, 3, 3, 1)
    embeds, pads = draw_text(pair.text_dim, [7, 3])
    grid, target = native.grid(latents.shape), torch.randn_like(latents)
    pair.reference.zero_grad()
    wanted = pair.reference(latents, per_token(timesteps, grid), embeds).sample
    (wanted - target).square().mean().backward()
    (native.denoise(latents, timesteps, embeds[:, :7], pads) - target).square().mean().backward()
    found = native.to_published({name: p.grad for name, p in native.named_parameters()})
    wanted = {name: weight.grad for name, weight in pair.reference.named_parameters()}
    # Sums over tokens cancel, most of all in queries: allow a share of the largest gradient.
    slack = 1e-5 * max(gradient.abs().max() for gradient in wanted.values())
    for name, gradient in wanted.items():
        rms = gradient.square().mean().sqrt()
        assert (found[name] - gradient).abs().max() < TOLERANCE * rms + slack, name


def test_the_two_attentions_agree(pair):
    written_out = WanTransformer(pair.native.config, bind("cpu", backends=WRITTEN_OUT)).eval()
    written_out.load_state_dict(pair.native.state_dict())
    latents, timesteps = draw_latents(1, 3, 6, 4), torch.tensor([400.0])
    embeds, pads = draw_text(pair.text_dim, [4])
    with torch.no_grad():
        wanted = pair.native.denoise(latents, timesteps, embeds, pads)
        assert error(written_out.denoise(latents, timesteps, embeds, pads), wanted) < TOLERANCE


def test_weights_survive_the_round_trip(pair):
    wanted = pair.reference.state_dict()
    found = pair.native.to_published()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_what_the_reference_ignores_is_left_out(tmp_path):
    """Published image-to-video files hold a norm that nothing reads."""
    model = WanTransformer(WanConfig.from_dict(TINY))
    published = model.to_published()
    extra = {**published, "blocks.0.attn2.norm_added_q.weight": torch.ones(84)}
    wanted, found = model.from_published(published), model.from_published(extra)
    assert found.keys() == wanted.keys()
    save_file(extra, tmp_path / "diffusion_pytorch_model.safetensors")
    opened = weights.load(
        lambda: WanTransformer(model.config), tmp_path, model.config.weight_table()
    )
    assert all(torch.equal(value, wanted[name]) for name, value in opened.state_dict().items())


def test_names_that_do_not_fit_are_listed():
    model = WanTransformer(WanConfig.from_dict(TINY))
    published = model.to_published()
    published["blocks.0.attn1.to_quux.weight"] = published.pop("blocks.1.attn2.to_v.bias")
    with pytest.raises(KinemaError, match=r"missing: blocks\.1\.attn2\.to_v\.bias") as caught:
        model.from_published(published)
    assert "not known: blocks.0.attn1.to_quux.weight" in str(caught.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"image_dim": 1280}, "added_kv_proj_dim=None"),
        ({"added_kv_proj_dim": 5120}, "image_dim=None"),
        ({"vace_layers": [0, 5]}, "unknown vace_layers"),
        ({"qk_norm": None}, "qk_norm=None"),
    ],
)
def test_what_is_not_supported_is_refused(config, message):
    with pytest.raises(UsageError, match=message):
        WanConfig.from_dict({"_class_name": "WanTransformer3DModel", **TINY, **config})


def test_inputs_that_do_not_fit_are_refused():
    model = WanTransformer(WanConfig.from_dict({**TINY, "rope_max_seq_len": 4}))
    with pytest.raises(UsageError, match="multiples"):
        model.grid((1, 16, 3, 5, 4))
    with pytest.raises(UsageError, match="exceeds 4 positions"):
        model.grid((1, 16, 5, 4, 4))
    with pytest.raises(UsageError, match="within a patch"):
        embeds, pads = draw_text(TINY["text_dim"], [2])
        model.bind((1, 16, 1, 4, 4), torch.arange(4.0).view(1, 1, 4, 1), embeds, pads)
