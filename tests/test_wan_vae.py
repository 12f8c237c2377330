"""Wan's autoencoders: streamed bit for bit as the reference codes the whole; tiles only round."""

import gc
import json

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from kinema.runtime.errors import KinemaError, UsageError
from kinema.runtime.vaes import wan_layers
from kinema.runtime.vaes.wan import WanVAE, open_wan_vae
from kinema.runtime.vaes.wan_layers import patchify, reach_down, reach_up, unpatchify
from kinema.runtime.vaes.wan_original import WAN_2_1

diffusers = pytest.importorskip("diffusers")
autoencoder_kl_wan = pytest.importorskip("diffusers.models.autoencoders.autoencoder_kl_wan")

WAN21 = {"base_dim": 4, "z_dim": 4, "num_res_blocks": 1}
WAN22 = {
    "base_dim": 4,
    "decoder_base_dim": 8,
    "z_dim": 6,
    "num_res_blocks": 1,
    "is_residual": True,
    "patch_size": 2,
    "in_channels": 12,
    "out_channels": 12,
    "scale_factor_spatial": 16,
    "temperal_downsample": [False, True, True],
}
SIZES = {"2.1": (WAN21, 4, 8), "2.2": (WAN22, 6, 16)}


def random_vae(config):
    """The reference with weights drawn at random, those that start at 0 or 1 included."""
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKLWan(
        **config, latents_mean=[0.1] * config["z_dim"], latents_std=[2.0] * config["z_dim"]
    ).eval()
    with torch.no_grad():
        for name, weight in vae.named_parameters():
            if "gamma" in name or "bias" in name:
                weight.add_(0.2 * torch.randn_like(weight))
    return vae


@pytest.fixture(scope="module", params=SIZES)
def case(request):
    """(reference, ours, channels of latents, pixels a side of one)."""
    config, channels, stride = SIZES[request.param]
    vae = random_vae(config)
    return vae, WanVAE(vae), channels, stride


@pytest.mark.parametrize(("frames", "height", "width"), [(1, 3, 5), (2, 5, 2), (4, 3, 4)])
@torch.inference_mode()
def test_chunks_are_bit_for_bit_the_whole(case, frames, height, width):
    reference, vae, channels, stride = case
    latents = torch.randn(1, channels, frames, height, width)
    chunks = list(vae.decode_chunks(latents))
    assert [chunk.shape[2] for chunk in chunks] == [1, 4, 4, 4][:frames]
    assert chunks[0].shape[3:] == (height * stride, width * stride)
    assert torch.equal(torch.cat(chunks, 2), reference.decode(latents).sample)


@pytest.mark.parametrize(("frames", "height", "width"), [(1, 3, 5), (5, 4, 2), (9, 2, 3)])
@torch.inference_mode()
def test_encoding_is_bit_for_bit_the_references(case, frames, height, width):
    reference, vae, channels, stride = case
    pixels = torch.rand(1, 3, frames, height * stride, width * stride) * 2 - 1
    latents = vae.encode(pixels)
    assert latents.shape == (1, channels, 1 + frames // 4, height, width)
    assert torch.equal(latents, reference.encode(pixels).latent_dist.mode())


@torch.inference_mode()
def test_a_batch_streams_too(case):
    reference, vae, channels, _ = case
    latents = torch.randn(2, channels, 2, 2, 3)
    whole = torch.cat(list(vae.decode_chunks(latents)), 2)
    assert torch.equal(whole, reference.decode(latents).sample)


# Rounding differs where convolutions meet other sizes: both must be as near to float64.
def assert_as_good(ours, reference, exact):
    ours, reference = (ours.double() - exact).abs(), (reference.double() - exact).abs()
    assert ours.max() <= 4 * reference.max() + 1e-7
    assert ours.square().mean().sqrt() <= 2 * reference.square().mean().sqrt() + 1e-8


@pytest.mark.parametrize(
    ("tile", "grid"), [((16, 32), (7, 9)), ((32, 16), (4, 11)), ((64,) * 2, (3, 2))]
)
@torch.inference_mode()
def test_tiled_decoding_is_the_untiled_within_rounding(case, tile, grid):
    reference, vae, channels, _ = case
    latents = torch.randn(1, channels, 3, *grid)
    tiled = torch.cat(list(vae.decode_chunks(latents, tile=tile)), 2)
    whole = reference.decode(latents).sample
    exact = in_float64(reference, lambda vae: vae.decode(latents.double()).sample)
    assert_as_good(tiled, whole, exact)


@pytest.mark.parametrize(
    ("tile", "grid"), [((16, 32), (7, 9)), ((32, 16), (4, 11)), ((64,) * 2, (3, 2))]
)
@torch.inference_mode()
def test_tiled_encoding_is_the_untiled_within_rounding(case, tile, grid):
    reference, vae, _, stride = case
    pixels = torch.rand(1, 3, 5, *(side * stride for side in grid)) * 2 - 1
    tiled, whole = vae.encode(pixels, tile=tile), vae.encode(pixels)
    exact = in_float64(reference, lambda vae: vae.encode(pixels.double()).latent_dist.mode())
    assert_as_good(tiled, whole, exact)


def in_float64(vae, work):
    """What the reference does in float64, its detours by float32 left out."""
    upsample = autoencoder_kl_wan.WanUpsample
    vae.double()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(upsample, "forward", torch.nn.Upsample.forward)
        exact = work(vae)
    vae.float()
    return exact


@torch.inference_mode()
def test_windows_need_their_whole_reach(case, monkeypatch):
    """One pixel less and the tiles no longer agree: the reach is no wider than it must be."""
    reference, vae, channels, stride = case
    latents, pixels = torch.randn(1, channels, 2, 9, 4), torch.rand(1, 3, 1, 9 * stride, 2 * stride)
    whole = vae.encode(pixels)
    for name, reach in (("reach_up", reach_up), ("reach_down", reach_down)):
        monkeypatch.setattr(
            f"kinema.runtime.vaes.wan_layers.{name}", lambda blocks, r=reach: r(blocks) - 1
        )
    tiled = torch.cat(list(vae.decode_chunks(latents, tile=(2 * stride, 8 * stride))), 2)
    assert (tiled - reference.decode(latents).sample).abs().max() > 1e-5
    monkeypatch.setattr("kinema.runtime.vaes.wan_layers.reach_down", lambda blocks: 0)
    assert (vae.encode(pixels, tile=(2 * stride, 2 * stride)) - whole).abs().max() > 1e-5


# ---- memory --------------------------------------------------------------------------------------


class Largest(TorchDispatchMode):
    """The most elements of any float tensor that an operation makes."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for x in made if isinstance(made, (tuple, list)) else [made]:
            if isinstance(x, torch.Tensor) and x.is_floating_point():
                self.numel = max(self.numel, x.untyped_storage().nbytes() // x.element_size())
        return made


def counts(x):
    """Whether a tensor is of floats and has memory that can be seen (packed weights have not)."""
    return x.layout is torch.strided and x.is_floating_point()


def float_bytes():
    """Bytes of all float tensors alive, each storage counted once."""
    alive = [x for x in gc.get_objects() if type(x) is torch.Tensor and counts(x)]
    return sum(
        {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in alive}.values()
    )


@torch.no_grad()
def test_no_tensor_grows_with_the_clip(case):
    """As many latent frames as there may be: what decoding makes is as large as for three."""
    _, vae, channels, _ = case
    sizes = []
    for frames in (3, 12):
        latents = torch.randn(1, channels, frames, 3, 4)
        with Largest() as largest:
            for chunk in vae.decode_chunks(latents):
                assert chunk.shape[2] <= 4
        sizes.append(largest.numel)
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("tile", [None, (16, 16)])
@torch.no_grad()
def test_nothing_piles_up_between_chunks(case, tile):
    _, vae, channels, _ = case
    alive = [float_bytes() for _ in vae.decode_chunks(torch.randn(1, channels, 8, 3, 4), tile=tile)]
    assert len(set(alive[2:])) == 1, alive


@torch.no_grad()
def test_tiles_make_smaller_tensors(case):
    _, vae, channels, stride = case
    latents = torch.randn(1, channels, 2, 16, 16)
    sizes = []
    for tile in (None, (4 * stride, 4 * stride)):
        with Largest() as largest:
            list(vae.decode_chunks(latents, tile=tile))
        sizes.append(largest.numel)
    assert sizes[1] < 0.6 * sizes[0], sizes


@torch.no_grad()
def test_what_tiles_have_seen_waits_on_the_host(case, monkeypatch):
    """As on a device: only the tile at work has its memory there, and the pixels are the same."""
    _, vae, channels, stride = case
    latents = torch.randn(1, channels, 3, 8, 6)
    wanted = list(vae.decode_chunks(latents, tile=(4 * stride, 4 * stride)))
    encoded = vae.encode(torch.cat(wanted, 2), tile=(4 * stride, 4 * stride))
    memories, causal = [], wan_layers.causal

    def count(*args, **seen):
        memories.append(sum(any(isinstance(x, torch.Tensor) for x in m.features) for m in made))
        return causal(*args, **seen)

    class Counted(wan_layers.Memory):
        def __init__(self, coder):
            super().__init__(coder)
            made.append(self)

    made = []
    monkeypatch.setattr(wan_layers, "is_scarce", lambda device: True)
    monkeypatch.setattr(wan_layers, "causal", count)
    monkeypatch.setattr(wan_layers, "Memory", Counted)
    found = list(vae.decode_chunks(latents, tile=(4 * stride, 4 * stride)))
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert len({id(m) for m in made}) >= 5 and max(memories) <= 2  # the whole's, and a tile's
    made.clear()
    assert torch.equal(vae.encode(torch.cat(wanted, 2), tile=(4 * stride, 4 * stride)), encoded)
    assert max(memories) <= 2


# ---- pieces --------------------------------------------------------------------------------------


def test_pixels_fold_as_the_references():
    x = torch.randn(2, 3, 2, 4, 6)
    folded = patchify(x, 2)
    assert torch.equal(folded, autoencoder_kl_wan.patchify(x, 2))
    assert torch.equal(unpatchify(folded, 2), x)


# ---- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize("tile", [(0, 16), (20, 16), (16, -16)])
def test_a_tile_that_does_not_fit_names_one_that_does(case, tile):
    _, vae, channels, _ = case
    with pytest.raises(UsageError, match="nearest"):
        next(vae.decode_chunks(torch.zeros(1, channels, 1, 2, 2), tile=tile))


@pytest.mark.parametrize("shape", [(1, 3, 4, 16, 16), (1, 3, 5, 12, 16), (1, 3, 5, 16, 20)])
def test_frames_that_do_not_fit_are_refused(case, shape):
    with pytest.raises(UsageError, match="do not fit"):
        case[1].encode(torch.zeros(shape))


# ---- opening -------------------------------------------------------------------------------------


def test_a_published_folder_opens(tmp_path):
    vae = random_vae(WAN22)
    vae.save_pretrained(tmp_path / "vae")
    ours = open_wan_vae(tmp_path / "vae", torch.device("cpu"), torch.float32)
    latents = torch.randn(1, 6, 2, 2, 3)
    with torch.inference_mode():
        assert torch.equal(
            torch.cat(list(ours.decode_chunks(latents)), 2), vae.decode(latents).sample
        )


def test_weights_named_by_the_models_authors_open(tmp_path):
    from safetensors.torch import load_file, save_file

    vae = random_vae({**WAN21, "num_res_blocks": 2})
    vae.save_pretrained(tmp_path / "vae")
    file = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    save_file({WAN_2_1.name(name): x for name, x in load_file(file).items()}, file)
    ours = open_wan_vae(tmp_path / "vae", torch.device("cpu"), torch.float32)
    latents = torch.randn(1, 4, 1, 2, 3)
    with torch.inference_mode():
        assert torch.equal(next(ours.decode_chunks(latents)), vae.decode(latents).sample)


def test_missing_weights_are_named_and_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    random_vae(WAN21).save_pretrained(tmp_path / "vae")
    file = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors.pop("quant_conv.weight")
    save_file(tensors, file)
    with pytest.raises(KinemaError, match=r"quant_conv\.weight"):
        open_wan_vae(tmp_path / "vae", torch.device("cpu"), torch.float32)
    (tmp_path / "vae" / "config.json").write_text(json.dumps({}))
    with pytest.raises(KinemaError) as raised:
        open_wan_vae(tmp_path / "nothing", torch.device("cpu"), torch.float32)
    assert "nothing" in str(raised.value) and "\n" not in str(raised.value)


def test_without_diffusers_one_line_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "diffusers", None)
    with pytest.raises(KinemaError, match=r"pip install 'kinema\[wan\]'"):
        open_wan_vae(tmp_path, torch.device("cpu"), torch.float32)
