"""Pictures to pixels and latents, as the reference's image-to-video pipeline prepares them."""

import numpy as np
import pytest
import torch
from PIL import Image

from kinema.runtime.errors import UsageError
from kinema.runtime.media.pictures import open_picture
from kinema.runtime.vaes.encode import (
    encode_chunks,
    encode_pixels,
    on_grey,
    to_pixels,
)
from kinema.runtime.vaes.kinema import AutoencoderKinema, KinemaVAEConfig
from kinema.runtime.vaes.wan import WanVAE


def picture(seed=0, size=(50, 33), mode="RGB"):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.mark.parametrize("size", [(50, 33), (24, 16), (7, 90)])
def test_pixels_are_the_references(size):
    pytest.importorskip("diffusers")
    from diffusers.video_processor import VideoProcessor

    wanted = VideoProcessor(vae_scale_factor=8).preprocess(picture(size=size), height=16, width=24)
    assert torch.equal(to_pixels(picture(size=size), 16, 24), wanted)


@pytest.mark.parametrize("mode", ["RGBA", "L", "P", "CMYK"])
def test_pictures_of_every_kind_become_rgb(tmp_path, mode):
    assert open_picture(picture(mode=mode)).mode == "RGB"


def test_arrays_tensors_and_files_are_the_same_picture(tmp_path):
    shown = picture()
    array = np.asarray(shown)
    shown.save(tmp_path / "shown.png")
    for source in (shown, array, torch.from_numpy(array.copy()), array / np.float32(255)):
        assert np.array_equal(np.asarray(open_picture(source)), array)
    assert np.array_equal(np.asarray(open_picture(tmp_path / "shown.png")), array)


def test_a_photograph_is_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # taken with the camera on its side
    picture(size=(50, 33)).save(tmp_path / "photo.jpg", exif=exif)
    assert open_picture(tmp_path / "photo.jpg").size == (33, 50)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (np.zeros((4, 4, 4), np.uint8), r"shape \(4, 4, 4\); \(height, width, 3\)"),
        (np.full((2, 2, 3), -0.5), "float64 from -0.5"),
        (np.full((2, 2, 3), np.nan), "floats from 0 to 1"),
        (np.zeros((2, 2, 3), np.int32), "int32"),
        (3.5, "given as float"),
    ],
)
def test_what_is_no_picture_is_refused(source, words):
    with pytest.raises(UsageError, match=words):
        open_picture(source)


def test_pictures_stand_on_grey_in_chunks():
    first, last = torch.ones(1, 3, 2, 2), -torch.ones(1, 3, 2, 2)
    chunks = list(on_grey({0: first, 8: last}, 9))
    assert [chunk.shape[2] for chunk in chunks] == [1, 4, 4]
    assert torch.cat(chunks, 2)[0, 0, :, 0, 0].tolist() == [1.0, *[0.0] * 7, -1.0]
    with pytest.raises(UsageError, match="at frame 9; frames are 0 to 8"):
        list(on_grey({9: last}, 9))


@pytest.mark.parametrize("last", [None, 1])
def test_conditions_are_the_references(last):
    """`WanImageToVideoPipeline.prepare_latents`: the mask's four channels, then the latents'."""
    diffusers = pytest.importorskip("diffusers")

    torch.manual_seed(0)
    vae = diffusers.AutoencoderKLWan(
        base_dim=4, z_dim=4, num_res_blocks=1,
        latents_mean=[0.5, -1.0, 0.2, 0.0], latents_std=[2.0, 0.3, 1.7, 1.0],
    ).eval()  # fmt: skip
    shown = {0: to_pixels(picture(0), 16, 24)}
    if last is not None:
        shown[8] = to_pixels(picture(last), 16, 24)
    parts = ("tokenizer", "text_encoder", "scheduler", "image_encoder", "image_processor")
    pipeline = diffusers.WanImageToVideoPipeline(**dict.fromkeys(parts), vae=vae)
    with torch.inference_mode():
        _, condition = pipeline.prepare_latents(
            shown[0], 1, 4, 16, 24, 9, torch.float32, torch.device("cpu"),
            torch.Generator("cpu"), None, shown.get(8),
        )  # fmt: skip
    assert torch.equal(encode_chunks(WanVAE(vae), on_grey(shown, 9)), condition[:, 4:])


@torch.no_grad()
def test_the_embedded_autoencoder_encodes_too():
    torch.manual_seed(0)
    config = KinemaVAEConfig(
        z_dim=4, encoder_dim=8, decoder_dim=8, frame_dim=8, pixel_dim=4,
        latents_mean=(0.0, 1.0, 2.0, 3.0), latents_std=(2.0,) * 4,
    )  # fmt: skip
    vae, pixels = AutoencoderKinema(config).eval(), torch.rand(1, 3, 5, 16, 8) * 2 - 1
    wanted = (vae.encode(pixels) - torch.arange(4.0).view(1, 4, 1, 1, 1)) / 2
    torch.testing.assert_close(encode_pixels(vae, pixels), wanted)
