"""What was accepted is made, whatever becomes of the process."""

from __future__ import annotations

import json
import signal
import time

import httpx
import openai
import pytest
from safetensors import safe_open

PROMPT = "a red ball bounces on the grass"
STEPS = 20


@pytest.fixture
def own(tmp_path, start_server):
    yield from start_server(
        tmp_path / "data", "--save-every", "0", "--at-once", "2", "--max-starts", "9"
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
    contents = [client.videos.download_content(id).read() for id in (running, other, reference)]
    assert frames(contents[0]) == frames(contents[1]) == frames(contents[2])
    left = {file.suffix for file in (own.data / "videos" / running).iterdir()}
    assert left == {".mp4", ".webp", ".jpg", ".npz"}


def test_kills_at_any_moment_lose_nothing(own):
    accepted = []
    for pause in (0.05, 0.4, 1.1):
        client = own.client()
        accepted += [ask(client, seed, steps=8) for seed in (5, 6)]
        time.sleep(pause)
        own.kill(signal.SIGKILL)
        own.start()
    assert [video.status for video in own.wait(*accepted)] == ["completed"] * len(accepted)
    assert {video.id for video in own.client().videos.list()} == set(accepted)


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


def frames(data: bytes) -> list[bytes]:
    import io

    import av

    with av.open(io.BytesIO(data)) as container:
        return [frame.to_ndarray(format="rgb24").tobytes() for frame in container.decode(video=0)]
