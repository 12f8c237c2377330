"""The `kinema` command. Every refusal is one line: exit code 2 for usage, 1 for failure, 130 for
Ctrl-C; with --json, one JSON object on standard output either way.

Nothing heavy is imported before a command needs it, so that `kinema --help` answers at once.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from textwrap import fill
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.exceptions import TyperException

from ..kernels.cli import app as kernels_app
from .conditions import Condition
from .errors import Cancelled, KinemaError, UsageError
from .guidance_options import PLAIN, Guidance
from .request import Request

if TYPE_CHECKING:
    from pathlib import Path

    from .media import Video
    from .plan import Plan
    from .progress import Progress
    from .session import Session

INTERRUPTED = 130
HANGING = {"subsequent_indent": " " * 15, "break_on_hyphens": False}
SIZE = re.compile(r"(-?\d+)[xX](-?\d+)")

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(kernels_app, name="kernels")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def main() -> NoReturn:
    """Runs the command line of this process and ends it with the exit code."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    code = run(sys.argv[1:])
    with suppress(BrokenPipeError):
        sys.stdout.flush()
        sys.stderr.flush()
    # All files are closed by now; the interpreter's own way out takes a second to free torch.
    os._exit(code)


def run(argv: list[str]) -> int:
    """Runs one command line; returns its exit code, having printed at most one line of error."""
    as_json = "--json" in argv
    try:
        code = app(argv or ["--help"], prog_name="kinema", standalone_mode=False) or 0
        if code == INTERRUPTED:
            raise KeyboardInterrupt
        return code
    except KeyboardInterrupt:
        return _fail("Interrupted", "stopped; nothing was written", INTERRUPTED, as_json)
    except TyperException as error:
        message = f"{error.format_message().rstrip('.')} (kinema --help shows what works)"
        return _fail("UsageError", message, error.exit_code, as_json)
    except Exception as error:
        if "--debug" in argv:
            traceback.print_exc()
        if isinstance(error, KinemaError):
            return _fail(type(error).__name__, str(error), error.exit_code, as_json)
        message = f"unexpected {type(error).__name__}: {error} (--debug shows where)"
        return _fail(type(error).__name__, message, KinemaError.exit_code, as_json)


def _say_version(asked: bool) -> None:
    if asked:
        from .. import __version__

        print(f"kinema {__version__}")
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Say the version.")
]


@app.callback()
def options(version: Version = False) -> None:
    """Makes a video with sound from a prompt."""


@app.command()
def generate(
    prompt: Annotated[str | None, typer.Argument(help="What to show.")] = None,
    *,
    output: Annotated[str, typer.Option("-o", "--output", help="The MP4 to write.")],
    model: Annotated[
        str | None, typer.Option(help="A folder or a hub id; the embedded model if not given.")
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(help="With a transformer alone as --model: where all else comes from."),
    ] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(metavar="PATH[:WEIGHT]", help="A LoRA, with its weight; may be repeated."),
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(help="Length: the fewest frames that last so long.")
    ] = None,
    num_frames: Annotated[int | None, typer.Option(help="Length in frames.")] = None,
    size: Annotated[str | None, typer.Option(metavar="WxH", help="Such as 64x64.")] = None,
    fps: Annotated[float | None, typer.Option(help="Frames a second.")] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same video.")] = Request.seed,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
    guidance_scale: Annotated[
        float | None, typer.Option(help="How closely to follow the prompt; 1 is no guidance.")
    ] = None,
    guidance_scale_2: Annotated[
        float | None, typer.Option(help="The same for the second of two experts.")
    ] = None,
    guidance_rescale: Annotated[
        float, typer.Option(help="0 to 1: how far contrast is brought back to that without it.")
    ] = PLAIN.rescale,
    guidance_interval: Annotated[
        str | None, typer.Option(metavar="A,B", help="Guide only from part A of the steps to B.")
    ] = None,
    zero_star: Annotated[
        bool, typer.Option("--zero-star", help="CFG-Zero*: scale the negative branch to fit.")
    ] = False,
    negative_prompt: Annotated[
        str, typer.Option(help="What to steer away from.")
    ] = Request.negative_prompt,
    solver: Annotated[
        str | None, typer.Option(help="unipc, dpm++2m, euler, ...; the checkpoint's own if not.")
    ] = None,
    sigmas: Annotated[
        str | None,
        typer.Option(metavar="S,S,...", help="What to step through, as distilled models have it."),
    ] = None,
    image: Annotated[str | None, typer.Option(metavar="FILE", help="The first frame.")] = None,
    last_image: Annotated[str | None, typer.Option(metavar="FILE", help="The last frame.")] = None,
    clip: Annotated[
        str | None, typer.Option(metavar="FILE", help="A video to keep, or to be guided by.")
    ] = None,
    mask: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="With --clip: white where it is made anew; 1: all of it."
        ),
    ] = None,
    reference: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="A picture of how things look; may be repeated."),
    ] = None,
    strength: Annotated[
        float, typer.Option(help="How much --clip and --reference are heeded.")
    ] = 1.0,
    adjust: Annotated[
        bool, typer.Option("--adjust", help="Take the nearest size and length that fit.")
    ] = False,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16, ...")] = None,
    backend: Annotated[
        list[str] | None,
        typer.Option(
            metavar="OP=NAME", help="Such as attention=triton; kinema kernels list names them."
        ),
    ] = None,
    executor: Annotated[
        str | None, typer.Option(help="eager, packed (a CPU's default) or compiled.")
    ] = None,
    offload: Annotated[
        str, typer.Option(help="Where idle weights are: none (the device), model or block.")
    ] = "none",
    text_cache: Annotated[
        str | None, typer.Option(metavar="DIR", help="Keep what prompts are encoded to.")
    ] = None,
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
    as_json: Json = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    debug: Debug = False,
) -> None:
    """Make a video of PROMPT and write it to an MP4."""
    import kinema

    from .checkpoint import open_checkpoint
    from .media import check_target
    from .plan import resolve

    if save_every is not None and save_every < 1:
        raise UsageError(f"--save-every is {save_every}; it must be 1 step or more")
    started = time.perf_counter()
    run_by = {
        "backends": dict(_parse_pair("--backend", text) for text in backend or ()),
        "executor": executor,
        "offload": offload,
        "text_cache": text_cache,
    }
    path = check_target(output, overwrite=force)
    checkpoint = open_checkpoint(model, base)
    loras = [_parse_lora(text) for text in lora or ()]
    if resume is None:
        width, height = _parse_size(size)
        request = Request(
            prompt="" if prompt is None else prompt,
            negative_prompt=negative_prompt,
            num_frames=num_frames,
            seconds=seconds,
            height=height,
            width=width,
            fps=fps,
            seed=seed,
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            guidance_scale_2=guidance_scale_2,
            guidance=_guidance(guidance_rescale, guidance_interval, zero_star),
            solver=solver,
            sigmas=_parse_numbers("--sigmas", sigmas),
            image=image,
            last_image=last_image,
            conditions=_conditions(clip, mask, reference or [], strength),
            adjust=adjust,
        )
        # What cannot run is refused here, before torch is imported and weights are read.
        announcement = _announce(resolve(request, checkpoint), checkpoint.name)
    else:
        if prompt is not None:
            raise UsageError(f"--resume {resume} has its own prompt; leave {prompt!r} out")
        announcement = f"going on with {resume}, model {checkpoint.name}"
    run = Run(path.with_suffix(".kinema"), save_every, keep_latents)
    with _progress(announcement) as show:
        engine = kinema.load(checkpoint, device, dtype, **run_by)
        for file, weight in loras:
            _say(str(engine.load_lora(file, weight)))
        session = engine.session(request) if resume is None else engine.resume(resume)
        video = run.record(session, path, force, show)
        run.end(session)
    for warning in video.report.get("warnings", ()):
        _say(f"warning: {warning}")
    if as_json:
        _print_json(_as_result(str(path), video))
    else:
        print(f"{path}: {video}, made in {time.perf_counter() - started:.1f} s")


@app.command()
def models(as_json: Json = False, debug: Debug = False) -> None:
    """Say what can be opened, and what the embedded model understands."""
    from .checkpoint import describe_embedded, known_models

    listing = {"models": known_models(), "embedded": describe_embedded()}
    if as_json:
        return _print_json(listing)
    for known in listing["models"]:
        print(f"{known['source']:<10} {known['what']}")
    embedded = listing["embedded"]
    presets = embedded["presets"]
    print(f"\nThe embedded model makes {presets['num_frames']} frames", end=" ")
    print(f"{presets['width']}x{presets['height']} at {presets['fps']:g} fps. It understands:")
    for category, words in embedded["words"].items():
        print(fill(", ".join(words), 100, initial_indent=f"  {category:<12} ", **HANGING))
    print("\nTry:")
    for prompt in embedded["examples"]:
        print(f'  kinema generate "{prompt}" -o video.mp4')


@app.command()
def info(
    file: Annotated[str, typer.Argument(help="An MP4 that kinema wrote.")],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Say what a finished file says about itself."""
    from .media import read_info

    found = read_info(file)
    if as_json:
        return _print_json(found)
    for section, value in found.items():
        if not isinstance(value, dict):
            print(f"{_plain(section)}: {_plain(value)}")
            continue
        print(f"{_plain(section)}:")
        for name, entry in value.items():
            print(f"  {_plain(name)}: {_plain(entry)}")


class Run:
    """A session that is saved to `file` as it goes, every so many steps."""

    def __init__(self, file: Path, save_every: int | None, keep: bool) -> None:
        self.file, self.save_every, self.keep = file, save_every, keep
        self.saved = False

    def record(
        self, session: Session, path: Path, overwrite: bool, show: Callable[[Progress], None]
    ) -> Video:
        """Run what is left, into a file. An interrupted run that was saved says how to go on."""

        def progress(part: Progress) -> None:
            show(part)
            if self.save_every and part.stage == "denoise" and part.index % self.save_every == 0:
                session.save(self.file)
                self.saved = True

        try:
            return session.record(path, progress, overwrite)
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


def _parse_lora(text: str) -> tuple[str, float]:
    """PATH or PATH:WEIGHT; a path may have colons of its own."""
    path, colon, weight = text.rpartition(":")
    if os.path.exists(text) or not colon:
        path, weight = text, "1"
    try:
        value = float(weight)
    except ValueError:
        raise UsageError(f"--lora {text!r} is neither a path nor PATH:WEIGHT") from None
    if not os.path.exists(path):
        raise UsageError(f"--lora {text!r}: no file or folder {path!r}")
    return path, value


def _parse_size(size: str | None) -> tuple[int | None, int | None]:
    if size is None:
        return None, None
    if not (found := SIZE.fullmatch(size.strip())):
        raise UsageError(f"size {size!r} is not WIDTHxHEIGHT, such as 64x64")
    return int(found[1]), int(found[2])


def _parse_numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    try:
        return None if text is None else tuple(float(number) for number in text.split(","))
    except ValueError:
        raise UsageError(
            f"{option} {text!r} is not a list of numbers, such as 1,0.75,0.5"
        ) from None


def _guidance(rescale: float, interval: str | None, zero_star: bool) -> Guidance:
    parts = _parse_numbers("--guidance-interval", interval) or PLAIN.interval
    if len(parts) != 2:
        raise UsageError(f"--guidance-interval {interval!r} is not two parts, such as 0.1,0.8")
    return Guidance(rescale=rescale, interval=parts, zero_star=zero_star)


def _conditions(
    clip: str | None, mask: str | None, references: list[str], strength: float
) -> tuple[Condition, ...]:
    if mask is not None and clip is None:
        raise UsageError(f"--mask {mask!r} belongs to a --clip; give one")
    shown = [Condition(image=path, frame=None, strength=strength) for path in references]
    if clip is not None:
        kept = 0.0 if mask is None else 1.0 if mask == "1" else mask
        shown.append(Condition(frames=clip, mask=kept, strength=strength))
    return tuple(shown)


def _parse_pair(option: str, text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise UsageError(f"{option} {text!r} is not NAME=VALUE, such as attention=triton")
    return name, value


def _announce(plan: Plan, model: str) -> str:
    return (
        f"{plan.num_frames} frames {plan.width}x{plan.height} at {plan.fps:g} fps"
        f" ({plan.seconds:.4g} s), {plan.num_inference_steps} steps, seed {plan.seed},"
        f" model {model}"
    )


@contextmanager
def _progress(announcement: str) -> Iterator[Callable[[Progress], None]]:
    """Shows on standard error what is made, and a bar where that is a terminal.

    Elsewhere the announcement waits for the first sign of work, so that a failure before it is one
    line.
    """
    if sys.stderr.isatty():
        _say(announcement)
        with _bar() as show:
            yield show
        return
    unsaid = [announcement]

    def say_once(event: Progress) -> None:
        while unsaid:
            _say(unsaid.pop())

    yield say_once


@contextmanager
def _bar() -> Iterator[Callable[[Progress], None]]:
    from rich import progress as rich
    from rich.console import Console

    columns = (
        "{task.description:<8}",
        rich.BarColumn(),
        rich.MofNCompleteColumn(),
        rich.TimeRemainingColumn(),
    )
    with rich.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        tasks = {"load": bar.add_task("load", total=None)}

        def show(event: Progress) -> None:
            bar.update(tasks["load"], completed=1, total=1)
            if event.stage not in tasks:
                tasks[event.stage] = bar.add_task(event.stage, total=event.total)
            bar.update(tasks[event.stage], completed=event.index, total=event.total)

        yield show


def _as_result(path: str, video: Video) -> dict[str, Any]:
    report = dict(video.report)
    request, plan = report.pop("request", None), report.pop("plan", None)
    return {"path": path, "request": request, "plan": plan, "report": report}


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    plain = isinstance(value, str) and value and value.isprintable()
    return value if plain else json.dumps(value)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2))


def _say(line: str) -> None:
    print(f"kinema: {line}", file=sys.stderr)


def _fail(kind: str, message: str, code: int, as_json: bool) -> int:
    line = " ".join(message.split())
    if as_json:
        print(json.dumps({"error": {"type": kind, "message": line}}))
    else:
        _say(line)
    return code
