"""Keys from the command line, stopping with streams open, bodies made to hurt, and spans."""

from __future__ import annotations

import json
import re
import socket
import threading
from importlib.util import find_spec

import httpx
import pytest

pytest.importorskip("fastapi", reason="needs kinema[serve]")

from starlette.testclient import TestClient

from kinema.runtime.cli import run
from kinema.runtime.serve import Settings, create_app
from kinema.runtime.serve.keys import Keys
from kinema.runtime.serve.limits import Limits
from kinema.runtime.serve.listening import HttpServer

ASKED = {"prompt": "a red ball bounces", "size": "64x64"}


def test_keys_are_made_listed_and_removed(tmp_path, capsys):
    file = ["--file", str(tmp_path / "keys")]
    assert run(["api-keys", "new", "anna", *file]) == 0
    anna = capsys.readouterr().out.strip()
    assert run(["api-keys", "new", "bert", *file, "--json"]) == 0
    bert = json.loads(capsys.readouterr().out)["key"]
    lines = (tmp_path / "keys").read_text().splitlines()
    assert all(re.fullmatch(r"\w+: sha256:[0-9a-f]{64}", line) for line in lines)
    assert (tmp_path / "keys").stat().st_mode & 0o777 == 0o600
    read = Keys.from_file(tmp_path / "keys")
    assert run(["api-keys", "list", *file]) == 0
    listed = capsys.readouterr().out.split()
    assert listed == ["anna", read.owner_of(anna), "bert", read.owner_of(bert)]
    assert run(["api-keys", "new", "anna", *file]) == 2  # two of a name could not be told apart
    assert run(["api-keys", "remove", "anna", *file]) == 0
    left = Keys.from_file(tmp_path / "keys")
    assert left.owner_of(anna) is None and left.owner_of(bert) == read.owner_of(bert)
    assert (tmp_path / "keys").stat().st_mode & 0o777 == 0o600
    assert run(["api-keys", "remove", "anna", *file]) == 2
    assert run(["api-keys", "list", "--file", str(tmp_path / "none")]) == 2


def test_a_stream_does_not_hold_up_a_stop(engine, tmp_path):
    app = create_app(engine, Settings(tmp_path / "data"))
    server = HttpServer(app, stop_seconds=None)  # which waits for open answers as long as it takes
    with socket.create_server(("127.0.0.1", 0)) as bound:
        url = f"http://127.0.0.1:{bound.getsockname()[1]}/v1/videos"
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
        thread.start()
        id = httpx.post(url, json={**ASKED, "steps": 1000}).json()["id"]
        with httpx.stream("GET", f"{url}/{id}/events", timeout=60) as answer:
            lines = answer.iter_lines()
            assert next(lines) == "event: video"
            server.should_exit = True
            *_, last = (line for line in lines if line.startswith("data: "))  # it ends
        thread.join(60)
        assert not thread.is_alive()
    told = json.loads(last.removeprefix("data: "))
    assert told.get("status", "in_progress") == "in_progress"  # and not for the video's end


def test_bodies_made_to_hurt_are_refused(engine, tmp_path):
    limits = Limits(max_body_bytes=400_000)
    with TestClient(create_app(engine, Settings(tmp_path / "data", limits=limits))) as client:
        kinds = {"content-type": "application/json"}
        deep = '{"prompt": ' + "[" * 150_000 + "]" * 150_000 + "}"
        nested = '{"prompt": "x", "storyboard": ' + json.dumps("[" * 150_000) + "}"
        digits = '{"prompt": "x", "seed": ' + "9" * 300_000 + "}"
        for body in (deep, nested, digits):
            refused = client.post("/v1/videos", content=body, headers=kinds)
            assert (refused.status_code, set(refused.json())) == (400, {"error"})
        for value in ("9" * 5000, "1e999", "nan", "-1", "0"):
            refused = client.post("/v1/videos", json={**ASKED, "steps": value})
            assert refused.status_code == 400 and refused.json()["error"]["param"] == "steps"
        form = {f"a{'[b]' * 50_000}": (None, "x"), "prompt": (None, "x")}
        assert client.post("/v1/videos", files=form).status_code == 400
        large = client.post("/v1/videos", content=iter([b" " * 300_000] * 2), headers=kinds)
        assert large.status_code == 413 and large.json()["error"]["code"] == "body_too_large"


@pytest.mark.skipif(not find_spec("opentelemetry.sdk"), reason="needs opentelemetry-sdk")
def test_every_request_is_a_span(engine, tmp_path, monkeypatch):
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    kept, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    with TestClient(create_app(engine, Settings(tmp_path / "data"))) as client:
        client.get("/v1/videos/video_none?token=secret", headers={"x-request-id": "mine-1"})
    (span,) = kept.get_finished_spans()
    assert span.name == "GET /v1/videos/{video_id}"
    assert span.attributes["kinema.request_id"] == "mine-1"
    assert span.attributes["http.response.status_code"] == 404
    assert "secret" not in span.to_json()
