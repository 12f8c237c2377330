"""A request handed in: what its caller holds while the scheduler works on it."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from concurrent.futures import Future
from typing import Any

from ..errors import Cancelled
from ..media.video import Video
from .progress import Progress

END = None  # what follows the last event
Listener = Callable[[Progress | None], None]


class Job:
    """A request handed in: wait for it, follow it, stop it, from any thread or event loop.

    `await job` and `job.result()` give the video or raise what went wrong, `Cancelled` after a
    `cancel`. `job.events()` can be iterated over with `for` and with `async for`.
    """

    def __init__(self, cancel: Callable[[Job], None]) -> None:
        self._cancel, self._future, self._lock = cancel, Future(), threading.Lock()
        self._listeners: list[Listener] = []
        self._told = [Progress("queued", 0, 1)]

    @property
    def progress(self) -> Progress:
        """What was finished last."""
        return self._told[-1]

    def result(self, timeout: float | None = None) -> Video:
        """Wait for the video. Raises `TimeoutError` after `timeout` seconds; the job goes on."""
        try:
            return self._future.result(timeout)
        except asyncio.TimeoutError:  # not yet TimeoutError itself in Python 3.10
            raise TimeoutError(f"the video is not ready after {timeout:g} seconds") from None

    def done(self) -> bool:
        """Whether it ended, well or not."""
        return self._future.done()

    def cancelled(self) -> bool:
        """Whether it ended by `cancel`."""
        return self.done() and isinstance(self._future.exception(), Cancelled)

    def cancel(self) -> bool:
        """Stop before the next step; False where it has ended already."""
        if self.done():
            return False
        self._cancel(self)
        return True

    def events(self) -> Events:
        """All progress, from the first part to the last, for any number of listeners."""
        return Events(self)

    def __await__(self) -> Generator[Any, None, Video]:
        return asyncio.wrap_future(self._future).__await__()

    # ---- for the scheduler -----------------------------------------------------------------------

    def tell(self, progress: Progress) -> None:
        """Pass on what was finished."""
        with self._lock:
            self._told.append(progress)
            for listener in self._listeners:
                listener(progress)

    def end(self, video: Video | None, error: BaseException | None = None) -> None:
        """Set the outcome, once."""
        with self._lock:
            if self._future.done():
                return
            if error is None:
                self._future.set_result(video)
            else:
                self._future.set_exception(error)
            for listener in self._listeners:
                listener(END)
            self._listeners.clear()

    def listen(self, listener: Listener) -> None:
        """Call with every event, those past at once, and then with None. It must not wait."""
        with self._lock:
            for progress in self._told[1:]:
                listener(progress)
            if self._future.done():
                listener(END)
            else:
                self._listeners.append(listener)


class Events:
    """Events of a job, for `for` and for `async for`."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def __iter__(self) -> Iterator[Progress]:
        told: queue.SimpleQueue[Progress | None] = queue.SimpleQueue()
        self._job.listen(told.put)
        return iter(told.get, END)

    async def __aiter__(self) -> AsyncIterator[Progress]:
        loop, told = asyncio.get_running_loop(), asyncio.Queue()
        self._job.listen(lambda event: _put(loop, told, event))
        while (event := await told.get()) is not END:
            yield event


def _put(loop: asyncio.AbstractEventLoop, told: asyncio.Queue, event: Progress | None) -> None:
    if not loop.is_closed():  # nobody listens any more
        loop.call_soon_threadsafe(told.put_nowait, event)
