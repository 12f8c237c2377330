"""What a log must not tell: every line of a session is searched for what was secret in it."""

from __future__ import annotations

import io
import json
import logging
import sys

import pytest

pytest.importorskip("fastapi", reason="needs kinema[serve]")

from starlette.testclient import TestClient

import kinema
from kinema.runtime.serve import Settings, create_app, logs
from kinema.runtime.serve.keys import new_key
from kinema.runtime.serve.videos import Video

PROMPT = "my grandmother's secret recipe"
NOT_KNOWN = "kinema-that-is-not-a-known-key-0123456789"
QUERY = "a-token-in-the-query"


@pytest.fixture
def told(monkeypatch):
    """The lines that are logged, as they are written, whatever their level."""
    for name in ("kinema", "kinema.serve", "uvicorn"):
        logger = logging.getLogger(name)
        for kept in ("handlers", "propagate", "level"):
            monkeypatch.setattr(logger, kept, getattr(logger, kept))
    monkeypatch.setattr(sys, "stderr", written := io.StringIO())
    logs.log_to_stderr(logging.DEBUG)
    yield written.getvalue
    logging.getLogger("uvicorn.access").disabled = False


def test_no_line_tells_a_secret(tmp_path, told):
    key = new_key(tmp_path / "keys", "anna")
    app = create_app(kinema.load(), Settings(tmp_path / "data", key_file=tmp_path / "keys"))
    store = app.state.server.store

    @app.get("/refused")
    def refused(token: str) -> None:
        raise RuntimeError(f"postgresql://kinema:pass-word@db/kinema refused Bearer {token}")

    @app.get("/twice")
    def twice() -> None:
        for _ in range(2):
            about = {"owner": "me", "model": "m", "seconds": "4", "size": "64x64", "order": {}}
            with store.session() as session:
                session.add(Video(id="video_1", prompt=PROMPT, created_at=1, **about))

    with TestClient(app, raise_server_exceptions=False) as client:
        mine = {"Authorization": f"Bearer {key}"}
        asked = {"prompt": PROMPT, "size": "64x64", "steps": 1}
        answers = [
            client.post("/v1/videos", json=asked, headers=mine),
            client.post("/v1/videos", json={**asked, "token": QUERY}, headers=mine),
            client.get("/v1/videos", headers={"Authorization": f"Bearer {NOT_KNOWN}"}),
            client.get("/v1/videos", params={"token": QUERY}, headers=mine),
            client.get("/refused", params={"token": key}),
            client.get("/twice"),
        ]
        assert [answer.status_code for answer in answers] == [200, 400, 401, 200, 500, 500]
        asked = {"url": f"https://example.com/?token={QUERY}", "name": "mine"}
        asked["event_types"] = ["video.completed"]
        endpoint = client.post("/v1/webhook_endpoints", json=asked, headers=mine).json()
    lines = [json.loads(line) for line in told().splitlines()]
    assert sum(line.get("path") == "/v1/videos" for line in lines) == 4
    traced = "".join(line.get("traceback", "") for line in lines)
    assert "refused Bearer ***" in traced and "UNIQUE constraint failed" in traced
    secrets = [key, NOT_KNOWN, QUERY, PROMPT, "pass-word"]
    secrets += filter(None, [endpoint.get("signing_secret")])
    assert [secret for secret in secrets if secret in told()] == []


@pytest.mark.parametrize(
    ("line", "written"),
    [
        ("at postgresql+psycopg://me:pass@db:5432/x?a=1", "at postgresql+psycopg://***@db:5432/x?a=1"),
        ("authorization: Bearer sk-one-0123456789abcdef, more", "authorization: Bearer ***, more"),
        ("whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODk= was used", "*** was used"),
        ("kinema-2pd7ztgGnBGQJYyy72Pmytcl3vgjfeBBkNXccoaef-U", "***"),
        ("kinema-data/videos is a folder; kinema-webhooks a thread", None),
    ],
)  # fmt: skip
def test_what_looks_like_a_secret_is_left_out_of_whatever_is_logged(line, written):
    assert logs.hide(line) == (written or line)
