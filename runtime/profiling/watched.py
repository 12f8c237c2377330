"""A session that is watched: the same work, in the same order, with a stopwatch around its parts.

Nothing of it is there when nobody profiles: it is a session of its own kind, and what it puts
around an engine's components is taken off again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from ..checkpoints.checkpoint import TRANSFORMERS
from ..planning.branches import branches_of_steps
from ..sampling.denoise import Step
from ..sessions.pipeline import Bound
from ..sessions.session import Session
from .spans import WAIT

if TYPE_CHECKING:
    from ..engine import Engine
    from ..media.recording import Recording
    from ..planning.plan import Plan
    from ..provenance.marking import Provenance
    from ..requests.request import Request
    from .watch import Stopwatch

STAGES = {"encode": "bind"}  # of a session, where a part of it has the name


class Watched(Session):
    """One request being made, its stages timed. Call `undress` when it is done."""

    def __init__(self, engine: Engine, request: Request, plan: Plan, watch: Stopwatch) -> None:
        super().__init__(engine, request, plan)
        self.watch, self.guided = watch, branches_of_steps(plan)[2] > 0
        self._dress, self._dressed = ExitStack(), set()

    def undress(self) -> None:
        """Take off what was put around the engine's components."""
        self._dress.close()
        self._dressed.clear()

    def __next__(self) -> Step:
        if self.index == self.total:
            return super().__next__()
        with self.watch.stepping(self.index):
            self._dress_transformers()
            return super().__next__()

    def prepare(self) -> Bound:
        if self._bound is not None:
            return self._bound
        bound = super().prepare()
        if self.guided:
            timed = self._inside("guidance", bound.predict)
            bound = self._bound = bound._replace(predict=timed)
        return bound

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        if stage == "encode":
            with self.watch.stage("load"):
                self._dress_encoders()
        elif stage == "decode":
            self._dress_sound()
        with self.watch.stage(STAGES.get(stage, stage)), super().timed(stage):
            yield

    def _recording(
        self, path: str | Path, overwrite: bool, provenance: Provenance | None
    ) -> Recording:
        with self.watch.stage("load"):
            self.engine.checkpoint.weight_hash()  # what a signed file says of its model
        with self.watch.stage("mark"):
            recording = super()._recording(path, overwrite, provenance)
        encoder = recording._encoder
        self._around(recording, "add", WAIT)
        self._around(recording, "_stop", WAIT)
        self._around(recording, "finish", "mux")
        self._around(encoder, "add", "mux")
        if encoder.marking is not None:
            self._around(encoder.marking, "frame", "mark")
            self._around(encoder.marking, "sound", "mark")
            self._around(encoder.marking, "sign", "sign")
        return recording

    # ---- what is put around components -----------------------------------------------------------

    def _dress_encoders(self) -> None:
        engine = self.engine
        self._around(engine.text_encoder, "open", "load")
        self._around(engine.text_encoder, "encode", "encode")
        if not self.request.shown:
            return
        for name in ("encode", "encode_chunks"):
            self._around(engine.vae, name, "encode pictures")
        if "image_encoder" in engine.checkpoint.components:
            self._around(engine.image_encoder, "open", "load")
            self._around(engine.image_encoder, "encode", "encode pictures")

    def _dress_sound(self) -> None:
        if self.engine.sound is not None:
            self._around(self.engine.sound, "decode", "decode sound")

    def _dress_transformers(self) -> None:
        """A second expert is opened when the first step needs it."""
        for name in TRANSFORMERS if self.guided else ():
            model = vars(self.engine).get(name)
            if isinstance(model, nn.Module) and id(model) not in self._dressed:
                self._dressed.add(id(model))
                self._time_forward(model)
                step = getattr(model, "step", None)
                if step is not None:  # a graph, which is not called as a module
                    self._put(model, "step", self._inside("denoise", step))

    def _time_forward(self, model: nn.Module) -> None:
        running: list[Any] = []

        def begin(*_: object) -> None:
            running.append(self.watch.inside("denoise"))
            running[-1].__enter__()

        def end(*_: object) -> None:
            running.pop().__exit__(None, None, None)

        for handle in (model.register_forward_pre_hook(begin), model.register_forward_hook(end)):
            self._dress.callback(handle.remove)

    def _inside(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function that is a part of a step: guidance is what a prediction takes beside the
        transformer."""

        def timed(*args: Any) -> Any:
            with self.watch.inside(name):
                return function(*args)

        return timed

    def _around(self, thing: Any, name: str, stage: str) -> None:
        """Put the stopwatch around a method, until `undress`."""
        if (id(thing), name) in self._dressed or not hasattr(thing, name):
            return
        self._dressed.add((id(thing), name))
        self._put(thing, name, self.watch.around(stage, getattr(thing, name)))

    def _put(self, thing: Any, name: str, function: Callable[..., Any]) -> None:
        if name in vars(thing):
            self._dress.callback(setattr, thing, name, vars(thing)[name])
        else:
            self._dress.callback(delattr, thing, name)
        setattr(thing, name, function)
