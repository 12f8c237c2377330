"""`kinema generate` and `kinema plan`: a prompt to a file, and what that needs."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import Cancelled, UsageError
from ..planning.fit import gb
from .app import Debug, Json, app
from .console import print_json, progress, say, table
from .groups import grouped
from .marks import Marks
from .options import Options

if TYPE_CHECKING:
    from pathlib import Path

    from ..media.video import Video
    from ..planning.plan import Plan
    from ..provenance.marking import Provenance
    from ..sessions.progress import Progress
    from ..sessions.session import Session


@app.command()
@grouped
def generate(
    options: Options,
    *,
    output: Annotated[
        str, typer.Option("-o", "--output", metavar="FILE", help="The MP4 to write.")
    ],
    save_every: Annotated[
        int | None,
        typer.Option(metavar="N", help="Save the run beside the video after every N steps."),
    ] = None,
    resume: Annotated[
        str | None, typer.Option(metavar="FILE", help="Go on with a saved run; takes no prompt.")
    ] = None,
    keep_latents: Annotated[
        bool,
        typer.Option("--keep-latents", help="Keep the finished run, to decode it again."),
    ] = False,
    marks: Marks,
    visible_mark: Annotated[
        bool, typer.Option("--visible-mark", help='Show a small moving mark: "AI generated".')
    ] = False,
    as_json: Json = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    debug: Debug = False,
) -> None:
    """Make a video of PROMPT and write it to an MP4.

    Size, length, steps and guidance are the checkpoint's own if not given.
    """
    from ..media.mp4 import check_target
    from ..planning.plan import resolve

    if save_every is not None and save_every < 1:
        raise UsageError(f"--save-every is {save_every}; it must be 1 step or more")
    started, asked = time.perf_counter(), options.read()
    path = check_target(output, overwrite=force)
    if resume is None:
        request = asked.request()
        # What cannot run is refused here, before torch is imported and weights are read.
        announcement = _announce(resolve(request, asked.checkpoint), asked.checkpoint.name)
    else:
        if asked.prompt is not None:
            raise UsageError(f"--resume {resume} has its own prompt; leave {asked.prompt!r} out")
        announcement = f"going on with {resume}, model {asked.checkpoint.name}"
    provenance = marks.provenance(visible_mark)
    run = Run(path.with_suffix(".kinema"), save_every, keep_latents, provenance)
    with progress(announcement) as show:
        engine = asked.load()
        session = engine.session(request) if resume is None else engine.resume(resume)
        video = run.record(session, path, force, show)
        run.end(session)
    for warning in video.report.get("warnings", ()):
        say(f"warning: {warning}")
    if as_json:
        print_json(_as_result(str(path), video))
    else:
        print(f"{path}: {video}, made in {time.perf_counter() - started:.1f} s")


@app.command()
@grouped
def plan(options: Options, as_json: Json = False, debug: Debug = False) -> None:
    """Say what a video of PROMPT needs, how it will run, and why.

    Nothing is made.
    """
    asked = options.read()
    engine, request = asked.load(), asked.request()
    found, stages = engine.plan(request), engine.costs(request)
    if as_json:
        return print_json({**found.as_dict(), "stages": stages})
    print(_announce(found, asked.checkpoint.name))
    memory = gb(found.peak_memory_bytes)
    print(f"should take {found.seconds:.3g} s once weights are read, and {memory} of memory\n")
    print(table([(choice.what, choice.taken, choice.reason) for choice in found.choices]))
    rows = [
        (
            row["stage"],
            f"{row['seconds']:.3g} s",
            gb(row["peak_bytes"]),
            f"{row['flops'] / 1e9:.3g} GFLOP",
            f"{gb(row['moved_bytes'])} moved",
        )
        for row in stages
    ]
    print(f"\n{table(rows)}")


class Run:
    """A session that is saved to `file` as it goes, every so many steps."""

    def __init__(
        self,
        file: Path,
        save_every: int | None,
        keep: bool,
        provenance: Provenance | None = None,
    ) -> None:
        self.file, self.save_every, self.keep = file, save_every, keep
        self.provenance = provenance
        self.saved = False

    def record(
        self, session: Session, path: Path, overwrite: bool, show: Callable[[Progress], None]
    ) -> Video:
        """Run what is left, into a file. An interrupted run that was saved says how to go on."""

        def follow(part: Progress) -> None:
            show(part)
            if self.save_every and part.stage == "denoise" and part.index % self.save_every == 0:
                session.save(self.file)
                self.saved = True

        try:
            return session.record(path, follow, overwrite, self.provenance)
        except KeyboardInterrupt:
            if not self.saved:
                raise
            raise Cancelled(f"stopped; --resume {self.file} goes on from the last save") from None

    def end(self, session: Session) -> None:
        """The video is written: the run is kept if that was asked for, else removed."""
        if self.keep:
            session.save(self.file)
        elif self.saved:
            self.file.unlink(missing_ok=True)


def _announce(plan: Plan, model: str) -> str:
    return (
        f"{plan.num_frames} frames {plan.width}x{plan.height} at {plan.fps:g} fps"
        f" ({plan.duration:.4g} s), {plan.num_inference_steps} steps, seed {plan.seed},"
        f" model {model}"
    )


def _as_result(path: str, video: Video) -> dict[str, Any]:
    report = dict(video.report)
    request, plan = report.pop("request", None), report.pop("plan", None)
    return {"path": path, "request": request, "plan": plan, "report": report}
