"""Opening a checkpoint: what opens, and what is said about one that does not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.utils import filter_repo_objects

from kinema.runtime import hashes
from kinema.runtime.checkpoints import checkpoint as module
from kinema.runtime.checkpoints.checkpoint import INDEX, known_models, open_checkpoint
from kinema.runtime.errors import KinemaError, UsageError


def edit_index(folder: Path, **entries) -> None:
    index = json.loads((folder / INDEX).read_text())
    (folder / INDEX).write_text(json.dumps({**index, **entries}))


def test_a_folder_opens_and_names_its_parts(checkpoint_folder: Path):
    opened = open_checkpoint(str(checkpoint_folder))
    assert (opened.name, opened.path) == ("tiny", checkpoint_folder)
    assert opened.components == ("transformer", "vae")
    class_name, folder, config = opened.component("transformer")
    assert (class_name, config) == ("WanTransformer3DModel", {"num_layers": 6})
    assert folder == checkpoint_folder / "transformer"
    assert opened.presets.sound.shift == 4.0
    assert opened.vocabulary["words"]["colours"] == ["red", "blue"]


def test_what_is_open_is_taken_as_it_is(checkpoint_folder: Path):
    opened = open_checkpoint(checkpoint_folder)
    assert open_checkpoint(opened) is opened


def test_a_pipeline_without_presets_takes_those_of_its_class(checkpoint_folder: Path):
    edit_index(checkpoint_folder, kinema={})
    (checkpoint_folder / "vae").mkdir()
    (checkpoint_folder / "vae" / "config.json").write_text("{}")
    presets = open_checkpoint(checkpoint_folder).presets
    assert (presets.num_frames, presets.width, presets.height, presets.fps) == (81, 832, 480, 16)
    edit_index(checkpoint_folder, _class_name="OtherPipeline")
    with pytest.raises(KinemaError, match=r"OtherPipeline; what opens is .*WanPipeline"):
        _ = open_checkpoint(checkpoint_folder).presets


def test_a_missing_part_is_named(checkpoint_folder: Path):
    opened = open_checkpoint(checkpoint_folder)
    with pytest.raises(KinemaError, match="has no audio; it has transformer, vae"):
        opened.component("audio")
    with pytest.raises(KinemaError, match="lacks the folder vae/"):
        opened.component("vae")
    (checkpoint_folder / "vae").mkdir()
    with pytest.raises(KinemaError, match=r"missing file tiny/vae/config\.json"):
        opened.component("vae")
    (checkpoint_folder / "transformer" / "config.json").write_text('{"num_layers":')
    with pytest.raises(KinemaError, match=r"cannot read tiny/transformer/config\.json: .*line 1"):
        opened.component("transformer")


def test_configs_are_found_under_their_published_names(checkpoint_folder: Path):
    edit_index(checkpoint_folder, scheduler=["diffusers", "FlowMatchEulerDiscreteScheduler"])
    folder = checkpoint_folder / "scheduler"
    folder.mkdir()
    (folder / "scheduler_config.json").write_text('{"shift": 3.0}')
    component = open_checkpoint(checkpoint_folder).component("scheduler")
    assert component.config == {"shift": 3.0}


def test_what_a_model_cannot_do_without_is_named_before_it_is_needed(checkpoint_folder: Path):
    with pytest.raises(KinemaError, match="has no scheduler; it has transformer, vae"):
        open_checkpoint(checkpoint_folder).check()
    parts = {name: ["library", "Class"] for name in module.REQUIRED}
    edit_index(checkpoint_folder, **parts)
    for name in ("scheduler", "tokenizer", "text_encoder"):
        (checkpoint_folder / name).mkdir()
        (checkpoint_folder / name / module.CONFIGS.get(name, "config.json")).write_text("{}")
    with pytest.raises(KinemaError, match="lacks the folder vae/"):
        open_checkpoint(checkpoint_folder).check()
    (checkpoint_folder / "vae").mkdir()
    (checkpoint_folder / "vae" / "config.json").write_text("{}")
    open_checkpoint(checkpoint_folder).check()


@pytest.mark.parametrize("name", ["Other\nPipeline" + 200 * "x", ["a", "list"], None, 3])
def test_an_odd_family_is_one_short_line(checkpoint_folder: Path, name: object):
    edit_index(checkpoint_folder, _class_name=name, kinema={})
    with pytest.raises(KinemaError, match="what opens is WanPipeline") as told:
        _ = open_checkpoint(checkpoint_folder).presets
    assert "\n" not in str(told.value) and len(str(told.value)) < 250


def test_a_part_stays_in_its_folder(checkpoint_folder: Path):
    edit_index(checkpoint_folder, **{"../vae": ["diffusers", "AutoencoderKLWan"]})
    assert open_checkpoint(checkpoint_folder).components == ("transformer", "vae")


@pytest.mark.parametrize(
    ("content", "word"), [("{", "line 1"), ("[1]", "object"), (b"\xff\xfe", "utf-8")]
)
def test_a_damaged_index_is_named(checkpoint_folder: Path, content: str | bytes, word: str):
    data = content if isinstance(content, bytes) else content.encode()
    (checkpoint_folder / INDEX).write_bytes(data)
    with pytest.raises(KinemaError, match=rf"cannot read .*tiny/model_index\.json: .*{word}"):
        open_checkpoint(checkpoint_folder)


@pytest.mark.parametrize("source", ["sora", "no/such/folder", "./nowhere", "a b/c", "", "../.."])
def test_an_unknown_model_is_answered_with_what_opens(source: str):
    with pytest.raises(UsageError, match=r"embedded.*model_index\.json.*org/name"):
        open_checkpoint(source)


def test_a_file_or_a_folder_without_index_is_no_model(tmp_path: Path):
    (tmp_path / "a.safetensors").touch()
    for source in (tmp_path, tmp_path / "a.safetensors"):
        with pytest.raises(UsageError, match=INDEX):
            open_checkpoint(source)


class PretendHub:
    """A hub with one repository, which lists its files and is asked for some of them."""

    def __init__(self, cache: Path, files: dict[str, str]) -> None:
        self.cache, self.files = cache / ("c0ffee" * 7)[:40], files
        self.asked: list[tuple[str | None, list[str]]] = []

    def snapshot_download(
        self, hub_id: str, revision: str | None, allow_patterns: list[str]
    ) -> str:
        assert hub_id == "org/name"
        self.asked.append((revision, allow_patterns))
        self.cache.mkdir(parents=True, exist_ok=True)
        for name in filter_repo_objects(self.files, allow_patterns=allow_patterns):
            file = self.cache / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(self.files[name])
        return str(self.cache)

    @property
    def fetched(self) -> set[str]:
        files = (file for file in self.cache.rglob("*") if file.is_file())
        return {file.relative_to(self.cache).as_posix() for file in files}


DESCRIBED = {
    INDEX: json.dumps(
        {
            "_class_name": "WanPipeline",
            "transformer": ["diffusers", "WanTransformer3DModel"],
            "vae": ["diffusers", "AutoencoderKLWan"],
            "tokenizer": ["transformers", "T5TokenizerFast"],
        }
    ),
    "transformer/config.json": "{}",
    "vae/config.json": "{}",
    "tokenizer/spiece.model": "",
}
INDEXED = "diffusion_pytorch_model.safetensors.index.json"


def on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *names: str) -> PretendHub:
    shards = {"weight_map": {"a": "shard-1.safetensors", "b": "shard-2.safetensors"}}
    files = {name: json.dumps(shards) if name.endswith(INDEXED) else "" for name in names}
    hub = PretendHub(tmp_path, {**files, **DESCRIBED})
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot_download)
    return hub


def test_only_what_the_index_names_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Neither code nor pickles, nor other precisions, nor what is not a part of the model."""
    wanted = {
        f"transformer/{INDEXED}",
        "transformer/shard-1.safetensors",
        "transformer/shard-2.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        *DESCRIBED,
    }
    others = {
        "transformer/shard-1.fp16.safetensors",
        "transformer/pytorch_model.bin",
        "vae/diffusion_pytorch_model.fp16.safetensors",
        "vae/diffusion_pytorch_model.bin",
        "safety_checker/model.safetensors",
        "pipeline.py",
        "whole.safetensors",
        "Wan2.1_VAE.pth",
    }
    hub = on_the_hub(tmp_path, monkeypatch, *wanted - set(DESCRIBED), *others)
    opened = open_checkpoint("org/name")
    assert (opened.name, opened.path) == ("org/name", hub.cache)
    assert hub.fetched == wanted
    # The second look is at the commit that the first one found.
    assert [revision for revision, _ in hub.asked] == [None, hub.cache.name]
    open_checkpoint("org/name")
    assert len(hub.asked) == 3  # what is complete is not asked for again


def test_an_interrupted_download_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shards = [f"transformer/shard-{number}.safetensors" for number in (1, 2)]
    single = "vae/diffusion_pytorch_model.safetensors"
    hub = on_the_hub(tmp_path, monkeypatch, f"transformer/{INDEXED}", *shards, single)
    open_checkpoint("org/name")
    (hub.cache / shards[1]).unlink()
    open_checkpoint("org/name")
    assert hub.asked[-1] == (hub.cache.name, [shards[1]])
    assert (hub.cache / shards[1]).is_file()


def test_an_original_repository_needs_a_base(
    tmp_path: Path, checkpoint_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    """It is refused before its weights are fetched; with a base they are, and its pickles never."""
    single = "diffusion_pytorch_model.safetensors"
    names = ("config.json", single, "Wan2.1_VAE.pth", "models_t5.pth", "xlm/tokenizer.json")
    hub = PretendHub(tmp_path / "hub", dict.fromkeys(names, "{}"))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot_download)
    with pytest.raises(UsageError, match=r"is one part of a model, .*base="):
        open_checkpoint("org/name")
    assert hub.fetched == {"config.json", "xlm/tokenizer.json"}
    opened = open_checkpoint("org/name", base=checkpoint_folder)
    assert (opened.name, opened.parts) == ("org/name", {"transformer": hub.cache})
    assert hub.fetched == {"config.json", "xlm/tokenizer.json", single}


def test_a_hub_that_does_not_answer_is_one_line(monkeypatch: pytest.MonkeyPatch):
    def snapshot_download(*_, **__) -> str:
        raise ConnectionError("no route\nto the host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(KinemaError) as failure:
        open_checkpoint("org/name")
    assert str(failure.value) == (
        "cannot fetch 'org/name' from the hub (HF_HUB_OFFLINE is set): no route"
    )


def test_offline_the_hub_is_not_asked(tmp_path: Path):
    """With the client itself, in a process of its own: it reads the variables when imported."""
    commit = "c0ffee" * 6 + "beef"
    folder = tmp_path / "hub" / "models--org--name"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    for name, content in {**DESCRIBED, "vae/diffusion_pytorch_model.safetensors": ""}.items():
        file = folder / "snapshots" / commit / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    code = (
        "from kinema.runtime.checkpoints.checkpoint import open_checkpoint\n"
        "print(open_checkpoint('org/name').path.name)\n"
        "try: open_checkpoint('org/other')\n"
        "except Exception as error: print(error)"
    )
    variables = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    run = subprocess.run(
        [sys.executable, "-c", code], env=variables, capture_output=True, text=True
    )
    first, second = run.stdout.splitlines()
    assert first == commit
    assert second.startswith("cannot fetch 'org/other' from the hub (HF_HUB_OFFLINE is set): ")


# ---- the hash of weights -------------------------------------------------------------------------


def test_the_hash_sees_names_and_contents_of_weights_only(checkpoint_folder: Path):
    def hash_of() -> str:
        return open_checkpoint(checkpoint_folder).weight_hash()

    seen = {hash_of()}
    weights = checkpoint_folder / "transformer" / "model.safetensors"
    weights.write_bytes(b"0" * 3_000_000)
    seen.add(hash_of())
    weights.write_bytes(b"0" * 2_999_999 + b"1")
    changed = hash_of()
    seen.add(changed)
    (checkpoint_folder / "README.md").write_text("a note")
    assert hash_of() == changed
    weights.rename(weights.with_name("other.safetensors"))
    seen.add(hash_of())
    assert len(seen) == 4


def test_a_file_of_the_hub_cache_is_known_by_its_name(checkpoint_folder: Path, tmp_path: Path):
    content = b"weights" * 1000
    weights = checkpoint_folder / "transformer" / "model.safetensors"
    weights.write_bytes(content)
    plain = open_checkpoint(checkpoint_folder).weight_hash()
    blob = tmp_path / hashes.file_hash(weights)
    shutil.move(weights, blob)
    weights.symlink_to(blob)
    assert open_checkpoint(checkpoint_folder).weight_hash() == plain


@pytest.fixture
def remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Files whose contents were read, all of them large enough and old enough to be remembered."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(hashes, "REMEMBERED_FROM", 1)
    monkeypatch.setattr(hashes, "SETTLED_NS", 0)
    read, files = hashes._read, []
    monkeypatch.setattr(hashes, "_read", lambda file: files.append(file) or read(file))
    return files


def test_a_large_file_is_read_once(remembered: list[Path], tmp_path: Path):
    file, other = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    file.write_bytes(b"weights"), other.write_bytes(b"others")
    first = [hashes.file_hash(file), hashes.file_hash(other)]
    assert [hashes.file_hash(file), hashes.file_hash(other)] == first
    assert remembered == [file, other]
    assert [path.name for path in (tmp_path / "cache" / "kinema").iterdir()] == ["hashes.json"]


def test_a_changed_file_is_read_again_even_with_its_old_time(
    remembered: list[Path], tmp_path: Path
):
    file = tmp_path / "a.safetensors"
    file.write_bytes(b"weights")
    stat, first = file.stat(), hashes.file_hash(file)
    file.write_bytes(b"WEIGHTS")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert hashes.file_hash(file) != first and len(remembered) == 2


def test_a_file_just_written_is_not_remembered(
    remembered: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(hashes, "SETTLED_NS", 10**15)
    file = tmp_path / "a.safetensors"
    file.write_bytes(b"weights")
    assert hashes.file_hash(file) == hashes.file_hash(file)
    assert len(remembered) == 2


@pytest.mark.parametrize("content", ["", "[1]", '{"x": 3}', "{"])
def test_a_damaged_cache_is_done_without(remembered: list[Path], tmp_path: Path, content: str):
    store = tmp_path / "cache" / "kinema" / "hashes.json"
    store.parent.mkdir(parents=True)
    store.write_text(content)
    file = tmp_path / "a.safetensors"
    file.write_bytes(b"weights")
    assert hashes.file_hash(file) == hashes.file_hash(file)
    assert len(remembered) == 1


# ---- the embedded model --------------------------------------------------------------------------


def test_without_its_files_the_embedded_model_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "EMBEDDED_FOLDER", tmp_path / "gone")
    with pytest.raises(KinemaError, match=r"not installed.*model_index\.json is missing"):
        open_checkpoint()


def test_what_opens_is_listed(
    checkpoint_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The embedded model, described, and what the hub's cache holds of known kinds."""
    for name, kind in (("org--wan", "WanPipeline"), ("org--other", "OtherPipeline")):
        snapshot = tmp_path / f"models--{name}" / "snapshots" / "0"
        snapshot.mkdir(parents=True)
        (snapshot / INDEX).write_text(json.dumps({"_class_name": kind}))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(module, "EMBEDDED_FOLDER", checkpoint_folder)
    embedded, *others = known_models()
    assert embedded["name"] == "embedded"
    assert embedded["presets"]["num_frames"] == 33
    assert embedded["words"]["things"] == ["ball", "square"]
    assert others == [{"name": "org/wan", "what": "WanPipeline, fetched from the hub"}]
