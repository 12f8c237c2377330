"""Fitting a request into memory: how it runs and why, or the nearest that would fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .. import registry
from ..errors import UsageError
from ..execution.modes import MODES
from .cost import TILES, Choice, Cost, Runner, Setting, count

if TYPE_CHECKING:
    from ..checkpoints.checkpoint import Checkpoint
    from .plan import Plan

PARTS = (1.0, 0.75, 0.5, 0.375, 0.25, 0.125, 0.0625)  # of the sides, in the search for what fits
Settle = Callable[[int, int, int], "Plan"]


@dataclass(frozen=True)
class Fit:
    """How a request runs, what it costs so, and why."""

    cost: Cost
    runner: Runner
    choices: tuple[Choice, ...]


def fit(
    plan: Plan,
    checkpoint: Checkpoint,
    runner: Runner,
    tokens: int,
    memory: int | None = None,
    settle: Settle | None = None,
) -> Fit:
    """The fastest setting, from the runner's on, that fits into `memory` bytes (None: any).

    Raises `UsageError` where none does, naming the nearest request that would; `settle(num_frames,
    height, width)` gives the plan of another, and refuses what cannot run. Where another offload
    than the one asked for would help, it is told too.
    """
    found = count(plan, checkpoint, runner, tokens)
    reasons: dict[str, str] = {}
    while memory is not None and found.peak_memory_bytes > memory:
        worst = found.worst
        step = leaner(runner.setting, worst.name, plan, checkpoint, runner.device, runner.asked)
        if step is None:
            raise UsageError(_refusal(plan, checkpoint, runner, tokens, memory, settle))
        what = next(n for n in REASONS if getattr(step, n) != getattr(runner.setting, n))
        reasons[what] = f"{_NAMES[worst.name]} would need {gb(worst.peak_bytes)} of {gb(memory)}"
        runner = replace(runner, setting=step)
        found = count(plan, checkpoint, runner, tokens)
    return Fit(found, runner, tuple(_choices(runner, plan, reasons, memory)))


def leaner(
    setting: Setting,
    stage: str,
    plan: Plan,
    checkpoint: Checkpoint,
    device: str,
    asked: Set[str] = frozenset(),
) -> Setting | None:
    """The next setting that spares a stage memory: tiles, then passes, then offload; None where
    there is no leaner one. What to do after running out of memory in that stage.

    What was `asked` for stays as it is."""
    tile = _smaller_tile(setting, plan, checkpoint) if stage in ("shown", "decode") else None
    if tile is not None and "tile" not in asked:
        return replace(setting, tile=tile)
    guided = max(track.guidance_scale for track in plan.tracks) > 1
    if stage == "denoise" and guided and setting.guidance == "batched":
        return replace(setting, guidance="two passes")
    if "offload" not in asked and device != "cpu" and setting.offload != MODES[-1]:
        return replace(setting, offload=MODES[MODES.index(setting.offload) + 1])
    return None


def _smaller_tile(setting: Setting, plan: Plan, checkpoint: Checkpoint) -> tuple[int, int] | None:
    if _without_tiles(checkpoint):
        return None
    now = setting.tile or (plan.height, plan.width)
    smaller = (tile for tile in TILES if tile[0] * tile[1] < now[0] * now[1])
    return next(smaller, None)


def check_tile(tile: tuple[int, int] | None, checkpoint: Checkpoint) -> None:
    """Raise `UsageError` for a tile (height, width) that the autoencoder cannot work in."""
    if tile is None:
        return
    if reason := _without_tiles(checkpoint):
        raise UsageError(f"tile is {_size(tile)}, but {reason}; leave it out")
    unit = checkpoint.component("vae").config.get("scale_factor_spatial", 8)
    if min(tile) < unit or any(side % unit for side in tile):
        nearest = _size([max(unit, round(side / unit) * unit) for side in tile])
        raise UsageError(
            f"tile is {_size(tile)}; its sides must be multiples of {unit}: nearest {nearest}"
        )


def _without_tiles(checkpoint: Checkpoint) -> str | None:
    """Why the autoencoder does not work in tiles, if it does not."""
    vae = checkpoint.component("vae")
    known = registry.row(registry.VAES, vae.class_name, "vae")
    return registry.at(known.sizes).why_whole(vae.config)


def _size(sides: Sequence[int]) -> str:
    """(height, width) as a person writes it."""
    return f"{sides[1]}x{sides[0]}"


# ---- reasons -------------------------------------------------------------------------------------

_NAMES = {
    "shown": "encoding what is shown",
    "encode": "encoding the text",
    "bind": "binding the text",
    "denoise": "a step",
    "decode": "decoding",
    "sound": "decoding the sound",
}
REASONS = {
    "guidance": "both branches run in one forward",
    "tile": "frames are decoded whole",
    "offload": "all weights stay on the device",
}


def _choices(
    runner: Runner, plan: Plan, reasons: Mapping[str, str], memory: int | None
) -> Iterator[Choice]:
    setting = runner.setting
    unguided = max(track.guidance_scale for track in plan.tracks) <= 1
    tile = "none" if setting.tile is None else _size(setting.tile)
    taken = {"guidance": setting.guidance, "tile": tile, "offload": setting.offload}
    given = dict.fromkeys(runner.asked, "asked for")
    if setting.offload != MODES[0]:
        given.setdefault("offload", "a request before this one needed it")
    reasons = {**given, **reasons}
    for what, otherwise in REASONS.items():
        if what == "guidance" and unguided:
            yield Choice(what, "one branch", "no track has a guidance scale above 1")
        else:
            fits = otherwise if memory is None else f"{otherwise}, and it fits"
            yield Choice(what, taken[what], reasons.get(what, fits))


def gb(size: int) -> str:
    """Bytes as a person reads them."""
    if size >= 1e9:
        return f"{size / 1e9:.3g} GB"
    return f"{size / 1e6:.3g} MB"


# ---- what would fit ------------------------------------------------------------------------------


def _refusal(
    plan: Plan,
    checkpoint: Checkpoint,
    runner: Runner,
    tokens: int,
    memory: int,
    settle: Settle | None,
) -> str:
    cost = count(plan, checkpoint, runner, tokens)
    there = f"{gb(memory)} of memory are there"
    line = f"{_what(plan)}: needs {gb(cost.peak_memory_bytes)}, {there}"
    if mode := _offload_that_fits(plan, checkpoint, runner, tokens, memory):
        line = f"{line}; offload={mode!r} would fit it"
    found = None if settle is None else nearest(plan, checkpoint, runner, tokens, memory, settle)
    if found is not None:
        return f"{line}; {_what(found)} would fit"
    weights = gb(sum(cost.weight_bytes.values()))
    return f"{line}; no shorter or smaller video would fit: the weights are {weights}"


def _offload_that_fits(
    plan: Plan, checkpoint: Checkpoint, runner: Runner, tokens: int, memory: int
) -> str | None:
    """The next mode of offload, if there is one, under which the request would fit."""
    if runner.device == "cpu":
        return None
    for mode in MODES[MODES.index(runner.setting.offload) + 1 :]:
        leaner = replace(runner, setting=replace(runner.setting, offload=mode))
        if count(plan, checkpoint, leaner, tokens).peak_memory_bytes <= memory:
            return mode
    return None


def nearest(
    plan: Plan,
    checkpoint: Checkpoint,
    runner: Runner,
    tokens: int,
    memory: int,
    settle: Settle,
) -> Plan | None:
    """The largest request that fits: as many frames of this size as do; where not even a quarter of
    them do, a smaller size in the same shape too."""
    presets = checkpoint.presets
    stride, unit = presets.frame_stride, presets.size_multiple

    def fits(candidate: Plan) -> bool:
        return count(candidate, checkpoint, runner, tokens).peak_memory_bytes <= memory

    def at(frames: int, part: float) -> Plan | None:
        sides = (max(unit, round(side * part / unit) * unit) for side in (plan.height, plan.width))
        try:
            return settle(frames, *sides)
        except UsageError:
            return None

    best = None
    for part in PARTS:
        latent = _most(
            lambda k, part=part: (c := at(1 + stride * k, part)) is not None and fits(c),
            (plan.num_frames - 1) // stride,
        )
        if latent is None:
            continue
        best = best or at(1 + stride * latent, part)
        if 4 * (1 + stride * latent) >= plan.num_frames:
            return at(1 + stride * latent, part)
    return best


def _most(fits: Callable[[int], bool], most: int) -> int | None:
    """The largest whole number up to `most` that fits, where all below one that fits do."""
    if not fits(0):
        return None
    low, high = 0, most + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _what(plan: Plan) -> str:
    frames = "1 frame" if plan.num_frames == 1 else f"{plan.num_frames} frames"
    return f"{frames} at {plan.width}x{plan.height}"
