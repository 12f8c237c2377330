"""What surrounds an export: what is refused, what is left behind, and who opens it."""

from __future__ import annotations

import json
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import kinema
from kinema.export import verify
from kinema.export.options import as_options
from kinema.runtime.cli import run
from kinema.runtime.errors import KinemaError, UsageError
from kinema.runtime.graphs.manifest import FILE, read

pytest.importorskip("onnx")
OnnxRunner = pytest.importorskip("kinema.runtime.graphs.onnx").OnnxRunner


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """The embedded model's text encoder, exported: the smallest that there is."""
    folder = tmp_path_factory.mktemp("export") / "engines"
    kinema.export(None, "onnx", folder, components=["text_encoder"])
    return folder


@pytest.fixture
def copied(written, tmp_path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "engines"))


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"to": "tflite"}, "onnx, tensorrt, aoti, triton-server"),
        ({"to": "onnx", "dtype": "fp64"}, "fp32, fp16, bf16, fp8, int8"),
        ({"to": "aoti", "dtype": "int8"}, "fp32, fp16 or bf16"),
        ({"to": "onnx", "arch": ["sm_89"]}, "arch is for tensorrt"),
        ({"to": "onnx", "opset": 12}, "18, 23, 24"),
        ({"to": "onnx", "shapes": ["64x64x33"]}, "any size"),
        ({"to": "tensorrt"}, "sm_89"),
        ({"to": "tensorrt", "arch": ["ampere"]}, "such as sm_89"),
        ({"to": "tensorrt", "arch": ["sm_89"], "shapes": ["64"]}, "832x480x81"),
    ],
)
def test_options_that_do_not_fit_are_refused(asked, told):
    with pytest.raises(UsageError, match=told):
        as_options(**asked)


def test_a_component_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UsageError, match="text_encoder, transformer, vae"):
        kinema.export(None, "onnx", tmp_path / "engines", components=["transformer_2"])


def test_a_size_that_the_model_cannot_make_is_refused_before_any_work(tmp_path):
    pytest.importorskip("tensorrt_rtx")
    with pytest.raises(UsageError, match="num_frames"):
        kinema.export(None, "tensorrt", tmp_path / "engines", arch=["sm_89"], shapes=["64x64x34"])
    assert not any(tmp_path.iterdir())


def test_a_full_disk_is_told_before_any_work(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1_000_000))
    with pytest.raises(UsageError, match="1 MB are free"):
        kinema.export(None, "onnx", tmp_path / "engines")
    assert not any(tmp_path.iterdir())


def test_an_interrupted_export_leaves_what_was_there(copied):
    before = (copied / FILE).read_bytes()

    def stop(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kinema.export(
            None, "onnx", copied, components=["text_encoder"], overwrite=True, progress=stop
        )
    assert [path.name for path in copied.parent.iterdir()] == ["engines"]
    assert (copied / FILE).read_bytes() == before


def test_a_graph_that_is_off_fails_the_export(tmp_path, monkeypatch):
    monkeypatch.setattr(verify, "WALK", 0.0)
    with pytest.raises(KinemaError, match="text_encoder is not the model"):
        kinema.export(None, "onnx", tmp_path / "engines", components=["text_encoder"])
    assert not any(tmp_path.iterdir())


def test_a_folder_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UsageError, match="a folder of its own"):
        kinema.export(None, "onnx", tmp_path, overwrite=True)


def test_an_export_is_not_replaced_unasked(copied):
    with pytest.raises(UsageError, match="--force"):
        kinema.export(None, "onnx", copied)


def test_what_was_not_exported_runs_in_pytorch(written):
    engine = kinema.load("embedded", "cpu", engines=written)
    assert engine.executor == "onnx"
    assert engine.text_encoder.graph is not None
    assert type(engine.transformer).__name__ == "WanTransformer"


def test_embeddings_are_those_of_the_module(written):
    """Within rounding, which `verify` bounds; here they come by the whole way."""
    prompts = ["a red ball bounces on the grass", "a blue square"]
    wanted = kinema.load("embedded", "cpu", executor="eager").text_encoder.encode(prompts)
    found = kinema.load("embedded", "cpu", engines=written).text_encoder.encode(prompts)
    scale = wanted.embeds.square().mean().sqrt()
    assert (found.embeds - wanted.embeds).abs().max() < 1e-4 * scale


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"executor": "onnx"}, "give their folder as engines"),
        ({"executor": "eager", "engines": "there"}, "leave engines out"),
        ({"executor": "aoti", "engines": "there"}, "holds graphs for onnx, not aoti"),
        ({"engines": "there", "dtype": "bfloat16"}, "exported in float32"),
        ({"engines": "there", "offload": "model"}, "'none'"),
        ({"engines": "there", "tile": (64, 64)}, "whole frames"),
        ({"engines": "elsewhere"}, "no finished export"),
    ],
)
def test_engines_that_do_not_fit_are_refused(written, tmp_path, options, told):
    places = {"there": written, "elsewhere": tmp_path}
    if "engines" in options:
        options = {**options, "engines": places[options["engines"]]}
    with pytest.raises(UsageError, match=told):
        kinema.load("embedded", "cpu", **options)


def test_loras_are_refused(written, tmp_path):
    with pytest.raises(UsageError, match="exported graphs"):
        kinema.load("embedded", "cpu", engines=written).load_lora(tmp_path / "x.safetensors")


def change(folder: Path, **values) -> None:
    told = json.loads((folder / FILE).read_text())
    (folder / FILE).write_text(json.dumps({**told, **values}))


def test_other_weights_are_refused(copied):
    change(copied, model={"name": "another", "weights": "0" * 64})
    with pytest.raises(UsageError, match="other weights"):
        kinema.load("embedded", "cpu", engines=copied)


def test_a_later_format_is_refused(copied):
    change(copied, format=2)
    with pytest.raises(UsageError, match="format 2"):
        kinema.load("embedded", "cpu", engines=copied)


@pytest.mark.parametrize("damage", ["cut", "gone", "manifest"])
def test_damage_is_noticed(copied, damage):
    file = copied / "text_encoder" / "model.onnx"
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-1])
    elif damage == "gone":
        file.unlink()
    else:
        (copied / FILE).write_text("{")
    told = {"cut": "its hash is another", "gone": "is missing", "manifest": "is not JSON"}[damage]
    with pytest.raises(KinemaError, match=told):
        kinema.load("embedded", "cpu", engines=copied)


def test_the_command_writes_and_says_what(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(["export", "--components", "text_encoder", "-o", "out", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["graphs"]["text_encoder"]["checks"]
    assert told["path"] == "out"
    assert run(["export", "--components", "text_encoder", "-o", "out"]) == 2
    assert "--force" in capsys.readouterr().err


@pytest.mark.parametrize("package", ["onnx_ir", "onnxruntime", "onnxscript"])
@pytest.mark.parametrize(("to", "extra"), [("onnx", "export"), ("tensorrt", "tensorrt")])
def test_packages_that_are_missing_are_named(tmp_path, monkeypatch, package, to, extra):
    """Where Python finds none of them, as after `pip install kinema`."""
    monkeypatch.setitem(sys.modules, package, None)
    for name in [name for name in sys.modules if name.startswith("kinema.export.")]:
        if name not in ("kinema.export.exporting", "kinema.export.options"):
            monkeypatch.delitem(sys.modules, name)
            monkeypatch.delattr(kinema.export, name.rpartition(".")[2])
    arch = ["sm_89"] if to == "tensorrt" else []
    with pytest.raises(KinemaError, match=rf"{package}: pip install 'kinema\[{extra}\]'"):
        kinema.export(None, to, tmp_path / "engines", arch=arch)
    assert not any(tmp_path.iterdir())


def test_what_a_link_leads_to_is_replaced(copied, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(copied)
    (copied / "text_encoder" / "old").touch()
    kinema.export(None, "onnx", link, components=["text_encoder"], overwrite=True)
    assert link.is_symlink()
    assert not (copied / "text_encoder" / "old").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["engines", "link"]


def test_files_that_came_meanwhile_are_left_alone(tmp_path):
    target = tmp_path / "engines"

    def write(_):
        target.mkdir(exist_ok=True)
        (target / "thesis.tex").touch()

    with pytest.raises(UsageError, match="a folder of its own"):
        kinema.export(None, "onnx", target, components=["text_encoder"], progress=write)
    assert [path.name for path in tmp_path.rglob("*")] == ["engines", "thesis.tex"]


def test_no_component_at_all_is_refused(tmp_path):
    with pytest.raises(UsageError, match="text_encoder, transformer, vae work"):
        kinema.export(None, "onnx", tmp_path / "engines", components=[])


@pytest.mark.parametrize("elsewhere", ["../secret", "/etc/passwd"])
def test_a_manifest_with_files_elsewhere_is_damaged(copied, elsewhere):
    manifest = json.loads((copied / FILE).read_text())
    manifest["graphs"]["text_encoder"]["files"] = {elsewhere: "0" * 64}
    (copied / FILE).write_text(json.dumps(manifest))
    with pytest.raises(KinemaError, match="is not in the folder"):
        kinema.load("embedded", "cpu", engines=copied)


def test_a_report_says_what_was_quantized(copied):
    manifest = json.loads((copied / FILE).read_text())
    manifest["options"]["quantize"] = "int8"
    (copied / FILE).write_text(json.dumps(manifest))
    assert kinema.load("embedded", "cpu", engines=copied).graphs.told()["quantize"] == "int8"


def _without_weights(manifest: dict) -> None:
    del manifest["model"]["weights"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda manifest: manifest.update(dtype="float33"), "float33"),
        (lambda manifest: manifest.update(to="zip"), "zip"),
        (lambda manifest: manifest["graphs"]["text_encoder"].update(name="vae"), "is vae"),
        (lambda manifest: manifest["graphs"]["text_encoder"].update(files={}), "of 0 files"),
        (_without_weights, "weights"),
    ],
)
def test_a_manifest_that_no_export_wrote_is_refused(copied, change, told):
    manifest = json.loads((copied / FILE).read_text())
    change(manifest)
    (copied / FILE).write_text(json.dumps(manifest))
    with pytest.raises(KinemaError, match=told):
        kinema.load("embedded", "cpu", engines=copied)


def test_threads_take_turns_at_a_graph(written):
    """Each gets the answer to its own question, whatever the others ask of the same graph."""
    run = kinema.load("embedded", "cpu", engines=written).text_encoder.graph
    rows = [torch.randint(1, 100, (1, 3 + i % 5)) for i in range(40)]
    given = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in rows]
    wanted = [run(inputs)["embeds"] for inputs in given]
    with ThreadPoolExecutor(8) as pool:
        found = [made["embeds"] for made in pool.map(run, given * 5)]
    assert all(map(torch.equal, found, wanted * 5))


def test_graphs_in_bf16_are_refused_on_a_cpu(written):
    graph = read(written, "onnx").manifest.graphs["text_encoder"]
    (made,) = graph.outputs
    graph = replace(graph, outputs=(replace(made, dtype="bfloat16"),))
    with pytest.raises(KinemaError, match="export in fp32 or fp16"):
        OnnxRunner(written / graph.file, graph, torch.device("cpu"))
