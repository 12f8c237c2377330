"""A real server on a port, with the embedded model, and the official client."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="needs kinema[serve]")
openai = pytest.importorskip("openai", reason="needs the official client")

PROMPT = "a red ball bounces on the grass"
SMALL = {"steps": 2, "seed": 3}  # of the extensions: quick to make


class Served:
    """A `kinema serve` in a process of its own; it can be killed and started again."""

    def __init__(self, data: Path, *options: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.data, self.options, self.log = data, options, data.with_suffix(".log")
        self.process: subprocess.Popen | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [sys.executable, "-m", "kinema", "serve", "--port", str(self.port)]
        command += ["--data", str(self.data), *self.options]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with self.log.open("a") as log:
            self.process = subprocess.Popen(command, stderr=log, env=environment)
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{self.url}/healthz", timeout=5)
                return
            except OSError:
                assert self.process.poll() is None, self.log.read_text()[-3000:]
                time.sleep(0.1)
        raise AssertionError(self.log.read_text()[-3000:])

    def kill(self, how: int = signal.SIGKILL) -> int:
        self.process.send_signal(how)
        return self.process.wait(60)

    def client(self, key: str = "none", **options) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, **options)

    def wait(self, *ids: str) -> list:
        """Videos, once they are done."""
        client = self.client()
        return [client.videos.poll(id, poll_interval_ms=100) for id in ids]


def start(data: Path, *options: str) -> Iterator[Served]:
    served = Served(data, *options)
    yield served
    if served.process.poll() is None:
        served.kill(signal.SIGTERM)


@pytest.fixture(scope="session")
def start_server():
    """`yield from start_server(data, *options)`: a server of one's own."""
    return start


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One for all tests that do not kill it."""
    yield from start(tmp_path_factory.mktemp("served") / "data")


@pytest.fixture(scope="session")
def client(served: Served) -> openai.OpenAI:
    return served.client()


@pytest.fixture(scope="session")
def video(client: openai.OpenAI):
    """A finished one."""
    made = client.videos.create_and_poll(prompt=PROMPT, size="64x64", extra_body=SMALL)
    assert made.status == "completed", made.error
    return made
