"""Coding by four functions: pure, memory of one shape, and an autoencoder made of them."""

import weakref

import pytest
import torch

from kinema.runtime.errors import UsageError
from kinema.runtime.vaes.decode import decode_frames
from kinema.runtime.vaes.encode import encode_chunks, encode_pixels
from kinema.runtime.vaes.kinema import AutoencoderKinema, KinemaVAEConfig
from kinema.runtime.vaes.streaming import StreamedVAE, stream
from kinema.runtime.vaes.wan import WanVAE

WAN21 = {"base_dim": 4, "z_dim": 4, "num_res_blocks": 1}
WAN22 = {
    **WAN21, "decoder_base_dim": 8, "is_residual": True, "patch_size": 2, "in_channels": 12,
    "out_channels": 12, "scale_factor_spatial": 16,
}  # fmt: skip


def embedded():
    return AutoencoderKinema(
        KinemaVAEConfig(z_dim=4, encoder_dim=8, decoder_dim=8, frame_dim=8, pixel_dim=4)
    )


def wan(config):
    diffusers = pytest.importorskip("diffusers")
    statistics = {"latents_mean": [0.1] * 4, "latents_std": [2.0] * 4}
    return WanVAE(diffusers.AutoencoderKLWan(**config, **statistics))


CASES = {"embedded": (embedded, 8), "2.1": (lambda: wan(WAN21), 8), "2.2": (lambda: wan(WAN22), 16)}


@pytest.fixture(scope="module", params=CASES)
def case(request):
    """(autoencoder, the same made of its functions, latents, pixels)."""
    create, stride = CASES[request.param]
    torch.manual_seed(0)
    vae = create().eval().requires_grad_(False)
    functions = (vae.decode_first, vae.decode_next, vae.encode_first, vae.encode_next)
    pixels = torch.rand(2, 3, 9, 2 * stride, 3 * stride) * 2 - 1
    return vae, StreamedVAE(vae.config, *functions), torch.randn(2, 4, 3, 2, 3), pixels


@pytest.mark.parametrize("coder", ["decode", "encode"])
@torch.inference_mode()
def test_functions_are_pure_and_their_memory_keeps_its_shape(case, coder):
    vae, _, latents, pixels = case
    first, following = getattr(vae, f"{coder}_first"), getattr(vae, f"{coder}_next")
    whole, count = (latents, 1) if coder == "decode" else (pixels, 4)
    piece = whole[:, :, 1 : 1 + count]
    _, memory = first(whole[:, :, :1])
    kept = [x.clone() for x in memory]
    made, later = following(piece, memory)
    again, _ = following(piece, memory)
    assert torch.equal(made, again)
    assert all(torch.equal(a, b) for a, b in zip(memory, kept, strict=True))
    assert [x.shape for x in memory] == [x.shape for x in later]
    assert all(type(x) is torch.Tensor for x in memory + later)


@torch.inference_mode()
def test_the_functions_are_enough(case):
    vae, streamed, latents, pixels = case
    wanted, found = (list(v.decode_chunks(latents)) for v in (vae, streamed))
    assert [x.shape[2] for x in found] == [1, 4, 4]
    assert all(torch.equal(a, b) for a, b in zip(wanted, found, strict=True))
    # Convolutions over other batches may round differently: a few units of fp32.
    torch.testing.assert_close(streamed.encode(pixels), vae.encode(pixels), rtol=1e-5, atol=1e-5)


def test_the_stages_take_it(case):
    vae, streamed, latents, pixels = case
    wanted, found = (list(decode_frames(v, latents[:1])) for v in (vae, streamed))
    assert all((a == b).all() for a, b in zip(wanted, found, strict=True))
    chunks = pixels.split([1, 4, 4], dim=2)
    assert torch.equal(encode_chunks(streamed, chunks), encode_pixels(streamed, pixels))


def test_what_it_has_not_is_refused(case):
    vae, streamed, latents, pixels = case
    with pytest.raises(UsageError, match=r"tile is 16x16.*tile=None works"):
        streamed.decode_chunks(latents, tile=(16, 16))
    with pytest.raises(UsageError, match="do not fit"):
        streamed.encode(pixels[:, :, :4])
    bare = StreamedVAE(vae.config, vae.decode_first, vae.decode_next)
    for code in (bare.encode, lambda x: bare.encode_chunks([x[:, :, :1]])):
        with pytest.raises(UsageError, match="without its encoder"):
            code(pixels)


def test_old_memory_is_freed_while_new_is_made():
    """Never two memories: what was taken off one is gone before the next tensor is taken."""
    seen = []

    def first(piece):
        return piece, [torch.ones(2) for _ in range(3)]

    def following(piece, memory):
        made = []
        for x in memory:
            alive = weakref.ref(x)
            made.append(x + 1)
            del x
            seen.append(alive() is None)
        return piece, made

    assert len(list(stream(first, following, torch.zeros(3, 1)))) == 3
    assert seen == [True] * 6
