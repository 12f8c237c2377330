"""Whole checkpoints as ONNX: every graph checked as it is written, and videos made of them.

A graph computes in the order that its runtime likes, so that latents differ by rounding: a few 1e-6
of their RMS after four steps. The bound on frames is 50 dB; 80 and more are usual.
"""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest

import kinema
from kinema.runtime.graphs.manifest import FILE

pytest.importorskip("diffusers")

from ..parity.checkpoints import build, request
from ..parity.test_pipelines import VARIANTS

DECIBELS = 50.0
# What is exported of each variant; all of it once, what takes part in a step always. (Tracing an
# autoencoder takes a minute and more, so there is one, with no more layers than it needs.)
EXPORTED = {
    "i2v": None,
    "ti2v": ["transformer"],
    "t2v, two experts": ["transformer", "transformer_2"],
    "flf2v": ["transformer"],
    "vace, masked, references": ["transformer"],
}


@pytest.fixture(scope="module", params=EXPORTED)
def exported(request, tmp_path_factory):
    """A variant, its checkpoint, and the folder and manifest of what was exported of it."""
    name = request.param
    variant = VARIANTS[name]
    folder = tmp_path_factory.mktemp("checkpoint")
    vae = {**variant.vae, "num_res_blocks": 0, "dim_mult": [1, 1, 1, 1]}
    build(variant._replace(vae=vae)).save_pretrained(folder)
    target = folder / "engines"
    manifest = kinema.export(folder, "onnx", target, components=EXPORTED[name])
    return name, variant, folder, target, manifest


def decibels(found: np.ndarray, wanted: np.ndarray) -> float:
    error = np.square(found.astype(float) - wanted.astype(float)).mean()
    return float("inf") if error == 0 else 10 * np.log10(255**2 / error)


def test_graphs_make_the_same_video(exported):
    _, variant, folder, target, _ = exported
    wanted = kinema.load(folder, "cpu", executor="eager").generate(request(variant))
    engine = kinema.load(folder, "cpu", executor="onnx", engines=target)
    made = engine.generate(request(variant))
    assert decibels(made.frames, wanted.frames) >= DECIBELS
    assert made.report["executor"] == "onnx"
    assert "transformer" in made.report["engines"]["graphs"]


def test_the_manifest_says_what_was_written_and_how_far_off_it_is(exported):
    name, _, _, target, manifest = exported
    told = json.loads((target / FILE).read_text())
    assert list(told["graphs"]) == list(manifest.graphs)
    for entry in manifest.graphs.values():
        assert len(entry.checks) == 3
        assert max(check["relative_rms"] for check in entry.checks) <= entry.tolerance
        model = onnx.load(target / entry.file, load_external_data=False)
        assert [value.name for value in model.graph.input] == [port.name for port in entry.inputs]
        assert len(model.graph.node) == entry.nodes
    if EXPORTED[name] is None:
        assert set(manifest.graphs) == {
            "text_encoder",
            "image_encoder",
            "text_context",
            "transformer",
            "vae_decoder_first",
            "vae_decoder",
            "vae_encoder_first",
            "vae_encoder",
        }


def test_a_step_is_made_of_whole_operators(exported):
    """Not of their decompositions; twice a block, the text's attention beside its own."""
    *_, manifest = exported
    found = manifest.graphs["transformer"].operators
    blocks = 2
    assert found["Attention"] >= 2 * blocks
    assert found["RotaryEmbedding"] == 2 * found["Gelu"]
    assert found["RMSNormalization"] >= 3 * blocks
    assert found["LayerNormalization"] >= 2 * blocks
    assert "Softmax" not in found
    assert "Tanh" not in found


def test_sizes_are_free(exported):
    *_, manifest = exported
    latents = next(p for p in manifest.graphs["transformer"].inputs if p.name == "latents")
    assert latents.shape == ("batch", latents.shape[1], "frames", "2*rows", "2*columns")
