"""What served files say of where they come from: videos, their pictures, their descendants."""

from __future__ import annotations

import pytest

import kinema

REMIX = {"prompt": "a blue cube bounces on the grass"}
VARIANTS = {"video": "mp4", "thumbnail": "webp", "spritesheet": "jpg"}


@pytest.fixture(scope="module")
def saved(client, video, tmp_path_factory):
    """The files of the finished video."""
    folder = tmp_path_factory.mktemp("saved")
    for variant, suffix in VARIANTS.items():
        content = client.videos.download_content(video.id, variant=variant)
        content.write_to_file(folder / f"{variant}.{suffix}")
    return folder


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_file_is_signed_and_says_which_model_and_seed(saved, variant):
    found = kinema.verify(saved / f"{variant}.{VARIANTS[variant]}")
    assert found.state == "valid" and found.problems == ()
    assert found.generation["settings"]["seed"] == 3
    assert found.generation["model"]["weights"]
    assert "prompt" not in found.generation


def test_the_video_carries_its_marks_and_the_others_are_tied_to_it(saved):
    video, sheet = (kinema.verify(saved / name) for name in ("video.mp4", "spritesheet.jpg"))
    assert video.picture_mark["payload"] == video.generation["mark"]
    assert sheet.generation["mark"] == video.generation["mark"]
    assert sheet.picture_mark["payload"] == video.generation["mark"]


def test_a_remix_of_a_remix_can_be_walked_back(client, served, video, tmp_path):
    for _ in range(2):
        video = client.videos.remix(video.id, **REMIX)
        (video,) = served.wait(video.id)
    client.videos.download_content(video.id).write_to_file(tmp_path / "remix.mp4")
    found = kinema.verify(tmp_path / "remix.mp4")
    assert found.state == "valid" and len(found.lineage) == 2
    assert all(ancestor["generation"]["settings"]["seed"] == 3 for ancestor in found.lineage)


def test_an_edit_of_an_upload_keeps_what_the_upload_said(client, served, saved, tmp_path):
    with (saved / "video.mp4").open("rb") as upload:
        edited = client.videos.edit(prompt=REMIX["prompt"], video=upload, extra_body={"steps": 2})
    (edited,) = served.wait(edited.id)
    assert edited.status == "completed", edited.error
    client.videos.download_content(edited.id).write_to_file(tmp_path / "edit.mp4")
    found = kinema.verify(tmp_path / "edit.mp4")
    assert found.state == "valid" and len(found.lineage) == 1
    assert found.lineage[0]["generation"]["settings"]["seed"] == 3
