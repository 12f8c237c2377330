"""The app in this process: limits, expiry, lengths made in parts; and webhooks."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import openai
import pytest
from PIL import Image

pytest.importorskip("fastapi", reason="needs kinema[serve]")

from starlette.testclient import TestClient

import kinema
from kinema.runtime.media.clips import open_frames
from kinema.runtime.media.video import read_info
from kinema.runtime.serve import Settings, create_app, webhooks
from kinema.runtime.serve.limits import Limits
from kinema.runtime.serve.making import Making, Paused
from kinema.runtime.serve.orders import SOURCE, Order
from kinema.runtime.serve.store import Store

ASKED = {"prompt": "a red ball bounces", "size": "64x64", "steps": 2}


def serve(engine, folder, **settings):
    return TestClient(create_app(engine, Settings(folder / "data", **settings)))


def finished(client, id: str) -> dict:
    for _ in range(600):
        video = client.get(f"/v1/videos/{id}").json()
        if video["status"] not in ("queued", "in_progress"):
            return video
        time.sleep(0.05)
    raise AssertionError(video)


def test_limits_are_told_with_when_to_come_again(engine, tmp_path):
    limits = Limits(requests_per_minute=3, max_queued=0)
    with serve(engine, tmp_path, limits=limits) as client:
        refused = client.post("/v1/videos", json=ASKED)
        assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["code"] == "queue_full"
        codes = [client.get("/v1/videos").status_code for _ in range(3)]
        assert codes == [200, 200, 429]
        assert client.get("/healthz").status_code == 200
    assert list((tmp_path / "data" / "videos").iterdir()) == []


def test_a_full_disk_refuses_new_videos_and_serves_old_ones(engine, tmp_path):
    with serve(engine, tmp_path) as client:
        id = client.post("/v1/videos", json=ASKED).json()["id"]
        assert finished(client, id)["status"] == "completed"
    for settings in ({"free_bytes": 1 << 60}, {"quota_bytes": 1}):
        with serve(engine, tmp_path, **settings) as client:
            refused = client.post("/v1/videos", json=ASKED)
            assert refused.status_code == 507
            assert refused.json()["error"]["code"] == "insufficient_storage"
            assert client.get("/readyz").status_code == 503
            assert client.get(f"/v1/videos/{id}/content").status_code == 200


def test_what_has_expired_is_swept_away(engine, tmp_path):
    with serve(engine, tmp_path, keep_seconds=0) as client:
        id = client.post("/v1/videos", json=ASKED).json()["id"]
        video = finished(client, id)
        assert video["expires_at"] == video["completed_at"]
        client.app.state.server.janitor.sweep()
        assert client.get(f"/v1/videos/{id}").status_code == 404
        assert not (tmp_path / "data" / "videos" / id).exists()


def test_a_long_video_and_an_extension_are_made_in_parts(engine, tmp_path):
    with serve(engine, tmp_path) as client:
        asked = {**ASKED, "seconds": "8", "size": "64x96"}
        video = finished(client, client.post("/v1/videos", json=asked).json()["id"])
        assert video["status"] == "completed", video["error"]
        assert (video["kinema"]["parts"], video["kinema"]["num_frames"]) == (3, 65)
        body = {"prompt": "it rests", "video": {"id": video["id"]}, "seconds": 2, "steps": 2}
        longer = finished(client, client.post("/v1/videos/extensions", json=body).json()["id"])
        assert longer["status"] == "completed", longer["error"]
        assert (longer["seconds"], longer["size"]) == ("10", "64x96")
        folder = tmp_path / "data" / "videos"
        source, whole = (folder / v["id"] / "video.mp4" for v in (video, longer))
        infos = [read_info(path)["media"] for path in (source, whole)]
        assert [info["num_frames"] for info in infos] == [65, 65 + 16]
        assert infos[1]["num_samples"] == pytest.approx(16_000 * 81 / 8, abs=2048)
        first, second = (np.stack(list(open_frames(path))).astype(int) for path in (source, whole))
        assert np.abs(first - second[:65]).mean() < 3  # encoded twice


def test_a_paused_video_of_parts_ends_as_if_it_had_not_been(engine, tmp_path):
    order = Order("a red ball bounces", seed=1, width=64, height=64, seconds=8, steps=3)

    def make(name: str, stop_after: int | None = None) -> list[bytes]:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        making = Making(engine, order, folder, 0.0, lambda *_: None, lambda: False)
        for count, _ in enumerate(making.work()):
            making.stopping = count == stop_after
        return [frame.tobytes() for frame in open_frames(folder / "video.mp4")]

    straight = make("straight")
    for stop in (2, 6, 13, 15):  # in the steps and the decoding of the first part, and the second
        with pytest.raises(Paused):
            make("paused", stop)
    assert make("paused") == straight
    assert not (tmp_path / "paused" / SOURCE).exists()


class Listening(BaseHTTPRequestHandler):
    """Hears webhooks; the first time it says that it did not."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.heard.append((dict(self.headers), body))
        self.send_response(500 if len(self.server.heard) == 1 else 204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def receiver():
    with HTTPServer(("127.0.0.1", 0), Listening) as server:
        server.heard = []
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def store(tmp_path):
    made = Store(f"sqlite:///{tmp_path / 'a.db'}")
    made.upgrade()
    yield made
    made.close()


def test_webhooks_are_signed_and_told_again(store, receiver, monkeypatch):
    monkeypatch.setattr(webhooks, "wait_after", lambda tries: 0)
    monkeypatch.setattr(webhooks, "LOOK_EVERY", 0.05)
    hooks = webhooks.Webhooks(store, Limits(), allow_private=True)
    url = f"http://localhost:{receiver.server_port}/told"
    _, secret = hooks.add_endpoint("me", "mine", url, ["video.completed"])
    with store.session() as session:
        hooks.ended(session, "me", "video.completed", "video_1")
        hooks.ended(session, "me", "video.failed", "video_2")
        hooks.ended(session, "you", "video.completed", "video_3")
    hooks.start()
    until = time.monotonic() + 20
    while len(receiver.heard) < 2 and time.monotonic() < until:
        time.sleep(0.02)
    hooks.stop()
    (before, body), (again, same) = receiver.heard
    assert body == same and before["webhook-id"] == again["webhook-id"]
    client = openai.OpenAI(api_key="none", webhook_secret=secret)
    event = client.webhooks.unwrap(body, again)
    assert (event.type, event.data.id) == ("video.completed", "video_1")
    with pytest.raises(openai.InvalidWebhookSignatureError):
        client.webhooks.unwrap(body + b" ", again)


def test_webhooks_do_not_call_this_machine_unless_allowed(store):
    hooks = webhooks.Webhooks(store, Limits())
    for host in ("127.0.0.1", "localhost", "169.254.169.254", "10.0.0.1", "[::1]", "0.0.0.0"):
        with pytest.raises(kinema.UsageError, match=r"public|private|address"):
            hooks.add_endpoint("me", "mine", f"http://{host}/x", ["video.completed"])


def test_a_first_frame_comes_as_a_file_or_in_a_url(engine, tmp_path):
    picture = io.BytesIO()
    Image.new("RGB", (96, 64), "red").save(picture, "PNG")
    data = picture.getvalue()
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    form = {"prompt": "it moves", "size": "64x64", "steps": "1"}
    with serve(engine, tmp_path) as client:
        ways = [
            {"data": form, "files": {"input_reference": ("a.png", data, "image/png")}},
            {"data": {**form, "input_reference[image_url]": url}},
            {"data": {**form, "input_reference": json.dumps({"image_url": url})}},
            {"json": {**form, "input_reference": {"image_url": url}}},
        ]
        for way in ways:
            answer = client.post("/v1/videos", **way)
            assert answer.status_code == 200, answer.text
            video = finished(client, answer.json()["id"])
            assert video["status"] == "completed", video["error"]
            stored = tmp_path / "data" / "videos" / video["id"] / "reference.png"
            with Image.open(stored) as image:
                assert image.size == (96, 64)
        for wrong in ({"image_url": url, "file_id": "f"}, {}, "text", {"image_url": 1}, [url]):
            refused = client.post("/v1/videos", json={**form, "input_reference": wrong})
            assert refused.status_code == 400
            assert refused.json()["error"]["param"] == "input_reference"


def test_the_description_tells_of_every_route(engine, tmp_path):
    with serve(engine, tmp_path) as client:
        paths = client.get("/openapi.json").json()["paths"]
    assert {"post", "get"} <= set(paths["/v1/videos"])
    body = paths["/v1/videos"]["post"]["requestBody"]["content"]
    assert set(body) == {"application/json", "multipart/form-data"}
    assert {"prompt", "input_reference", "seed"} <= set(
        body["application/json"]["schema"]["properties"]
    )
