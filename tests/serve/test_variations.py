"""Several videos of one request: all of them or none, each of its own seed."""

from __future__ import annotations

import time

import pytest

pytest.importorskip("fastapi", reason="needs kinema[serve]")

from starlette.testclient import TestClient

from kinema.runtime.serve import Settings, create_app
from kinema.runtime.serve.limits import Limits

ASKED = {"prompt": "a red ball bounces", "size": "64x64", "seconds": "1", "steps": 1, "seed": 7}


def serve(engine, folder, **settings):
    return TestClient(create_app(engine, Settings(folder / "data", **settings)))


def finished(client, id):
    for _ in range(1200):
        video = client.get(f"/v1/videos/{id}").json()
        if video["status"] not in ("queued", "in_progress"):
            assert video["status"] == "completed", video["error"]
            return video
        time.sleep(0.05)
    raise AssertionError(video)


def test_variations_are_videos_with_seeds_one_after_another(engine, tmp_path):
    with serve(engine, tmp_path) as client:
        first = client.post("/v1/videos", data={**ASKED, "variations": "3"}).json()
        ids = first["kinema"]["variations"]
        assert len(set(ids)) == 3 and ids[0] == first["id"]
        videos = [finished(client, id) for id in ids]
        assert [video["kinema"]["seed"] for video in videos] == [7, 8, 9]
        assert all(video["kinema"]["variations"] == ids for video in videos)
        assert [v["id"] for v in client.get("/v1/videos?order=asc").json()["data"]] == ids
        contents = {client.get(f"/v1/videos/{id}/content").content for id in ids}
        assert len(contents) == 3
        alone = client.post("/v1/videos", json={**ASKED, "seed": 8}).json()
        assert "variations" not in finished(client, alone["id"])["kinema"]
        remixed = client.post(f"/v1/videos/{ids[1]}/remix", json={"prompt": "it rests"}).json()
        assert "variations" not in remixed["kinema"] and remixed["kinema"]["seed"] == 8
        body = {**ASKED, "video": {"id": ids[0]}, "variations": 2}
        del body["size"], body["seconds"]
        edits = client.post("/v1/videos/edits", json=body).json()["kinema"]["variations"]
        assert [finished(client, id)["kinema"]["seed"] for id in edits] == [7, 8]


def test_all_variations_are_accepted_or_none(engine, tmp_path):
    with serve(engine, tmp_path, limits=Limits(max_queued=2)) as client:
        refused = client.post("/v1/videos", json={**ASKED, "variations": 3})
        assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
        error = refused.json()["error"]
        assert error["code"] == "queue_full" and "3 would come" in error["message"]
        assert client.get("/v1/videos").json()["data"] == []
        assert list((tmp_path / "data" / "videos").iterdir()) == []
        assert client.post("/v1/videos", json={**ASKED, "variations": 2}).status_code == 200


@pytest.mark.parametrize("count", [0, 5, "many", 1.5])
def test_as_many_as_are_made_at_once_are_told(engine, tmp_path, count):
    with serve(engine, tmp_path) as client:
        refused = client.post("/v1/videos", json={**ASKED, "variations": count})
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == "variations"
