"""The official client, unmodified, against a server on a port."""

from __future__ import annotations

import asyncio
import io

import av
import numpy as np
import openai
import pytest
from PIL import Image

from kinema.runtime.media import read_info

pytestmark = pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")
PROMPT = "a red ball bounces on the grass"
OTHER = "a blue square moves left over the sand"
SMALL = {"steps": 2, "seed": 3}


def frames_of(data: bytes) -> np.ndarray:
    with av.open(io.BytesIO(data)) as container:
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])


def test_a_created_video_has_the_fields_that_clients_read(client):
    video = client.videos.create(prompt=PROMPT, size="64x64", extra_body=SMALL)
    assert video.object == "video" and video.id.startswith("video_")
    assert video.status in ("queued", "in_progress") and 0 <= video.progress < 100
    assert (video.model, video.seconds, video.size) == ("sora-2", "4", "64x64")
    assert video.error is None and video.completed_at is None and video.created_at > 1.7e9
    client.videos.delete(video.id)


def test_a_plain_request_is_scaled_padded_and_says_so(client, tmp_path):
    video = client.videos.create_and_poll(prompt=PROMPT, extra_body={"steps": 1})
    assert video.status == "completed", video.error
    told = video.kinema
    assert (told["made_at"], told["scaled_to"], told["padded_to"]) == (
        "64x64",
        "720x720",
        "720x1280",
    )
    file = tmp_path / "plain.mp4"
    client.videos.download_content(video.id).write_to_file(file)
    info = read_info(file)
    assert (info["media"]["width"], info["media"]["height"]) == (720, 1280)
    assert info["served"]["made_at"] == "64x64"
    frames = frames_of(file.read_bytes())
    assert frames.shape == (33, 1280, 720, 3)
    assert frames[:, :270].max() < 30 and frames[:, -270:].max() < 30  # the padding is black
    assert frames[:, 300:-300].mean() > 50


def test_the_same_seed_makes_the_same_video(client, video):
    again = client.videos.create_and_poll(prompt=PROMPT, size="64x64", extra_body=SMALL)
    first, second = (client.videos.download_content(v.id).read() for v in (video, again))
    assert np.array_equal(frames_of(first), frames_of(second))


def test_every_variant_downloads(client, video):
    content = client.videos.download_content(video.id)
    assert content.response.headers["content-type"] == "video/mp4"
    assert frames_of(content.read()).shape == (33, 64, 64, 3)
    for variant, kind in (("thumbnail", "WEBP"), ("spritesheet", "JPEG")):
        data = client.videos.download_content(video.id, variant=variant).read()
        assert Image.open(io.BytesIO(data)).format == kind


def test_polling_waits_as_long_as_the_server_says(served, client):
    video = client.videos.create(prompt=PROMPT, size="64x64", extra_body=SMALL)
    raw = client.videos.with_raw_response.retrieve(video.id)
    if raw.parse().status in ("queued", "in_progress"):
        assert 200 <= int(raw.headers["openai-poll-after-ms"]) <= 10_000
    assert served.wait(video.id)[0].status == "completed"


def test_the_list_is_paged_in_both_directions(client):
    made = [
        client.videos.create(prompt=PROMPT, size="64x64", extra_body=SMALL).id for _ in range(3)
    ]
    newest = [video.id for _, video in zip(range(3), client.videos.list(limit=1), strict=False)]
    assert newest == made[::-1]
    oldest = [video.id for video in client.videos.list(limit=2, order="asc")]
    assert oldest[-3:] == made
    for id in made:
        client.videos.delete(id)
    assert not set(made) & {video.id for video in client.videos.list()}


def test_remix_keeps_size_and_seed_and_names_its_source(served, client, video):
    remixed = client.videos.remix(video.id, prompt=OTHER)
    (done,) = served.wait(remixed.id)
    assert done.status == "completed" and done.remixed_from_video_id == video.id
    assert (done.size, done.prompt, done.kinema["seed"]) == (video.size, OTHER, SMALL["seed"])


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


def test_a_file_can_be_edited(served, client, video):
    data = client.videos.download_content(video.id).read()
    edit = client.videos.edit(
        prompt=OTHER, video=("clip.mp4", data, "video/mp4"), extra_body={"steps": 2}
    )
    assert served.wait(edit.id)[0].status == "completed"


def test_json_bodies_work_as_forms_do(served, client, video):
    body = {"prompt": OTHER, "size": "64x64", "seconds": 4, "steps": 2}
    made = client.post("/videos", body=body, cast_to=object)
    edit = client.post(
        "/videos/edits",
        body={"prompt": OTHER, "video": {"id": video.id}, "steps": 2},
        cast_to=object,
    )
    assert [v.status for v in served.wait(made["id"], edit["id"])] == ["completed"] * 2


@pytest.mark.parametrize(
    ("fields", "said", "param"),
    [
        ({"seconds": "20"}, "4 works", None),
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


def test_a_model_of_text_alone_refuses_pictures_and_extensions(client, video):
    picture = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(picture, "PNG")
    given = ("first.png", picture.getvalue(), "image/png")
    with pytest.raises(openai.BadRequestError, match="text alone"):
        client.videos.create(prompt=PROMPT, input_reference=given)
    with pytest.raises(openai.BadRequestError, match="text alone"):
        client.videos.extend(
            prompt=PROMPT, seconds="4", video=openai.omit, extra_body={"video": {"id": video.id}}
        )


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


def test_a_deleted_video_is_gone_with_its_files(served, client):
    video = client.videos.create(prompt=PROMPT, size="64x64", extra_body=SMALL)
    served.wait(video.id)
    folder = served.data / "videos" / video.id
    assert (folder / "video.mp4").is_file()
    gone = client.videos.delete(video.id)
    assert (gone.id, gone.deleted, gone.object) == (video.id, True, "video.deleted")
    assert not folder.exists()
    with pytest.raises(openai.NotFoundError):
        client.videos.retrieve(video.id)
    with pytest.raises(openai.NotFoundError):
        client.videos.delete(video.id)


def test_the_async_client_works_too(served):
    async def make() -> tuple[str, bytes]:
        options = {"base_url": f"{served.url}/v1", "api_key": "none", "max_retries": 0}
        async with openai.AsyncOpenAI(**options) as client:
            video = await client.videos.create_and_poll(
                prompt=PROMPT, size="64x64", extra_body=SMALL
            )
            content = await client.videos.download_content(video.id)
            return video.status, await content.aread()

    status, data = asyncio.run(make())
    assert status == "completed" and frames_of(data).shape[0] == 33
