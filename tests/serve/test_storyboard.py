"""Shots one after another: how they are asked for, cut into parts, and made."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="needs kinema[serve]")

from starlette.testclient import TestClient

from kinema.runtime.errors import UsageError
from kinema.runtime.media.clips import open_frames
from kinema.runtime.media.video import read_info
from kinema.runtime.models.wan.presets import WAN
from kinema.runtime.serve import Settings, create_app
from kinema.runtime.serve.making import Making
from kinema.runtime.serve.orders import Order, parts_of, settle
from kinema.runtime.serve.soundtrack import fade_in, fade_out

LEFT, RIGHT = "a red ball moves left", "a red ball moves right"
SHOTS = [{"start": 0, "prompt": LEFT}, {"start": 1, "prompt": RIGHT}]
ASKED = {"prompt": "a ball", "size": "64x64", "seconds": "2", "steps": 1, "seed": 3}


class Checkpoint:
    """Of a model that is shown so much."""

    index = {"_class_name": "none"}  # noqa: RUF012

    def __init__(self, conditions, **changes):
        self.presets = replace(WAN, fps=8, max_num_frames=33, conditions=conditions, **changes)


def order(*shots, **fields):
    told = [{"start": start, "prompt": prompt} for start, prompt in shots]
    base = {"prompt": "whole", "seed": 1, "width": 64, "height": 64, "seconds": 8}
    return Order(**{**base, "storyboard": told, **fields})


@pytest.fixture(scope="module")
def client(engine, tmp_path_factory):
    data = tmp_path_factory.mktemp("storyboard") / "data"
    with TestClient(create_app(engine, Settings(data))) as client:
        yield client


def finished(client, id):
    for _ in range(1200):
        video = client.get(f"/v1/videos/{id}").json()
        if video["status"] not in ("queued", "in_progress"):
            assert video["status"] == "completed", video["error"]
            return video
        time.sleep(0.05)
    raise AssertionError(video)


# ---- parts ---------------------------------------------------------------------------------------


def test_each_shot_is_a_part_or_several():
    parts = parts_of(order((2, "a"), (3, "b")), Checkpoint("ends"))
    assert [part.prompt for part in parts] == [None, "a", "b", "b"]
    # A new prompt is shown one frame, so that it may turn; a shot that goes on is shown nine.
    assert [part.overlap for part in parts] == [0, 1, 1, 9]
    assert [part.kept for part in parts] == [16, 8, 32, 8]
    assert all(part.overlap + part.kept <= part.num_frames <= 33 for part in parts)
    assert all(part.num_frames % 4 == 1 for part in parts)
    assert [part.number for part in parts] == [0, 1, 2, 3]


def test_without_a_prompt_of_its_own_a_storyboard_begins_with_the_whole_one():
    told = settle(order((0, "a"), (4, "b")), Checkpoint("ends"))
    assert [shot["prompt"] for shot in told["shots"]] == ["a", "b"]
    told = settle(order((4, "b")), Checkpoint("ends"))
    assert [(shot["start"], shot["prompt"]) for shot in told["shots"]] == [(0, "whole"), (4, "b")]
    assert sum(shot["num_frames"] for shot in told["shots"]) == 64


def test_shots_are_cut_where_the_model_is_shown_nothing_or_where_it_is_asked():
    for checkpoint, fields in (("none", {}), ("ends", {"transition": "cut"})):
        cut = order((0, "a"), (3, "b"), (6, "c"), **fields)
        assert [part.overlap for part in parts_of(cut, Checkpoint(checkpoint))] == [0, 0, 0]
        assert settle(cut, Checkpoint(checkpoint))["transition"] == "cut"
    assert settle(order((0, "a"), (4, "b")), Checkpoint("first"))["transition"] == "continue"


@pytest.mark.parametrize(
    ("asked", "checkpoint", "words"),
    [
        (order((0, "a"), (4, "b"), transition="continue"), Checkpoint("none"), '"cut" works'),
        (order((0, "a"), (6, "b")), Checkpoint("none"), "4 works"),
        (order((0, "a"), (0.01, "b")), Checkpoint("ends"), "no frame of its own"),
        (order((0, "a"), (7.99, "b")), Checkpoint("ends"), "0.125 seconds or longer"),
        (
            order((4, "b"), transition="cut"),
            Checkpoint("beside", last_frame="none"),
            '"continue" works',
        ),
    ],
)
def test_what_cannot_be_cut_or_continued_is_refused(asked, checkpoint, words):
    with pytest.raises(UsageError, match=words):
        parts_of(asked, checkpoint)


# ---- as clients ask ------------------------------------------------------------------------------


def test_all_ways_to_write_a_storyboard_are_one(client):
    form = {name: str(value) for name, value in ASKED.items()}
    bracketed = [
        *form.items(),
        ("storyboard[][start]", "0"),
        ("storyboard[][prompt]", LEFT),
        ("storyboard[][start]", "1"),
        ("storyboard[][prompt]", RIGHT),
    ]
    files = [(name, (None, value)) for name, value in bracketed]
    ways = [
        {"json": {**ASKED, "storyboard": SHOTS}},
        {"data": {**form, "storyboard": json.dumps(SHOTS)}},
        {"files": files},
        {"files": sorted(files)},  # the official client's order: all of one name, then the next
    ]
    made = []
    for way in ways:
        answer = client.post("/v1/videos", **way)
        assert answer.status_code == 200, answer.text
        made.append(finished(client, answer.json()["id"]))
    told = made[0]["kinema"]
    assert [shot["num_frames"] for shot in told["shots"]] == [8, 8]
    assert [shot["prompt"] for shot in told["shots"]] == [LEFT, RIGHT]
    assert (told["transition"], told["parts"]) == ("continue", 2)
    assert all(video["kinema"] == told for video in made)
    contents = [client.get(f"/v1/videos/{v['id']}/content") for v in made]
    assert all(content.status_code == 200 for content in contents)
    remixed = client.post(f"/v1/videos/{made[0]['id']}/remix", json={"prompt": "a ball rests"})
    assert "shots" not in finished(client, remixed.json()["id"])["kinema"]


@pytest.mark.parametrize(
    ("storyboard", "words"),
    [
        ([SHOTS[1], SHOTS[0]], "starts ascend"),
        ([SHOTS[0], SHOTS[0]], "starts ascend"),
        ([SHOTS[0], {"start": 2, "prompt": "x"}], "has 2 seconds"),
        ([{"start": -1, "prompt": "x"}], "equal to 0"),
        ([{"start": "soon", "prompt": "x"}], "number"),
        ([{"start": 0, "prompt": "  "}], "it is empty"),
        ([{"start": 0}], "required"),
        ([{"start": 0, "prompt": "x", "length": 2}], "start, prompt"),
        ([], "at least 1"),
        ("two shots", "start and prompt"),
        ("7", "list"),
    ],
)
def test_a_storyboard_that_does_not_fit_is_refused(client, storyboard, words):
    refused = client.post("/v1/videos", json={**ASKED, "storyboard": storyboard})
    error = refused.json()["error"]
    assert refused.status_code == 400, error
    assert error["param"].startswith("storyboard") and words in error["message"].lower()


def test_a_transition_without_shots_is_refused(client):
    refused = client.post("/v1/videos", json={**ASKED, "transition": "cut"})
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "transition"


# ---- as it is made -------------------------------------------------------------------------------


def make(engine, folder, **fields):
    """The prompts of a storyboard's parts, and its frames."""
    folder.mkdir()
    asked = replace(order((0, LEFT), (1, RIGHT), seconds=2, steps=1), **fields)
    making, prompts = Making(engine, asked, folder, 60.0, lambda *_: None, lambda: False), []
    for _ in making.work():
        if making.session.request.prompt not in prompts:
            prompts.append(making.session.request.prompt)
    assert making.num_frames == read_info(making.video)["media"]["num_frames"]
    return prompts, making


def test_a_shot_has_its_prompt_and_goes_on_from_the_last_frame(engine, tmp_path):
    prompts, making = make(engine, tmp_path / "a")
    assert prompts == [LEFT, RIGHT]
    (shown,) = making.session.request.conditions
    with np.load(making.folder / "edges.npz") as edges:
        assert edges["end"].shape == edges["start"].shape == (9, 64, 64, 3)
    first = list(open_frames(making.video))[7]
    assert np.abs(first.astype(int) - shown.image).mean() < 12  # encoded, and marked
    _, cut = make(engine, tmp_path / "b", transition="cut")
    assert cut.session.request.conditions == ()
    assert (making.num_frames, cut.num_frames) == (16, 17)  # the shortest of a second is 9
    sound = read_info(making.video)["media"]["num_samples"]
    assert sound == pytest.approx(2 * 16_000, abs=2048)


def test_sounds_pass_into_each_other():
    before, after = np.ones((8, 1), np.float32), np.zeros((9, 1), np.float32)
    fade_out(before, after, 4)
    assert before[:, 0].tolist() == pytest.approx([1, 1, 1, 1, 1, 2 / 3, 1 / 3, 0])
    fade_in(after, np.ones((3, 1), np.float32), 4)
    assert after[:, 0].tolist() == pytest.approx([1, 0.5, 0, 0, 0, 0, 0, 0, 0])
    fade_out(before[:0], after, 4)
