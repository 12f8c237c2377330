"""Answers of a server whose engine is busy, under an open loop.

`python -m kinema.benchmarks.serve --write`: a `kinema serve` in a process of its own makes videos
without end; requests are sent to it at a fixed rate, whether or not earlier ones were answered, and
each one's latency is counted from when it was due, so that a server that stalls is not spared.
The sender is this process: it takes some of the processor too.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import cycle
from pathlib import Path

from . import rows
from .measure import PROMPT
from .rows import Row

ORDER = {"prompt": PROMPT, "size": "64x64"}
BUSY = 2  # videos that are being made all the time
MIX = ("retrieve",) * 7 + ("list",) * 2 + ("create",)  # of every ten requests
SHARES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
START_SECONDS = 120.0
Latencies = Mapping[str, list[float]]


def main(arguments: list[str] | None = None) -> None:
    """Measure, print the rows and, if asked, keep them."""
    parser = argparse.ArgumentParser(prog="python -m kinema.benchmarks.serve")
    parser.add_argument("--rate", type=float, default=20.0, help="requests a second")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long they are sent")
    parser.add_argument("--write", action="store_true", help="keep the rows in results/")
    options = parser.parse_args(arguments)
    found = loaded(options.rate, options.seconds)
    for row in found:
        print(rows.said(row))
    if options.write:
        print(f"wrote {rows.merge(found)[0]}")


def measure(repeats: int) -> list[Row]:
    """For `kinema bench`: ten seconds of load for each turn."""
    return loaded(20.0, 10.0 * repeats)


def loaded(rate: float, seconds: float) -> list[Row]:
    """Latencies of each kind of request while the engine is idle, then while it is busy."""
    found: list[Row] = []
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)) as port:
        for name, videos in (("idle", 0), ("busy", BUSY)):
            shapes = f"rate={rate:g} seconds={seconds:g} videos={videos}"
            about = rows.about("serve", name, shapes, "float32", "fastapi", "uvicorn")
            found += as_rows(about, asyncio.run(Load(port, videos).run(rate, seconds)))
    return found


def as_rows(about: Row, latencies: Latencies) -> list[Row]:
    """The latency of each kind: its percentiles, and how many there were."""
    found = []
    for kind, values in latencies.items():
        ordered = sorted(values)
        spread = rows.spread(replace(about, runner=kind, quantity="seconds", unit="s"), ordered)
        found.append(spread)
        for name, share in SHARES.items():
            value = ordered[min(len(ordered) - 1, int(share * len(ordered)))]
            found.append(rows.one(about, kind, f"{name}_seconds", "s", value, n=len(ordered)))
    return found


# ---- the load ------------------------------------------------------------------------------------


class Load:
    """Requests to a server on a port, which makes so many videos all the while."""

    def __init__(self, port: int, videos: int) -> None:
        self.port, self.videos = port, videos
        self.latencies: dict[str, list[float]] = {kind: [] for kind in dict.fromkeys(MIX)}
        self.idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def run(self, rate: float, seconds: float) -> Latencies:
        """Latencies by kind of request."""
        steps, status = (1000, "in_progress") if self.videos else (1, "completed")
        asked = {**ORDER, "steps": steps}
        watched = [
            (await self.ask("POST", "/v1/videos", asked))["id"] for _ in range(self.videos or 1)
        ]
        await self.until(watched, status)
        kinds, sent = cycle(MIX), []
        started = time.perf_counter()
        for number in range(int(rate * seconds)):
            due = started + number / rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            sent.append(asyncio.create_task(self.timed(next(kinds), due, watched[0])))
        made = await asyncio.gather(*sent)
        for id in filter(None, [*made, *watched]):
            await self.ask("DELETE", f"/v1/videos/{id}")
        for _, writer in self.idle:
            writer.close()
        return self.latencies

    async def timed(self, kind: str, due: float, id: str) -> str | None:
        """One request, counted from when it was due; the id of what it made."""
        how: dict[str, Callable[[], Awaitable[dict]]] = {
            "retrieve": lambda: self.ask("GET", f"/v1/videos/{id}"),
            "list": lambda: self.ask("GET", "/v1/videos"),
            "create": lambda: self.ask("POST", "/v1/videos", {**ORDER, "steps": 1}),
        }
        answer = await how[kind]()
        self.latencies[kind].append(time.perf_counter() - due)
        if kind == "retrieve" and self.videos and answer["status"] != "in_progress":
            raise RuntimeError("the videos were done before the load was; the engine was not busy")
        return answer["id"] if kind == "create" else None

    async def until(self, ids: list[str], status: str) -> None:
        for id in ids:
            while (await self.ask("GET", f"/v1/videos/{id}"))["status"] != status:
                await asyncio.sleep(0.1)

    async def ask(self, method: str, path: str, body: object = None) -> dict:
        """One request on a connection that is kept; a client's own work would count as latency."""
        content = b"" if body is None else json.dumps(body).encode()
        if self.idle:
            reader, writer = self.idle.pop()
        else:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
        writer.write(head.encode() + content)
        answer = await reader.readuntil(b"\r\n\r\n")
        fields = answer.decode().lower().split("\r\n")
        length = next(int(f.split(":")[1]) for f in fields if f.startswith("content-length:"))
        told = json.loads(await reader.readexactly(length))
        self.idle.append((reader, writer))
        if " 200 " not in fields[0]:
            raise RuntimeError(f"{method} {path}: {fields[0]}: {told}")
        return told


@contextmanager
def serving(folder: Path) -> Iterator[int]:
    """A server of the embedded model in a process of its own; its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "kinema", "serve", "--port", str(port)]
    command += ["--data", str(folder / "data"), "--max-queued", "100000"]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(command, stderr=log)
    try:
        _wait(server, port, folder / "log")
        yield port
    finally:
        server.terminate()
        server.wait()


def _wait(server: subprocess.Popen, port: int, log: Path) -> None:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and server.poll() is None:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5)
            return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError(f"the server did not start: {log.read_text()[-2000:]}")


if __name__ == "__main__":
    main()
