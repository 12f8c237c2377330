"""Where files come from: any that is sent in, by the official client, and videos made here."""

from __future__ import annotations

import io
import time

import numpy as np
import openai
import pytest
from PIL import Image

pytest.importorskip("fastapi", reason="needs kinema[serve]")

import kinema
from kinema.runtime.media.mp4 import write_mp4
from kinema.runtime.provenance.marking import marking
from kinema.runtime.serve import Settings, create_app, files
from kinema.runtime.serve.routes import provenance

SMALL = {"steps": 1, "seed": 3}
ORIGIN = {
    "request": {"prompt": "a wave", "seed": 7},
    "plan": {"num_frames": 33, "height": 96, "width": 128, "seed": 7},
    "model": {"name": "tiny", "weights": "ab" * 32},
}


@pytest.fixture
def app(engine, tmp_path):
    return create_app(engine, Settings(tmp_path / "data"))


def waves() -> np.ndarray:
    f, y, x = np.mgrid[:33, :96, :128].astype(np.float64)
    shown = [np.sin(x / 20 + f / 9), np.cos(y / 25), np.sin((x + y) / 30)]
    return np.round(127 + 90 * np.stack(shown, axis=-1)).astype(np.uint8)


@pytest.fixture(scope="module")
def signed(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("signed") / "a.mp4"
    return kinema.Video(waves(), 8, report=ORIGIN).save(path).read_bytes()


@pytest.fixture(scope="module")
def stripped(tmp_path_factory) -> bytes:
    """Encoded anew, so that only the marks are left."""
    path = tmp_path_factory.mktemp("stripped") / "a.mp4"
    mark = marking(kinema.Provenance(manifest=False), ORIGIN, (96, 128), 8)
    write_mp4(path, (mark.frame(frame, i) for i, frame in enumerate(waves())), 8)
    return path.read_bytes()


def checked(client, data: bytes, name: str = "a.mp4"):
    answer = client.content_provenance_checks.create(file=(name, data))
    assert answer.object == "content_provenance_check" and answer.created_at > 1.7e9
    manifest, marks = answer.results
    assert (manifest.type, marks.type) == ("c2pa", "kinema")
    return manifest, marks


@pytest.fixture
def client(app, talk):
    client = talk(app)
    if not hasattr(client, "content_provenance_checks"):
        pytest.skip("this client does not know content provenance checks")
    return client


def test_a_signed_video_is_valid_and_marked(client, app, signed):
    manifest, marks = checked(client, signed)
    assert (manifest.outcome, manifest.validation_state) == ("detected", "valid")
    assert manifest.model == "tiny" and manifest.issuer and manifest.problems == []
    assert manifest.generated_at.endswith("Z") and manifest.software.startswith("kinema")
    assert marks.outcome == "detected" and len(marks.picture_mark["payload"]) == 8
    assert list(files.folder(app.state.server).iterdir()) == []


def test_what_an_invalid_manifest_says_is_not_repeated(client, signed):
    at = signed.rindex(b"mdat") + len(b"mdat") + 2_000
    changed = signed[:at] + bytes([signed[at] ^ 1]) + signed[at + 1 :]
    manifest, _ = checked(client, changed)
    assert (manifest.outcome, manifest.validation_state) == ("not_detected", "invalid")
    assert manifest.problems and manifest.issuer is None and manifest.model is None


def test_marks_outlast_the_manifest(client, signed, stripped):
    manifest, marks = checked(client, stripped)
    assert (manifest.outcome, manifest.validation_state) == ("not_detected", "not_present")
    assert marks.picture_mark["payload"] == checked(client, signed)[1].picture_mark["payload"]


def test_a_picture_that_says_nothing(client):
    picture = io.BytesIO()
    Image.new("RGB", (96, 64), "red").save(picture, "PNG")
    manifest, marks = checked(client, picture.getvalue(), "a.png")
    assert manifest.validation_state == "not_present"
    assert (manifest.outcome, marks.outcome) == ("not_detected", "not_detected")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no media at all, but long enough",
        b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n/etc/passwd\n#EXT-X-ENDLIST\n",
        b"ffconcat version 1.0\nfile /etc/passwd\n",
        b'<?xml version="1.0"?><MPD type="static"></MPD>',
    ],
)
def test_what_is_no_media_is_not_looked_into(client, data):
    with pytest.raises(openai.BadRequestError) as refused:
        client.content_provenance_checks.create(file=("a.mp4", data))
    assert refused.value.param == "file"


def test_a_list_of_other_files_is_not_followed(stripped, tmp_path):
    (tmp_path / "a.mp4").write_bytes(stripped)
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile a.mp4\n")
    assert kinema.verify(tmp_path / "a.mp4").picture_mark is not None
    assert kinema.verify(tmp_path / "list.mp4").state == "nothing"


def test_few_are_looked_into_at_once(client, signed):
    for _ in range(provenance.AT_ONCE):
        assert provenance._looking.acquire(blocking=False)
    try:
        with pytest.raises(openai.RateLimitError) as refused:
            client.content_provenance_checks.create(file=("a.mp4", signed))
        assert int(refused.value.response.headers["retry-after"]) >= 1
    finally:
        provenance._looking.release(provenance.AT_ONCE)
    assert checked(client, signed)[0].outcome == "detected"


def finished(client, id: str):
    for _ in range(600):
        video = client.videos.retrieve(id)
        if video.status not in ("queued", "in_progress"):
            assert video.status == "completed", video.error
            return video
        time.sleep(0.05)
    raise AssertionError(video)


def test_a_video_made_here_says_where_it_comes_from(app, talk):
    client = talk(app)
    first = client.videos.create(prompt="a red ball", size="64x64", extra_body=SMALL)
    asked = f"/videos/{first.id}/provenance"
    finished(client, first.id)
    second = finished(client, client.videos.remix(first.id, prompt="a blue ball").id)
    told = client.get(f"/videos/{second.id}/provenance", cast_to=object)
    assert (told["object"], told["state"], told["problems"]) == ("video.provenance", "valid", [])
    assert told["generation"]["model"]["name"] == "embedded"
    assert told["generation"]["settings"]["seed"] == 3 and "prompt" not in told["generation"]
    assert [made["id"] for made in told["made_from"]] == [first.id] and "path" not in told
    assert client.get(asked, cast_to=object)["made_from"] == []
    manifest, _ = checked(client, client.videos.download_content(second.id).content)
    assert manifest.model == "embedded" and manifest.validation_state == "valid"
    client.videos.delete(first.id)
    told = client.get(f"/videos/{second.id}/provenance", cast_to=object)
    assert told["made_from"] == [{"id": first.id}]
    with pytest.raises(openai.NotFoundError):
        client.get(asked, cast_to=object)
