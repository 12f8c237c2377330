"""What the official client can ask for beyond the hosted API, and what it is refused."""

from __future__ import annotations

import io

import av
import numpy as np
import openai
import pytest

PROMPT = "a red ball bounces on the grass"
OTHER = "a blue square moves left over the sand"
SMALL = {"steps": 2, "seed": 3}


def frames_of(data: bytes) -> np.ndarray:
    with av.open(io.BytesIO(data)) as container:
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])


def test_the_same_seed_makes_the_same_video(client, video):
    again = client.videos.create_and_poll(prompt=PROMPT, size="64x64", extra_body=SMALL)
    first, second = (client.videos.download_content(v.id).read() for v in (video, again))
    assert np.array_equal(frames_of(first), frames_of(second))


def test_an_edit_keeps_what_it_is_not_asked_to_change(served, client, video):
    edits = [
        client.videos.edit(
            prompt=OTHER,
            video=openai.omit,
            extra_body={"video": {"id": video.id}, "steps": 4, "strength": strength},
        )
        for strength in (0.05, 1.0)
    ]
    little, much = served.wait(*(edit.id for edit in edits))
    assert little.status == much.status == "completed", (little.error, much.error)
    source, near, far = (
        frames_of(client.videos.download_content(v.id).read()).astype(float)
        for v in (video, little, much)
    )
    assert source.shape == near.shape == far.shape
    assert np.abs(near - source).mean() < np.abs(far - source).mean() / 3


@pytest.mark.parametrize(
    ("fields", "said", "param"),
    [
        ({"model": "sora-9"}, "no model", "model"),
        ({"size": "65x64"}, "even", "size"),
        ({"size": "big"}, "WxH", "size"),
        ({"prompt": " "}, "empty", "prompt"),
        ({"extra_body": {"colour": "red"}}, "unknown field", "colour"),
        ({"extra_body": {"steps": "many"}}, "integer", "steps"),
    ],
)
def test_what_cannot_be_made_is_refused_with_what_can(client, fields, said, param):
    with pytest.raises(openai.BadRequestError, match=said) as refused:
        client.videos.create(**{"prompt": PROMPT, "size": "64x64", **fields})
    assert refused.value.param == param
    assert refused.value.type == "invalid_request_error"


def test_urls_of_this_machine_are_not_fetched(served, client):
    body = {"input_reference": {"image_url": f"{served.url}/healthz"}}
    with pytest.raises(openai.BadRequestError, match=r"public|private|address"):
        client.videos.create(prompt=PROMPT, extra_body=body)


def test_a_cancelled_video_has_failed_and_stays(client):
    video = client.videos.create(prompt=PROMPT, size="64x64", extra_body={"steps": 1000})
    stopped = client.post(f"/videos/{video.id}/cancel", cast_to=object)
    assert stopped["status"] == "failed" and stopped["error"]["code"] == "cancelled"
    assert client.videos.retrieve(video.id).error.code == "cancelled"
    with pytest.raises(openai.ConflictError):
        client.post(f"/videos/{video.id}/cancel", cast_to=object)
    with pytest.raises(openai.APIStatusError, match="failed"):
        client.videos.download_content(video.id)
