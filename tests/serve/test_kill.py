"""Kills at any moment while videos are asked for: what was accepted is made, as if nothing was."""

from __future__ import annotations

import io
import random
import threading
import time

import pytest

openai = pytest.importorskip("openai", reason="needs the official client")
av = pytest.importorskip("av")

PROMPT = "a red ball bounces on the grass"
KILLS, EACH, SEEDS, STEPS = 4, 3, 2, 3
MOST_SECONDS = 0.8  # from the first that is accepted until the kill: all are asked for by then


@pytest.fixture
def own(tmp_path, start_server):
    yield from start_server(tmp_path / "data", "--save-every", "0", "--max-starts", "99")


class Asking(threading.Thread):
    """Asks until the server is gone; `accepted` are those that were answered, with their seeds."""

    def __init__(self, client, seeds: list[int]) -> None:
        super().__init__()
        self.client, self.seeds = client, seeds
        self.accepted: list[tuple[int, str]] = []
        self.first = threading.Event()

    def run(self) -> None:
        for seed in self.seeds:
            extra = {"steps": STEPS, "seed": seed}
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
