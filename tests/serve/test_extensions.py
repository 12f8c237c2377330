"""What goes on from a video, after it or before it."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="needs kinema[serve]")

from starlette.testclient import TestClient

import kinema
from kinema.runtime.media.clips import open_frames
from kinema.runtime.media.mp4 import write_mp4
from kinema.runtime.media.video import read_info
from kinema.runtime.models.wan.presets import WAN
from kinema.runtime.serve import Settings, create_app, edits
from kinema.runtime.serve.making import Making, Paused
from kinema.runtime.serve.orders import BACKWARD, SOURCE, Order, parts_of
from kinema.runtime.serve.sources import EDGES, SOURCE_EDGES, neighbours
from kinema.world.detect import detect
from kinema.world.render import render
from kinema.world.scene import Scene

PROMPT = "a blue square moves left in the snow"
ASKED = {"prompt": PROMPT, "size": "64x64", "seconds": "2", "steps": 1, "seed": 3}
SCENE = Scene("square", "blue", "left", "snow", 10.0, (46.0, 30.0), travel=-28.0)


class Checkpoint:
    """Of a model that is shown so much."""

    index = {"_class_name": "none"}  # noqa: RUF012

    def __init__(self, conditions, **changes):
        self.presets = replace(WAN, fps=8, max_num_frames=33, conditions=conditions, **changes)


def order(**fields):
    base = {"prompt": PROMPT, "seed": 1, "width": 64, "height": 64, "seconds": 4}
    return Order(**{**base, "kind": "extension", **fields})


@pytest.fixture(scope="module")
def client(engine, tmp_path_factory):
    data = tmp_path_factory.mktemp("extensions") / "data"
    with TestClient(create_app(engine, Settings(data))) as client:
        yield client


@pytest.fixture(scope="module")
def video(client):
    return finished(client, client.post("/v1/videos", json=ASKED).json()["id"])


def finished(client, id):
    for _ in range(1200):
        video = client.get(f"/v1/videos/{id}").json()
        if video["status"] not in ("queued", "in_progress"):
            assert video["status"] == "completed", video["error"]
            return video
        time.sleep(0.05)
    raise AssertionError(video)


def folder_of(client, video):
    return client.app.state.server.folder(video["id"])


# ---- parts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "sizes"),
    [
        ({}, [(33, 9, 24), (17, 9, 8)]),
        ({"turns": True}, [(33, 1, 32)]),
        ({"direction": BACKWARD}, [(33, 4, 29), (9, 4, 5)]),
        ({"direction": BACKWARD, "seconds": 2}, [(21, 4, 17)]),
    ],
)
def test_how_much_a_part_is_shown(fields, sizes):
    parts = parts_of(order(**fields), Checkpoint("ends"))
    assert [(part.num_frames, part.overlap, part.kept) for part in parts] == sizes


@pytest.mark.parametrize("conditions", ["first", "beside"])
def test_a_model_that_is_shown_how_a_video_begins_does_not_lead_to_one(conditions):
    with pytest.raises(kinema.UsageError, match='direction="forward" works'):
        parts_of(order(direction=BACKWARD), Checkpoint(conditions))
    assert parts_of(order(direction=BACKWARD), Checkpoint("control"))
    with pytest.raises(kinema.UsageError, match="text alone"):
        parts_of(order(), Checkpoint("none"))


def test_what_leads_to_frames_has_them_at_its_end(tmp_path):
    (part,) = parts_of(order(direction=BACKWARD, seconds=2), Checkpoint("ends"))
    presets = replace(WAN, min_size=64, max_size=64, conditions="ends")
    before = list(np.zeros((4, 64, 64, 3), np.uint8))
    request = order(direction=BACKWARD).request(presets, part, tmp_path, before)
    (condition,) = request.conditions
    assert (condition.frame, condition.count(), request.num_frames) == (17, 4, 21)


# ---- what is shown -------------------------------------------------------------------------------


def test_an_upload_is_shown_at_the_rate_of_the_model(tmp_path):
    frames = np.stack([np.full((64, 64, 3), 8 * i, np.uint8) for i in range(24)])
    write_mp4(tmp_path / SOURCE, frames, 24.0, None, None)
    after = neighbours(tmp_path, order(), 5, 8.0)
    assert [round(frame.mean() / 8) for frame in after] == [10, 13, 16, 19, 22]
    before = neighbours(tmp_path, order(direction=BACKWARD), 2, 8.0)
    assert len(before) == 2 and before[0].mean() < before[1].mean()


def test_edges_are_those_that_were_made(tmp_path):
    frames = np.full((24, 64, 64, 3), 100, np.uint8)
    write_mp4(tmp_path / SOURCE, frames, 8.0, None, None)
    kept = {"start": np.zeros((9, 64, 64, 3), np.uint8), "end": np.ones((9, 64, 64, 3), np.uint8)}
    np.savez(tmp_path / SOURCE_EDGES, fps=8.0, **kept)
    assert np.array_equal(neighbours(tmp_path, order(), 5, 8.0), kept["end"][-5:])
    backward = order(direction=BACKWARD)
    assert np.array_equal(neighbours(tmp_path, backward, 4, 8.0), kept["start"][:4])
    for count, fps in ((12, 8.0), (5, 12.0)):  # too few are known; made at another rate
        shown = neighbours(tmp_path, order(), count, fps)
        assert len(shown) == count and abs(shown[0].mean() - 100) < 8


# ---- as clients ask ------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_the_whole_has_the_source_at_one_end(client, video, direction):
    body = {"prompt": PROMPT, "video": {"id": video["id"]}, "seconds": "4", "steps": 1, "seed": 4}
    answer = client.post("/v1/videos/extensions", json={**body, "direction": direction})
    assert answer.status_code == 200, answer.text
    longer = finished(client, answer.json()["id"])
    assert longer["seconds"] == "6"
    told = longer["kinema"]
    assert (told["direction"], told["parts"]) == (direction, 2)
    info = read_info(folder_of(client, longer) / "video.mp4")["media"]
    assert info["num_frames"] == 17 + told["num_frames"]
    assert info["num_samples"] == pytest.approx(16_000 * info["num_frames"] / 8, abs=2048)
    source, whole = (
        np.stack(list(open_frames(folder_of(client, v) / "video.mp4"))).astype(int)
        for v in (video, longer)
    )
    there = whole[:17] if direction == "forward" else whole[-17:]
    assert np.abs(source - there).mean() < 4  # encoded twice
    assert not list(folder_of(client, longer).glob("made-*"))
    with np.load(folder_of(client, video) / EDGES) as one:
        known = {name: one[name] for name in ("start", "end")}
    with np.load(folder_of(client, longer) / EDGES) as edges:
        kept, new = ("start", "end") if direction == "forward" else ("end", "start")
        assert np.array_equal(edges[kept], known[kept])
        assert not np.array_equal(edges[new], known[new])


def test_a_direction_that_is_none_is_refused(client, video):
    body = {"prompt": PROMPT, "video": {"id": video["id"]}, "direction": "sideways"}
    refused = client.post("/v1/videos/extensions", json=body)
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "direction"


# ---- as it is made -------------------------------------------------------------------------------


def test_a_paused_one_ends_as_if_it_had_not_been(engine, tmp_path):
    asked = order(seconds=4, direction=BACKWARD, steps=1)  # two parts

    def make(name, stop_after=None):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        write_mp4(folder / SOURCE, render(SCENE)[:9], 8.0, None, None)
        making = Making(engine, asked, folder, 0.0, lambda *_: None, lambda: False)
        for count, _ in enumerate(making.work()):
            making.stopping = count == stop_after
        return [frame.tobytes() for frame in open_frames(folder / "video.mp4")]

    straight = make("straight")
    for stop in (3, 12):  # in the first part, and in the second, which comes before it
        with pytest.raises(Paused):
            make("paused", stop)
    assert make("paused") == straight and len(straight) == 29 + 5 + 9


def test_an_edit_of_parts_follows_its_source_to_the_end(engine, tmp_path, monkeypatch):
    write_mp4(tmp_path / SOURCE, render(SCENE, 49), 8.0, None, None)
    asked, starts, latents_of = order(kind="edit", seconds=6, steps=1), [], edits.latents_of

    def noted(engine, plan, source, start):
        starts.append((start, plan.num_frames))
        return latents_of(engine, plan, source, start)

    monkeypatch.setattr(edits, "latents_of", noted)
    making = Making(engine, asked, tmp_path, 60.0, lambda *_: None, lambda: False)
    list(making.work())
    assert starts == [(0, 33), (24, 25)] and making.num_frames == 49


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_a_motion_goes_on_over_the_seam(engine, tmp_path, direction):
    true = render(SCENE)
    given = true[:17] if direction == "forward" else true[-17:]
    write_mp4(tmp_path / SOURCE, given, 8.0, None, None)
    asked = order(seconds=2, direction=direction, steps=10)
    making = Making(engine, asked, tmp_path, 60.0, lambda *_: None, lambda: False)
    list(making.work())
    frames = np.stack(list(open_frames(making.video)))
    seen = detect(frames[:33] if direction == "forward" else frames[-33:])
    assert (seen.motion, seen.color, seen.background) == ("left", "blue", "snow")
    off = np.linalg.norm(seen.centres - detect(true).centres, axis=1)
    assert off.mean() < 6
