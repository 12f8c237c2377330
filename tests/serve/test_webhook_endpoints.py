"""Webhook endpoints, with the official client on an app in this process."""

from __future__ import annotations

import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import openai
import pytest

pytest.importorskip("fastapi", reason="needs kinema[serve]")

from kinema.runtime.serve import Settings, create_app
from kinema.runtime.serve.routes import webhook_endpoints
from kinema.runtime.serve.webhooks import EVENTS

if not hasattr(openai.OpenAI(api_key="none").webhooks, "create"):
    pytest.skip("the client of generation 2 has no webhook endpoints", allow_module_level=True)

URL = "https://93.184.215.14/hook"
DONE = ["video.completed", "batch.completed"]


class Hears(BaseHTTPRequestHandler):
    """Notes what it is told, and answers 418."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.heard.append((dict(self.headers), body))
        self.send_response(418)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def hearing():
    with ThreadingHTTPServer(("127.0.0.1", 0), Hears) as server:
        server.heard, server.url = [], f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def app(engine, tmp_path):
    return create_app(engine, Settings(tmp_path / "data", allow_private=True))


def test_an_endpoint_is_made_read_changed_and_removed(app, talk):
    hooks = talk(app).webhooks
    made = hooks.create(name="mine", url=URL, event_types=[*DONE, DONE[0]])
    assert (made.object, made.name, made.url) == ("webhook_endpoint", "mine", URL)
    assert made.event_types == DONE and made.updated_at == made.created_at
    assert made.signing_secret.startswith("whsec_")
    assert made.signing_secret_hint == f"whsec_...{made.signing_secret[-4:]}"
    read = hooks.retrieve(made.id)
    assert read.to_dict() == {k: v for k, v in made.to_dict().items() if k != "signing_secret"}
    changed = hooks.update(made.id, name="another", event_types=["video.failed"])
    assert (changed.name, changed.url) == ("another", URL)
    assert changed.event_types == ["video.failed"]
    assert hooks.retrieve(made.id) == changed
    gone = hooks.delete(made.id)
    assert (gone.id, gone.object, gone.deleted) == (made.id, "webhook_endpoint.deleted", True)
    for call in (hooks.retrieve, hooks.update, hooks.delete, hooks.rotate_secret):
        with pytest.raises(openai.NotFoundError):
            call(made.id)


def test_a_change_that_changes_nothing_is_none(app, talk, monkeypatch):
    hooks = talk(app).webhooks
    made = hooks.create(name="mine", url=URL, event_types=DONE)
    monkeypatch.setattr(webhook_endpoints, "now", lambda: made.created_at + 60)
    assert hooks.update(made.id, url=URL).updated_at == made.created_at
    assert hooks.update(made.id, url=f"{URL}/2").updated_at == made.created_at + 60


def test_endpoints_are_listed_in_pages(app, talk):
    hooks = talk(app).webhooks
    ids = {hooks.create(name=f"{n}", url=URL, event_types=DONE).id for n in range(5)}
    first = hooks.list(limit=2)
    assert len(first.data) == 2 and first.has_more
    found = [endpoint.id for endpoint in first]
    assert set(found) == ids and len(found) == 5
    assert all("signing_secret" not in endpoint.to_dict() for endpoint in hooks.list())


def test_what_cannot_be_told_is_refused(engine, tmp_path, talk):
    hooks = talk(create_app(engine, Settings(tmp_path / "data"))).webhooks
    fit = {"name": "mine", "url": URL, "event_types": DONE}
    wrong = [
        {"url": "http://127.0.0.1/"},
        {"url": "ftp://93.184.215.14/"},
        {"event_types": ["response.completed"]},
        {"event_types": []},
        {"name": ""},
    ]
    for one in wrong:
        with pytest.raises(openai.BadRequestError):
            hooks.create(**{**fit, **one})
    made = hooks.create(**fit)
    for one in wrong:
        with pytest.raises(openai.BadRequestError):
            hooks.update(made.id, **one)
    assert hooks.retrieve(made.id).url == URL and len(hooks.list().data) == 1


def test_there_are_only_so_many(app, talk, monkeypatch):
    monkeypatch.setattr(webhook_endpoints, "MAX_ENDPOINTS", 2)
    hooks = talk(app).webhooks
    for _ in range(2):
        hooks.create(name="mine", url=URL, event_types=DONE)
    with pytest.raises(openai.BadRequestError) as refused:
        hooks.create(name="mine", url=URL, event_types=DONE)
    assert refused.value.code == "too_many_endpoints"


def test_each_key_has_its_own(engine, tmp_path, talk):
    keys = tmp_path / "keys"
    keys.write_text("one-key-of-some-length\nanother-key-of-some-length\n")
    keys.chmod(0o600)
    app = create_app(engine, Settings(tmp_path / "data", key_file=keys))
    one = talk(app, "one-key-of-some-length")
    another = one.with_options(api_key="another-key-of-some-length")
    made = one.webhooks.create(name="mine", url=URL, event_types=DONE)
    assert another.webhooks.list().data == []
    with pytest.raises(openai.NotFoundError):
        another.webhooks.rotate_secret(made.id)
    assert one.webhooks.retrieve(made.id).id == made.id


def test_a_test_is_told_at_once_and_signed(app, talk, hearing):
    client = talk(app)
    made = client.webhooks.create(name="mine", url=hearing.url, event_types=DONE)
    told = client.webhooks.test(made.id, event_type="batch.completed")
    assert (told.object, told.success, told.status_code) == ("webhook_endpoint.test", True, 418)
    assert (told.webhook_endpoint_id, told.event_type) == (made.id, "batch.completed")
    ((headers, body),) = hearing.heard
    event = client.webhooks.unwrap(body, headers, secret=made.signing_secret)
    assert event.type == "batch.completed" and event.object == "event"
    with pytest.raises(openai.BadRequestError):
        client.webhooks.test(made.id, event_type="response.completed")
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        client.webhooks.update(made.id, url=f"http://127.0.0.1:{deaf.getsockname()[1]}/")
        with pytest.raises(openai.BadRequestError) as refused:
            client.webhooks.test(made.id, event_type="video.failed")
    assert refused.value.code == "endpoint_unreachable"


def test_a_new_secret_signs_and_the_old_one_beside_it_if_asked(app, talk, hearing):
    client = talk(app)
    made = client.webhooks.create(name="mine", url=hearing.url, event_types=DONE)
    second = client.webhooks.rotate_secret(made.id, keep_old_secret_active_for_24_hours=True)
    third = client.webhooks.rotate_secret(made.id)
    secrets = [one.signing_secret for one in (made, second, third)]
    assert len(set(secrets)) == 3

    def believed(secret):
        try:
            client.webhooks.unwrap(hearing.heard[-1][1], hearing.heard[-1][0], secret=secret)
        except openai.InvalidWebhookSignatureError:
            return False
        return True

    client.webhooks.test(made.id, event_type="video.completed")
    assert [believed(secret) for secret in secrets] == [False, False, True]
    fourth = client.webhooks.rotate_secret(made.id, keep_old_secret_active_for_24_hours=True)
    client.webhooks.test(made.id, event_type="video.completed")
    assert believed(third.signing_secret) and believed(fourth.signing_secret)


def test_the_events_that_there_are(app, talk):
    assert talk(app).webhooks.event_types.list().data == list(EVENTS)
