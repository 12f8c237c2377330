"""Weights stream into a module made on the meta device; whatever is wrong with them is named."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from kinema.runtime import opening
from kinema.runtime.checkpoints import shards, weights
from kinema.runtime.checkpoints.checkpoint import open_checkpoint
from kinema.runtime.errors import KinemaError
from kinema.runtime.models.wan.config import WanConfig
from kinema.runtime.models.wan.transformer import WanTransformer

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
    files = {
        f"diffusion_pytorch_model-{i}-of-{count}.safetensors": names[i::count] for i in range(count)
    }
    for shard, held in files.items():
        save_file({name: tensors[name] for name in held}, folder / shard)
    index = {"weight_map": {name: shard for shard, held in files.items() for name in held}}
    (folder / f"{SINGLE}.index.json").write_text(json.dumps(index))
    return list(files)


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


def rewritten(tensors, file, **changes):
    """A file whose header says something else of its first tensor."""
    save_file(tensors, file)
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    first = min(header, key=lambda name: header[name]["data_offsets"])
    header[first] |= changes
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    return 8 + len(text)


TWO = {"first": torch.zeros(4, 5), "second": torch.ones(6)}


@pytest.mark.parametrize(
    ("changes", "at", "words"),
    [
        ({"dtype": "F16"}, 0, "said to take 80 bytes, 40 as F16 [4, 5]"),
        ({"dtype": "F64"}, 0, "said to take 80 bytes, 160 as F64 [4, 5]"),
        ({"shape": [4, 6]}, 0, "said to take 80 bytes, 96 as F32 [4, 6]"),
        ({"shape": [-4, -5]}, 0, "first is said to begin at"),
        ({"data_offsets": [80, 0]}, 0, "first is said to begin at"),  # flipped
        ({"data_offsets": [8, 88]}, 0, "first is said to begin at"),  # a gap, then an overlap
        ({"data_offsets": [0, 88]}, 0, "said to take 88 bytes"),
        ({"shape": [4, 4], "data_offsets": [0, 64]}, 64, "second is said to begin at"),
    ],
)
def test_a_header_that_contradicts_itself(folder, changes, at, words):
    file = folder / SINGLE
    start = rewritten(TWO, file, **changes)
    with pytest.raises(KinemaError) as caught:
        shards.read_header(file)
    assert f"{SINGLE} is damaged at byte {start + at}: " in str(caught.value)
    assert words in str(caught.value)


@pytest.mark.parametrize("offsets", [["0", "80"], [0.0, 80.0], [0], None, [True, 80]])
def test_offsets_are_two_integers(folder, offsets):
    rewritten(TWO, folder / SINGLE, data_offsets=offsets)
    with pytest.raises(KinemaError, match="no header at byte offset 8"):
        shards.read_header(folder / SINGLE)


def test_an_unknown_type_and_bytes_left_over(folder):
    rewritten(TWO, folder / SINGLE, dtype="F4")
    with pytest.raises(KinemaError, match=r"first in .* is 'F4'; known types: F64, F32"):
        shards.read_header(folder / SINGLE)
    save_file(TWO, folder / SINGLE)
    size = (folder / SINGLE).stat().st_size
    (folder / SINGLE).write_bytes((folder / SINGLE).read_bytes() + b"more")
    with pytest.raises(KinemaError, match=f"damaged at byte {size}: no tensor has what follows"):
        shards.read_header(folder / SINGLE)


def test_integers_are_no_weights(model, folder):
    tensors = model.to_published()
    tensors["proj_out.weight"] = tensors["proj_out.weight"].to(torch.int8)
    save_file(tensors, folder / SINGLE)
    with pytest.raises(KinemaError, match=r"proj_out\.weight in .* is I8; a float is expected"):
        open_wan(folder)


def test_every_type_is_read_as_safetensors_reads_it(folder):
    kinds = [kind for kind in weights.TYPES.values() if kind != torch.bool]
    tensors = {str(kind): torch.arange(1, 8).to(kind) for kind in kinds}
    tensors |= {
        "bool": torch.tensor([True, False]),
        "empty": torch.zeros(0, 3),
        "one": torch.tensor(2.0),
    }
    save_file(tensors, folder / SINGLE)
    for name, tensor in weights.stream(shards.read_entries(folder)):
        assert tensor.dtype == tensors[name].dtype and tensor.shape == tensors[name].shape
        assert tensor.view(-1).tolist() == tensors[name].view(-1).tolist()


def test_unaligned_bytes_are_read(folder):
    """Files of other writers need not pad their header."""
    text = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    text += b" " * (-len(text) % 8 + 1)
    data = torch.tensor([1.5, -2.0]).numpy().tobytes()
    (folder / SINGLE).write_bytes(len(text).to_bytes(8, "little") + text + data)
    ((_, tensor),) = weights.stream(shards.read_entries(folder))
    assert tensor.tolist() == [1.5, -2.0]


def test_two_files_with_one_tensor(model, folder):
    names = save_shards(model.to_published(), folder)
    first, second = (load_file(folder / name) for name in names[:2])
    again = next(iter(second))
    save_file({**first, again: second[again]}, folder / names[0])
    with pytest.raises(KinemaError, match=rf"both hold {again}; keep one"):
        open_wan(folder)


@pytest.mark.parametrize("name", ["../stolen.safetensors", "/etc/passwd", "a/b.safetensors"])
def test_shards_lie_beside_their_index(folder, name):
    (folder / f"{SINGLE}.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(KinemaError, match="which is not a file beside it"):
        open_wan(folder)


def test_a_variant_beside_the_weights_is_left_alone(model, folder):
    save_file(model.to_published(), folder / SINGLE)
    save_file({"other": torch.zeros(1)}, folder / "diffusion_pytorch_model.fp16.safetensors")
    open_wan(folder)


MEMORY = """
import json, sys, torch
from pathlib import Path
from kinema.runtime.checkpoints import weights
from kinema.runtime.models.wan.config import WanConfig
from kinema.runtime.models.wan.transformer import WanTransformer

def resident(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))

def load(folder, layers):
    config = WanConfig(**json.loads(sys.argv[1]), num_layers=layers)
    table = config.weight_table()
    return weights.load(lambda: WanTransformer(config), Path(folder), table, dtype=torch.bfloat16)

load(sys.argv[2], 1)  # what imports and first uses take
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
before = resident("VmRSS")
model = load(sys.argv[3], 24)
print(resident("VmHWM") - before, sum(p.nbytes for p in model.parameters()))
"""
WIDE = {"num_attention_heads": 8, "attention_head_dim": 64, "text_dim": 64, "ffn_dim": 2048}


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads Linux's accounting")
@pytest.mark.parametrize(("count", "stored"), [(1, torch.float32), (4, torch.bfloat16)], ids=str)
def test_loading_holds_the_model_and_a_tensor(tmp_path, count, stored):
    """Peak memory of a process of its own: never a second copy, nor a shard, nor another type."""
    for name, layers in (("small", 1), ("large", 24)):
        with torch.device("meta"):
            published = WanTransformer(WanConfig(**WIDE, num_layers=layers)).to_published()
        tensors = {name: torch.zeros(like.shape, dtype=stored) for name, like in published.items()}
        (tmp_path / name).mkdir()
        if count == 1:
            save_file(tensors, tmp_path / name / SINGLE)
        else:
            save_shards(tensors, tmp_path / name, count)
    folders = [str(tmp_path / name) for name in ("small", "large")]
    command = [sys.executable, "-c", MEMORY, json.dumps(WIDE), *folders]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    peak, model = map(int, run.stdout.split())
    assert model > 190e6
    # Its largest tensor takes 4 MB in float32; what the system maps around it varies, up to 25 MB.
    # A second copy would be 208 MB more, a shard 52 MB.
    assert peak < model + 45e6


def test_a_missing_shard(model, folder):
    files = save_shards(model.to_published(), folder)
    (folder / files[1]).unlink()
    with pytest.raises(KinemaError, match=f"missing: {files[1]}"):
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
    return opening.open_component(checkpoint, "transformer", torch.device("cpu"), torch.float32)


def test_the_registry_opens_by_name(model, folder):
    save_file(model.to_published(), folder / SINGLE)
    loaded = open_by_index(folder, "WanTransformer3DModel")
    assert torch.equal(loaded.blocks[1].attn1.qkv.weight, model.blocks[1].attn1.qkv.weight)


def test_the_registry_lists_what_it_knows(folder):
    with pytest.raises(KinemaError, match=r"is a FooModel, which is not known; known: .*Wan"):
        open_by_index(folder, "FooModel")
