"""What was accepted is made, whatever becomes of the process, and as if nothing had."""

from __future__ import annotations

import io
import json
import random
import signal
import threading
import time

import av
import httpx
import openai
import pytest
from safetensors import safe_open

PROMPT = "a red ball bounces on the grass"
STEPS = 20
KILLS, EACH, SEEDS, FEW = 4, 3, 2, 3
MOST_SECONDS = 0.8  # from the first that is accepted until the kill: all are asked for by then


@pytest.fixture
def own(tmp_path, start_server):
    yield from start_server(
        tmp_path / "data", "--save-every", "0", "--at-once", "2", "--max-starts", "99"
    )


def steps_saved(file) -> int:
    with safe_open(file, framework="pt") as run:
        return int(run.metadata()["index"])


def ask(client, seed: int, steps: int = STEPS) -> str:
    extra = {"steps": steps, "seed": seed}
    return client.videos.create(prompt=PROMPT, size="64x64", extra_body=extra).id


def wait_until(condition, seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def first_step(served, id: str) -> int:
    """The first step that the stream tells of."""
    with httpx.stream("GET", f"{served.url}/v1/videos/{id}/events", timeout=60) as answer:
        for line in answer.iter_lines():
            if line.startswith("data:"):
                told = json.loads(line[5:])
                if told.get("stage") == "denoise":
                    return told["index"]
    raise AssertionError("no step was told")


def test_after_a_kill_running_videos_go_on_and_queued_ones_run(own):
    client = own.client()
    running, other, queued = (ask(client, seed) for seed in (1, 1, 2))
    run = own.data / "videos" / running / "run-0.kinema"
    wait_until(lambda: run.exists() and steps_saved(run) >= 3)
    own.kill(signal.SIGKILL)
    saved = steps_saved(run)
    own.start()
    assert first_step(own, running) == saved + 1
    done = own.wait(running, other, queued)
    assert [video.status for video in done] == ["completed"] * 3
    reference = own.wait(ask(client, 1))[0].id  # never interrupted
    assert frames(client, running) == frames(client, other) == frames(client, reference)
    left = {file.suffix for file in (own.data / "videos" / running).iterdir()}
    assert left == {".mp4", ".webp", ".jpg", ".npz"}


def test_sigterm_saves_and_leaves(own):
    client = own.client()
    running = ask(client, 1, steps=400)
    folder = own.data / "videos" / running
    wait_until(lambda: client.videos.retrieve(running).progress > 2)
    own.kill(signal.SIGTERM)
    saved = steps_saved(folder / "run-0.kinema")
    assert 0 < saved < 400
    own.start()
    assert first_step(own, running) == saved + 1
    client.videos.delete(running)
    with pytest.raises(openai.NotFoundError):
        client.videos.retrieve(running)
    wait_until(lambda: not folder.exists())


# ---- kills at any moment, while videos are asked for ---------------------------------------------


class Asking(threading.Thread):
    """Asks until the server is gone; `accepted` are those that were answered, with their seeds."""

    def __init__(self, client, seeds: list[int]) -> None:
        super().__init__()
        self.client, self.seeds = client, seeds
        self.accepted: list[tuple[int, str]] = []
        self.first = threading.Event()

    def run(self) -> None:
        for seed in self.seeds:
            extra = {"steps": FEW, "seed": seed}
            try:
                video = self.client.videos.create(prompt=PROMPT, size="64x64", extra_body=extra)
            except openai.APIConnectionError:
                return
            self.accepted.append((seed, video.id))
            self.first.set()


def test_kills_under_load_lose_nothing_and_change_no_bit(own):
    draw, accepted = random.Random(8), []
    for _ in range(KILLS):
        asking = Asking(own.client(), [draw.randrange(SEEDS) for _ in range(EACH)])
        asking.start()
        assert asking.first.wait(60)
        time.sleep(draw.uniform(0, MOST_SECONDS))
        own.kill()
        asking.join()
        accepted += asking.accepted
        own.start()
    undisturbed = Asking(own.client(), list(range(SEEDS)))
    undisturbed.run()
    ids = [id for _, id in accepted + undisturbed.accepted]
    assert [video.status for video in own.wait(*ids)] == ["completed"] * len(ids)
    client = own.client()
    assert {video.id for video in client.videos.list()} >= set(ids)
    as_made = {seed: frames(client, id) for seed, id in undisturbed.accepted}
    assert len(accepted) >= KILLS and as_made[0] != as_made[1]
    for seed, id in accepted:
        assert frames(client, id) == as_made[seed]


def frames(client, id: str) -> list[bytes]:
    data = client.videos.download_content(id).read()
    with av.open(io.BytesIO(data)) as container:
        return [frame.to_ndarray(format="rgb24").tobytes() for frame in container.decode(video=0)]
