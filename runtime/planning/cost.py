"""What a request costs, from configs and shapes: memory and time of each stage, and how to run it.

No weight is read: their bytes come from the headers of their files, all else from the sizes that
every class of the registry has.
Memory is bytes of tensors: weights that are resident and, on top, what each stage holds at its
worst moment. On a GPU it is what `torch.cuda.max_memory_allocated` counts, workspaces of vendor
libraries apart; on a CPU what PyTorch's allocator hands out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from math import prod
from typing import TYPE_CHECKING, Any, Protocol

from .. import registry
from ..checkpoints.presets import TEXT_LENGTH
from ..ledger import FP32, Ledger, Shapes, Work
from ..requests.solver_names import count_predictions
from .branches import branches_of_steps
from .weight_sizes import ITEMS, resident_bytes, weight_bytes

if TYPE_CHECKING:
    from ..checkpoints.checkpoint import Checkpoint
    from .plan import Plan

BEARINGS = 1  # latent frames that the embedded model is shown after the clip
TILES = ((512, 512), (256, 256))  # smaller ones remember more of what overlaps
LATENTS = 6  # copies of the latents that a run holds: its own, a solver's, guidance's


class Clock(Protocol):
    """What says how long work takes: `device.Ceilings`."""

    def seconds(self, work: Mapping[Work, int]) -> float: ...


@dataclass(frozen=True)
class Setting:
    """How a request may run, from fast to lean.

    guidance: both branches "batched", or in "two passes". tile: of coding pictures, in pixels
    (height, width). offload: "none", "model" or "block" (`offload.py`).
    """

    guidance: str = "batched"
    tile: tuple[int, int] | None = None
    offload: str = "none"

    def __post_init__(self) -> None:
        object.__setattr__(self, "tile", self.tile and tuple(self.tile))


@dataclass(frozen=True)
class Choice:
    """What was chosen, and why."""

    what: str
    taken: str
    reason: str


@dataclass(frozen=True)
class Stage:
    """Shown, encode, bind, denoise, decode or sound: all its work, the weights that are resident,
    and its peak, weights included."""

    name: str
    work: Mapping[Work, int]
    weight_bytes: int
    peak_bytes: int

    @property
    def flops(self) -> int:
        """Of products, attention and convolutions."""
        return sum(work.flops * times for work, times in self.work.items())

    @property
    def moved_bytes(self) -> int:
        """Of elementwise operations, read and written."""
        moved = (work for work in self.work if work.kind == "elementwise")
        return sum(work.amount * self.work[work] for work in moved)


@dataclass(frozen=True)
class Cost:
    """What a request costs under a setting."""

    stages: tuple[Stage, ...]
    weight_bytes: Mapping[str, int]

    @property
    def peak_memory_bytes(self) -> int:
        return self.worst.peak_bytes

    @property
    def working_bytes(self) -> int:
        """Most that a run needs beyond the weights, which runs beside it share."""
        return max(stage.peak_bytes - stage.weight_bytes for stage in self.stages)

    @property
    def worst(self) -> Stage:
        """The stage that needs most memory."""
        return max(self.stages, key=lambda stage: stage.peak_bytes)

    def seconds(self, clock: Clock) -> float:
        """Of all stages; opening the weights apart."""
        return sum(clock.seconds(stage.work) for stage in self.stages)

    def rows(self, clock: Clock) -> list[dict[str, Any]]:
        """What each stage costs, as a table."""
        return [
            {
                "stage": stage.name,
                "flops": stage.flops,
                "moved_bytes": stage.moved_bytes,
                "peak_bytes": stage.peak_bytes,
                "seconds": clock.seconds(stage.work),
            }
            for stage in self.stages
        ]


@dataclass(frozen=True)
class Runner:
    """What runs a request: the device's type, the executor, and whether operations are fused.

    `setting` is the fastest there is to choose from; what of it was `asked` for by hand stays.
    """

    device: str = "cpu"
    executor: str = "eager"
    fused: bool = False
    setting: Setting = field(default_factory=Setting)
    asked: frozenset[str] = frozenset()

    def ledger(self) -> Ledger:
        return Ledger(self.device == "cpu", self.fused, self.executor == "packed")


def count(plan: Plan, checkpoint: Checkpoint, runner: Runner, text_tokens: int) -> Cost:
    """The cost of a request. Raises `KinemaError` for a class whose costs are not known."""
    runner = replace(runner, asked=frozenset())
    return _count(replace(plan, seed=0), checkpoint, runner, text_tokens)


@lru_cache(maxsize=64)  # of a server's requests most are alike
def _count(plan: Plan, checkpoint: Checkpoint, runner: Runner, text_tokens: int) -> Cost:
    weights = weight_bytes(checkpoint, plan.dtype)
    resident = resident_bytes(checkpoint, weights, plan.dtype, runner.setting.offload)
    held = LATENTS * FP32 * prod(plan.latent_shape)
    encode, embeds = _encode(checkpoint, plan, runner, text_tokens)
    bind, step, bound = _denoise(checkpoint, plan, runner, text_tokens)
    parts = {
        "encode": encode,
        "bind": _beside(held + embeds, bind),
        "denoise": _beside(held + embeds, step),
    }
    if plan.encoded_frames:
        parts = {"shown": _shown(checkpoint, plan, runner), **parts}
    for name, counted in _decode(checkpoint, plan, runner).items():
        parts[name] = _beside(held + embeds + bound, counted)
    stages = []
    for name, (work, peak) in parts.items():
        there = resident["denoise" if name == "bind" else name]
        stages.append(Stage(name, work, there, there + peak))
    return Cost(tuple(stages), weights)


def guess_tokens(prompt: str, limit: int = TEXT_LENGTH) -> int:
    """About how many tokens a prompt that is cut at `limit` has, without its tokenizer."""
    return min(limit, 4 * (1 + len(prompt) // 12))


# ---- stages --------------------------------------------------------------------------------------

Counted = tuple[Mapping[Work, int], int]  # work, peak bytes


def _beside(held: int, counted: Counted) -> Counted:
    """With bytes that are held meanwhile."""
    return counted[0], counted[1] + held


def _encode(checkpoint: Checkpoint, plan: Plan, runner: Runner, tokens: int) -> tuple[Counted, int]:
    """Both prompts, one after the other; and the bytes of their embeddings."""
    component, item = checkpoint.component("text_encoder"), ITEMS[plan.dtype]
    ledger, rows = runner.ledger(), _rows(plan)
    encode = registry.at(registry.row(registry.TEXT_ENCODERS, component.class_name, "text_encoder"))
    lengths = (tokens, 1)[:rows]
    width = max(encode(ledger, component.config, length, item) for length in lengths)
    return ledger.take(), rows * tokens * width * item


def _shown(checkpoint: Checkpoint, plan: Plan, runner: Runner) -> Counted:
    """Clips that the model is shown, encoded one after another.

    In tiles they are taken to need at most what decoding in tiles does, which is not counted here.
    """
    ledger = runner.ledger()
    channels, _, _, columns = plan.latent_shape
    picture, vae = plan.tracks[0], _vae(checkpoint, ledger)
    for frames in plan.encoded_frames:
        vae.encode((channels, frames, picture.stop - picture.start, columns))
    work, peak = ledger.take()
    return work, peak if runner.setting.tile is None else 0


def _denoise(
    checkpoint: Checkpoint, plan: Plan, runner: Runner, tokens: int
) -> tuple[Counted, Counted, int]:
    """What is bound before the steps, all steps, and the bytes that stay bound."""
    component, item = checkpoint.component("transformer"), ITEMS[plan.dtype]
    known = registry.row(registry.TRANSFORMERS, component.class_name, "transformer")
    sizes = registry.at(known.sizes)
    shapes, ledger = shapes_of(plan, checkpoint, tokens), runner.ledger()
    runs, batched = branches_of_steps(plan), runner.setting.guidance == "batched"

    def of_rows(rows: int) -> Callable[[], None]:
        bound = sizes(ledger, component.config, replace(shapes, rows=rows), item)
        held = bound.bind()

        def step() -> None:
            assert held  # constants live as long as what reads them
            bound.step()

        return step

    one = [of_rows(1)] if runs[1] or not batched else []
    two = ([of_rows(2)] if batched else [*one, of_rows(1)]) if runs[2] else []
    bind, bound = ledger.take(), ledger.live
    for times, steps in ((runs[1], one), (runs[2], two)):
        with ledger.repeat(times):
            for step in steps if times else ():
                step()
    return bind, ledger.take(), bound


def _decode(checkpoint: Checkpoint, plan: Plan, runner: Runner) -> dict[str, Counted]:
    """The picture, and the sound where there is one."""
    ledger, picture = runner.ledger(), plan.tracks[0]
    channels, frames, _, columns = plan.latent_shape
    shape = (channels, frames - plan.num_references, picture.stop - picture.start, columns)
    _vae(checkpoint, ledger).decode(shape, runner.setting.tile)
    found: dict[str, Counted] = {"decode": ledger.take()}
    if plan.num_samples:
        sound, ledger = checkpoint.component("audio"), runner.ledger()
        decode = registry.at(registry.row(registry.SOUNDS, sound.class_name, "audio").sizes)
        decode(ledger, sound.config, plan.num_frames, plan.num_samples)
        found["sound"] = ledger.take()
    return found


def _vae(checkpoint: Checkpoint, ledger: Ledger) -> Any:
    """The autoencoder's sizes."""
    vae = checkpoint.component("vae")
    return registry.at(registry.row(registry.VAES, vae.class_name, "vae").sizes)(ledger, vae.config)


def shapes_of(plan: Plan, checkpoint: Checkpoint, tokens: int) -> Shapes:
    """What the transformer works on, both branches of guidance in one batch."""
    channels, frames, rows, columns = plan.latent_shape
    presets = checkpoint.presets
    differ = len({track.shift for track in plan.tracks}) > 1
    return Shapes(
        latents=(channels, frames + (BEARINGS if presets.bearings else 0), rows, columns),
        steps=_predictions(plan),
        rows=_rows(plan),
        text_tokens=tokens,
        timestep_axes=(presets.timestep_axes[0], differ, False),
    )


def _predictions(plan: Plan) -> int:
    """How often the model runs."""
    steps = plan.num_inference_steps
    return steps if plan.solver is None else count_predictions(plan.solver, steps)


def _rows(plan: Plan) -> int:
    """Branches of guidance."""
    scales = [track.guidance_scale for track in plan.tracks] + [plan.guidance_scale_2 or 0]
    return 2 if max(scales) > 1 else 1
