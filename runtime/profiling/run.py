"""`kinema.profile`: one request made under a stopwatch, again when warm, and once more to look
inside its steps."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from ..conditioning.text_cache import EmbeddingCache
from ..engine import Engine, load
from ..errors import UsageError
from ..requests.request import Request
from ..sessions.session import Session
from . import attribution, trace, what_if
from .attribution import StepCalls
from .ceilings import Ceilings
from .ceilings import ceilings as ceilings_of
from .classes import GAPS
from .report import Profile
from .spans import Span
from .watch import Stopwatch
from .watched import Watched

if TYPE_CHECKING:
    from ..planning.plan import Plan
    from ..provenance.marking import Provenance

FORMAT = 1
# In the order of a request.
STAGES = (
    "load", "plan", "warm-up", "encode", "encode pictures", "bind", "denoise", "guidance",
    "decode", "decode sound", "mark", "mux", "sign", "other",
)  # fmt: skip
# Whose memory a stage is told that is never alone at work: it shares the moment with that one.
PEAK_OF = {"guidance": "denoise", "warm-up": "denoise", "mark": "decode", "mux": "decode"}

Say = Callable[[str], None]


def profile(
    request: Request | str,
    engine: Engine | Callable[[], Engine] | None = None,
    *,
    path: str | Path | None = None,
    provenance: Provenance | None = None,
    sizes: tuple[tuple[int, int], ...] | None = None,
    remeasure: bool = False,
    say: Say | None = None,
    **fields: Any,
) -> Profile:
    """Where the time of one request went, beside what the device could do.

    The request is made three times: first as it comes, which is what the report is about; again
    when all is open and warm; and its steps once more with every operator watched. What the file
    is encoded to goes to `path` (an MP4), else it is thrown away.

    engine: an open one, or what opens one, whose time is then counted; by default `kinema.load`.
    fields: of a `Request`, beside a prompt. provenance: how the file says where it comes from.
    sizes: (height, width) to predict the request at; by default half and twice its sides.
    remeasure: measure the device anew. Raises as `Engine.generate` does.
    """
    request, say = _as_request(request, fields), say or (lambda line: None)
    first = _first(request, engine, path, provenance)
    engine = first.engine
    say("again, when all is open")
    steady = _steady(request, engine, provenance)
    say("what the device can do")
    ceilings = ceilings_of(engine.device, remeasure)
    say("inside the steps")
    inside = list(_inside(request, engine))
    return Profile(_report(request, first, steady, ceilings, inside, sizes), Raw(first, inside))


class Run(NamedTuple):
    """One watched request."""

    engine: Engine
    plan: Plan
    watch: Stopwatch
    notes: tuple[str, ...]

    @property
    def spans(self) -> list[Span]:
        return self.watch.spans

    @property
    def step_seconds(self) -> list[float]:
        """Of each step, guidance and all."""
        outer: dict[int, float] = {}
        for span in self.spans:
            if span.step is not None:
                outer[span.step] = max(outer.get(span.step, 0.0), span.seconds)
        return [outer[index] for index in sorted(outer)]


@dataclass(frozen=True)
class Raw:
    """What was measured, for a trace."""

    first: Run
    inside: list[StepCalls]

    def trace(self) -> dict[str, Any]:
        return trace.trace(self.first.watch, self.inside)


def _first(
    request: Request,
    engine: Engine | Callable[[], Engine] | None,
    path: str | Path | None,
    provenance: Provenance | None,
) -> Run:
    watch = Stopwatch()
    if not isinstance(engine, Engine):
        with watch.stage("load"):
            engine = (engine or load)()
    return _made(request, engine, watch, path, provenance)


def _steady(request: Request, engine: Engine, provenance: Provenance | None) -> Run:
    """The same again; its text is encoded anew, as another prompt's would be."""
    encoder = engine.text_encoder
    kept, encoder.cache = encoder.cache, EmbeddingCache()
    try:
        return _made(request, engine, Stopwatch(), None, provenance)
    finally:
        encoder.cache = kept


def _made(
    request: Request,
    engine: Engine,
    watch: Stopwatch,
    path: str | Path | None,
    provenance: Provenance | None,
) -> Run:
    watch.begin(engine.device)
    with watch.stage("plan"):
        plan = engine.session(request).plan
    session = Watched(engine, request, plan, watch)
    try:
        if request.output == "latents":
            session.finish()
        else:
            with _target(path) as file:
                session.record(file, provenance=provenance)
        watch.end()
    finally:
        session.undress()
    return Run(engine, session.plan, watch, tuple(session.notes))


@contextmanager
def _target(path: str | Path | None) -> Iterator[Path]:
    if path is not None:
        yield Path(path)
        return
    with TemporaryDirectory(prefix="kinema-profile-") as folder:
        yield Path(folder) / "profile.mp4"


def _inside(request: Request, engine: Engine) -> Iterator[StepCalls]:
    """Every step of the request, seen into."""
    session: Session = engine.session(request)
    try:
        session.prepare()
        yield from attribution.steps_of(engine, session)
    finally:
        session.cancel()


# ---- the report ----------------------------------------------------------------------------------


def _report(
    request: Request,
    first: Run,
    steady: Run,
    ceilings: Ceilings,
    inside: list[StepCalls],
    sizes: tuple[tuple[int, int], ...] | None,
) -> dict[str, Any]:
    engine = first.engine
    stages, plain = _stages(first, steady)
    steps, scaled = _steps(plain, inside, ceilings)
    looked, warm = sum(step.seconds for step in inside), sum(steady.step_seconds)
    ratio = looked / warm if warm else 0.0
    report = {
        "format": FORMAT,
        "total_seconds": first.watch.ended - first.watch.started,
        "stages": stages,
        "steps": steps,
        "device": _device(engine, ceilings),
        "versions": _versions(),
        "request": request.as_dict(),
        "model": engine.origin(request)["model"],
        "plan": _plan(first),
        "steady": _warm(steady),
        "timeline": trace.timeline(first.watch),
        "attribution": {
            "seconds": looked,
            "plain_seconds": warm,
            "ratio": ratio,
            "scaled": scaled,
            "by": _means(engine),
            "note": attribution.hides(engine),
        },
        "overhead": {"attribution": f"{ratio:.3g} times the warm steps, in a pass of its own"},
        "operations": attribution.operators(inside, ceilings),
        "memory": {"how": first.watch.how},
        "notes": _notes(first, engine, scaled),
    }
    return {**report, "what_if": what_if.predictions(report, engine, request, sizes)}


def _stages(first: Run, steady: Run) -> tuple[dict[str, Any], list[float]]:
    """Stages of the first call and its steps: what the first step took beyond the same one when
    warm is apart from both."""
    seconds, plain = first.watch.seconds(), first.step_seconds
    if plain and steady.step_seconds:
        beyond = max(0.0, plain[0] - steady.step_seconds[0])
        beyond = min(beyond, seconds.get("denoise", 0.0))
        plain = [plain[0] - beyond, *plain[1:]]
        seconds["denoise"] -= beyond
        seconds["warm-up"] = beyond
    peaks = first.watch.peaks
    order = [name for name in STAGES if name in seconds]
    return {
        name: {
            "seconds": seconds[name],
            "peak_memory_bytes": peaks.get(name) or peaks.get(PEAK_OF.get(name, "")),
        }
        for name in [*order, *(name for name in seconds if name not in order)]
    }, plain


def _steps(
    plain: list[float], inside: list[StepCalls], ceilings: Ceilings
) -> tuple[list[dict[str, Any]], float]:
    """Steps by class, and the least that operators' seconds were multiplied by."""
    steps, scaled = [], 1.0
    for seconds, step in zip(plain, inside, strict=True):
        classes, scale = attribution.split(step, seconds, ceilings)
        scaled = min(scaled, scale)
        told = {"seconds": seconds, "attributed_seconds": step.seconds, "classes": classes}
        steps.append(told)
    return steps, scaled


def _warm(steady: Run) -> dict[str, Any]:
    seconds = steady.watch.seconds()
    return {
        "total_seconds": steady.watch.ended - steady.watch.started,
        "stages": {name: seconds[name] for name in STAGES if name in seconds},
        "step_seconds": steady.step_seconds,
    }


def _device(engine: Engine, ceilings: Ceilings) -> dict[str, Any]:
    from ..planning.device import name_of

    on_cpu = engine.device.type == "cpu"
    threads = {"threads": torch.get_num_threads()} if on_cpu else {}
    return {
        "name": name_of(engine.device),
        "type": engine.device.type,
        **threads,
        "ceilings": ceilings.as_dict(),
    }


def _plan(first: Run) -> dict[str, Any]:
    plan = first.plan
    names = ("width", "height", "num_frames", "fps", "num_inference_steps", "guidance_scale")
    told = {name: getattr(plan, name) for name in (*names, "seed", "dtype", "device")}
    choices = {choice.what: choice.taken for choice in plan.choices}
    return {**told, "latent_shape": list(plan.latent_shape), **choices}


def _versions() -> dict[str, str]:
    from ... import __version__

    found = {"kinema": __version__, "torch": torch.__version__, "python": platform.python_version()}
    return found if torch.version.cuda is None else {**found, "cuda": torch.version.cuda}


def _means(engine: Engine) -> str:
    if engine.device.type == "cuda":
        return "kernels"
    return "none" if attribution.hides(engine) else "operators"


def _notes(first: Run, engine: Engine, scaled: float) -> list[str]:
    found = list(first.notes)
    if reason := attribution.hides(engine):
        by = "by the names of kernels, without FLOPs" if engine.device.type == "cuda" else "whole"
        found.append(f"steps are told {by}: {reason}")
    if scaled < 1:
        found.append(
            f"in the watched pass operators took longer than plain steps; their seconds are"
            f" multiplied by {scaled:.2f} or more to fit, and no {GAPS} are told there"
        )
    return found


def _as_request(request: Request | str, fields: dict[str, Any]) -> Request:
    if isinstance(request, str):
        return Request(request, **fields)
    if not isinstance(request, Request):
        raise UsageError(f"a Request or a prompt is expected, not {type(request).__name__}")
    with contextlib.suppress(TypeError):
        return replace(request, **fields)
    raise UsageError(f"a Request has no {', '.join(fields)}")
