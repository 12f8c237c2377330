"""One request being made, that can stop between any two steps, be saved, and go on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch

from ..errors import Cancelled, KinemaError, UsageError
from ..files import reason_of
from ..media.mp4 import check_target
from ..media.recording import Recording
from ..media.video import Video
from ..provenance.marking import marking
from ..sampling.denoise import State, Step, advance, begin
from ..vaes import preview
from . import pipeline, saved
from .leaner import step_down
from .pipeline import Bound
from .progress import Progress
from .report import report

if TYPE_CHECKING:
    from ..engine import Engine
    from ..planning.plan import Plan
    from ..provenance.marking import Provenance
    from ..requests.request import Request


Result = TypeVar("Result")


class Session:
    """One request being made. Iterate over it for its steps; `finish` runs what is left.

    Nothing else holds its state, so sessions of one engine may take turns in any order. `cancel`
    may be called from another thread; all else belongs to one thread at a time.
    """

    def __init__(
        self,
        engine: Engine,
        request: Request,
        plan: Plan,
        state: State | None = None,
    ) -> None:
        self.engine, self.request, self.plan = engine, request, plan
        self.seconds: dict[str, float] = {}  # spent, by stage
        self.notes: list[str] = []  # what went otherwise than planned
        self._state: State | None = state
        self._bound: Bound | None = None
        self._cancelled, self._busy = threading.Event(), threading.Lock()
        self._recent: list[float] = []
        self._before: tuple[int, torch.Tensor] | None = None  # a step's start, for previews

    @property
    def index(self) -> int:
        """Steps that are done."""
        return self._state.index if self._state else 0

    @cached_property
    def total(self) -> int:
        """Steps in all."""
        return len(pipeline.table_of(self.plan, self.engine.scheduler_config))

    @property
    def latents(self) -> torch.Tensor | None:
        """Latents (1, C, F, H, W) after the last step; None before the session has begun."""
        return self._state.latents if self._state else None

    @property
    def batch_key(self) -> tuple[int, ...] | None:
        """Equal for sessions that may step together now; None where the next part is no step."""
        if self._bound is None or self._state is None or self.index == self.total:
            return None
        return tuple(self._state.latents.shape)

    @property
    def cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self._cancelled.is_set()

    @torch.inference_mode()
    def preview(self, size: tuple[int, int] | None = None) -> np.ndarray:
        """What is being made: frames uint8 (latent frames, h, w, 3), of what the last step headed
        for; the noise before the first. size: (height, width), by default the latents' own."""
        with self._working():
            bound, plan, latents = self.prepare(), self.plan, self._begun.latents
            index, before = self._before or (None, latents)
            if index is not None and index == self.index - 1 and self.index < self.total:
                latents = preview.denoised(before, latents, *bound.sigmas[index : index + 2])
            own = bound.finish(latents)[:, :, plan.num_references :, plan.tracks[0].rows]
            return preview.preview(own, self.engine.projection, size)

    def __iter__(self) -> Iterator[Step]:
        return self

    @torch.inference_mode()
    def __next__(self) -> Step:
        with self._working():
            if self.index == self.total:
                raise StopIteration
            self._within_memory("bind", self.prepare)
            started, self._before = time.perf_counter(), (self.index, self._begun.latents)
            self._state = self._within_memory("denoise", self._advanced)
            return self._told(time.perf_counter() - started)

    def work(self, show: Callable[[np.ndarray], None] | None = None) -> Iterator[Progress]:
        """All that is left, a part at a time; `video` is there when it ends.

        Parts are what a scheduler may put other work between: encoding, a step, a chunk of frames.
        `show` gets each chunk as it is decoded.
        """
        with self._working():
            if self.index < self.total:
                self._within_memory("bind", self.prepare)
        yield Progress("encode", 1, 1)
        for step in self:
            yield Progress("denoise", step.index + 1, step.total)
        frames: list[np.ndarray] = []
        if self.request.output != "latents":
            for chunk in self._chunks():
                frames.append(chunk)
                if show is not None:
                    show(chunk)
                yield Progress("decode", sum(map(len, frames)), self.plan.num_frames)
        self.video = self._video(np.concatenate(frames) if frames else None)

    def finish(
        self,
        progress: Callable[[Progress], None] | None = None,
        show: Callable[[np.ndarray], None] | None = None,
    ) -> Video:
        """Run what is left; `progress` is called after every part. Raises `Cancelled`."""
        for part in self.work(show):
            if progress is not None:
                progress(part)
        return self.video

    def record(
        self,
        path: str | Path,
        progress: Callable[[Progress], None] | None = None,
        overwrite: bool = True,
        provenance: Provenance | None = None,
    ) -> Video:
        """`finish`, and write an MP4 whose frames are encoded while the next ones decode.

        provenance: how the file says where it comes from; by default signed, and marked invisibly.
        Raises `UsageError` for a path that cannot be written and a key that cannot sign, before any
        work.
        """
        if self.request.output == "latents":
            raise UsageError('there are no frames to save: the request has output="latents"')
        with self._recording(path, overwrite, provenance) as recording:
            video = self.finish(progress, recording.add)
            recording.finish(video.audio, video.report)
        return video

    def pause(self) -> None:
        """Give back all memory but the latents' and the solver's; the next step binds anew."""
        with self._busy:
            self._bound = None

    def cancel(self) -> None:
        """Stop before the next step and give back all memory. May be called from any thread."""
        self._cancelled.set()
        if self._busy.acquire(blocking=False):  # else the step under way gives back when it ends
            try:
                self._release()
            finally:
                self._busy.release()

    def save(self, path: str | Path) -> Path:
        """Write what the run needs to go on to the same bits; see `Engine.resume`.

        A finished one is saved too: it decodes again without denoising. Raises `UsageError` for a
        path that cannot be written, `KinemaError` for a full disk; never leaves half a file.
        """
        with self._working():
            if self._state is None:
                self._within_memory("bind", self.prepare)
            identity, setting = self.engine.identity, self.plan.setting
            return saved.write(path, self.request, self._begun, identity, setting)

    # ---- inside ----------------------------------------------------------------------------------

    @torch.inference_mode()
    def prepare(self) -> Bound:
        """Compute what is constant in the request, if that is not done yet."""
        if self._bound is None:
            engine, request, plan = self.engine, self.request, self.plan
            with self.timed("load"):
                engine.offload_as(plan.setting.offload)
                engine.open_components()
            with self.timed("encode"):
                self._bound, latents = pipeline.prepare(engine, request, plan)
                if self._state is None:
                    self._state = begin(latents, self._bound.tracks)
        return self._bound

    def _recording(
        self, path: str | Path, overwrite: bool, provenance: Provenance | None
    ) -> Recording:
        plan = self.plan
        path, size = check_target(path, overwrite), (plan.height, plan.width)
        marks = marking(provenance, self.engine.origin(self.request), size, plan.fps)
        return Recording(path, plan.fps, plan.sample_rate, overwrite, marks)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Count the time inside to a stage."""
        started = time.perf_counter()
        try:
            yield
        finally:
            passed = time.perf_counter() - started
            self.seconds[stage] = self.seconds.get(stage, 0.0) + passed

    @contextmanager
    def _working(self) -> Iterator[None]:
        """Work that `cancel` waits for: refused after it, and cleaned up at its end."""
        with self._busy, self.engine.working():
            self._refuse_if_cancelled()
            yield
            self._refuse_if_cancelled()

    def _refuse_if_cancelled(self) -> None:
        if self.cancelled:
            self._release()
            raise Cancelled("the request was cancelled")

    def _release(self) -> None:
        self._state = self._bound = self._before = None

    @property
    def _begun(self) -> State:
        """Where the run is; `prepare` begins it."""
        assert self._state is not None
        return self._state

    def _advanced(self) -> State:
        bound = self.prepare()
        state = advance(bound.predict, self._begun, bound.tracks)
        if state.index == self.total:
            state = state._replace(latents=bound.finish(state.latents))
        return state

    def _within_memory(self, stage: str, work: Callable[[], Result]) -> Result:
        """What `work` gives, in leaner and leaner settings as long as memory runs out."""
        while True:
            try:
                return work()
            except torch.OutOfMemoryError as error:
                reason = reason_of(error)
            self._step_down(stage, reason)  # out of the handler, which holds on to tensors

    def _step_down(self, stage: str, reason: str) -> None:
        self._bound = None
        if self.engine.device.type == "cuda":
            torch.cuda.empty_cache()
        try:
            self.plan, note = step_down(self.engine, self.plan, stage, reason)
        except KinemaError:
            self._release()
            raise
        self.notes.append(note)

    def _told(self, seconds: float) -> Step:
        state, total, bound = self._begun, self.total, self.prepare()
        self.seconds["denoise"] = self.seconds.get("denoise", 0.0) + seconds
        self._recent = [*self._recent[-4:], seconds]
        left = sorted(self._recent)[len(self._recent) // 2] * (total - state.index)
        sigma = bound.sigmas[state.index]
        return Step(state.index - 1, total, sigma, state.latents, seconds, left)

    def _chunks(self) -> Iterator[np.ndarray]:
        """Frames as they are decoded; a cancelled session stops before the next chunk."""
        chunks, count = None, 0

        def decode() -> np.ndarray | None:
            nonlocal chunks
            if chunks is None:
                self._bound = None  # what decoding does not need
                every = pipeline.picture(self.engine, self.plan, self._begun.latents)
                chunks = islice(every, count, None)
            try:
                return next(chunks, None)
            except torch.OutOfMemoryError:
                chunks = None
                raise

        while True:
            with self._working(), self.timed("decode"):
                chunk = self._within_memory("decode", decode)
            if chunk is None:
                return
            count += 1
            yield chunk

    def _video(self, frames: np.ndarray | None) -> Video:
        with self._working():
            engine, plan, latents = self.engine, self.plan, self._begun.latents
            with self.timed("decode"):
                audio = None if frames is None else pipeline.sound(engine, plan, latents)
            return Video(
                frames=frames,
                fps=plan.fps,
                audio=audio,
                sample_rate=None if audio is None else plan.sample_rate,
                latents=latents.cpu(),
                report=report(engine, self.request, plan, self.seconds, self.notes),
            )
