"""A headless Chromium, driven over a pipe in its own protocol: no driver, no further package."""

from __future__ import annotations

import base64
import fcntl
import io
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
SWITCHES = (
    "--headless=new",
    "--remote-debugging-pipe",
    "--no-sandbox",  # it needs what a container does not give
    "--no-first-run",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--disable-component-update",
    "--disable-background-networking",
    "--hide-scrollbars",
    "--force-color-profile=srgb",
    "--force-device-scale-factor=1",
)
PATIENCE = 60  # seconds; far more than a page takes, even where two cores do ten things


class Browser:
    """One page at a time; `requested` and `complaints` are those of the page that is open."""

    def __init__(self, profile: Path) -> None:
        self.requested: list[str] = []
        self.complaints: list[str] = []
        self.said: list[dict[str, Any]] = []
        self.count, self.buffer, self.session = 0, b"", None
        self._start(profile)
        pages = self.call("Target.getTargets")["targetInfos"]
        target = next(page["targetId"] for page in pages if page["type"] == "page")
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def _start(self, profile: Path) -> None:
        """Chromium reads the protocol from descriptor 3 and answers on 4."""
        read, self.writing = os.pipe()
        self.reading, write = os.pipe()
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (read, write)]
        shell = f'exec "$0" "$@" 3<&{ends[0]} 4>&{ends[1]}'
        command = ["bash", "-c", shell, PROGRAM, *SWITCHES, f"--user-data-dir={profile}"]
        with (profile / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [*command, "about:blank"], pass_fds=ends, stdout=log, stderr=log
            )
        for end in (read, write, *ends):
            os.close(end)

    def close(self) -> None:
        self.session = None
        self.call("Browser.close")
        self.process.wait(PATIENCE)
        os.close(self.writing)
        os.close(self.reading)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """What Chromium answers to one command; what it tells meanwhile is noted."""
        number = self._say(method, parameters)
        while (answer := self._hear()).get("id") != number:
            self._note(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def _say(self, method: str, parameters: dict[str, Any]) -> int:
        self.count += 1
        message = {"id": self.count, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.writing, json.dumps(message).encode() + b"\0")
        return self.count

    def _hear(self) -> dict[str, Any]:
        until = time.monotonic() + PATIENCE
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.reading], [], [], max(0, until - time.monotonic()))
            assert ready, "Chromium is silent"
            more = os.read(self.reading, 1 << 20)
            assert more, "Chromium has gone"
            self.buffer += more
        message, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(message)

    def _note(self, event: dict[str, Any]) -> None:
        told = event.get("params", {})
        self.said.append(event)
        if event.get("method") == "Network.requestWillBeSent":
            self.requested.append(told["request"]["url"])
        if event.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
            self.complaints.append(json.dumps(told))
        if event.get("method") == "Page.javascriptDialogOpening":
            self.complaints.append(json.dumps(told))
            self._say("Page.handleJavaScriptDialog", {"accept": True})
        if event.get("method") == "Runtime.consoleAPICalled":
            self.complaints.append(json.dumps(told["args"]))

    def open(self, path: Path, width: int = 1400, dark: bool = False) -> None:
        """Load a file as a window of this width shows it."""
        self.requested, self.complaints, self.said = [], [], []
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", media="", features=[scheme])
        self.call("Page.navigate", url=path.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.said):
            self._note(self._hear())

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression in the page."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def picture(self, save: Path | None = None) -> np.ndarray:
        """The whole page as RGB, (height, width, 3) uint8."""
        box = self.run("[innerWidth, document.documentElement.scrollHeight]")
        clip = {"x": 0, "y": 0, "width": box[0], "height": box[1], "scale": 1}
        whole = {"format": "png", "captureBeyondViewport": True, "clip": clip}
        answer = self.call("Page.captureScreenshot", **whole)
        png = base64.b64decode(answer["data"])
        if save:
            save.write_bytes(png)
        return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))

    def printed(self) -> bytes:
        """The page as a PDF on A4."""
        answer = self.call("Page.printToPDF", printBackground=True, paperWidth=8.27)
        return base64.b64decode(answer["data"])


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if not PROGRAM:
        pytest.skip("needs chromium (apt-get install chromium)")
    found = Browser(tmp_path_factory.mktemp("chromium"))
    yield found
    found.close()
