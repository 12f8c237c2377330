"""Transformers named as the original repositories name them, against those named as published."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from kinema.runtime.checkpoints.checkpoint import open_checkpoint
from kinema.runtime.checkpoints.shards import Entry, read_entries
from kinema.runtime.errors import KinemaError, UsageError
from kinema.runtime.models.wan import original as wan_original

diffusers = pytest.importorskip("diffusers")
single_file_utils = pytest.importorskip("diffusers.loaders.single_file_utils")

from .conftest import TINY, as_original, assert_holds, random_weights, transformer  # noqa: E402

ORIGINAL_CONFIG = {
    "_class_name": "WanModel",
    "model_type": "t2v",
    "dim": 48,
    "ffn_dim": 80,
    "freq_dim": 64,
    "in_dim": 16,
    "out_dim": 16,
    "num_heads": 2,
    "num_layers": 2,
    "eps": 1e-6,
    "text_len": 512,
}
IMAGE = {"in_channels": 36, "image_dim": 20, "added_kv_proj_dim": 48, "pos_embed_seq_len": 514}


@pytest.mark.parametrize("variant", ["t2v", "flf2v", "vace"])
def test_names_are_those_that_diffusers_converts(variant):
    """Each published name to its original one, which diffusers' converter brings back."""
    options = {**TINY, **(IMAGE if variant == "flf2v" else {})}
    kind = diffusers.WanTransformer3DModel
    if variant == "vace":
        kind, options = diffusers.WanVACETransformer3DModel, {**options, "vace_layers": [0, 1]}
    with torch.device("meta"):
        names = kind(**options).state_dict()
    original = {}
    for name, weight in names.items():
        if name.endswith("image_embedder.pos_embed"):  # the converter leaves this one out
            assert wan_original.ORIGINAL.name(name) == "img_emb.emb_pos"
        else:
            original[wan_original.ORIGINAL.name(name)] = weight
    converted = single_file_utils.convert_wan_transformer_to_diffusers(dict(original))
    assert set(converted) == {name for name in names if not name.endswith("pos_embed")}


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "diffusion_model."])
@pytest.mark.parametrize("config", [ORIGINAL_CONFIG, {**TINY}], ids=["original", "published"])
def test_in_the_transformer_folder_of_a_checkpoint(base, published, prefix, config):
    folder = base / "transformer"
    for file in folder.iterdir():
        file.unlink()
    save_file(as_original(published, prefix), folder / "wan_t2v.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    assert_holds(transformer(open_checkpoint(base)), published)


def test_a_file_on_a_base(base, published, tmp_path):
    """Without a config: heads are as wide as every Wan's, the rest is told by shapes."""
    wide = {**TINY, "num_attention_heads": 1, "attention_head_dim": 128}
    drawn = random_weights(diffusers.WanTransformer3DModel(**wide))
    file = tmp_path / "wan.safetensors"
    save_file(as_original(drawn, "model.diffusion_model."), file)
    opened = open_checkpoint(file, base=base)
    assert (opened.name, opened.path) == (str(file), base)
    model = transformer(opened)
    assert_holds(model, drawn)
    assert (model.config.num_attention_heads, model.config.eps) == (1, 1e-6)
    assert opened.weight_hash() != open_checkpoint(base).weight_hash()


def test_an_original_folder_on_a_base(base, published, tmp_path):
    folder = tmp_path / "Wan2.1-T2V"
    folder.mkdir()
    names = sorted(published)
    held = {f"diffusion_pytorch_model-{i + 1:05}-of-00002.safetensors": names[i::2] for i in (0, 1)}
    where = {}
    for file, mine in held.items():
        tensors = as_original({name: published[name] for name in mine})
        save_file(tensors, folder / file)
        where |= dict.fromkeys(tensors, file)
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": where}))
    (folder / "config.json").write_text(json.dumps(ORIGINAL_CONFIG))
    (folder / "Wan2.1_VAE.pth").write_bytes(b"never opened")
    assert_holds(transformer(open_checkpoint(folder, base=base)), published)


def test_two_experts_on_a_base(base, published, tmp_path):
    edit = json.loads((base / "model_index.json").read_text())
    edit["transformer_2"] = edit["transformer"]
    (base / "model_index.json").write_text(json.dumps(edit))
    folder, low = tmp_path / "Wan2.2", {name: w + 1 for name, w in published.items()}
    for name, held in (("high_noise_model", published), ("low_noise_model", low)):
        (folder / name).mkdir(parents=True)
        save_file(as_original(held), folder / name / "diffusion_pytorch_model.safetensors")
        (folder / name / "config.json").write_text(json.dumps(ORIGINAL_CONFIG))
    opened = open_checkpoint(folder, base=base)
    assert_holds(transformer(opened, "transformer"), published)
    assert_holds(transformer(opened, "transformer_2"), low)
    with pytest.raises(UsageError, match="holds transformer; base 'base' needs transformer, trans"):
        open_checkpoint(folder / "low_noise_model", base=base)


def test_a_picture_model_is_known_by_its_weights(base, tmp_path):
    """Its config, as presets see it, is the published one: an original one does not tell."""
    drawn = random_weights(diffusers.WanTransformer3DModel(**TINY, **IMAGE))
    folder = base / "transformer"
    for file in folder.iterdir():
        file.unlink()
    save_file(as_original(drawn), folder / "wan_flf2v.safetensors")
    (folder / "config.json").write_text(json.dumps({**ORIGINAL_CONFIG, "model_type": "flf2v"}))
    checkpoint = open_checkpoint(base)
    config = checkpoint.component("transformer").config
    assert {name: config[name] for name in IMAGE} == IMAGE
    assert_holds(transformer(checkpoint), drawn)


def test_what_is_missing_or_left_over_is_listed(base, published, tmp_path):
    """A file that was cut short by blocks is not taken for a smaller model where a config tells."""
    folder = tmp_path / "original"
    folder.mkdir()
    tensors = as_original({n: w for n, w in published.items() if not n.startswith("blocks.1")})
    tensors["blocks.0.self_attn.q.scale_weight"] = torch.ones(1)
    save_file(tensors, folder / "diffusion_pytorch_model.safetensors")
    (folder / "config.json").write_text(json.dumps(ORIGINAL_CONFIG))
    with pytest.raises(KinemaError, match=r"missing: blocks\.1\..* and \d+ more") as told:
        transformer(open_checkpoint(folder, base=base))
    assert "not known: blocks.0.attn1.to_q.scale_weight" in str(told.value)


def test_a_transformer_alone_asks_for_a_base(published, tmp_path):
    file = tmp_path / "wan.safetensors"
    save_file(as_original(published), file)
    for source in (file, tmp_path):
        with pytest.raises(UsageError, match=r"is one part of a model.*base='org/name'"):
            open_checkpoint(source)


def test_what_is_no_transformer_is_not_put_on_a_base(base, tmp_path):
    with pytest.raises(UsageError, match=r"cannot be put on a base: is whole"):
        open_checkpoint(base, base=base)
    with pytest.raises(UsageError, match="base is for a transformer alone"):
        open_checkpoint("embedded", base=base)
    pickle = tmp_path / "Wan2.1_VAE.pth"
    torch.save({"a": torch.ones(1)}, pickle)
    for options in ({}, {"base": base}):
        with pytest.raises(UsageError, match=r"Wan2\.1_VAE\.pth is a pickle.*to convert it"):
            open_checkpoint(pickle, **options)
    other = tmp_path / "other.safetensors"
    save_file({"decoder.weight": torch.ones(3)}, other)
    with pytest.raises(KinemaError, match=r"is no Wan transformer: it has no patch_embedding"):
        transformer(open_checkpoint(other, base=base))


def test_a_config_that_is_missing_beside_published_names(base):
    (base / "transformer" / "config.json").unlink()
    model = transformer(open_checkpoint(base))
    assert model.config.dim == 48 and model.config.num_layers == 2


def entries_of(model) -> dict[str, Entry]:
    shapes = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    return {name: Entry(Path("x"), name, "F32", shape, 0, 0) for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("WanTransformer3DModel", {}),
        ("WanTransformer3DModel", {"in_channels": 48, "out_channels": 48, "patch_size": (1, 2, 2)}),
        ("WanTransformer3DModel", IMAGE),
        ("WanTransformer3DModel", {**IMAGE, "pos_embed_seq_len": None}),
        ("WanTransformer3DModel", {"in_channels": 36}),
        ("WanVACETransformer3DModel", {"num_layers": 8, "vace_layers": [0, 2, 4, 6]}),
        ("WanVACETransformer3DModel", {"num_layers": 10, "vace_layers": [0, 5]}),
    ],
)
def test_shapes_tell_the_config(kind, options):
    """Every field that diffusers writes and a shape can tell, of every kind of Wan."""
    with torch.device("meta"):
        model = getattr(diffusers, kind)(**{**TINY, **options})
    told = wan_original.config({"num_heads": 2}, entries_of(model))
    for name, value in told.items():
        wanted = model.config[name]
        assert (list(value) if name == "patch_size" else value) == (
            list(wanted) if name == "patch_size" else wanted
        )
    optional = {name for name in (*IMAGE, "vace_layers") if model.config.get(name) is not None}
    assert optional <= told.keys()


def test_published_and_original_names_of_one_file(published, tmp_path):
    save_file(as_original(published, "model."), tmp_path / "a.safetensors")
    entries = wan_original.ORIGINAL.published(read_entries(tmp_path))
    assert entries.keys() == published.keys()
    assert entries["proj_out.bias"].name == "model.head.head.bias"
