"""Characters: made of clips, named in prompts, and shown to models that take references."""

from __future__ import annotations

import json
import os
import time
from typing import Any

import numpy as np
import openai
import pytest
from PIL import Image

pytest.importorskip("fastapi", reason="needs kinema[serve]")

import kinema
from kinema.runtime.media.clips import open_frames
from kinema.runtime.media.mp4 import write_mp4
from kinema.runtime.serve import Settings, characters, create_app, janitor
from kinema.runtime.serve.orders import CHARACTERS

NAME = "Mossy the fox"
ASKED = {"prompt": f"{NAME} runs", "size": "48x80", "seconds": "0.5", "steps": 1, "seed": 3}
FRAMES = 6


@pytest.fixture(scope="module")
def vace(tmp_path_factory):
    """An engine that is shown references."""
    pytest.importorskip("diffusers", reason="makes the checkpoint")
    from ..parity.checkpoints import Variant, build

    options = {"num_layers": 3, "vace_layers": [0, 2], "vace_in_channels": 2 * 4 + 64}
    variant = Variant("WanVACEPipeline", options, {}, model="WanVACETransformer3DModel")
    folder = tmp_path_factory.mktemp("vace")
    build(variant).save_pretrained(folder, safe_serialization=True)
    return kinema.load(folder, "cpu")


@pytest.fixture
def app(engine, tmp_path):
    return create_app(engine, Settings(tmp_path / "data"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> bytes:
    """Frames that get brighter one by one."""
    folder = tmp_path_factory.mktemp("clip")
    frames = (np.full((64, 96, 3), 40 * n, np.uint8) for n in range(FRAMES))
    return write_mp4(folder / "clip.mp4", frames, 4).read_bytes()


def introduced(client, clip, name=NAME):
    return client.videos.create_character(name=name, video=("fox.mp4", clip))


def created(client, **fields):
    asked = {**ASKED, **fields}
    return client.videos.create(prompt=asked.pop("prompt"), extra_body=asked)


def test_a_character_is_made_and_read_and_removed(app, talk, clip):
    client, server = talk(app), app.state.server
    made = introduced(client, clip)
    assert made.name == NAME and made.id.startswith("char_")
    assert abs(made.created_at - time.time()) < 60
    assert client.videos.get_character(made.id).to_dict() == made.to_dict()
    stored = characters.path(server, made.id)
    assert len(list(open_frames(stored))) == FRAMES
    assert [file.name for file in characters.folder(server).iterdir()] == [stored.name]
    with server.store.session() as session:
        assert characters.bytes_kept(session) == stored.stat().st_size
    answer = client.delete(f"/videos/characters/{made.id}", cast_to=dict[str, Any])
    assert answer == {"id": made.id, "object": "character.deleted", "deleted": True}
    assert not stored.exists()
    with pytest.raises(openai.NotFoundError):
        client.videos.get_character(made.id)


def test_of_a_file_and_of_a_video(app, talk, clip):
    client, server = talk(app), app.state.server
    file = client.files.create(file=("fox.mp4", clip), purpose="user_data")
    of_file = client.post(
        "/videos/characters",
        body={"name": "A", "video": {"file_id": file.id}},
        cast_to=dict[str, Any],
    )
    asked = {"size": "64x64", "seconds": "0.5", "steps": 1}
    video = client.videos.create_and_poll(prompt="a fox", extra_body=asked, poll_interval_ms=50)
    of_video = client.videos.create_character(
        name="B", video=openai.omit, extra_body={"video": {"id": video.id}}
    )
    assert len(list(open_frames(characters.path(server, of_file["id"])))) == FRAMES
    client.videos.delete(video.id)
    assert len(list(open_frames(characters.path(server, of_video.id)))) > 1


def test_they_are_listed_in_pages(engine, tmp_path, talk, clip, database_url):
    app = create_app(engine, Settings(tmp_path / "data", database_url=database_url))
    client = talk(app)
    made = [introduced(client, clip, f"fox {n}").id for n in range(3)]

    def page(**query):
        answer = client.get("/videos/characters", options={"params": query}, cast_to=dict[str, Any])
        return [one["id"] for one in answer["data"]], answer["has_more"]

    assert page() == (made[::-1], False)
    assert page(limit=2, order="asc") == (made[:2], True)
    assert page(after=made[1], order="asc") == (made[2:], False)


def test_what_is_no_character_is_refused(app, talk, clip):
    client = talk(app)
    for name in ("", " ", "x" * 81):
        with pytest.raises(openai.BadRequestError) as refused:
            introduced(client, clip, name)
        assert refused.value.param == "name"
    with pytest.raises(openai.BadRequestError) as refused:
        introduced(client, b"no clip at all")
    assert refused.value.param == "video"
    for video in ({"id": "video_none"}, {"file_id": "file-none"}):
        with pytest.raises(openai.APIStatusError) as refused:
            client.post(
                "/videos/characters", body={"name": "A", "video": video}, cast_to=dict[str, Any]
            )
        assert refused.value.status_code in (400, 404)
    assert list(characters.folder(app.state.server).iterdir()) == []


def test_a_model_that_is_shown_no_references_says_so(app, talk, clip):
    client = talk(app)
    made = introduced(client, clip)
    with pytest.raises(openai.BadRequestError, match="no references") as refused:
        created(client, characters=[{"id": made.id}])
    assert refused.value.param == "characters"
    assert client.videos.list().data == []


def test_a_character_appears_where_its_name_does(vace, tmp_path, talk, clip):
    app = create_app(vace, Settings(tmp_path / "data"))
    client, server = talk(app), app.state.server
    one, two = introduced(client, clip), introduced(client, clip, "Pip")
    for wrong in (
        {"prompt": "a fox runs", "characters": [{"id": one.id}]},
        {"characters": [{"id": two.id}]},
        {"characters": [{"id": "char_none"}]},
        {"characters": [{"id": one.id}] * 2},
        {"prompt": f"{NAME} and Pip", "characters": [{"id": n} for n in (one.id, two.id, "x")]},
        {"characters": [{"name": NAME}]},
    ):
        with pytest.raises(openai.BadRequestError) as refused:
            created(client, **wrong)
        assert refused.value.param.split(".")[0] == "characters"
    appear = [{"id": one.id}, {"id": two.id}]
    video = created(client, prompt=f"{NAME} and Pip run", characters=appear)
    video = client.videos.poll(video.id, poll_interval_ms=50)
    assert video.status == "completed", video.error
    assert video.to_dict()["kinema"]["characters"] == [one.id, two.id]
    looks = sorted(server.folder(video.id).glob(CHARACTERS))
    seen = [np.asarray(Image.open(look)).mean() for look in looks]
    wanted = [40 * n for n in (1, 4, 1, 4)]  # of six frames, the middles of both halves
    assert np.abs(np.subtract(seen, wanted)).max() < 8
    again = client.videos.remix(video.id, prompt=f"{NAME} sleeps")
    assert len(list(server.folder(again.id).glob(CHARACTERS))) == 4
    as_text = client.post(
        "/videos",
        body={**ASKED, "characters": json.dumps([{"id": one.id}])},
        cast_to=dict[str, Any],
    )
    assert as_text["kinema"]["characters"] == [one.id]


def test_references_change_what_is_made(vace, tmp_path, talk, clip):
    app = create_app(vace, Settings(tmp_path / "data"))
    client, server = talk(app), app.state.server
    made = introduced(client, clip)
    without = client.videos.poll(created(client).id, poll_interval_ms=50)
    shown = created(client, characters=[{"id": made.id}])
    shown = client.videos.poll(shown.id, poll_interval_ms=50)
    assert (without.status, shown.status) == ("completed", "completed")
    one, other = (
        np.stack(list(open_frames(server.folder(id) / "video.mp4"))).astype(int)
        for id in (without.id, shown.id)
    )
    assert one.shape == other.shape and np.abs(one - other).mean() > 0.5


def test_what_a_kill_left_is_swept(app, talk, clip):
    client, server = talk(app), app.state.server
    made = introduced(client, clip)
    folder = characters.folder(server)
    (folder / "tmp_lone").mkdir()
    for name in ("tmp_lone/given.part", "char_none.mp4"):
        (folder / name).write_bytes(b"lone")
    server.janitor.sweep()
    assert len(list(folder.iterdir())) == 3
    long_ago = time.time() - janitor.LEFT_ALONE - 10
    for file in folder.iterdir():
        os.utime(file, (long_ago, long_ago))
    server.janitor.sweep()
    assert list(folder.iterdir()) == [characters.path(server, made.id)]
