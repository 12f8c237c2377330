"""Opening a checkpoint: what opens, and what is said about one that does not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest

from kinema.runtime import checkpoint as module
from kinema.runtime.checkpoint import INDEX, describe_embedded, known_models, open_checkpoint
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


def test_a_hub_id_is_fetched_as_data_only(checkpoint_folder: Path, monkeypatch: pytest.MonkeyPatch):
    asked = {}

    def snapshot_download(hub_id: str, allow_patterns: list[str]) -> str:
        asked.update(hub_id=hub_id, patterns=allow_patterns)
        return str(checkpoint_folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    opened = open_checkpoint("org/name")
    assert (opened.name, asked["hub_id"]) == ("org/name", "org/name")
    assert not any(pattern.endswith((".py", ".bin", "*")) for pattern in asked["patterns"])


def test_a_hub_that_does_not_answer_is_one_line(monkeypatch: pytest.MonkeyPatch):
    def snapshot_download(hub_id: str, allow_patterns: list[str]) -> str:
        raise ConnectionError("no route\nto the host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(KinemaError) as failure:
        open_checkpoint("org/name")
    assert str(failure.value) == (
        "cannot fetch 'org/name' from the hub (HF_HUB_OFFLINE is set): no route"
    )


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
    blob = tmp_path / module._sha256(weights)
    shutil.move(weights, blob)
    weights.symlink_to(blob)
    assert open_checkpoint(checkpoint_folder).weight_hash() == plain


def test_without_its_files_the_embedded_model_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "EMBEDDED_FOLDER", tmp_path / "gone")
    with pytest.raises(KinemaError, match=r"not installed.*model_index\.json is missing"):
        open_checkpoint()


def test_the_embedded_model_is_described(checkpoint_folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "EMBEDDED_FOLDER", checkpoint_folder)
    described = describe_embedded()
    assert described["presets"]["num_frames"] == 33
    assert described["words"]["things"] == ["ball", "square"]
    assert [known["source"] for known in known_models()] == ["embedded", "FOLDER", "ORG/NAME"]
