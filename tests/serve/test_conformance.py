"""What code for the hosted Videos API does, with the official client, unmodified: of generation 2
or 3, whichever is installed, called synchronously and asynchronously."""

from __future__ import annotations

import asyncio
import inspect
import io
import queue
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise

import av
import openai
import pytest
from PIL import Image

import kinema
from kinema.runtime.serve.limits import Limits

PROMPT = "a red ball bounces on the grass"
OTHER = "a blue square moves left over the sand"
SMALL = {"steps": 2, "seed": 3}
PENDING = ("queued", "in_progress")
KEY = "sk-conformance-0123456789"
FIELDS = {  # the API's description requires all of them
    *("id", "object", "model", "status", "progress", "created_at", "completed_at", "expires_at"),
    *("prompt", "size", "seconds", "remixed_from_video_id", "error"),
}


class Waiting:
    """The asynchronous client, called as the other is: what must be awaited is awaited here."""

    def __init__(self, what, loop: asyncio.AbstractEventLoop) -> None:
        self._what, self._loop = what, loop

    def __getattr__(self, name: str):
        value = getattr(self._what, name)
        plain = not callable(value) and type(value).__module__.partition(".")[0] != "openai"
        return value if plain else Waiting(value, self._loop)

    def __call__(self, *args, **fields):
        made = self._what(*args, **fields)
        if hasattr(made, "__aiter__") or hasattr(made, "__aenter__"):
            return Waiting(made, self._loop)
        return self._wait(made) if inspect.isawaitable(made) else made

    def __iter__(self):
        async def collect():
            return [item async for item in self._what]

        return iter(self._wait(collect()))

    def __enter__(self):
        return Waiting(self._wait(self._what.__aenter__()), self._loop)

    def __exit__(self, *error) -> None:
        self._wait(self._what.__aexit__(*error))

    def _wait(self, what):
        return self._loop.run_until_complete(what)


@pytest.fixture(scope="module", params=["sync", "async"])
def connect(request):
    """`connect(url, key, heard=None, **options)`: a client; every answer is told to `heard`."""
    loop, clients = asyncio.new_event_loop(), []

    def make(url: str, key: str = "none", heard=None, **options):
        async def hear(answer):
            heard(answer)

        options = {"base_url": f"{url}/v1", "api_key": key, "max_retries": 0, **options}
        if request.param == "sync":
            if heard is not None:
                hooks = {"response": [heard]}
                options["http_client"] = openai.DefaultHttpxClient(event_hooks=hooks)
            clients.append(openai.OpenAI(**options))
            return clients[-1]
        if heard is not None:
            hooks = {"response": [hear]}
            options["http_client"] = openai.DefaultAsyncHttpxClient(event_hooks=hooks)
        clients.append(Waiting(openai.AsyncOpenAI(**options), loop))
        return clients[-1]

    yield make
    for client in clients:
        client.close()
    loop.close()


@pytest.fixture(scope="module")
def sdk(connect, served):
    return connect(served.url)


def polled(sdk, *ids: str) -> list:
    """Videos, once they are done well."""
    done = [sdk.videos.poll(id, poll_interval_ms=100) for id in ids]
    assert [video.status for video in done] == ["completed"] * len(ids), done
    return done


def frames(data: bytes) -> list:
    with av.open(io.BytesIO(data)) as container:
        return [frame.to_image() for frame in container.decode(video=0)]


def picture() -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (64, 64), "green").save(data, "PNG")
    return data.getvalue()


# ---- a video's life ------------------------------------------------------------------------------


def test_a_video_is_created_found_and_deleted(sdk, served):
    raw = sdk.videos.with_raw_response.create(prompt=PROMPT, size="64x64", extra_body=SMALL)
    video = raw.parse()
    assert set(video.to_dict(mode="json")) >= FIELDS and raw.headers["x-request-id"]
    assert video.object == "video" and video.status in PENDING and 0 <= video.progress < 100
    assert (video.model, video.seconds, video.size) == ("sora-2", "4", "64x64")
    assert video.error is None and video.completed_at is None and video.created_at > 1.7e9
    (done,) = polled(sdk, video.id)
    assert done == sdk.videos.retrieve(video.id) and done.progress == 100
    assert done.completed_at >= done.created_at == video.created_at
    folder = served.data / "videos" / video.id
    assert (folder / "video.mp4").is_file()
    gone = sdk.videos.delete(video.id)
    assert (gone.id, gone.deleted, gone.object) == (video.id, True, "video.deleted")
    assert not folder.exists()
    for ask in (sdk.videos.retrieve, sdk.videos.delete, sdk.videos.download_content):
        with pytest.raises(openai.NotFoundError) as missing:
            ask(video.id)
        assert (missing.value.code, missing.value.type) == ("not_found", "not_found_error")


def test_polling_waits_as_long_as_the_server_says(connect, served):
    heard = []

    def note(answer) -> None:
        if "x-stainless-poll-helper" in answer.request.headers:
            heard.append((time.monotonic(), answer.headers.get("openai-poll-after-ms")))

    sdk = connect(served.url, heard=note)
    extra = {"steps": 30, "seed": 3}
    video = sdk.videos.create_and_poll(prompt=PROMPT, size="64x64", extra_body=extra)
    assert video.status == "completed"
    (times, waits) = zip(*heard, strict=True)
    assert len(heard) > 1 and waits[-1] is None  # nothing to wait for any more
    assert all(200 <= int(wait) <= 10_000 for wait in waits[:-1])
    # The client reads the first one only, and keeps to it.
    between = [later - earlier for earlier, later in pairwise(times)]
    assert min(between) >= int(waits[0]) / 1000


def test_the_list_is_paged_in_both_directions(sdk):
    long = {"steps": 500, "seed": 3}
    made = [sdk.videos.create(prompt=PROMPT, size="64x64", extra_body=long).id for _ in range(3)]
    newest = [video.id for video in sdk.videos.list(limit=1)][:3]
    assert newest == made[::-1]
    oldest = [video.id for video in sdk.videos.list(limit=2, order="asc")]
    assert oldest[-3:] == made and len(oldest) == len(set(oldest))
    assert [v.id for v in sdk.videos.list(limit=100, after=made[1])][:1] == made[:1]
    for id in made:
        sdk.videos.delete(id)
    assert not set(made) & {video.id for video in sdk.videos.list()}


def test_every_variant_downloads_in_every_way(sdk, video, tmp_path):
    content = sdk.videos.download_content(video.id)
    assert content.response.headers["content-type"] == "video/mp4"
    data = content.read()
    assert [frame.size for frame in frames(data)] == 33 * [(64, 64)]
    sdk.videos.download_content(video.id, variant="video").write_to_file(tmp_path / "written.mp4")
    assert (tmp_path / "written.mp4").read_bytes() == data
    with sdk.videos.with_streaming_response.download_content(video.id) as streamed:
        streamed.stream_to_file(tmp_path / "streamed.mp4")
    assert (tmp_path / "streamed.mp4").read_bytes() == data
    for variant, kind in (("thumbnail", "WEBP"), ("spritesheet", "JPEG")):
        data = sdk.videos.download_content(video.id, variant=variant).read()
        with Image.open(io.BytesIO(data)) as image:
            assert image.format == kind


# ---- made from another, or from a picture --------------------------------------------------------


def test_a_first_frame_is_given_as_a_file_or_its_id(sdk, tmp_path):
    file = tmp_path / "first.png"
    file.write_bytes(picture())
    kept = sdk.files.create(file=("first.png", picture(), "image/png"), purpose="vision")
    asked = {"prompt": PROMPT, "size": "64x64"}
    with file.open("rb") as opened:
        first = sdk.videos.create(**asked, input_reference=opened, extra_body=SMALL)
    body = {**SMALL, "input_reference": {"file_id": kept.id}}
    second = sdk.videos.create(**asked, extra_body=body)
    polled(sdk, first.id, second.id)
    one, other = (sdk.videos.download_content(made.id).read() for made in (first, second))
    assert frames(one) == frames(other)
    with pytest.raises(openai.APIStatusError) as refused:
        sdk.videos.create(**asked, extra_body={"input_reference": {"file_id": "file-none"}})
    assert refused.value.status_code in (400, 404) and refused.value.param == "input_reference"


def test_a_remix_names_what_it_is_of(sdk, video):
    (done,) = polled(sdk, sdk.videos.remix(video.id, prompt=OTHER).id)
    assert done.remixed_from_video_id == video.id
    assert (done.size, done.seconds, done.prompt) == (video.size, video.seconds, OTHER)
    assert done.kinema["seed"] == SMALL["seed"]  # the same noise


def test_an_edit_is_of_a_file_or_of_a_video_by_its_id(sdk, video):
    data = sdk.videos.download_content(video.id).read()
    by_id = {"video": {"id": video.id}, **SMALL}
    clip = ("clip.mp4", data, "video/mp4")
    made = [
        sdk.videos.edit(prompt=OTHER, video=clip, extra_body={**SMALL, "model": "sora-2"}).id,
        sdk.videos.edit(prompt=OTHER, video=openai.omit, extra_body=by_id).id,
        sdk.post("/videos/edits", body={"prompt": OTHER, **by_id}, cast_to=object)["id"],
    ]
    for done in polled(sdk, *made):
        assert (done.size, done.seconds, done.prompt) == ("64x64", done.seconds, OTHER)
        assert 4 <= float(done.seconds) < 4.2


def test_an_extension_is_of_a_file_or_of_a_video_by_its_id(sdk, video):
    data = sdk.videos.download_content(video.id).read()
    by_id = {"video": {"id": video.id}, **SMALL}
    clip = ("clip.mp4", data, "video/mp4")
    asked = {"prompt": OTHER, "seconds": "4"}
    made = [
        sdk.videos.extend(**asked, video=clip, extra_body={**SMALL, "model": "sora-2"}).id,
        sdk.videos.extend(**asked, video=openai.omit, extra_body=by_id).id,
        sdk.post("/videos/extensions", body={**asked, **by_id}, cast_to=object)["id"],
    ]
    for done in polled(sdk, *made):
        assert 8 <= float(done.seconds) < 8.2  # of the whole
    assert len(frames(sdk.videos.download_content(made[1]).read())) >= 33 + 32


def test_a_character_is_made_of_a_clip_and_named_in_prompts(sdk, video):
    data = sdk.videos.download_content(video.id).read()
    clip = ("clip.mp4", data, "video/mp4")
    made = sdk.videos.create_character(name="Bouncy", video=clip)
    assert made.id.startswith("char") and made.name == "Bouncy" and made.created_at > 1.7e9
    assert sdk.videos.get_character(made.id).to_dict() == made.to_dict()
    appears = {"characters": [{"id": made.id}]}
    with pytest.raises(openai.BadRequestError, match="Wan VACE") as refused:
        sdk.videos.create(prompt="Bouncy bounces", extra_body=appears)
    assert refused.value.param == "characters"
    with pytest.raises(openai.NotFoundError):
        sdk.videos.get_character("char_none")


# ---- refusals ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded(tmp_path_factory, app_here):
    """A server that needs a key, and whose queue is full."""
    folder = tmp_path_factory.mktemp("conformance")
    (folder / "keys").write_text(f"{KEY}\n")
    (folder / "keys").chmod(0o600)
    limits = Limits(max_queued=0, requests_per_minute=30)
    settings = {"key_file": folder / "keys", "limits": limits}
    with app_here(kinema.load(), folder / "data", **settings) as made:
        yield made


def test_refusals_are_the_exceptions_that_code_catches(sdk, connect, guarded):
    with pytest.raises(openai.BadRequestError) as refused:
        sdk.videos.create(prompt=PROMPT, size="65x64")
    error = refused.value
    assert (error.param, error.type) == ("size", "invalid_request_error")
    assert error.code and error.request_id and error.body["message"] in error.message
    with pytest.raises(openai.AuthenticationError) as refused:
        connect(guarded.url, "sk-wrong").videos.retrieve("video_none")
    assert refused.value.code == "invalid_api_key"
    with pytest.raises(openai.NotFoundError):
        sdk.videos.retrieve("video_none")
    long = sdk.videos.create(prompt=PROMPT, size="64x64", extra_body={"steps": 500})
    with pytest.raises(openai.ConflictError):
        sdk.videos.download_content(long.id)
    sdk.videos.delete(long.id)


def test_a_full_queue_is_told_with_when_to_come_again_and_the_client_does(connect, guarded):
    heard = []
    sdk = connect(guarded.url, KEY, max_retries=1, heard=lambda _: heard.append(time.monotonic()))
    with pytest.raises(openai.RateLimitError) as refused:
        sdk.videos.create(prompt=PROMPT, size="64x64")
    assert refused.value.code == "queue_full"
    first, second = heard
    assert second - first >= int(refused.value.response.headers["retry-after"]) >= 1


# ---- webhooks ------------------------------------------------------------------------------------


class Hears(BaseHTTPRequestHandler):
    """Notes what it is told."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.end_headers()
        self.server.told.put((dict(self.headers), body))

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def hearing():
    with ThreadingHTTPServer(("127.0.0.1", 0), Hears) as server:
        server.told = queue.Queue()
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def telling(tmp_path_factory, app_here):
    """A server that may call this machine."""
    folder = tmp_path_factory.mktemp("telling")
    with app_here(kinema.load(), folder / "data", allow_private=True) as made:
        yield made


def test_the_end_of_a_video_is_told_and_the_client_believes_it(connect, telling, hearing):
    sdk = connect(telling.url)
    url = f"http://127.0.0.1:{hearing.server_port}/told"
    kinds = ["video.completed", "video.failed"]
    endpoint = sdk.post(
        "/webhook_endpoints",
        body={"name": "mine", "url": url, "event_types": kinds},
        cast_to=object,
    )
    secret = endpoint["signing_secret"]
    asked = {"prompt": PROMPT, "size": "64x64"}
    done = sdk.videos.create(**asked, extra_body=SMALL)
    failed = sdk.videos.create(**asked, extra_body={"steps": 500})
    sdk.post(f"/videos/{failed.id}/cancel", cast_to=object)
    told = {}
    for _ in range(2):
        headers, body = hearing.told.get(timeout=120)
        event = sdk.webhooks.unwrap(body, headers, secret=secret)
        told[event.data.id] = event.type
        with pytest.raises(openai.InvalidWebhookSignatureError):
            sdk.webhooks.unwrap(body + b" ", headers, secret=secret)
    assert told == {done.id: "video.completed", failed.id: "video.failed"}
    sdk.delete(f"/webhook_endpoints/{endpoint['id']}", cast_to=object)
