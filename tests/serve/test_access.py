"""Who may ask, for how much, and what the log keeps to itself."""

from __future__ import annotations

import socket
import subprocess
import sys

import httpx
import openai
import pytest

PROMPT = "a red ball bounces on the grass"
ONE, TWO = "sk-one-0123456789abcdef", "sk-two-0123456789abcdef"
SMALL = {"steps": 1, "seed": 3}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory, start_server):
    folder = tmp_path_factory.mktemp("guarded")
    keys = folder / "keys"
    keys.write_text(f"# who may ask\none: {ONE}\n{TWO}\n")
    keys.chmod(0o600)
    yield from start_server(folder / "data", "--api-key-file", str(keys), "--host", "0.0.0.0")


def test_a_key_is_needed_and_sees_its_own_videos_only(guarded):
    for wrong in ("none", ONE[:-1], ""):
        with pytest.raises((openai.AuthenticationError, openai.APIConnectionError)) as refused:
            guarded.client(wrong or "x").videos.list()
        assert refused.value.code == "invalid_api_key"
    one, two = guarded.client(ONE), guarded.client(TWO)
    video = one.videos.create_and_poll(prompt=PROMPT, size="64x64", extra_body=SMALL)
    assert video.status == "completed"
    assert [v.id for v in one.videos.list()] == [video.id]
    assert list(two.videos.list()) == []
    for ask in (two.videos.retrieve, two.videos.delete, two.videos.download_content):
        with pytest.raises(openai.NotFoundError):
            ask(video.id)
    with pytest.raises(openai.NotFoundError):
        two.videos.remix(video.id, prompt=PROMPT)
    with pytest.raises(openai.NotFoundError):
        two.get(f"/videos/{video.id}/events", cast_to=object)


def test_no_key_is_written_anywhere(guarded):
    guarded.client(ONE).videos.list()
    files = [guarded.log, *guarded.data.glob("kinema.db*")]
    for file in files:
        data = file.read_bytes()
        assert ONE.encode() not in data and TWO.encode() not in data


def test_other_addresses_need_keys(tmp_path):
    command = [sys.executable, "-m", "kinema", "serve", "--host", "0.0.0.0"]
    command += ["--data", str(tmp_path / "data")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    assert "--api-key-file" in ended.stderr and len(ended.stderr.splitlines()) == 1
    assert not (tmp_path / "data").exists()


def test_a_port_that_is_taken_is_said_in_a_line(served, tmp_path):
    command = [sys.executable, "-m", "kinema", "serve", "--port", str(served.port)]
    command += ["--data", str(tmp_path / "data")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert ended.stderr.strip() == (
        f"kinema: cannot listen on 127.0.0.1:{served.port}: address already in use"
    )


def test_a_data_folder_has_one_server(served):
    command = [sys.executable, "-m", "kinema", "serve", "--data", str(served.data), "--port", "0"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2 and "another process" in ended.stderr


def test_bodies_that_make_no_sense_are_refused_as_such(served):
    url = f"{served.url}/v1/videos"
    for content in (b"{", b"[1]", b'"text"', b"\xff\xfe", b"[" * 100_000):
        answer = httpx.post(url, content=content, headers={"content-type": "application/json"})
        assert answer.status_code == 400, content[:20]
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    broken = {"content-type": "multipart/form-data; boundary=x"}
    assert httpx.post(url, content=b"--y\r\n", headers=broken).status_code == 400
    twice = {"prompt": (None, PROMPT), "prompt[a]": (None, "b")}
    assert httpx.post(url, files=twice).status_code == 400
    nothing = httpx.delete(f"{url}/video_none", headers={"content-type": "application/json"})
    assert nothing.status_code == 404
    assert httpx.get(f"{served.url}/v1/nothing").json()["error"]["type"] == "not_found_error"
    assert httpx.get(url, params={"limit": 101}).status_code == 400
    assert httpx.get(url, params={"after": "video_none"}).status_code == 404


def test_a_body_that_is_too_large_is_not_read(served):
    with socket.create_connection(("127.0.0.1", served.port)) as connection:
        head = "POST /v1/videos HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: {10**12}\r\n\r\n".encode())
        assert b" 413 " in connection.recv(4096).split(b"\r\n")[0]


def test_a_picture_is_measured_before_it_is_decoded(served):
    # A PNG whose header says 60000x60000, and nothing else.
    import struct
    import zlib

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk
    bomb += struct.pack(">I", zlib.crc32(chunk)) + struct.pack(">I", 0) + b"IDAT"
    answer = httpx.post(
        f"{served.url}/v1/videos",
        data={"prompt": PROMPT},
        files={"input_reference": ("a.png", bomb, "image/png")},
    )
    assert answer.status_code == 400 and "picture" in answer.json()["error"]["message"]


def test_answers_carry_an_id_and_the_log_has_it(served):
    answer = httpx.get(f"{served.url}/v1/videos", headers={"x-request-id": "mine-17"})
    assert answer.headers["x-request-id"] == "mine-17"
    assert '"request_id": "mine-17"' in served.log.read_text()
    assert httpx.get(f"{served.url}/healthz").headers["x-request-id"].startswith("req_")


def test_operators_see_whether_and_how_much_it_works(served, video):
    assert httpx.get(f"{served.url}/readyz").json()["checks"]["database"] is True
    told = httpx.get(f"{served.url}/metrics").text
    for name in ("videos_total", "step_seconds_sum", "queued_videos", "refusals_total"):
        assert f"kinema_{name}" in told
    assert 'kinema_videos_total{status="completed"}' in told
