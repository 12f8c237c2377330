"""Files, with the official client on an app in this process."""

from __future__ import annotations

import errno
import io
import json
import os
import time

import numpy as np
import openai
import pytest
from PIL import Image

pytest.importorskip("fastapi", reason="needs kinema[serve]")

from starlette.testclient import TestClient

from kinema.runtime.media.mp4 import write_mp4
from kinema.runtime.serve import Settings, create_app, files, janitor, pictures
from kinema.runtime.serve.errors import APIError
from kinema.runtime.serve.limits import Limits
from kinema.runtime.serve.orders import REFERENCE, SOURCE

HOUR = 3600
LINES = b'{"custom_id": "a"}\n'


@pytest.fixture
def app(engine, tmp_path):
    return create_app(engine, Settings(tmp_path / "data"))


def test_a_file_comes_back_as_it_was_given(app, talk):
    client = talk(app)
    made = client.files.create(file=("a b.jsonl", LINES), purpose="user_data")
    assert (made.object, made.status, made.expires_at) == ("file", "processed", None)
    assert (made.filename, made.purpose, made.bytes) == ("a b.jsonl", "user_data", len(LINES))
    assert made.id.startswith("file-") and abs(made.created_at - time.time()) < 60
    assert client.files.retrieve(made.id) == made
    assert client.files.wait_for_processing(made.id) == made
    answer = client.files.content(made.id)
    assert answer.content == LINES
    headers = answer.response.headers
    assert headers["content-type"] == "application/octet-stream"
    assert headers["x-content-type-options"] == "nosniff"
    gone = client.files.delete(made.id)
    assert gone.deleted and gone.id == made.id
    for call in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError) as refused:
            call(made.id)
        assert refused.value.param == "file_id"
    assert list(files.folder(app.state.server).iterdir()) == []


def test_files_are_listed_in_pages(engine, tmp_path, talk, database_url):
    settings = Settings(tmp_path / "data", database_url=database_url, quota_bytes=10**9)
    client = talk(create_app(engine, settings))
    names = [f"{n}.jsonl" for n in range(5)]
    for number, name in enumerate(names):
        purpose = "batch" if number % 2 else "vision"
        client.files.create(file=(name, LINES), purpose=purpose)
    assert [file.filename for file in client.files.list()] == names[::-1]
    page = client.files.list(limit=2, order="asc")
    assert page.has_more and [file.filename for file in page.data] == names[:2]
    assert [file.filename for file in page] == names
    assert [file.filename for file in client.files.list(purpose="batch")] == [names[3], names[1]]
    with pytest.raises(openai.BadRequestError):
        client.files.list(limit=10_001)
    with pytest.raises(openai.NotFoundError):
        client.files.list(after="file-none")


def test_files_expire(app, talk):
    client, server = talk(app), app.state.server
    batch = client.files.create(file=LINES, purpose="batch")
    assert batch.expires_at == batch.created_at + 30 * 24 * HOUR
    short = client.files.create(
        file=LINES, purpose="vision", expires_after={"anchor": "created_at", "seconds": HOUR}
    )
    assert short.expires_at == short.created_at + HOUR
    with server.store.session() as session:
        files.find(session, "local", short.id).expires_at = 1
    server.janitor.sweep()
    assert [file.id for file in client.files.list()] == [batch.id]
    assert [path.name for path in files.folder(server).iterdir()] == [batch.id]


def test_contents_without_a_row_are_swept_away_once_they_are_old(app, talk):
    client, server = talk(app), app.state.server
    kept = client.files.create(file=LINES, purpose="vision")
    folder, long_ago = files.folder(server), time.time() - 2 * janitor.LEFT_ALONE
    for name in ("file-lost", ".kinema-0.part", "file-new"):
        (folder / name).write_bytes(LINES)
    for name in ("file-lost", ".kinema-0.part", kept.id):
        os.utime(folder / name, (long_ago, long_ago))
    server.janitor.sweep()
    assert {path.name for path in folder.iterdir()} == {kept.id, "file-new"}


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"file": b"", "purpose": "vision"}, "file"),
        ({"file": LINES, "purpose": "batch_output"}, "purpose"),
        ({"file": LINES, "purpose": "vision", "extra_body": {"colour": "red"}}, "colour"),
        (
            {
                "file": LINES,
                "purpose": "vision",
                "expires_after": {"anchor": "created_at", "seconds": 1},
            },
            "expires_after.seconds",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_its_name(app, talk, asked, param):
    client = talk(app)
    with pytest.raises(openai.BadRequestError) as refused:
        client.files.create(**asked)
    assert refused.value.param == param
    assert list(client.files.list()) == []


def test_a_file_that_is_no_upload_is_refused(app, talk):
    client = talk(app)
    with pytest.raises(openai.BadRequestError) as refused:
        client.post("/files", body={"file": "x", "purpose": "vision"}, cast_to=object)
    assert refused.value.param == "file"


def test_each_key_sees_its_own_files(engine, tmp_path, talk):
    keys = tmp_path / "keys"
    keys.write_text("one-key-of-somebody\nanother-key-of-others\n")
    keys.chmod(0o600)
    app = create_app(engine, Settings(tmp_path / "data", key_file=keys))
    mine = talk(app, "one-key-of-somebody")
    theirs = mine.with_options(api_key="another-key-of-others")
    made = mine.files.create(file=LINES, purpose="vision")
    assert list(theirs.files.list()) == []
    for call in (theirs.files.retrieve, theirs.files.content, theirs.files.delete):
        with pytest.raises(openai.NotFoundError):
            call(made.id)
    with pytest.raises(openai.NotFoundError):
        theirs.files.list(after=made.id)
    with pytest.raises(openai.AuthenticationError):
        mine.with_options(api_key="no-key-that-is-known").files.list()
    assert mine.files.content(made.id).content == LINES


def test_files_count_in_the_quota_and_have_a_limit(engine, tmp_path, talk):
    limits = Limits(max_body_bytes=20_000)
    app = create_app(engine, Settings(tmp_path / "data", quota_bytes=10_000, limits=limits))
    client = talk(app)
    client.files.create(file=b"a" * 6_000, purpose="vision")
    for size, status in ((6_000, 507), (30_000, 413)):
        with pytest.raises(openai.APIStatusError) as refused:
            client.files.create(file=io.BytesIO(b"a" * size), purpose="vision")
        assert refused.value.status_code == status
    client.files.create(file=b"a" * 3_999, purpose="vision")
    with pytest.raises(openai.APIStatusError) as refused:
        client.files.create(file=b"a", purpose="vision")
    assert (refused.value.status_code, refused.value.code) == (507, "insufficient_storage")
    assert sum(file.bytes for file in client.files.list()) == 9_999


def test_a_full_disk_is_told_and_leaves_nothing(app, talk, monkeypatch):
    def full(source, into):
        into.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    client = talk(app)
    monkeypatch.setattr(files, "_copy", full)
    with pytest.raises(openai.InternalServerError) as refused:
        client.files.create(file=LINES, purpose="vision")
    assert (refused.value.status_code, refused.value.code) == (507, "insufficient_storage")
    assert list(files.folder(app.state.server).iterdir()) == []
    assert list(client.files.list()) == []


def test_the_description_of_an_upload_stands_by_itself(app):
    with TestClient(app) as client:
        paths = client.get("/openapi.json").json()["paths"]
    told = paths["/v1/files"]["post"]["requestBody"]["content"]
    assert list(told) == ["multipart/form-data"] and "$ref" not in json.dumps(told)
    fields = told["multipart/form-data"]["schema"]["properties"]
    assert fields["file"]["format"] == "binary" and "batch" in fields["purpose"]["enum"]
    stay = fields["expires_after"]["anyOf"][0]["properties"]["seconds"]
    assert (stay["minimum"], stay["maximum"]) == (HOUR, 30 * 24 * HOUR)


def test_a_name_is_only_a_name(app, talk):
    client = talk(app)
    for name in ("../../etc/passwd", "a\r\nb: c", "x" * 500, "rød 🎈.png"):
        made = client.files.create(file=(name, LINES), purpose="vision")
        assert len(made.filename) <= 200 and not set(made.filename) & {"\r", "\n"}
        assert client.files.content(made.id).content == LINES
    assert len(list(files.folder(app.state.server).iterdir())) == 4


# ---- videos of files -----------------------------------------------------------------------------


def picture() -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (96, 64), "red").save(data, "PNG")
    return data.getvalue()


def clip(folder) -> bytes:
    frames = np.random.default_rng(0).integers(0, 255, (9, 64, 64, 3), np.uint8)
    return write_mp4(folder / "clip.mp4", iter(frames), 8).read_bytes()


def test_a_first_frame_may_be_a_file(app, talk, monkeypatch):
    client, server, seen = talk(app), app.state.server, {}

    def accept(owner, id, model, order, **_):
        seen["order"], seen["shown"] = order, pictures.read(server.folder(id) / REFERENCE)
        raise APIError(409, "seen")

    monkeypatch.setattr(server, "accept", accept)
    kept = client.files.create(file=("a.png", picture()), purpose="vision")
    for way in ({"file_id": kept.id}, json.dumps({"file_id": kept.id})):
        with pytest.raises(openai.ConflictError):
            client.videos.create(prompt="it moves", extra_body={"input_reference": way})
        assert seen["order"].picture and seen.pop("shown").shape == (64, 96, 3)
    assert client.files.content(kept.id).content == picture()


def test_a_video_may_be_a_file(app, talk, tmp_path):
    client, server = talk(app), app.state.server
    data = clip(tmp_path)
    kept = client.files.create(file=("a.mp4", data), purpose="user_data")
    body = {"prompt": "a blue square", "video": {"file_id": kept.id}, "steps": 2}
    video = client.post("/videos/edits", body=body, cast_to=openai.types.Video)
    assert (video.size, video.seconds) == ("64x64", "1.125")
    assert (server.folder(video.id) / SOURCE).is_file()
    client.files.delete(kept.id)
    assert finished(client, video.id).status == "completed"


@pytest.mark.parametrize("content", [b"no picture, no clip", None])
@pytest.mark.parametrize(
    ("route", "field"),
    [("/videos", "input_reference"), ("/videos/edits", "video"), ("/videos/extensions", "video")],
)
def test_refusals_of_what_was_given_name_its_field(app, talk, route, field, content):
    client, id = talk(app), "file-none"
    if content is not None:
        id = client.files.create(file=content, purpose="vision").id
    body = {"prompt": "it moves", field: {"file_id": id}}
    with pytest.raises(openai.BadRequestError) as refused:
        client.post(route, body=body, cast_to=object)
    assert refused.value.param == field
    assert (refused.value.code == "file_not_found") == (content is None)
    assert str(app.state.server.settings.data) not in refused.value.message
    assert list((app.state.server.settings.data / "videos").iterdir()) == []


def test_an_upload_that_cannot_be_read_names_its_field(app, talk):
    client = talk(app)
    with pytest.raises(openai.BadRequestError) as refused:
        client.videos.create(prompt="it moves", input_reference=("a.png", b"no picture"))
    assert refused.value.param == "input_reference"


def finished(client, id: str):
    for _ in range(600):
        video = client.videos.retrieve(id)
        if video.status not in ("queued", "in_progress"):
            return video
        time.sleep(0.05)
    raise AssertionError(video)
