"""API keys, and how much one may ask for."""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading

import pytest

pytest.importorskip("fastapi", reason="needs kinema[serve]")

from kinema.runtime.errors import UsageError
from kinema.runtime.serve import keys, limits
from kinema.runtime.serve.errors import APIError
from kinema.runtime.serve.keys import Keys, new_key
from kinema.runtime.serve.limits import LimitBody, Limiter, Limits


def key_file(path, text, mode=0o600):
    path.write_text(text)
    path.chmod(mode)
    return path


def test_a_new_key_is_let_in_and_only_its_hash_is_kept(tmp_path):
    path = tmp_path / "keys"
    one, two = new_key(path, "anna"), new_key(path, "bert")
    assert path.stat().st_mode & 0o777 == 0o600
    text = path.read_text()
    assert one not in text and two not in text and len(text.splitlines()) == 2
    read = Keys.from_file(path)
    owner = read.owner_of(one)
    assert owner == "key_" + hashlib.sha256(one.encode()).hexdigest()[:16]
    assert read.owner_of(two) not in (owner, None) and read.required
    assert Keys.from_file(path).owner_of(one) == owner  # after a restart too
    assert one not in repr(read) + repr(vars(read))


def test_a_key_is_added_to_a_line_of_its_own(tmp_path):
    path = key_file(tmp_path / "keys", "# ours\nanna: a-key-of-my-own-making  # hers")
    key = new_key(path, "bert")
    read = Keys.from_file(path)
    assert read.owner_of(key) and read.owner_of("a-key-of-my-own-making")


@pytest.mark.parametrize("token", [None, "", "x", "a-key-of-my-own-makin", "\udcff", "é" * 99])
def test_other_tokens_are_not_let_in(tmp_path, token):
    read = Keys.from_file(key_file(tmp_path / "keys", "a-key-of-my-own-making\n"))
    assert read.owner_of(token) is None
    hash = hashlib.sha256(b"a-key-of-my-own-making").hexdigest()
    assert read.owner_of(hash) is None and read.owner_of(f"sha256:{hash}") is None


def test_every_key_is_compared_whatever_matches(tmp_path, monkeypatch):
    read = Keys.from_file(
        key_file(tmp_path / "keys", "".join(f"key-number-{n:09}\n" for n in "1234"))
    )
    compared, real = [], keys.hmac.compare_digest
    monkeypatch.setattr(keys.hmac, "compare_digest", lambda a, b: compared.append(b) or real(a, b))
    for token in ("key-number-000000001", "key-number-000000004", "none"):
        compared.clear()
        read.owner_of(token)
        assert len(compared) == 4


@pytest.mark.parametrize("mode", [0o604, 0o602, 0o666])
def test_a_key_file_that_others_can_touch_is_refused(tmp_path, mode):
    with pytest.raises(UsageError, match="chmod 600"):
        Keys.from_file(key_file(tmp_path / "keys", "a-key-of-my-own-making", mode))


@pytest.mark.parametrize("text", ["", "# none\n\n", "short\n", "name: short\n", "\udcff"])
def test_key_files_without_a_good_key_are_refused(tmp_path, text):
    path = key_file(tmp_path / "keys", "")
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UsageError) as refused:
        Keys.from_file(path)
    assert "short" not in str(refused.value).replace("shortest", "")


def test_names_that_would_break_the_file_are_refused(tmp_path):
    for name in ("", "a b", "a\nb", "a#b", "a:b", "x" * 81):
        with pytest.raises(UsageError, match="key name"):
            new_key(tmp_path / "keys", name)
    with pytest.raises(UsageError, match="cannot be written"):
        new_key(tmp_path / "none" / "keys", "a")


# ---- requests and queues -------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch):
    at = [1000.0]
    monkeypatch.setattr(limits.time, "monotonic", lambda: at[0])
    return at


def test_requests_beyond_the_rate_are_told_when_to_come_again(clock):
    limiter = Limiter(Limits(requests_per_minute=3))
    for _ in range(3):
        limiter.request("one")
        clock[0] += 10
    with pytest.raises(APIError) as refused:
        limiter.request("one")
    assert (refused.value.status, refused.value.code) == (429, "rate_limit_exceeded")
    assert refused.value.headers == {"Retry-After": "30"}
    limiter.request("two")  # has its own
    clock[0] += 29.9
    with pytest.raises(APIError):
        limiter.request("one")
    clock[0] += 0.2
    limiter.request("one")


def test_who_waits_as_told_is_let_in(clock):
    limiter = Limiter(Limits(requests_per_minute=2))
    limiter.request("one")
    clock[0] += 0.4
    limiter.request("one")
    clock[0] += 0.2
    with pytest.raises(APIError) as refused:
        limiter.request("one")
    clock[0] += int(refused.value.headers["Retry-After"])
    limiter.request("one")


def test_many_at_once_are_counted_each():
    limiter, passed = Limiter(Limits(requests_per_minute=50)), []

    def ask():
        for _ in range(20):
            try:
                limiter.request("one")
                passed.append(1)
            except APIError:
                pass

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(passed) == 50


def test_a_full_queue_says_how_long_it_takes():
    limiter = Limiter(Limits(max_queued=2))
    limiter.queue("one", 1, None)
    for left, told in ((None, 1), (0.0, 1), (7.2, 7), (4000.0, 60)):
        with pytest.raises(APIError) as refused:
            limiter.queue("one", 2, left)
        assert (refused.value.status, refused.value.code) == (429, "queue_full")
        assert abs(int(refused.value.headers["Retry-After"]) - told) <= 1


# ---- bodies --------------------------------------------------------------------------------------


def asked(chunks, told=None, most=10, app=None):
    """What a server answers to a body in chunks, and how many of them it read."""
    sent, read = [], []
    headers = [] if told is None else [(b"content-length", told)]
    bodies = [
        {"type": "http.request", "body": chunk, "more_body": index < len(chunks) - 1}
        for index, chunk in enumerate(chunks)
    ]

    async def receive():
        read.append(1)
        return bodies[len(read) - 1]

    async def send(message):
        sent.append(message)

    async def reads_all(scope, receive, send):
        while (await receive())["more_body"]:
            pass
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})

    scope = {"type": "http", "headers": headers}
    asyncio.run(LimitBody(app or reads_all, most)(scope, receive, send))
    return sent, len(read)


def test_bodies_up_to_the_limit_pass():
    sent, read = asked([b"12345", b"67890"], b"10")
    assert (sent[0]["status"], read) == (200, 2)


def test_a_body_said_to_be_too_large_is_not_read():
    sent, read = asked([b"1"], b"11")
    assert (sent[0]["status"], read) == (413, 0)
    error = json.loads(sent[1]["body"])["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["code"] == "body_too_large"


@pytest.mark.parametrize("told", [None, b"3", b"x"])
def test_a_body_that_grows_too_large_is_not_read_further(told):
    sent, read = asked([b"12345"] * 100, told)
    assert (sent[0]["status"], read) == (413, 3)
    assert len(sent) == 2
