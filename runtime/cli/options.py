"""What to make and how to run it: the options that `generate` and `plan` share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..requests.guidance_options import PLAIN
from ..requests.request import Request
from .arguments import conditions, guidance, parse_lora, parse_numbers, parse_pair, parse_size
from .console import say

if TYPE_CHECKING:
    from ..checkpoints.checkpoint import Checkpoint
    from ..engine import Engine


@dataclass(frozen=True)
class Asked:
    """What a command line asks for. `fields` are those of a `Request`."""

    checkpoint: Checkpoint
    fields: dict[str, Any]
    run_by: dict[str, Any]
    loras: list[tuple[str, float]]

    @property
    def prompt(self) -> str | None:
        return self.fields["prompt"]

    def request(self) -> Request:
        """Checked for all that needs no model."""
        return Request(**{**self.fields, "prompt": self.prompt or ""})

    def load(self) -> Engine:
        """The engine, with its LoRAs."""
        import kinema

        engine = kinema.load(self.checkpoint, **self.run_by)
        for file, weight in self.loras:
            say(str(engine.load_lora(file, weight)))
        return engine


@dataclass(frozen=True)
class Options:
    """A line of options; `read` says what it asks for."""

    prompt: Annotated[str | None, typer.Argument(metavar="PROMPT", help="What to show.")] = None
    model: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE", help="A folder or a hub id; the embedded model if not given."
        ),
    ] = None
    base: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE", help="With a transformer alone as --model: where all else comes from."
        ),
    ] = None
    lora: Annotated[
        list[str] | None,
        typer.Option(metavar="PATH[:WEIGHT]", help="A LoRA, with its weight; may be repeated."),
    ] = None
    seconds: Annotated[
        float | None, typer.Option(help="Length: the fewest frames that last so long.")
    ] = None
    num_frames: Annotated[int | None, typer.Option(help="Length in frames.")] = None
    size: Annotated[str | None, typer.Option(metavar="WxH", help="Such as 64x64.")] = None
    fps: Annotated[float | None, typer.Option(help="Frames a second.")] = None
    seed: Annotated[int, typer.Option(help="Same seed, same video.")] = Request.seed
    steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None
    guidance_scale: Annotated[
        float | None, typer.Option(help="How closely to follow the prompt; 1 is no guidance.")
    ] = None
    guidance_scale_2: Annotated[
        float | None, typer.Option(help="The same for the second of two experts.")
    ] = None
    guidance_rescale: Annotated[
        float, typer.Option(help="0 to 1: how far contrast is brought back to that of no guidance.")
    ] = PLAIN.rescale
    guidance_interval: Annotated[
        str | None, typer.Option(metavar="A,B", help="Guide only from part A of the steps to B.")
    ] = None
    zero_star: Annotated[
        bool, typer.Option("--zero-star", help="CFG-Zero*: scale the negative branch to fit.")
    ] = False
    negative_prompt: Annotated[str, typer.Option(help="What to steer away from.")] = (
        Request.negative_prompt
    )
    solver: Annotated[
        str | None,
        typer.Option(help="unipc, dpm++2m, euler, ...; the checkpoint's own if not given."),
    ] = None
    sigmas: Annotated[
        str | None,
        typer.Option(
            metavar="S,S,...", help="Noise levels to step through, as distilled models have."
        ),
    ] = None
    image: Annotated[str | None, typer.Option(metavar="FILE", help="The first frame.")] = None
    last_image: Annotated[str | None, typer.Option(metavar="FILE", help="The last frame.")] = None
    clip: Annotated[
        str | None, typer.Option(metavar="FILE", help="A video to keep, or to be guided by.")
    ] = None
    mask: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="With --clip: white where it is made anew; 1: all of it."
        ),
    ] = None
    reference: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="A picture of how things look; may be repeated."),
    ] = None
    strength: Annotated[float, typer.Option(help="How much --clip and --reference are heeded.")] = (
        1.0
    )
    adjust: Annotated[
        bool, typer.Option("--adjust", help="Take the nearest size and length that fit.")
    ] = False
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...")] = None
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16, ...")] = None
    backend: Annotated[
        list[str] | None,
        typer.Option(
            metavar="OP=NAME", help="Such as attention=triton; kinema kernels list names them."
        ),
    ] = None
    executor: Annotated[
        str | None,
        typer.Option(
            help="eager, packed (a CPU's default), compiled, graph; onnx, tensorrt, aoti."
        ),
    ] = None
    offload: Annotated[
        str | None,
        typer.Option(
            help="Where idle weights wait: none (on the device), model, block; as they fit if not."
        ),
    ] = None
    tile: Annotated[
        str | None, typer.Option(metavar="WxH", help="Encode and decode in tiles, such as 512x512.")
    ] = None
    two_passes: Annotated[
        bool,
        typer.Option("--two-passes", help="One branch of guidance after the other: less memory."),
    ] = False
    engines: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="What kinema export wrote of this model: runs instead."),
    ] = None
    text_cache: Annotated[
        str | None, typer.Option(metavar="DIR", help="Keep encoded prompts for the next run.")
    ] = None

    def read(self) -> Asked:
        """What these options ask for. Opens the checkpoint; no weight is read."""
        from ..checkpoints.checkpoint import open_checkpoint

        width, height = parse_size(self.size)
        tile_width, tile_height = parse_size(self.tile, "--tile")
        fields = {
            "prompt": self.prompt,
            "negative_prompt": self.negative_prompt,
            "num_frames": self.num_frames,
            "seconds": self.seconds,
            "height": height,
            "width": width,
            "fps": self.fps,
            "seed": self.seed,
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance_scale,
            "guidance_scale_2": self.guidance_scale_2,
            "guidance": guidance(self.guidance_rescale, self.guidance_interval, self.zero_star),
            "solver": self.solver,
            "sigmas": parse_numbers("--sigmas", self.sigmas),
            "image": self.image,
            "last_image": self.last_image,
            "conditions": conditions(self.clip, self.mask, self.reference or [], self.strength),
            "adjust": self.adjust,
        }
        run_by = {
            "device": self.device,
            "dtype": self.dtype,
            "backends": dict(parse_pair("--backend", text) for text in self.backend or ()),
            "executor": self.executor,
            "engines": self.engines,
            "offload": self.offload,
            "tile": None if self.tile is None else (tile_height, tile_width),
            "two_passes": self.two_passes,
            "text_cache": self.text_cache,
        }
        loras = [parse_lora(text) for text in self.lora or ()]
        return Asked(open_checkpoint(self.model, self.base), fields, run_by, loras)
