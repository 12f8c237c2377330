"""Random weights under the names of the authors' own repositories."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
import torch

from kinema.runtime import opening
from kinema.runtime.checkpoints import umt5_original
from kinema.runtime.checkpoints.checkpoint import Component
from kinema.runtime.checkpoints.shards import read_entries
from kinema.runtime.errors import KinemaError
from kinema.runtime.models.wan import original as wan_original

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

TINY = {
    "num_attention_heads": 2,
    "attention_head_dim": 24,
    "text_dim": 40,
    "freq_dim": 64,
    "ffn_dim": 80,
    "num_layers": 2,
}


def random_weights(model) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(weight.shape, generator=generator)
        for name, weight in model.state_dict().items()
    }


@pytest.fixture(scope="session")
def published():
    return random_weights(diffusers.WanTransformer3DModel(**TINY))


def as_original(published, prefix=""):
    return {prefix + wan_original.ORIGINAL.name(name): w for name, w in published.items()}


@pytest.fixture
def base(tmp_path):
    """A whole checkpoint, as far as opening looks, with a transformer of other weights."""
    folder = tmp_path / "base"
    diffusers.WanTransformer3DModel(**TINY).save_pretrained(folder / "transformer")
    index = {"_class_name": "WanPipeline", "transformer": ["diffusers", "WanTransformer3DModel"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def transformer(checkpoint, name="transformer"):
    return opening.open_component(checkpoint, name, torch.device("cpu"), torch.float32)


def assert_holds(model, published):
    found = model.to_published()
    assert found.keys() == published.keys()
    assert all(torch.equal(found[name], weight) for name, weight in published.items())


def convert(tensors, name, folder):
    """What the command of the refusal makes of a pickle, which is then put away."""
    torch.save(tensors, folder / name)
    with pytest.raises(KinemaError, match="is a pickle") as refusal:
        read_entries(folder)
    code = re.search(r'python -c "(.*)"$', str(refusal.value)).group(1)
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True)
    (folder / name).unlink()
    return next(folder.glob("*.safetensors"))


# ---- the text encoder ----------------------------------------------------------------------------


@pytest.fixture
def text_encoder():
    torch.manual_seed(0)
    config = transformers.UMT5Config(
        vocab_size=30, d_model=24, d_kv=8, d_ff=40, num_layers=2, num_heads=3
    )
    return transformers.UMT5EncoderModel(config).eval()


def original_text_encoder(model):
    """Its tensors as Wan's repositories have them, where the embedding has one name."""
    held = {n: w for n, w in model.state_dict().items() if n != "encoder.embed_tokens.weight"}
    return {umt5_original.ORIGINAL.name(name): weight for name, weight in held.items()}


def component_of(model, folder):
    (folder / "config.json").write_text(json.dumps(model.config.to_dict()))
    config = json.loads((folder / "config.json").read_text())
    return Component("UMT5EncoderModel", folder, config)
