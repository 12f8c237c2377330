"""Times of the Videos API in one process: an answer, and a video from request to file."""

from __future__ import annotations

import time

import pytest

pytest.importorskip("fastapi", reason="needs kinema[serve]")
from fastapi.testclient import TestClient

import kinema
from kinema.runtime.serve import Settings, create_app

VIDEO = {"prompt": "a red ball bounces", "size": "64x64", "steps": 1, "seed": 0}


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    app = create_app(kinema.load(device="cpu"), Settings(tmp_path_factory.mktemp("videos")))
    with TestClient(app) as client:
        yield client


@pytest.mark.benchmark(group="serve")
def test_answer(benchmark, client):
    answer = benchmark(client.get, "/healthz")
    assert answer.status_code == 200


@pytest.mark.benchmark(group="serve")
@pytest.mark.parametrize("count", [1, 4])
def test_videos(benchmark, client, count):
    """So many requests at once, until all are files."""

    def make():
        answers = [client.post("/v1/videos", json=VIDEO) for _ in range(count)]
        assert all(answer.status_code == 200 for answer in answers), answers[0].text
        waiting = [answer.json()["id"] for answer in answers]
        while waiting:
            time.sleep(0.01)
            videos = [client.get(f"/v1/videos/{name}").json() for name in waiting]
            assert all(video["status"] != "failed" for video in videos), videos
            waiting = [video["id"] for video in videos if video["status"] != "completed"]

    benchmark.pedantic(make, rounds=3, warmup_rounds=1)
