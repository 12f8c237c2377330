"""Weights stream into a module made on the meta device; whatever is wrong with them is named."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from kinema.runtime import registry, weights
from kinema.runtime.checkpoint import open_checkpoint
from kinema.runtime.errors import KinemaError
from kinema.runtime.models.wan import WanConfig, WanTransformer

CONFIG = WanConfig(
    num_attention_heads=2,
    attention_head_dim=12,
    text_dim=8,
    freq_dim=8,
    ffn_dim=16,
    num_layers=2,
)
SINGLE = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return WanTransformer(CONFIG).eval()


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "tiny" / "transformer"
    path.mkdir(parents=True)
    return path


def open_wan(folder, **options):
    return weights.load(lambda: WanTransformer(CONFIG), folder, CONFIG.weight_table(), **options)


def save_shards(tensors, folder, count=3):
    names = sorted(tensors)
    shards = {
        f"diffusion_pytorch_model-{i}-of-{count}.safetensors": names[i::count] for i in range(count)
    }
    for shard, held in shards.items():
        save_file({name: tensors[name] for name in held}, folder / shard)
    index = {"weight_map": {name: shard for shard, held in shards.items() for name in held}}
    (folder / f"{SINGLE}.index.json").write_text(json.dumps(index))
    return list(shards)


def test_one_file(model, folder):
    save_file(model.to_published(), folder / SINGLE)
    loaded = open_wan(folder)
    wanted = model.state_dict()
    assert all(torch.equal(weight, wanted[name]) for name, weight in loaded.state_dict().items())
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())


def test_shards(model, folder):
    save_shards(model.to_published(), folder)
    wanted = model.state_dict()
    assert all(torch.equal(w, wanted[name]) for name, w in open_wan(folder).state_dict().items())


def test_dtype_with_what_stays_in_float32(model, folder):
    """As the reference keeps it: time embedder, scale and shift tables, affine norms."""
    save_file({name: w.half() for name, w in model.to_published().items()}, folder / SINGLE)
    loaded = open_wan(folder, dtype=torch.bfloat16).state_dict()
    kept = {name for name, weight in loaded.items() if weight.dtype == torch.float32}
    parts = {"time_embedder", "scale_shift_table", "norm2"}
    assert kept == {name for name in loaded if parts & set(name.split("."))}
    assert all(loaded[name].dtype == torch.bfloat16 for name in set(loaded) - kept)


def test_names_missing_and_left_over(model, folder):
    tensors = model.to_published()
    tensors["blocks.7.ffn.net.2.bias"] = tensors.pop("blocks.0.attn1.to_k.bias")
    save_file(tensors, folder / SINGLE)
    with pytest.raises(KinemaError, match=r"missing: blocks\.0\.attn1\.to_k\.bias") as caught:
        open_wan(folder)
    assert "not known: blocks.7.ffn.net.2.bias" in str(caught.value)


def test_many_missing_names_are_counted(folder):
    save_file({"proj_out.bias": torch.zeros(64)}, folder / SINGLE)
    with pytest.raises(KinemaError, match=r"and \d+ more"):
        open_wan(folder)


@pytest.mark.parametrize(
    ("name", "shape", "wanted"),
    [
        ("blocks.1.attn1.to_q.weight", (24, 25), [24, 24]),
        ("blocks.1.attn1.to_v.weight", (48, 24), [24, 24]),
        ("patch_embedding.weight", (24, 20, 1, 2, 2), [24, 16, 1, 2, 2]),
        ("proj_out.bias", (32,), [64]),
    ],
)
def test_a_shape_that_does_not_fit(model, folder, name, shape, wanted):
    save_file({**model.to_published(), name: torch.zeros(shape)}, folder / SINGLE)
    with pytest.raises(KinemaError) as caught:
        open_wan(folder)
    for part in (name, SINGLE, str(list(shape)), f"asks for {wanted}"):
        assert part in str(caught.value)


@pytest.mark.parametrize("keep", [0, 5, 8, 100, 0.5, 0.999])
def test_a_cut_file(model, folder, keep):
    save_file(model.to_published(), folder / SINGLE)
    content = (folder / SINGLE).read_bytes()
    keep = int(keep * len(content)) if isinstance(keep, float) else keep
    (folder / SINGLE).write_bytes(content[:keep])
    with pytest.raises(KinemaError, match=rf"transformer/{SINGLE} is cut.* {keep} ") as caught:
        open_wan(folder)
    assert "\n" not in str(caught.value)


def test_a_cut_file_names_the_first_tensor_lost(model, folder):
    tensors = {"first": torch.zeros(10), "second": torch.zeros(10)}
    save_file(tensors, folder / SINGLE)
    size = (folder / SINGLE).stat().st_size
    (folder / SINGLE).write_bytes((folder / SINGLE).read_bytes()[:-60])
    with pytest.raises(
        KinemaError, match=f"at byte {size - 60} of {size}: first ends at {size - 40}"
    ):
        open_wan(folder)


@pytest.mark.parametrize(
    "content",
    [
        b"\x10" + bytes(7) + b"not json at all!" + bytes(50),
        b"\x02" + bytes(7) + b"[]" + bytes(50),
        b"\x0e" + bytes(7) + b'{"a": {"b":1}}' + bytes(50),
        b"<html><body>404 Not Found</body></html>",
    ],
)
def test_a_damaged_header(folder, content):
    (folder / SINGLE).write_bytes(content)
    with pytest.raises(KinemaError, match=rf"{SINGLE} is (cut or )?damaged"):
        open_wan(folder)


def test_a_missing_shard(model, folder):
    shards = save_shards(model.to_published(), folder)
    (folder / shards[1]).unlink()
    with pytest.raises(KinemaError, match=f"missing: {shards[1]}"):
        open_wan(folder)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"weight_map": 3}'])
def test_a_damaged_index(folder, content):
    (folder / f"{SINGLE}.index.json").write_text(content)
    with pytest.raises(KinemaError, match=r"cannot read .*index\.json"):
        open_wan(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pth", "model.pt", "model.ckpt"])
def test_pickles_are_refused_with_a_way_out(model, folder, name, monkeypatch):
    """The line that the error gives does convert the file."""
    torch.save(model.to_published(), folder / name)
    with pytest.raises(KinemaError, match=f"{name} is a pickle") as caught:
        open_wan(folder)
    command = str(caught.value).split("python -c ")[1]
    monkeypatch.chdir(folder)
    exec(command.strip('"'))
    open_wan(folder)


def test_no_weights_or_too_many(model, folder):
    with pytest.raises(KinemaError, match=f"tiny/transformer has no weights; {SINGLE} is expected"):
        open_wan(folder)
    for name in ("a.safetensors", "b.safetensors"):
        save_file(model.to_published(), folder / name)
    with pytest.raises(
        KinemaError, match=r"several sets of weights: a\.safetensors, b\.safetensors"
    ):
        open_wan(folder)


def open_by_index(folder, class_name):
    index = {"_class_name": "WanPipeline", "transformer": ["diffusers", class_name]}
    (folder.parent / "model_index.json").write_text(json.dumps(index))
    names = (
        "num_attention_heads",
        "attention_head_dim",
        "text_dim",
        "freq_dim",
        "ffn_dim",
        "num_layers",
    )
    (folder / "config.json").write_text(json.dumps({name: getattr(CONFIG, name) for name in names}))
    checkpoint = open_checkpoint(folder.parent)
    return registry.open_component(checkpoint, "transformer", torch.device("cpu"), torch.float32)


def test_the_registry_opens_by_name(model, folder):
    save_file(model.to_published(), folder / SINGLE)
    loaded = open_by_index(folder, "WanTransformer3DModel")
    assert torch.equal(loaded.blocks[1].attn1.qkv.weight, model.blocks[1].attn1.qkv.weight)


def test_the_registry_lists_what_it_knows(folder):
    with pytest.raises(KinemaError, match=r"is a FooModel, which is not known; known: .*Wan"):
        open_by_index(folder, "FooModel")
