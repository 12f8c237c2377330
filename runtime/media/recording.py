"""A file that is encoded while its frames are still being made."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from queue import Queue
from typing import TYPE_CHECKING, Any

import numpy as np

from ..files import whole_or_nothing
from .mp4 import Encoder, check_target

if TYPE_CHECKING:
    from ..provenance.marking import Marking

WAITING = 2  # chunks of frames between the decoder and the encoder


class Recording(AbstractContextManager):
    """An MP4 under way: a thread encodes chunks while the next one decodes.

    Leave the context without `finish`, or by an exception, and there is no file. `marking` marks
    and signs it; without it nothing does.
    """

    def __init__(
        self,
        path: str | Path,
        fps: float,
        sample_rate: int | None = None,
        overwrite: bool = True,
        marking: Marking | None = None,
    ) -> None:
        self.path = check_target(path, overwrite)
        self._chunks: Queue[np.ndarray | None] = Queue(WAITING)
        self._error: BaseException | None = None
        self._stack = ExitStack()
        unfinished = self._stack.enter_context(whole_or_nothing(self.path))
        encoder = Encoder(unfinished, fps, sample_rate, marking, self.path.name)
        self._encoder = self._stack.enter_context(encoder)
        self._thread = threading.Thread(target=self._work, name="kinema-encode", daemon=True)
        self._thread.start()

    def add(self, frames: np.ndarray) -> None:
        """Hand in frames, uint8 (n, height, width, 3); waits while others are not encoded yet.

        Raises what encoding the ones before raised.
        """
        self._chunks.put(frames)
        self._raise()

    def finish(self, audio: np.ndarray | None, report: dict[str, Any] | None) -> Path:
        """Wait for the frames and write the file, whole; returns its path."""
        self._stop()
        self._raise()
        try:
            self._encoder.finish(audio, report)
        except BaseException as error:
            self._close(error)
            raise
        self._stack.close()
        return self.path

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self._stop()
        self._close(error or Unfinished())

    def _work(self) -> None:
        while (frames := self._chunks.get()) is not None:
            try:
                for frame in frames if self._error is None else ():
                    self._encoder.add(frame)
            except BaseException as failure:
                self._error = failure

    def _stop(self) -> None:
        if self._thread.is_alive():
            self._chunks.put(None)
            self._thread.join()

    def _close(self, error: BaseException) -> None:
        """Leave what is open as if by an exception, so that no file appears."""
        try:
            self._stack.__exit__(type(error), error, error.__traceback__)
        except BaseException as other:
            if other is not error:
                raise

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error


class Unfinished(Exception):
    """The recording was left before it was finished."""
