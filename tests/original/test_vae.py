"""Autoencoders from the original repositories, which are pickles until they are converted."""

from __future__ import annotations

import json

import pytest
import torch

from kinema.runtime.vaes import wan_original as vae_original
from kinema.runtime.vaes.wan import open_wan_vae

diffusers = pytest.importorskip("diffusers")
single_file_utils = pytest.importorskip("diffusers.loaders.single_file_utils")

from .conftest import convert, random_weights  # noqa: E402


def test_the_original_autoencoder_has_the_names_that_diffusers_converts():
    """Of the published configuration."""
    with torch.device("meta"):
        whole = diffusers.AutoencoderKLWan().state_dict()
    original = {vae_original.WAN_2_1.name(name): name for name in whole}
    assert None not in original and len(original) == len(whole)
    meta = torch.device("meta")
    tensors = {name: torch.empty(whole[ours].shape, device=meta) for name, ours in original.items()}
    assert single_file_utils.convert_wan_vae_to_diffusers(tensors).keys() == whole.keys()


SMALL = {"base_dim": 4, "z_dim": 4, "num_res_blocks": 2}
AUTOENCODERS = {
    "2.1": (vae_original.WAN_2_1, SMALL),
    "2.2": (
        vae_original.WAN_2_2,
        {
            **SMALL,
            "decoder_base_dim": 8,
            "is_residual": True,
            "patch_size": 2,
            "in_channels": 12,
            "out_channels": 12,
            "scale_factor_spatial": 16,
            "temperal_downsample": [False, True, True],
        },
    ),
}
# One of each kind of module, as Wan's repositories name them (wan/modules/vae2_1.py, vae2_2.py).
OF_EACH_KIND = {
    "2.1": [
        "conv1.weight",
        "encoder.conv1.bias",
        "encoder.downsamples.0.residual.6.weight",
        "encoder.downsamples.2.resample.1.weight",
        "encoder.downsamples.3.shortcut.weight",
        "encoder.downsamples.5.time_conv.weight",
        "encoder.middle.1.to_qkv.weight",
        "decoder.middle.2.residual.3.gamma",
        "decoder.upsamples.4.shortcut.weight",
        "decoder.upsamples.7.time_conv.bias",
        "decoder.upsamples.14.residual.0.gamma",
        "decoder.head.2.weight",
    ],
    "2.2": [
        "conv2.weight",
        "encoder.downsamples.0.downsamples.1.residual.6.weight",
        "encoder.downsamples.0.downsamples.2.resample.1.weight",
        "encoder.downsamples.1.downsamples.0.shortcut.weight",
        "encoder.downsamples.2.downsamples.2.time_conv.weight",
        "encoder.middle.1.proj.bias",
        "decoder.upsamples.0.upsamples.3.time_conv.weight",
        "decoder.upsamples.2.upsamples.3.resample.1.bias",
        "decoder.upsamples.3.upsamples.0.shortcut.weight",
        "decoder.upsamples.3.upsamples.2.residual.2.bias",
        "decoder.head.0.gamma",
    ],
}


@pytest.mark.parametrize("form", AUTOENCODERS)
def test_an_original_autoencoder_opens_as_a_published_one(tmp_path, form):
    names, config = AUTOENCODERS[form]
    drawn = random_weights(diffusers.AutoencoderKLWan(**config))
    renamed = {names.name(name): weight for name, weight in drawn.items()}
    assert None not in renamed and len(renamed) == len(drawn)
    assert set(OF_EACH_KIND[form]) <= renamed.keys()
    converted = convert(renamed, f"Wan{form}_VAE.pth", tmp_path)
    assert converted.name == f"Wan{form}_VAE.safetensors"
    (tmp_path / "config.json").write_text(json.dumps(config))
    opened = open_wan_vae(tmp_path, torch.device("cpu"), torch.float32).vae.state_dict()
    assert opened.keys() == drawn.keys()
    assert all(torch.equal(opened[name], weight) for name, weight in drawn.items())
