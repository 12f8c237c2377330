"""A real server on a port, with the embedded model, and the official client; databases."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

pytest.importorskip("fastapi", reason="needs kinema[serve]")
openai = pytest.importorskip("openai", reason="needs the official client")

if TYPE_CHECKING:
    from kinema.runtime.engine import Engine
    from kinema.runtime.serve.server import Server

POSTGRES = os.environ.get("KINEMA_TEST_DATABASE_URL")
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
        self.clients: list[openai.OpenAI] = []
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
                with urllib.request.urlopen(f"{self.url}/healthz", timeout=5):
                    return
            except OSError:
                assert self.process.poll() is None, self.log.read_text()[-3000:]
                time.sleep(0.1)
        raise AssertionError(self.log.read_text()[-3000:])

    def kill(self, how: int = signal.SIGKILL) -> int:
        self.process.send_signal(how)
        return self.process.wait(60)

    def client(self, key: str = "none", **options) -> openai.OpenAI:
        options = {"base_url": f"{self.url}/v1", "api_key": key, "max_retries": 0, **options}
        self.clients.append(openai.OpenAI(**options))
        return self.clients[-1]

    def wait(self, *ids: str) -> list:
        """Videos, once they are done."""
        client = self.client()
        return [client.videos.poll(id, poll_interval_ms=100) for id in ids]


def start(data: Path, *options: str) -> Iterator[Served]:
    served = Served(data, *options)
    yield served
    for client in served.clients:
        client.close()
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


@pytest.fixture(scope="session")
def engine() -> Engine:
    """The embedded model, for all apps in this process."""
    import kinema

    return kinema.load()


@dataclass(frozen=True)
class Here:
    """An app on a port, served by a thread of this process."""

    url: str
    server: Server


@pytest.fixture(scope="session")
def app_here():
    """`with app_here(engine, data, **settings) as here`: for what needs no process of its own."""
    return serve_here


@contextmanager
def serve_here(engine: Engine, data: Path, **settings) -> Iterator[Here]:
    import uvicorn

    from kinema.runtime.serve import Settings, create_app

    app = create_app(engine, Settings(data, **settings))
    runner = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False))
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=runner.run, kwargs={"sockets": [bound]}, daemon=True)
        thread.start()
        while not runner.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield Here(f"http://127.0.0.1:{bound.getsockname()[1]}", app.state.server)
        runner.should_exit = True
        thread.join(60)


# ---- databases -----------------------------------------------------------------------------------


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database: a file, and one of the PostgreSQL that the environment names."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'test.db'}"
    else:
        yield from own_database()


@pytest.fixture
def postgres_url() -> Iterator[str]:
    """An empty database of PostgreSQL."""
    yield from own_database()


def own_database() -> Iterator[str]:
    if POSTGRES is None:
        pytest.skip("KINEMA_TEST_DATABASE_URL names no PostgreSQL; `bash .ci/postgres pytest` does")
    from kinema.runtime.serve.databases import open_engine

    name = f"kinema_{uuid4().hex[:12]}"
    server = open_engine(POSTGRES).execution_options(isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    yield server.url.set(database=name).render_as_string(hide_password=False)
    with server.connect() as connection:
        connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")
    server.dispose()


def bridged(inner):
    """A client of httpx whose requests are made by another."""
    import httpx

    class Bridge(httpx.BaseTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            headers = list(request.headers.multi_items())
            url, content = str(request.url), request.read()
            answer = inner.request(request.method, url, headers=headers, content=content)
            return httpx.Response(
                answer.status_code, headers=answer.headers.multi_items(), content=answer.content
            )

    return httpx.Client(transport=Bridge())


@pytest.fixture
def talk():
    """`talk(app, key)`: the official client, of an app in this process instead of on a port."""
    from starlette.testclient import TestClient

    with ExitStack() as open_ones:

        def made(app, key: str = "none") -> openai.OpenAI:
            inner = open_ones.enter_context(TestClient(app, base_url="http://testserver"))
            options = {"base_url": "http://testserver/v1", "api_key": key, "max_retries": 0}
            try:
                return openai.OpenAI(**options, http_client=inner)
            except TypeError:  # generation 2 is built on another package
                return openai.OpenAI(**options, http_client=bridged(inner))

        yield made
