"""Batches, with the official client on an app in this process."""

from __future__ import annotations

import json
import time
from typing import Any

import openai
import pytest

pytest.importorskip("fastapi", reason="needs kinema[serve]")

from sqlalchemy import func, select, update

from kinema.runtime.serve import (
    Settings,
    batch_files,
    batch_results,
    batches,
    create_app,
    files,
    ordering,
)
from kinema.runtime.serve.batches import Batch, BatchLine
from kinema.runtime.serve.limits import Limits
from kinema.runtime.serve.server import Server
from kinema.runtime.serve.videos import Video
from kinema.runtime.serve.webhooks import WebhookDelivery

BODY = {"prompt": "a red ball bounces", "size": "64x64", "steps": 1, "seed": 3, "seconds": "0.5"}
ENDED = ("completed", "failed", "cancelled", "expired")
DAY = 24 * 3600


@pytest.fixture
def app(engine, tmp_path):
    return create_app(engine, Settings(tmp_path / "data"))


def line(custom_id: str, **body) -> dict:
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/videos", "body": {**BODY, **body}}


def ask(client, *lines, **options):
    """A batch of these lines, which are objects or bytes."""
    raw = [one if isinstance(one, bytes) else json.dumps(one).encode() for one in lines]
    file = client.files.create(file=("lines.jsonl", b"\n".join(raw)), purpose="batch")
    options = {"endpoint": "/v1/videos", "completion_window": "24h", **options}
    return client.batches.create(input_file_id=file.id, **options)


def until_it_ends(client, id: str):
    for _ in range(1200):
        batch = client.batches.retrieve(id)
        if batch.status in ENDED:
            return batch
        time.sleep(0.05)
    raise AssertionError(batch)


def results(client, id: str | None) -> list[dict]:
    return [json.loads(raw) for raw in client.files.content(id).text.splitlines()]


def test_lines_are_made_and_what_does_not_fit_is_told(app, talk, monkeypatch):
    client, server = talk(app), app.state.server
    monkeypatch.setattr(server.webhooks, "tell", lambda endpoint, event: None)
    server.webhooks.add_endpoint("local", "mine", "https://8.8.8.8/", ["batch.completed"])
    asked = line("a"), b"", line("b", size="63x64"), line("c", seed=4), line("d", variations=2)
    batch = ask(client, *asked, metadata={"for": "a test"})
    assert (batch.object, batch.status, batch.endpoint) == ("batch", "validating", "/v1/videos")
    assert batch.expires_at - batch.created_at == DAY
    done = until_it_ends(client, batch.id)
    assert done.status == "completed" and done.metadata == {"for": "a test"}
    assert done.model == "sora-2" and done.errors is None
    assert done.request_counts.to_dict() == {"total": 4, "completed": 2, "failed": 2}
    times = [done.created_at, done.in_progress_at, done.finalizing_at, done.completed_at]
    assert times == sorted(times) and done.failed_at is done.cancelled_at is None
    made = results(client, done.output_file_id)
    assert [one["custom_id"] for one in made] == ["a", "c"]
    assert [one["response"]["body"]["kinema"]["seed"] for one in made] == [3, 4]
    for one in made:
        assert one["response"]["status_code"] == 200 and one["error"] is None
        video = client.videos.retrieve(one["response"]["body"]["id"])
        assert video.to_dict() == one["response"]["body"] and video.status == "completed"
        assert abs(video.expires_at - done.completed_at - DAY) < 60
        assert client.videos.download_content(video.id).read()[4:8] == b"ftyp"
    refused = results(client, done.error_file_id)
    assert [one["custom_id"] for one in refused] == ["b", "d"]
    assert [one["response"]["status_code"] for one in refused] == [400, 400]
    params = [one["response"]["body"]["error"]["param"] for one in refused]
    assert params == ["size", "variations"]
    kept = client.files.retrieve(done.output_file_id)
    assert kept.purpose == "batch_output" and abs(kept.expires_at - done.completed_at - DAY) < 60
    with server.store.session() as session:
        assert session.scalar(select(func.count()).select_from(BatchLine)) == 0
        told = session.scalars(select(WebhookDelivery.event)).one()
    assert (told["type"], told["data"]) == ("batch.completed", {"id": batch.id})


@pytest.mark.parametrize(
    ("wrong", "code", "at"),
    [
        (b"{", "invalid_json_line", 2),
        (b"[1]", "invalid_request", 2),
        (line("a"), "duplicate_custom_id", 2),
        (line(""), "invalid_custom_id", 2),
        ({**line("b"), "url": "/v1/responses"}, "invalid_url", 2),
        ({**line("b"), "method": "GET"}, "invalid_method", 2),
        ({**line("b"), "body": "{}"}, "invalid_body", 2),
    ],
)
def test_a_file_that_is_no_batch_fails_whole(app, talk, wrong, code, at):
    client = talk(app)
    failed = until_it_ends(client, ask(client, line("a"), wrong, line("z")).id)
    assert failed.status == "failed" and failed.failed_at is not None
    assert [(one.code, one.line) for one in failed.errors.data] == [(code, at)]
    assert failed.output_file_id is failed.error_file_id is None
    assert client.videos.list().data == []


def test_so_does_one_without_lines_one_with_too_many_and_one_that_is_gone(app, talk, monkeypatch):
    client = talk(app)
    failed = until_it_ends(client, ask(client, b"\n").id)
    assert [one.code for one in failed.errors.data] == ["empty_file"]
    monkeypatch.setattr(batch_files, "MAX_LINES", 2)
    failed = until_it_ends(client, ask(client, *map(line, "abc")).id)
    assert [one.code for one in failed.errors.data] == ["too_many_lines"]
    monkeypatch.setattr(files, "path", lambda server, id: server.settings.data / "gone")
    with app.state.server.store.session() as session:
        id = session.scalars(select(Batch.id)).first()
        again = update(Batch).where(Batch.id == id).values(status="validating", errors=None)
        session.execute(again)
    app.state.server.batching.wake()
    failed = until_it_ends(client, id)
    assert [one.code for one in failed.errors.data] == ["file_not_found"]


def test_what_is_asked_of_a_batch_is_checked(app, talk):
    client = talk(app)
    other = client.files.create(file=("a.jsonl", b"{}"), purpose="user_data")
    fit = {"endpoint": "/v1/videos", "completion_window": "24h"}
    for wrong, param in [
        ({"input_file_id": other.id}, "input_file_id"),
        ({"input_file_id": "file-none"}, "input_file_id"),
        ({"input_file_id": other.id, "endpoint": "/v1/responses"}, "endpoint"),
        ({"input_file_id": other.id, "completion_window": "1h"}, "completion_window"),
    ]:
        with pytest.raises(openai.BadRequestError) as refused:
            client.batches.create(**{**fit, **wrong})
        assert refused.value.param == param
    for call in (client.batches.retrieve, client.batches.cancel):
        with pytest.raises(openai.NotFoundError):
            call("batch_none")


def test_batches_are_listed_and_kept_as_long_as_is_asked(engine, tmp_path, talk, database_url):
    app = create_app(engine, Settings(tmp_path / "data", database_url=database_url))
    client = talk(app)
    for_an_hour = {"anchor": "created_at", "seconds": 3600}
    made = [
        ask(client, line("a"), extra_body={"keep": True}),
        ask(client, line("a"), output_expires_after=for_an_hour),
        ask(client, line("a", prompt=" ")),
    ]
    done = [until_it_ends(client, batch.id) for batch in made]
    page = client.batches.list(limit=2)
    assert page.has_more and [batch.id for batch in page] == [batch.id for batch in made[::-1]]
    assert client.batches.list().data[::-1] == done
    assert client.files.retrieve(done[0].output_file_id).expires_at is None
    assert client.files.retrieve(done[1].output_file_id).expires_at < time.time() + 3601
    videos = client.videos.list(order="asc").data
    assert [video.expires_at is None for video in videos] == [True, False]
    assert done[2].output_file_id is None and done[2].request_counts.failed == 1


def held(monkeypatch):
    """Nothing is started, so that what was accepted waits."""
    monkeypatch.setattr("kinema.runtime.serve.runs.Runs._fill", lambda runs: None)


def test_single_requests_go_before_lines_and_lines_are_not_refused(
    engine, tmp_path, talk, monkeypatch
):
    held(monkeypatch)
    settings = Settings(tmp_path / "data", limits=Limits(max_queued=2))
    app = create_app(engine, settings)
    client = talk(app)
    first = client.videos.create(prompt="a", extra_body=BODY)
    batch = ask(client, *(line(f"{n}") for n in range(5)))
    while client.batches.retrieve(batch.id).status == "validating":
        time.sleep(0.02)
    for _ in range(3):
        app.state.server.batching.round()
    assert [video.id for video in client.videos.list()] == [first.id]
    client.videos.delete(first.id)
    app.state.server.batching.round()
    assert len(client.videos.list().data) == 1  # a line, and the next one waits for it
    monkeypatch.undo()
    app.state.server.runs.wake()
    assert until_it_ends(client, batch.id).request_counts.completed == 5


def test_a_batch_that_is_cancelled_keeps_what_is_done(app, talk, monkeypatch):
    client, server = talk(app), app.state.server
    batch = ask(client, line("a"), line("b", steps=1000), line("c"), line("d"))
    while client.batches.retrieve(batch.id).request_counts.completed < 1:
        time.sleep(0.02)
    held(monkeypatch)
    stopped = client.batches.cancel(batch.id)
    assert stopped.status in ("cancelling", "cancelled") and stopped.cancelling_at is not None
    done = until_it_ends(client, batch.id)
    assert done.status == "cancelled" and done.cancelled_at is not None
    assert done.request_counts.total == 4 and done.request_counts.completed >= 1
    made, unmade = results(client, done.output_file_id), results(client, done.error_file_id)
    assert made[0]["custom_id"] == "a" and len(made) + len(unmade) == 4
    assert {one["error"]["code"] for one in unmade} == {"batch_cancelled"}
    with server.store.session() as session:
        assert set(session.scalars(select(Video.status))) <= {"completed", "failed"}
    with pytest.raises(openai.ConflictError):
        client.batches.cancel(batch.id)


def test_a_batch_that_is_not_done_in_a_day_expires(app, talk, monkeypatch):
    held(monkeypatch)
    client, server = talk(app), app.state.server
    batch = ask(client, line("a"), line("b"))
    while not client.videos.list().data:
        time.sleep(0.02)
    with server.store.session() as session:
        session.execute(update(Batch).values(expires_at=0))
    done = until_it_ends(client, batch.id)
    assert done.status == "expired" and done.expired_at is not None and done.completed_at is None
    assert [one["error"]["code"] for one in results(client, done.error_file_id)] == [
        "batch_expired",
        "batch_expired",
    ]
    assert [video.status for video in client.videos.list()] == ["failed"]


def test_a_video_that_fails_or_is_deleted_is_told(app, talk, monkeypatch):
    held(monkeypatch)
    client = talk(app)
    batch = ask(client, line("a"), line("b"))
    for stop in (
        client.videos.delete,
        lambda id: client.post(f"/videos/{id}/cancel", cast_to=dict[str, Any]),
    ):
        while not (waits := [v.id for v in client.videos.list() if v.status == "queued"]):
            time.sleep(0.02)
        while client.batches.retrieve(batch.id).status == "validating":
            time.sleep(0.02)
        until_accepted(app.state.server, waits[0])
        stop(waits[0])
    done = until_it_ends(client, batch.id)
    deleted, cancelled = results(client, done.error_file_id)
    assert (deleted["custom_id"], deleted["error"]["code"]) == ("a", "deleted")
    assert (cancelled["custom_id"], cancelled["error"]["code"]) == ("b", "cancelled")
    assert cancelled["response"]["body"]["status"] == "failed"


def until_accepted(server, video_id: str) -> None:
    query = select(BatchLine.status).where(BatchLine.video_id == video_id)
    for _ in range(500):
        with server.store.session() as session:
            if session.scalar(query) == "accepted":
                return
        time.sleep(0.01)
    raise AssertionError("it was not accepted")


class Killed(BaseException):
    """The process ends here."""


KILLS = {
    "while lines are read": (batch_files, "chunks", False),
    "before a line is accepted": (ordering, "create", False),
    "after a line was accepted": (ordering, "create", True),
    "after its files were written": (files, "stored", True),
    "before it is told": (batch_results, "_end", True),
}


@pytest.mark.parametrize("moment", KILLS)
def test_a_kill_at_any_moment_makes_no_line_twice_and_loses_none(
    engine, tmp_path, monkeypatch, moment
):
    """The thread's work, on one server and then on another that takes up its folder."""
    settings = Settings(tmp_path / "data")
    where, name, done = KILLS[moment]
    real = getattr(where, name)

    def killed(*args, **options):
        if done:
            real(*args, **options)
        raise Killed

    server = Server({"embedded": engine}, settings)
    server.runs.start()
    asked = tmp_path / "lines.jsonl"
    asked.write_text("\n".join(json.dumps(line(f"{n}", seed=n)) for n in range(3)))
    file = files.add(server, "local", asked, "lines.jsonl", "batch")
    id = batches.add(server, "local", file.id, None, None).id
    with monkeypatch.context() as patch:
        patch.setattr(where, name, killed)
        with pytest.raises(Killed):
            work_off(server, id)
    server.stop()

    server = Server({"embedded": engine}, settings)
    server.runs.start()
    batch = work_off(server, id)
    with server.store.session() as session:
        videos = list(session.scalars(select(Video).order_by(Video.number)))
        kept = list(session.scalars(select(files.File.purpose)))
    assert batch.status == "completed"
    assert batch.counts == {"total": 3, "completed": 3, "failed": 0}
    assert [video.order["seed"] for video in videos] == [0, 1, 2]
    assert kept == ["batch", "batch_output"]
    made = files.path(server, batch.output_file_id).read_text().splitlines()
    assert [json.loads(one)["response"]["body"]["id"] for one in made] == [v.id for v in videos]
    server.stop()


def work_off(server, id: str) -> Batch:
    for _ in range(1000):
        server.batching.round()
        with server.store.session() as session:
            batch = session.scalars(select(Batch).where(Batch.id == id)).one()
        if batch.status in ENDED:
            return batch
        time.sleep(0.02)
    raise AssertionError(batch.status)
