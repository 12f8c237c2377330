"""The stream of what happens to a video."""

from __future__ import annotations

import base64
import io
import json

import httpx
from PIL import Image

PROMPT = "a red ball bounces on the grass"


def follow(url: str) -> list[tuple[str, dict]]:
    events, kind = [], None
    with httpx.stream("GET", url, timeout=60) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        for line in answer.iter_lines():
            name, _, value = line.partition(": ")
            if name == "event":
                kind = value
            elif name == "data":
                events.append((kind, json.loads(value)))
    return events


def test_every_step_is_told_with_previews_on_the_way(served, client):
    extra = {"steps": 40, "seed": 3}
    video = client.videos.create(prompt=PROMPT, size="64x64", extra_body=extra)
    events = follow(f"{served.url}/v1/videos/{video.id}/events")
    steps = [v["index"] for kind, v in events if kind == "progress" and v["stage"] == "denoise"]
    assert steps == list(range(1, 41))
    progress = [value["progress"] for kind, value in events if kind == "progress"]
    assert progress == sorted(progress) and progress[-1] == 99
    previews = [value["image"] for kind, value in events if kind == "preview"]
    assert previews
    image = Image.open(io.BytesIO(base64.b64decode(previews[0].split(",")[1])))
    assert (image.format, image.n_frames) == ("WEBP", 9)
    assert events[-1][0] == "video" and events[-1][1]["status"] == "completed"


def test_the_stream_of_a_finished_video_is_its_end(served, video):
    (event,) = follow(f"{served.url}/v1/videos/{video.id}/events")
    assert event[0] == "video" and event[1]["status"] == "completed"
