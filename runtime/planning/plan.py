"""What will run: every number of a request settled against a model's presets, before any weight
is touched. A number that cannot run is refused here, with the limit and the nearest that works.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from ..checkpoints.presets import Presets
from ..errors import UsageError
from ..media import clips
from ..media.mp4 import count_samples
from ..requests import conditions, taken
from ..requests.conditions import Condition
from ..requests.guidance_options import PLAIN, Guidance
from .cost import Choice, Setting

if TYPE_CHECKING:
    from ..checkpoints.checkpoint import Checkpoint
    from ..requests.request import Request

MAX_INFERENCE_STEPS = 1000
FPS_LIMITS = (1, 120)


@dataclass(frozen=True)
class Track:
    """Latent rows [start, stop) with sigmas of their own: s -> shift s / (1 + (shift - 1) s)."""

    name: str
    start: int
    stop: int
    guidance_scale: float
    shift: float = 1.0

    @property
    def rows(self) -> slice:
        return slice(self.start, self.stop)


@dataclass(frozen=True)
class Plan:
    """What will run. `latent_shape` is (channels, latent frames, rows, columns) of all tracks.

    `num_references` of the latent frames, at the start, are not part of the video; clips that
    become `encoded_frames` latent frames each are encoded to be shown. Where two
    experts share the work, the second takes over below `boundary_ratio` of the timesteps' range.
    `solver` and `sigmas` are the checkpoint's own where they are None.

    `seconds` is what the request should take, weights open, and `peak_memory_bytes` what it should
    need; `choices` say how it will run and why.
    """

    num_frames: int
    height: int
    width: int
    fps: float
    num_inference_steps: int
    guidance_scale: float
    seed: int
    latent_shape: tuple[int, int, int, int]
    tracks: tuple[Track, ...]
    sample_rate: int | None
    num_samples: int
    device: str
    dtype: str
    guidance_scale_2: float | None = None
    boundary_ratio: float | None = None
    num_references: int = 0
    encoded_frames: tuple[int, ...] = ()
    solver: str | None = None
    sigmas: tuple[float, ...] | None = None
    guidance: Guidance = PLAIN
    peak_memory_bytes: int = 0
    working_bytes: int = 0
    seconds: float | None = None
    setting: Setting = field(default_factory=Setting)
    choices: tuple[Choice, ...] = ()

    @property
    def duration(self) -> float:
        """Seconds that the video lasts."""
        return self.num_frames / self.fps

    def as_dict(self) -> dict[str, Any]:
        """All numbers, ready for JSON."""
        return {**asdict(self), "duration": self.duration}


def resolve(
    request: Request,
    checkpoint: Checkpoint,
    device: str = "cpu",
    dtype: str = "float32",
) -> Plan:
    """The plan of a request. Raises UsageError for a number outside the checkpoint's limits."""
    presets, shown = checkpoint.presets, request.shown
    fps = _whole_if_it_is(_fps(request, presets))
    num_frames = _num_frames(request, presets, fps)
    taken.check(shown, presets, num_frames, request.adjust)
    height, width = _sides(request, presets, shown)
    guidance_scale, guidance_scale_2 = _guidance_scales(request, presets)
    num_references = len(conditions.references(shown))
    own_sigmas = presets.sigmas if request.num_inference_steps is None else None
    sigmas = _or(request.sigmas, own_sigmas)
    tracks = _tracks(presets, height, guidance_scale)
    sample_rate = presets.sound.sample_rate if presets.sound else None
    plan = Plan(
        num_frames=num_frames,
        height=height,
        width=width,
        fps=fps,
        num_inference_steps=len(sigmas) if sigmas else _num_inference_steps(request, presets),
        guidance_scale=guidance_scale,
        seed=request.seed,
        latent_shape=(
            presets.latent_channels,
            num_references + 1 + (num_frames - 1) // presets.frame_stride,
            tracks[-1].stop,
            width // presets.spatial_stride,
        ),
        tracks=tracks,
        sample_rate=sample_rate,
        num_samples=count_samples(num_frames, sample_rate, fps) if sample_rate else 0,
        device=device,
        dtype=dtype,
        guidance_scale_2=guidance_scale_2,
        boundary_ratio=presets.boundary_ratio,
        num_references=num_references,
        encoded_frames=_encoded_frames(presets, shown, num_frames),
        solver=_or(request.solver, presets.solver),
        sigmas=sigmas,
        guidance=request.guidance,
    )
    _check_latents(request, plan)
    _check_guidance(plan)
    return plan


def _encoded_frames(
    presets: Presets, shown: Sequence[Condition], num_frames: int
) -> tuple[int, ...]:
    """Latent frames of each clip that `conditioning/` encodes."""
    frames = 1 + (num_frames - 1) // presets.frame_stride
    if presets.conditions == "control":
        return frames, frames, *(1 for _ in conditions.references(shown))
    if not shown:
        return ()
    if presets.conditions == "ends":
        placed = conditions.place(shown, num_frames)
        begin, end = conditions.ends(placed, num_frames)
        groups = math.ceil(end / presets.frame_stride)
        parts = (begin and 1 + (begin - 1) // presets.frame_stride, groups and 1 + groups)
        return tuple(part for part in parts if part)
    return (1,) if presets.conditions == "first" else (frames,)


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def _whole_if_it_is(number: float) -> float:
    return int(number) if number == int(number) else number


def _clamp(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)


def _fps(request: Request, presets: Presets) -> float:
    fps, (low, high) = _or(request.fps, presets.fps), FPS_LIMITS
    if not low <= fps <= high:
        raise UsageError(
            f"fps is {fps:g}; it must be from {low} to {high}: nearest {_clamp(fps, low, high)}"
        )
    return fps


def _num_frames(request: Request, presets: Presets, fps: float) -> int:
    stride, most = presets.frame_stride, presets.max_num_frames
    if request.seconds is not None:
        # The tolerance keeps 0.7 s at 30 fps (20.999...) from asking for one more frame.
        least = request.seconds * fps - 1e-6
        if least > most:
            raise UsageError(
                f"seconds is {request.seconds:g}; at {fps:g} fps this model makes at most"
                f" {most / fps:.4g} ({most} frames)"
            )
        return 1 + stride * max(0, math.ceil((math.ceil(least) - 1) / stride))
    count = _or(request.num_frames, presets.num_frames)
    if not 1 <= count <= most or (count - 1) % stride:
        nearest = 1 + stride * round((_clamp(count, 1, most) - 1) / stride)
        if request.adjust:
            return nearest
        raise UsageError(
            f"num_frames is {count}; it must be 1 + {stride}k from 1 to {most}: nearest {nearest}"
        )
    return count


def _sides(request: Request, presets: Presets, shown: Sequence[Condition]) -> tuple[int, int]:
    height, width = presets.height, presets.width
    placed = [condition for condition in shown if condition.frame is not None]
    if request.height is None and request.width is None and placed:
        height, width = _shaped_like(placed[0], presets)
    return (
        _size("height", _or(request.height, height), presets, request.adjust),
        _size("width", _or(request.width, width), presets, request.adjust),
    )


def _shaped_like(condition: Condition, presets: Presets) -> tuple[int, int]:
    """The model's own area in the shape of what it is shown, as the published examples have it."""
    height, width = clips.picture_size(next(condition.pictures()))
    area, step = presets.height * presets.width, presets.size_multiple
    sides = math.sqrt(area * height / width), math.sqrt(area * width / height)
    tall, wide = (
        int(_clamp(round(side) // step * step, presets.min_size, presets.max_size))
        for side in sides
    )
    return tall, wide


def _size(name: str, size: int, presets: Presets, adjust: bool) -> int:
    step, low, high = presets.size_multiple, presets.min_size, presets.max_size
    if low <= size <= high and not size % step:
        return size
    nearest = step * round(_clamp(size, low, high) / step)
    if adjust:
        return nearest
    if low == high:
        raise UsageError(f"{name} is {size}; this model makes {low} and nothing else")
    raise UsageError(
        f"{name} is {size}; it must be a multiple of {step} from {low} to {high}: nearest {nearest}"
    )


def _guidance_scales(request: Request, presets: Presets) -> tuple[float, float | None]:
    """Of the first expert and of the second, which takes the first's where only that is given."""
    first, second = request.guidance_scale, request.guidance_scale_2
    if presets.boundary_ratio is None:
        if second is not None:
            raise UsageError(
                f"guidance_scale_2 is {second:g}, but this model has no second expert; leave it out"
            )
        return _or(first, presets.guidance_scale), None
    if first is None:
        first = presets.guidance_scale
        return first, _or(second, _or(presets.guidance_scale_2, first))
    return first, _or(second, first)


def _num_inference_steps(request: Request, presets: Presets) -> int:
    steps = _or(request.num_inference_steps, presets.num_inference_steps)
    if not 1 <= steps <= MAX_INFERENCE_STEPS:
        raise UsageError(
            f"num_inference_steps is {steps}; it must be from 1 to {MAX_INFERENCE_STEPS}:"
            f" nearest {_clamp(steps, 1, MAX_INFERENCE_STEPS)}"
        )
    return steps


def _tracks(presets: Presets, height: int, guidance_scale: float) -> tuple[Track, ...]:
    rows = height // presets.spatial_stride
    picture = Track("picture", 0, rows, guidance_scale)
    if presets.sound is None:
        return (picture,)
    sound = presets.sound
    return (
        picture,
        Track("sound", rows, rows + sound.rows, sound.guidance_scale, sound.shift),
    )


def _check_guidance(plan: Plan) -> None:
    scales, steps = plan.guidance.by_step, plan.num_inference_steps
    if scales is not None and len(scales) != steps:
        raise UsageError(f"guidance has {len(scales)} scales by step; there are {steps} steps")
    if plan.guidance.zero_init_steps >= steps:
        raise UsageError(
            f"zero_init_steps is {plan.guidance.zero_init_steps} of {steps} steps; fewer work"
        )


def _check_latents(request: Request, plan: Plan) -> None:
    if request.latents is None:
        return
    shape = tuple(request.latents.shape)
    if shape not in (plan.latent_shape, (1, *plan.latent_shape)):
        raise UsageError(
            f"latents have shape {shape}; this request needs {plan.latent_shape}, with or without"
            " a batch of 1 before it"
        )
