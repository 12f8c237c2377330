"""What a manifest says of how a file was made, and of the files it was made from."""

import json

from kinema import Provenance, verify
from kinema.runtime.media.video import read_info
from kinema.runtime.provenance import manifest

from .conftest import PROMPT, clip, report

MOST_ADDED = 6_000  # bytes


def test_the_prompt_is_signed_only_when_asked_for(tmp_path):
    picture = tmp_path / "secret-folder"
    picture.mkdir()
    (picture / "first.png").write_bytes(b"a picture")
    told = report(image=str(picture / "first.png"), negative_prompt="blur")
    file = clip(told=told).save(tmp_path / "a.mp4")
    written = json.dumps(manifest.read(file))
    assert PROMPT not in written and "blur" not in written and "secret-folder" not in written
    generation = verify(file).generation
    assert len(generation["prompt_sha256"]) == len(generation["negative_prompt_sha256"]) == 64
    assert [entry["name"] for entry in generation["inputs"]] == ["first.png"]
    file = clip(told=told).save(tmp_path / "b.mp4", provenance=Provenance(tell_prompt=True))
    assert verify(file).generation["prompt"] == PROMPT
    assert read_info(file)["request"]["prompt"] == PROMPT  # the user's own record


def test_lossy_modes_are_recorded():
    told = {
        **report(),
        "backends": {"attention": "triton-int8", "patchify": "triton"},
        "engines": {"dtype": "fp8"},
    }
    assert manifest.claims(report(), 1, False)["lossy"] == []
    assert manifest.claims(told, 1, False)["lossy"] == ["attention triton-int8", "engines fp8"]


def test_lineage_can_be_walked(tmp_path, signed):
    """An extension of an edit of a clip: each file names its parent, whose manifest it keeps."""
    edited = report(conditions=[{"frame": 0, "frames": str(signed), "mask": 0.0}])
    edit = clip(told=edited).save(tmp_path / "edit.mp4")
    extended = report(conditions=[{"frame": 0, "frames": str(edit)}])
    file = clip(told=extended).save(tmp_path / "extended.mp4")
    found = verify(file)
    assert found.state == "valid"
    assert [entry["title"] for entry in found.lineage] == ["edit.mp4", "a.mp4"]
    assert found.lineage[1]["generation"] == verify(signed).generation
    assert not any(entry["problems"] for entry in found.lineage)
    read = manifest.read(file)
    actions = [
        action["action"]
        for entry in read["manifests"][read["active_manifest"]]["assertions"]
        if entry["label"] == "c2pa.actions.v2"
        for action in entry["data"]["actions"]
    ]
    assert actions == ["c2pa.opened", "c2pa.edited"]


def test_what_a_source_was_is_said_as_it_is(tmp_path, signed):
    """One without a manifest has none, a changed one is told as changed, a guide is no parent."""
    plain = clip().save(tmp_path / "plain.mp4", provenance=Provenance(manifest=False))
    changed = tmp_path / "changed.mp4"
    data = bytearray(signed.read_bytes())
    data[-20] ^= 1
    changed.write_bytes(data)

    def made_from(source, mask=0.0):
        told = report(conditions=[{"frame": 0, "frames": str(source), "mask": mask}])
        return verify(clip(told=told).save(tmp_path / "made.mp4"))

    assert made_from(plain).lineage[0]["signed_by"] is None
    found = made_from(changed)
    assert found.state == "valid" and "mismatch" in found.lineage[0]["problems"][0]
    data[60] ^= 1  # the manifest itself: it cannot be read, and is not kept
    changed.write_bytes(data)
    assert verify(changed).state == "invalid"
    assert made_from(changed).lineage[0]["title"] == "changed.mp4"
    (tmp_path / "old.gif").write_bytes(b"GIF89a, which has no manifests")
    found = made_from(tmp_path / "old.gif")
    assert found.state == "valid" and found.lineage[0]["signed_by"] is None
    guided = made_from(signed, mask=1)
    assert guided.lineage == () and guided.generation["inputs"][0]["name"] == "a.mp4"


def test_a_manifest_is_small(tmp_path):
    without = clip().save(tmp_path / "b.mp4", provenance=Provenance(manifest=False))
    with_one = clip().save(tmp_path / "a.mp4")
    assert 0 < with_one.stat().st_size - without.stat().st_size <= MOST_ADDED
