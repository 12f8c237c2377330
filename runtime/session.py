"""One request being made, that can stop between any two steps, be saved, and go on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from . import pipeline, saved
from .denoise import State, Step, Track, advance, begin
from .errors import Cancelled, UsageError
from .guidance import Denoiser
from .media import Video
from .progress import Progress
from .recording import Recording

if TYPE_CHECKING:
    from .engine import Engine
    from .plan import Plan
    from .request import Request


class Bound(NamedTuple):
    """What a request's steps share: computed before the first, given back with `pause`."""

    tracks: Sequence[Track]
    predict: Denoiser
    sigmas: list[float]
    finish: Callable[[torch.Tensor], torch.Tensor]


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
        self._state, self._bound = state, None
        self._cancelled, self._busy = threading.Event(), threading.Lock()
        self._recent: list[float] = []

    @property
    def index(self) -> int:
        """Steps that are done."""
        return self._state.index if self._state else 0

    @property
    def total(self) -> int:
        """Steps in all."""
        return self.plan.num_inference_steps if self._bound is None else len(self._bound.sigmas) - 1

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

    def __iter__(self) -> Iterator[Step]:
        return self

    @torch.inference_mode()
    def __next__(self) -> Step:
        with self._working():
            bound = self.prepare()
            if self.index == len(bound.sigmas) - 1:
                raise StopIteration
            started = time.perf_counter()
            self._state = advance(bound.predict, self._state, bound.tracks)
            if self.index == len(bound.sigmas) - 1:
                self._state = self._state._replace(latents=bound.finish(self._state.latents))
            return self._told(bound, time.perf_counter() - started)

    def work(self, show: Callable[[np.ndarray], None] | None = None) -> Iterator[Progress]:
        """All that is left, a part at a time; `video` is there when it ends.

        Parts are what a scheduler may put other work between: encoding, a step, a chunk of frames.
        `show` gets each chunk as it is decoded.
        """
        with self._working():
            self.prepare()
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
    ) -> Video:
        """`finish`, and write an MP4 whose frames are encoded while the next ones decode.

        Raises `UsageError` for a path that cannot be written, before any work.
        """
        if self.request.output == "latents":
            raise UsageError('there are no frames to save: the request has output="latents"')
        plan = self.plan
        with Recording(path, plan.fps, plan.sample_rate, overwrite) as recording:
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
            self.prepare()
            return saved.write(path, self.request, self._state, self.engine.identity)

    # ---- inside ----------------------------------------------------------------------------------

    @torch.inference_mode()
    def prepare(self) -> Bound:
        """Compute what is constant in the request, if that is not done yet."""
        if self._bound is None:
            engine, request, plan = self.engine, self.request, self.plan
            with self.timed("load"):
                engine.open_components()
            with self.timed("encode"):
                tracks, predict, latents, finish = pipeline.prepare(engine, request, plan)
                if self._state is None:
                    self._state = begin(latents, tracks)
                self._bound = Bound(tracks, predict, tracks[0].schedule.sigmas.tolist(), finish)
        return self._bound

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
        with self._busy:
            self._refuse_if_cancelled()
            yield
            self._refuse_if_cancelled()

    def _refuse_if_cancelled(self) -> None:
        if self.cancelled:
            self._release()
            raise Cancelled("the request was cancelled")

    def _release(self) -> None:
        self._state = self._bound = None

    def _told(self, bound: Bound, seconds: float) -> Step:
        state, total = self._state, len(bound.sigmas) - 1
        self.seconds["denoise"] = self.seconds.get("denoise", 0.0) + seconds
        self._recent = [*self._recent[-4:], seconds]
        left = sorted(self._recent)[len(self._recent) // 2] * (total - state.index)
        sigma = bound.sigmas[state.index]
        return Step(state.index - 1, total, sigma, state.latents, seconds, left)

    def _chunks(self) -> Iterator[np.ndarray]:
        """Frames as they are decoded; a cancelled session stops before the next chunk."""
        with self._working():
            chunks = pipeline.picture(self.engine, self.plan, self._state.latents)
        while True:
            with self._working(), self.timed("decode"):
                chunk = next(chunks, None)
            if chunk is None:
                return
            yield chunk

    def _video(self, frames: np.ndarray | None) -> Video:
        with self._working():
            engine, plan, latents = self.engine, self.plan, self._state.latents
            with self.timed("decode"):
                audio = None if frames is None else pipeline.sound(engine, plan, latents)
            return Video(
                frames=frames,
                fps=plan.fps,
                audio=audio,
                sample_rate=None if audio is None else plan.sample_rate,
                latents=latents.cpu(),
                report=engine.report(self.request, plan, self.seconds),
            )


def resume(engine: Engine, path: str | Path) -> Session:
    """A session from a file of `Session.save`.

    Raises `UsageError` for a file of another model or version, or that is cut or not a session's.
    """
    request, state = saved.read(path, engine.identity, engine.device)
    plan = engine.plan(request)
    shape = tuple(state.latents.shape[1:])
    if shape != tuple(plan.latent_shape) or state.index > plan.num_inference_steps:
        raise UsageError(f"{path} does not fit its request: latents {shape}, step {state.index}")
    return Session(engine, request, plan, state)
