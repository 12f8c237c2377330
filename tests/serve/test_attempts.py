"""A video that ends the process again and again. The process is this one; it ends by forgetting."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("fastapi", reason="needs kinema[serve]")

from kinema.runtime.serve import Settings, runs
from kinema.runtime.serve.making import RUN, Paused
from kinema.runtime.serve.orders import Order
from kinema.runtime.serve.server import Server
from kinema.runtime.serve.videos import FAILED, QUEUED, Video
from kinema.runtime.sessions.progress import Progress

ENGINE = SimpleNamespace(
    device=torch.device("cpu"),
    scheduler=SimpleNamespace(max_batch=1, memory_limit=None),
    checkpoint=SimpleNamespace(name="fake"),
)
started: list[str] = []


class Fake:
    """Made at once, or (a prompt of `poison`) never; one that `saves` gets further each time."""

    saves = False

    def __init__(self, engine, order, folder, *_: object) -> None:
        self.prompt, self.folder, self.saved, self.stopping = order.prompt, folder, False, False
        self.seconds, self.served, self.video, self.batch_key = {}, {}, None, None

    def work(self):
        started.append(self.prompt)
        while "poison" in self.prompt:
            if self.saves and not self.saved:
                (self.folder / f"run-0{RUN}").write_text("further")
                self.saved = True
            if self.stopping:
                raise Paused("the server is stopping")
            time.sleep(0.005)
            yield Progress("denoise", 1, 2)

    def cancel(self) -> None:
        pass

    def finish(self) -> None:
        pass


@pytest.fixture
def live(tmp_path, monkeypatch):
    """`live(*prompts)`: a process with these videos more; the next one begins where it ended."""
    monkeypatch.setattr(runs, "Making", Fake)
    monkeypatch.setattr(Fake, "saves", False)
    started.clear()

    def begin(*prompts: str) -> Server:
        server = Server({"fake": ENGINE}, Settings(tmp_path / "data"))
        with server.store.session() as session:
            for prompt in prompts:
                order = Order(prompt, seed=1, width=64, height=64, seconds=4).as_dict()
                about = {"owner": "me", "model": "fake", "seconds": "4", "size": "64x64"}
                id = f"video_{prompt}"
                session.add(Video(id=id, prompt=prompt, order=order, created_at=1, **about))
                server.folder(id).mkdir()
        server.start()
        return server

    return begin


def killed(server: Server) -> None:
    """Ended without a word."""
    server.runs.attempts.forgive = lambda: None
    server.runs._set_down = lambda live, error: server.runs.live.pop(live.id, None)
    server.stop()


def until(condition) -> None:
    for _ in range(4000):
        if condition():
            return
        time.sleep(0.005)
    raise AssertionError(started)


def row(server: Server, prompt: str) -> Video:
    with server.store.session() as session:
        return session.query(Video).filter_by(prompt=prompt).one()


def ended(server: Server, *prompts: str) -> bool:
    return all(row(server, prompt).status in ("completed", "failed") for prompt in prompts)


def test_a_video_that_ends_the_process_is_tried_three_times(live):
    killed(wait_for(live("poison"), 1))
    second = wait_for(live("later"), 2)
    second.runs._fill()
    assert row(second, "later").status == QUEUED  # it waits until the other has proven harmless
    killed(second)
    killed(wait_for(live(), 3))
    last = live()
    until(lambda: ended(last, "poison", "later"))
    failed = row(last, "poison")
    assert (failed.status, failed.error["code"]) == (FAILED, "crashed")
    assert "3 times" in failed.error["message"]
    assert started == ["poison"] * 3 + ["later"]
    assert list(last.folder(failed.id).iterdir()) == []
    last.stop()


def test_a_stop_that_was_asked_for_does_not_count(live):
    for number in range(5):
        server = wait_for(live(*["poison"][number:]), number + 1)
        assert row(server, "poison").attempts == 1
        server.stop()


def test_a_video_that_gets_further_is_not_blamed(live, monkeypatch):
    monkeypatch.setattr(Fake, "saves", True)
    for number in range(5):
        live_further(live, number)


def live_further(live, number: int) -> None:
    server = wait_for(live(*["poison"][number:], f"other-{number}"), number + 1)
    until(lambda: server.runs.live["video_poison"].proven)
    server.runs.wake()
    until(lambda: ended(server, f"other-{number}"))
    killed(server)


def wait_for(server: Server, starts: int) -> Server:
    until(lambda: started.count("poison") == starts)
    return server
