"""Transformers named as the original repositories name them, against those named as published."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from kinema.runtime import opening
from kinema.runtime.checkpoints import foreign, umt5_original
from kinema.runtime.checkpoints.checkpoint import Component, open_checkpoint
from kinema.runtime.checkpoints.shards import Entry, read_entries
from kinema.runtime.errors import KinemaError, UsageError
from kinema.runtime.models.wan import original as wan_original
from kinema.runtime.vaes import wan_original as vae_original
from kinema.runtime.vaes.wan import open_wan_vae

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")
single_file_utils = pytest.importorskip("diffusers.loaders.single_file_utils")

TINY = {
    "num_attention_heads": 2,
    "attention_head_dim": 24,
    "text_dim": 40,
    "freq_dim": 64,
    "ffn_dim": 80,
    "num_layers": 2,
}
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


def random_weights(model) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(weight.shape, generator=generator)
        for name, weight in model.state_dict().items()
    }


@pytest.fixture(scope="module")
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_an_original_text_encoder_opens_as_a_published_one(tmp_path, text_encoder, dtype):
    original = original_text_encoder(text_encoder)
    assert set(original) == {
        "token_embedding.weight",
        "norm.weight",
        *(
            f"blocks.{i}.{part}.weight"
            for i in (0, 1)
            for part in (
                *("norm1", "attn.q", "attn.k", "attn.v", "attn.o", "pos_embedding.embedding"),
                *("norm2", "ffn.gate.0", "ffn.fc1", "ffn.fc2"),
            )
        ),
    }
    (tmp_path / "own").mkdir()
    convert(original, "models_t5_umt5-xxl-enc-bf16.pth", tmp_path / "own")
    opened = foreign.open_model(
        component_of(text_encoder, tmp_path / "own"), ("UMT5EncoderModel",), dtype
    )
    text_encoder.save_pretrained(tmp_path / "published")
    wanted = foreign.open_model(
        component_of(text_encoder, tmp_path / "published"), ("UMT5EncoderModel",), dtype
    )
    assert {n: w.dtype for n, w in opened.state_dict().items()} == {
        n: w.dtype for n, w in wanted.state_dict().items()
    }
    tokens = torch.tensor([[3, 5, 7, 1]])
    assert torch.equal(opened(tokens).last_hidden_state, wanted(tokens).last_hidden_state)


def test_what_an_original_text_encoder_lacks_is_listed(tmp_path, text_encoder):
    original = original_text_encoder(text_encoder)
    del original["blocks.1.ffn.fc2.weight"]
    save_file({**original, "head.weight": torch.ones(2)}, tmp_path / "t5.safetensors")
    with pytest.raises(KinemaError, match=r"missing: encoder\.block\.1\..*wo.*known: head"):
        foreign.open_model(
            component_of(text_encoder, tmp_path), ("UMT5EncoderModel",), torch.float32
        )


# ---- 8-bit floats --------------------------------------------------------------------------------


def in_fp8(tensors, form, per_row=False):
    """Matrices of blocks in 8-bit floats, with scales as ComfyUI's tools write them."""
    found = {}
    for name, weight in tensors.items():
        if weight.dim() != 2 or "blocks." not in name:
            found[name] = weight
            continue
        most = weight.abs().amax(1) if per_row else weight.abs().amax()
        scale = (most / torch.finfo(torch.float8_e4m3fn).max).float()
        column = scale[:, None] if per_row else scale
        found[name] = (weight / column).to(torch.float8_e4m3fn)
        module = name.removesuffix(".weight")
        found[f"{module}.{form}"] = column.contiguous()
        found[f"{module}.scale_input"] = torch.ones(1)
    return found


def values_of_fp8(tensors, held):
    """The same matrices as those files hold them."""
    scales = {n: held.get(f"{n.removesuffix('.weight')}.scale_weight") for n in tensors}
    scales = {n: held.get(f"{n.removesuffix('.weight')}.weight_scale", scales[n]) for n in tensors}
    return {n: w if scales[n] is None else held[n].float() * scales[n] for n, w in tensors.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("form", "prefix", "per_row"),
    [("scale_weight", "model.diffusion_model.", False), ("weight_scale", "", True)],
)
def test_weights_in_8_bit_floats_are_read_by_their_scales(
    base, published, tmp_path, form, prefix, per_row, dtype
):
    original = as_original(published)
    held = in_fp8(original, form, per_row)
    assert any(weight.dtype == torch.float8_e4m3fn for weight in held.values())
    values = values_of_fp8(original, held)
    wanted = {name: values[wan_original.ORIGINAL.name(name)] for name in published}
    file = tmp_path / "wan_fp8_scaled.safetensors"
    marked = {**held, "scaled_fp8": torch.empty(2, dtype=torch.float8_e4m3fn)}
    save_file({f"{prefix}{name}": w for name, w in marked.items()}, file)
    model = opening.open_component(
        open_checkpoint(file, base=base), "transformer", torch.device("cpu"), dtype
    )
    found = model.to_published()
    assert found.keys() == wanted.keys()
    for name, weight in found.items():
        assert torch.equal(weight, wanted[name].to(weight.dtype)), name
    near = max((wanted[n] - w).abs().max() / w.abs().max() for n, w in published.items())
    assert near <= 2**-4  # half of the last of three bits of mantissa, at the largest value


def test_scales_of_another_shape_are_refused(base, published, tmp_path):
    held = in_fp8(as_original(published), "scale_weight")
    held["blocks.0.self_attn.q.scale_weight"] = torch.ones(2, 3)
    save_file(held, tmp_path / "a.safetensors")
    with pytest.raises(KinemaError, match=r"q\.scale_weight in .* \[2, 3\]; one .* of 48 rows"):
        transformer(open_checkpoint(tmp_path / "a.safetensors", base=base))


def test_a_text_encoder_in_8_bit_floats(tmp_path, text_encoder):
    original = original_text_encoder(text_encoder)
    held = in_fp8(original, "scale_weight")
    save_file(held, tmp_path / "t5_fp8.safetensors")
    opened = foreign.open_model(
        component_of(text_encoder, tmp_path), ("UMT5EncoderModel",), torch.float32
    )
    for name, wanted in values_of_fp8(original, held).items():
        ours = next(n for n in opened.state_dict() if umt5_original.ORIGINAL.name(n) == name)
        assert torch.equal(opened.state_dict()[ours], wanted.float())
