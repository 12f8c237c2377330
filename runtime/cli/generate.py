"""`kinema generate`: a prompt, or a saved run, to a file."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import Cancelled, UsageError
from ..guidance_options import PLAIN
from ..request import Request
from .app import Debug, Json, app
from .arguments import conditions, guidance, parse_lora, parse_numbers, parse_pair, parse_size
from .console import print_json, progress, say

if TYPE_CHECKING:
    from pathlib import Path

    from ..media import Video
    from ..plan import Plan
    from ..progress import Progress
    from ..session import Session


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

    from ..checkpoint import open_checkpoint
    from ..media import check_target
    from ..plan import resolve

    if save_every is not None and save_every < 1:
        raise UsageError(f"--save-every is {save_every}; it must be 1 step or more")
    started = time.perf_counter()
    run_by = {
        "backends": dict(parse_pair("--backend", text) for text in backend or ()),
        "executor": executor,
        "offload": offload,
        "text_cache": text_cache,
    }
    path = check_target(output, overwrite=force)
    checkpoint = open_checkpoint(model, base)
    loras = [parse_lora(text) for text in lora or ()]
    if resume is None:
        width, height = parse_size(size)
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
            guidance=guidance(guidance_rescale, guidance_interval, zero_star),
            solver=solver,
            sigmas=parse_numbers("--sigmas", sigmas),
            image=image,
            last_image=last_image,
            conditions=conditions(clip, mask, reference or [], strength),
            adjust=adjust,
        )
        # What cannot run is refused here, before torch is imported and weights are read.
        announcement = _announce(resolve(request, checkpoint), checkpoint.name)
    else:
        if prompt is not None:
            raise UsageError(f"--resume {resume} has its own prompt; leave {prompt!r} out")
        announcement = f"going on with {resume}, model {checkpoint.name}"
    run = Run(path.with_suffix(".kinema"), save_every, keep_latents)
    with progress(announcement) as show:
        engine = kinema.load(checkpoint, device, dtype, **run_by)
        for file, weight in loras:
            say(str(engine.load_lora(file, weight)))
        session = engine.session(request) if resume is None else engine.resume(resume)
        video = run.record(session, path, force, show)
        run.end(session)
    for warning in video.report.get("warnings", ()):
        say(f"warning: {warning}")
    if as_json:
        print_json(_as_result(str(path), video))
    else:
        print(f"{path}: {video}, made in {time.perf_counter() - started:.1f} s")


class Run:
    """A session that is saved to `file` as it goes, every so many steps."""

    def __init__(self, file: Path, save_every: int | None, keep: bool) -> None:
        self.file, self.save_every, self.keep = file, save_every, keep
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
            return session.record(path, follow, overwrite)
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
