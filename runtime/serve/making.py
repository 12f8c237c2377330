"""One video being made for the server: sessions that are saved on their way, and a file at the end.

A `StepScheduler` gives it turns as it does a session.
"""

from __future__ import annotations

import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import KinemaError, UsageError
from ..presets import presets_of
from ..progress import Progress
from ..provenance.marking import marking
from ..recording import Recording
from . import pictures
from .edits import edited
from .orders import SOURCE, Order, Part, parts_of, settle
from .sources import Source

if TYPE_CHECKING:
    from ..engine import Engine
    from ..plan import Plan
    from ..session import Session

VIDEO, RUN = "video.mp4", ".kinema"
PREVIEW_EVERY = 0.5  # seconds; a preview costs about one step of the smallest model
DECODING = 0.1  # of the progress that is shown


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
    ) -> None:
        self.engine, self.order, self.folder = engine, order, folder
        self.save_seconds, self.told, self.watched = save_seconds, told, watched
        self.parts = parts_of(order, engine.checkpoint)
        self.report: dict[str, Any] = {}
        self.seconds: dict[str, float] = {}  # spent, by stage
        self.num_frames, self.stopping, self.stopped = 0, False, False
        self._audio: list[np.ndarray] = []
        self._tail: list[np.ndarray] = []
        self._saved_at = self._shown_at = time.monotonic()
        _clear(folder)
        self.source = Source(folder / SOURCE) if order.kind != "create" else None
        if order.kind == "extension":
            self._tail = self.source.last(self.parts[0].overlap)
        self.session = self._open(self.parts[0])

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
        plan, size = self.plan, (self.order.height, self.order.width)
        mark = marking(None, self.engine.origin(self.session.request), size, plan.fps)
        with Recording(self.video, plan.fps, plan.sample_rate, marking=mark) as recording:
            self._lead(recording)
            for part in self.parts:
                if part.number:
                    self.session = self._open(part)
                yield from self._make(part, recording)
            audio = np.concatenate(self._audio) if self._audio else None
            recording.finish(audio, {**self.report, "served": self.served})
        pictures.show(self.video, self.num_frames)

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

    # ---- inside ----------------------------------------------------------------------------------

    def _make(self, part: Part, recording: Recording) -> Iterator[Progress]:
        """One part: its steps, saved and shown, and its frames into the file."""
        chunks: list[np.ndarray] = []
        skip, kept = part.overlap, []
        for progress in self.session.work(chunks.append):
            self._tell(part, progress)
            yield progress
            if self.stopping:
                self.session.save(self._file(part))
                raise Paused("the server is stopping")
            if progress.stage == "denoise":
                self._keep(part, progress)
            for chunk in chunks:
                new, skip = chunk[skip:], max(0, skip - len(chunk))
                self.num_frames += len(new)
                kept = [*kept, *chunk][-8:]
                recording.add(pictures.fit(new, self.order.width, self.order.height))
            chunks.clear()
        self._tail = kept
        self._end(part)

    def _end(self, part: Part) -> None:
        video, plan = self.session.video, self.plan
        for stage, seconds in self.session.seconds.items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds
        self.report = video.report
        if video.audio is not None:
            there = round(part.overlap * plan.sample_rate / plan.fps)
            self._audio.append(video.audio[there:])

    def _lead(self, recording: Recording) -> None:
        """An extension begins with its source."""
        if self.order.kind != "extension":
            return
        plan = self.plan
        for frame in self.source.at(plan.fps):
            recording.add(pictures.fit(frame[None], self.order.width, self.order.height))
            self.num_frames += 1
        if plan.sample_rate is not None:
            self._audio.append(self.source.sound(plan.sample_rate, self.num_frames / plan.fps))

    def _open(self, part: Part) -> Session:
        """A part's session, from its file where there is one that can go on."""
        file = self._file(part)
        if file.exists():
            with suppress(UsageError):  # of other weights, since the server was started anew
                return self.engine.resume(file)
            file.unlink()
        presets, before = presets_of(self.engine.checkpoint), None
        if part.overlap:
            before = self._tail[-part.overlap :]
        request = self.order.request(presets, part, self.folder, before)
        if self.order.kind == "edit":
            request = edited(self.engine, request, self.source, self.order.strength)
        return self.engine.session(request)

    def _keep(self, part: Part, progress: Progress) -> None:
        """Save the run where that is due: between two parts, and every so many seconds."""
        between = len(self.parts) > 1 and progress.index == progress.total
        if between or time.monotonic() - self._saved_at >= self.save_seconds:
            self.session.save(self._file(part))
            self._saved_at = time.monotonic()

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

    def _file(self, part: Part) -> Path:
        return self.folder / f"run-{part.number}{RUN}"


def _clear(folder: Path) -> None:
    """Remove what a kill left half-written."""
    for file in folder.glob(".kinema-*.part"):
        file.unlink(missing_ok=True)
