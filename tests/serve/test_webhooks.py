"""Telling other servers, in the standard way, until they heard."""

from __future__ import annotations

import json
import logging
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

pytest.importorskip("fastapi", reason="needs kinema[serve]")

import openai
from sqlalchemy import select, update

from kinema.runtime.errors import UsageError
from kinema.runtime.serve import webhooks
from kinema.runtime.serve.limits import Limits
from kinema.runtime.serve.signing import new_secret, signed
from kinema.runtime.serve.store import Store
from kinema.runtime.serve.webhooks import WebhookDelivery, WebhookEndpoint, Webhooks, wait_after

LIMITS = Limits(fetch_seconds=2.0)
BOTH = ["video.completed", "video.failed"]


class Hears(BaseHTTPRequestHandler):
    """Notes what it is told, and answers the next of `statuses`, then 200."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.heard.append((self.path, dict(self.headers), body))
        time.sleep(self.server.slow.get(self.path, 0))
        status = self.server.statuses.pop(0) if self.server.statuses else 200
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "/moved")
        self.end_headers()
        self.server.event.set()

    def log_message(self, *_):
        pass


@pytest.fixture
def hearing():
    with ThreadingHTTPServer(("127.0.0.1", 0), Hears) as server:
        server.block_on_close = False
        server.heard, server.statuses, server.slow = [], [], {}
        server.event = threading.Event()
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        server.url = f"http://127.0.0.1:{server.server_port}"
        yield server
        server.shutdown()


@pytest.fixture
def store(database_url):
    made = Store(database_url)
    made.upgrade()
    yield made
    made.close()


@contextmanager
def telling(store, **options):
    made = Webhooks(store, LIMITS, **{"allow_private": True, **options})
    made.start()
    try:
        yield made
    finally:
        made.stop()


def happens(made, store, owner="one", type="video.completed", id="video_1"):
    with store.session() as session:
        made.ended(session, owner, type, id)
    made.wake()


def waiting(store):
    with store.session() as session:
        return list(session.scalars(select(WebhookDelivery)))


def until(true, seconds=10):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def unwrap(message, secret):
    _, headers, body = message
    return openai.OpenAI(api_key="none").webhooks.unwrap(body, headers, secret=secret)


def test_an_event_is_told_to_its_owners_endpoints_and_the_client_believes_it(store, hearing):
    with telling(store) as made:
        _, secret = made.add_endpoint("one", "mine", f"{hearing.url}/hook?a=1", BOTH)
        made.add_endpoint("two", "another's", f"{hearing.url}/other", BOTH)
        made.add_endpoint("one", "failures", f"{hearing.url}/failed", ["video.failed"])
        happens(made, store)
        until(lambda: hearing.heard and not waiting(store))
    ((path, headers, body),) = hearing.heard
    assert path == "/hook?a=1" and headers["Content-Type"] == "application/json"
    event = unwrap(hearing.heard[0], secret)
    assert (event.type, event.data.id, event.object) == ("video.completed", "video_1", "event")
    assert headers["webhook-id"] == event.id == json.loads(body)["id"]
    with pytest.raises(openai.InvalidWebhookSignatureError):
        unwrap(hearing.heard[0], new_secret())
    with pytest.raises(openai.InvalidWebhookSignatureError):
        unwrap((path, headers, body + b" "), secret)


def test_the_signature_is_the_standards():
    standard = pytest.importorskip("standardwebhooks")
    secret, body = new_secret(), b'{"a":"\xc3\xa9"}'
    headers = signed([new_secret(), secret], "msg_1", int(time.time()), body)
    assert standard.Webhook(secret).verify(body, headers) == {"a": "é"}


def test_who_does_not_hear_is_told_again_under_the_same_id(store, hearing, monkeypatch):
    monkeypatch.setattr(webhooks, "wait_after", lambda tries: 0)
    hearing.statuses = [500, 302, 404, 200]
    with telling(store) as made:
        made.add_endpoint("one", "mine", f"{hearing.url}/hook", BOTH)
        happens(made, store)
        until(lambda: len(hearing.heard) == 4 and not waiting(store))
    assert len({headers["webhook-id"] for _, headers, _ in hearing.heard}) == 1
    assert {path for path, _, _ in hearing.heard} == {"/hook"}  # the redirect was not followed


def test_it_is_given_up_after_some_tries_and_when_the_endpoint_is_gone(store, hearing, monkeypatch):
    monkeypatch.setattr(webhooks, "wait_after", lambda tries: 0)
    hearing.statuses = [500] * 100
    with telling(store) as made:
        made.add_endpoint("one", "mine", hearing.url, BOTH)
        happens(made, store)
        until(lambda: len(hearing.heard) == webhooks.TRIES and not waiting(store))
        hearing.statuses = [410]
        happens(made, store)
        until(lambda: len(hearing.heard) == webhooks.TRIES + 1 and not waiting(store))


def test_waits_grow_and_are_not_all_alike():
    waits = [[wait_after(tries) for _ in range(50)] for tries in range(1, webhooks.TRIES)]
    for tries, some in enumerate(waits):
        middle = 5 * 4**tries
        assert 0.75 * middle <= min(some) < max(some) <= 1.25 * middle
        assert max(some) - min(some) > 0.2 * middle
    assert sum(map(min, waits)) > 0.9 * 86_400 and sum(map(max, waits)) < 2 * 86_400


def test_what_was_not_told_before_a_stop_is_told_after_the_next_start(store, hearing):
    hearing.statuses = [503]
    with telling(store) as made:
        made.add_endpoint("one", "mine", hearing.url, BOTH)
        happens(made, store)
        until(lambda: waiting(store) and waiting(store)[0].tries == 1)
        happens_at = waiting(store)[0].due_at
        assert 3 <= happens_at - time.time() + 1 <= 8
    with store.session() as session:
        session.execute(update(WebhookDelivery).values(due_at=0))
    with telling(store):
        until(lambda: not waiting(store))
    assert len(hearing.heard) == 2


def test_an_event_of_a_transaction_that_fails_is_not_told(store, hearing):
    with telling(store) as made:
        made.add_endpoint("one", "mine", hearing.url, BOTH)
        with pytest.raises(RuntimeError), store.session() as session:
            made.ended(session, "one", "video.failed", "video_1")
            session.flush()
            raise RuntimeError
        assert waiting(store) == []


def test_a_slow_endpoint_does_not_hold_up_another(store, hearing):
    hearing.slow = {"/slow": 1.0}
    with telling(store) as made:
        made.add_endpoint("one", "slow", f"{hearing.url}/slow", BOTH)
        for number in range(webhooks.AT_ONCE + 20):
            with store.session() as session:
                made.ended(session, "one", "video.completed", f"video_{number}")
        made.add_endpoint("two", "quick", f"{hearing.url}/quick", BOTH)
        made.wake()
        until(lambda: hearing.heard)
        happens(made, store, "two")
        until(lambda: any(path == "/quick" for path, _, _ in hearing.heard), 8)
        slow = sum(path == "/slow" for path, _, _ in hearing.heard)
        assert slow < 10  # one at a time


def test_addresses_are_checked_when_it_is_added_and_when_it_is_told(store, hearing, monkeypatch):
    with telling(store, allow_private=False) as made:
        for url in (hearing.url, "http://169.254.169.254/", "ftp://8.8.8.8/", "http://u:p@8.8.8.8"):
            with pytest.raises(UsageError):
                made.add_endpoint("one", "mine", url, BOTH)
        with pytest.raises(UsageError, match="not known"):
            made.add_endpoint("one", "mine", "http://8.8.8.8/", ["video.lost"])
        # A name that was public when it was added, and is not any more.
        with monkeypatch.context() as patch:
            patch.setattr(webhooks, "check_url", lambda *_: None)
            endpoint, _ = made.add_endpoint("one", "mine", hearing.url, BOTH)
        assert made.tell(endpoint, webhooks.event_of("video.failed", "video_1")) is None
        happens(made, store)
        until(lambda: waiting(store)[0].tries == 1)
    assert hearing.heard == []


def test_a_new_secret_signs_beside_the_old_one_for_a_day(store, hearing):
    made = Webhooks(store, LIMITS, allow_private=True)
    _, first = made.add_endpoint("one", "mine", hearing.url, BOTH)
    with store.session() as session:
        endpoint = session.scalar(select(WebhookEndpoint))
        second = endpoint.rotate(keep_old=True)
    assert made.tell(endpoint, webhooks.event_of("video.failed", "video_1")) == 200
    for secret in (first, second):
        assert unwrap(hearing.heard[0], secret).data.id == "video_1"
    day = webhooks.OVERLAP_SECONDS
    assert endpoint.secrets(time.time() + day - 5) == [second, first]
    assert endpoint.secrets(time.time() + day + 5) == [second]
    third = endpoint.rotate(keep_old=False)
    assert endpoint.secrets(time.time()) == [third]
    made.stop()


def test_no_secret_is_logged(store, hearing, caplog, monkeypatch):
    caplog.set_level(logging.DEBUG)

    def fail(*_):
        raise RuntimeError("broken")

    with telling(store) as made:
        endpoint, secret = made.add_endpoint("one", "mine", f"{hearing.url}/?token=hush", BOTH)
        hearing.slow = {"/?token=hush": 3.0}  # beyond what one call may take
        monkeypatch.setattr(made, "_note", fail)
        happens(made, store)
        until(lambda: "failed" in caplog.text)
    assert endpoint.id in caplog.text and endpoint.id in repr(endpoint)
    for hidden in (secret, secret[6:], "hush"):
        assert hidden not in caplog.text + repr(endpoint)


def test_stopping_does_not_wait_for_long(store, hearing):
    hearing.slow = {"/": 30.0}
    with telling(store) as made:
        made.add_endpoint("one", "mine", f"{hearing.url}/", BOTH)
        happens(made, store)
        until(lambda: hearing.heard)
        started = time.monotonic()
    assert time.monotonic() - started < LIMITS.fetch_seconds + 2
    assert len(waiting(store)) == 1
