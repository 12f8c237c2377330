"""One video being made for the server: sessions that are saved on their way, and a file at the end.

A `StepScheduler` gives it turns as it does a session.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import KinemaError, UsageError
from ..media.recording import Recording
from ..provenance.marking import marking
from ..sessions.progress import Progress
from . import pictures
from .edits import edited
from .orders import BACKWARD, PARENT, SOURCE, Order, Part, overlap_of, parts_of, settle
from .soundtrack import Soundtrack
from .sources import Edges, Source, keep_edges, neighbours, source_edges

if TYPE_CHECKING:
    from ..engine import Engine
    from ..planning.plan import Plan
    from ..provenance.marking import Provenance
    from ..sessions.session import Session

VIDEO, RUN = "video.mp4", ".kinema"
PREVIEW_EVERY = 0.5  # seconds; a preview costs about one step of the smallest model
DECODING = 0.1  # of the progress that is shown
NICENESS = 10  # of threads that make videos, where there is one per thread
AT_ONCE = 8  # frames that are read back together


class Paused(KinemaError):
    """The server is stopping; the run was saved, and goes on when it is started again."""


class Making:
    """A video being made. `told` gets every event: progress, and previews while `watched()`."""

    def __init__(
        self,
        engine: Engine,
        order: Order,
        folder: Path,
        save_seconds: float,
        told: Callable[[str, dict[str, Any]], None],
        watched: Callable[[], bool],
        provenance: Provenance | None = None,
    ) -> None:
        self.engine, self.order, self.folder = engine, order, folder
        self.save_seconds, self.told, self.watched = save_seconds, told, watched
        self.provenance = provenance
        self.parts = parts_of(order, engine.checkpoint)
        presets = engine.checkpoint.presets
        self._fps, self._overlap = order.fps or presets.fps, overlap_of(presets) or 1
        self.report: dict[str, Any] = {}
        self.seconds: dict[str, float] = {}  # spent, by stage
        self.num_frames, self.stopping, self.stopped = 0, False, False
        self._backward = order.direction == BACKWARD
        self._held: list[np.ndarray] = []
        self._head: list[np.ndarray] = []  # how what is made begins
        self._tail: list[np.ndarray] = []  # what the next part is shown: the end, or the start
        self.saved = False  # whether a start after this one would be further than this one was
        self._saved_at = self._shown_at = time.monotonic()
        _clear(folder)
        self.source = Source(folder / SOURCE) if order.kind != "create" else None
        if order.kind == "extension":
            self._tail = neighbours(folder, order, self.parts[0].overlap, self._fps)
        self.session = self._open(self.parts[0])
        rate, fps = self.plan.sample_rate, self.plan.fps
        self._sound = None if rate is None else Soundtrack(rate, fps, self._backward)

    # ---- what a scheduler asks of a session ------------------------------------------------------

    @property
    def plan(self) -> Plan:
        return self.session.plan

    @property
    def batch_key(self) -> tuple[int, ...] | None:
        return self.session.batch_key

    @property
    def video(self) -> Path:
        return self.folder / VIDEO

    def cancel(self) -> None:
        """Stop before the next step and give back all memory. May be called from any thread."""
        self.stopped = True
        self.session.cancel()

    def work(self) -> Iterator[Progress]:
        """All that is left, a part at a time; the file is there when it ends."""
        _give_way()
        plan, size = self.plan, (self.order.height, self.order.width)
        origin = self.engine.origin(self.session.request)
        mark = marking(self.provenance, origin, size, plan.fps, self._parent())
        with Recording(self.video, plan.fps, plan.sample_rate, marking=mark) as recording:
            if not self._backward:
                self._add_source(recording)
            for part in self.parts:
                if part.number:
                    self.session = self._open(part)
                yield from self._make(part, recording)
            if self._backward:
                self._add_made(recording)
                self._add_source(recording)
            audio = None if self._sound is None else self._sound.whole()
            report = {**self.report, "served": self.served}
            recording.finish(audio, report)
        keep_edges(self.folder, self._edges(), self._fps)
        pictures.show(self.video, self.num_frames, mark, report)

    @property
    def served(self) -> dict[str, Any]:
        """How the order was made to fit the model."""
        plan = self.plan
        own = {"seed": self.order.seed, "steps": plan.num_inference_steps, "fps": plan.fps}
        return {**own, **settle(self.order, self.engine.checkpoint)}

    def finish(self) -> None:
        """Remove what is of use only while the video is made."""
        for part in self.parts:
            self._file(part).unlink(missing_ok=True)
            self._made(part).unlink(missing_ok=True)

    # ---- inside ----------------------------------------------------------------------------------

    def _make(self, part: Part, recording: Recording) -> Iterator[Progress]:
        """One part: its steps, saved and shown, and its frames into the file."""
        chunks: list[np.ndarray] = []
        first = 0 if self._backward else part.overlap
        seen, edge = 0, []
        for progress in self.session.work(chunks.append):
            self._tell(part, progress)
            yield progress
            if self.stopping:
                self.session.save(self._file(part))
                raise Paused("the server is stopping")
            if progress.stage == "denoise":
                self._keep(part, progress)
            for chunk in chunks:
                mine = chunk[: max(0, first + part.kept - seen)]
                self._add(mine[max(0, first - seen) :], recording)
                edge, seen = self._edge(edge, mine), seen + len(chunk)
            chunks.clear()
        self._tail = edge
        self._end(part)

    def _edge(self, before: list[np.ndarray], frames: np.ndarray) -> list[np.ndarray]:
        """The frames of a part that the next one may be shown."""
        both = [*before, *frames]
        return both[: self._overlap] if self._backward else both[-self._overlap :]

    def _add(self, frames: np.ndarray, recording: Recording) -> None:
        """New frames; what is made from the end to the start waits."""
        self.num_frames += len(frames)
        self._head = [*self._head, *frames][: self._overlap]
        if self._backward:
            self._held.append(frames)
        elif len(frames):
            recording.add(pictures.fit(frames, self.order.width, self.order.height))

    def _add_made(self, recording: Recording) -> None:
        for part in reversed(self.parts):
            frames = np.load(self._made(part), mmap_mode="r")
            for start in range(0, len(frames), AT_ONCE):
                chunk = np.array(frames[start : start + AT_ONCE])
                recording.add(pictures.fit(chunk, self.order.width, self.order.height))
            self._made(part).unlink()

    def _edges(self) -> Edges:
        """How the whole begins and ends, as far as that was made here."""
        if self.order.kind != "extension":
            return {"start": np.stack(self._head), "end": np.stack(self._tail)}
        edge = "start" if self._backward else "end"
        return {**source_edges(self.folder, self._fps), edge: np.stack(self._tail)}

    def _parent(self) -> Path | None:
        """The file that the video names as the one it is made from."""
        files = (self.folder / name for name in (PARENT, SOURCE))
        return next((file for file in files if file.exists()), None)

    def _end(self, part: Part) -> None:
        video = self.session.video
        for stage, seconds in self.session.seconds.items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds
        self.report = video.report
        if self._backward:
            np.save(self._made(part), np.concatenate(self._held))
            self._held.clear()
        if self._sound is not None and video.audio is not None:
            self._sound.add_part(part, video.audio.copy())

    def _add_source(self, recording: Recording) -> None:
        """An extension begins, or ends, with its source."""
        if self.order.kind != "extension":
            return
        assert self.source is not None
        plan, count = self.plan, 0
        for frame in self.source.at(plan.fps):
            recording.add(pictures.fit(frame[None], self.order.width, self.order.height))
            count += 1
        self.num_frames += count
        if self._sound is not None:
            self._sound.add_source(self.source.sound(self._sound.sample_rate, count / plan.fps))

    def _open(self, part: Part) -> Session:
        """A part's session, from its file where there is one that can go on."""
        file = self._file(part)
        if file.exists():
            with suppress(UsageError):  # of other weights, since the server was started anew
                return self.engine.resume(file)
            file.unlink()
        presets, before = self.engine.checkpoint.presets, None
        if part.overlap:
            before = self._tail[-part.overlap :]
            before = before[:1] * (part.overlap - len(before)) + before
        request = self.order.request(presets, part, self.folder, before)
        if self.order.kind == "edit":
            assert self.source is not None
            start = sum(before.kept for before in self.parts[: part.number]) - part.overlap
            strength = self.order.strength
            request = edited(self.engine, request, self.source, strength, start)
        return self.engine.session(request)

    def _keep(self, part: Part, progress: Progress) -> None:
        """Save the run where that is due: between two parts, and every so many seconds."""
        between = len(self.parts) > 1 and progress.index == progress.total
        if between or time.monotonic() - self._saved_at >= self.save_seconds:
            self.session.save(self._file(part))
            self.saved, self._saved_at = True, time.monotonic()

    def _tell(self, part: Part, progress: Progress) -> None:
        self.told("progress", {"progress": self._percent(part, progress), **vars(progress)})
        due = time.monotonic() - self._shown_at >= PREVIEW_EVERY
        if progress.stage == "denoise" and due and self.watched():
            frames = self.session.preview()
            image = b64encode(pictures.animated(list(frames))).decode()
            self.told(
                "preview", {"step": progress.index, "image": f"data:image/webp;base64,{image}"}
            )
            self._shown_at = time.monotonic()

    def _percent(self, part: Part, progress: Progress) -> int:
        done = progress.index / max(1, progress.total)
        here = {"denoise": done * (1 - DECODING), "decode": 1 - DECODING + done * DECODING}
        whole = (part.number + here.get(progress.stage, 0.0)) / len(self.parts)
        return min(99, int(100 * whole))

    def _made(self, part: Part) -> Path:
        return self.folder / f"made-{part.number}.npy"

    def _file(self, part: Part) -> Path:
        return self.folder / f"run-{part.number}{RUN}"


def _give_way() -> None:
    """Let threads that answer requests go first; those that this one starts inherit it."""
    if sys.platform == "linux":  # where threads have a niceness of their own
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)


def _clear(folder: Path) -> None:
    """Remove what a kill left half-written."""
    for file in folder.glob(".kinema-*.part"):
        file.unlink(missing_ok=True)
