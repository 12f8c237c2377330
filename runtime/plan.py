"""What will run: every number of a request settled against a model's presets, before any weight
is touched. A number that cannot run is refused here, with the limit and the nearest that works.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from .errors import UsageError
from .media import count_samples
from .presets import Presets

if TYPE_CHECKING:
    from .checkpoint import Checkpoint
    from .request import Request

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
    """What will run. `latent_shape` is (channels, latent frames, rows, columns) of all tracks."""

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

    @property
    def seconds(self) -> float:
        return self.num_frames / self.fps

    def as_dict(self) -> dict[str, Any]:
        """All numbers, ready for JSON."""
        return {**asdict(self), "seconds": self.seconds}


def resolve(
    request: Request, checkpoint: Checkpoint, device: str = "cpu", dtype: str = "float32"
) -> Plan:
    """The plan of a request. Raises UsageError for a number outside the checkpoint's limits."""
    presets = checkpoint.presets
    fps = _whole_if_it_is(_fps(request, presets))
    num_frames = _num_frames(request, presets, fps)
    height = _size("height", request.height, presets.height, presets)
    width = _size("width", request.width, presets.width, presets)
    guidance_scale = _or(request.guidance_scale, presets.guidance_scale)
    tracks = _tracks(presets, height, guidance_scale)
    sample_rate = presets.sound.sample_rate if presets.sound else None
    plan = Plan(
        num_frames=num_frames,
        height=height,
        width=width,
        fps=fps,
        num_inference_steps=_num_inference_steps(request, presets),
        guidance_scale=guidance_scale,
        seed=request.seed,
        latent_shape=(
            presets.latent_channels,
            1 + (num_frames - 1) // presets.frame_stride,
            tracks[-1].stop,
            width // presets.spatial_stride,
        ),
        tracks=tracks,
        sample_rate=sample_rate,
        num_samples=count_samples(num_frames, sample_rate, fps) if sample_rate else 0,
        device=device,
        dtype=dtype,
    )
    _check_latents(request, plan)
    return plan


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
        raise UsageError(
            f"num_frames is {count}; it must be 1 + {stride}k from 1 to {most}: nearest {nearest}"
        )
    return count


def _size(name: str, value: int | None, default: int, presets: Presets) -> int:
    size, step = _or(value, default), presets.size_multiple
    low, high = presets.min_size, presets.max_size
    if size != low == high:
        raise UsageError(f"{name} is {size}; this model makes {low} and nothing else")
    if not low <= size <= high or size % step:
        nearest = step * round(_clamp(size, low, high) / step)
        raise UsageError(
            f"{name} is {size}; it must be a multiple of {step} from {low} to {high}:"
            f" nearest {nearest}"
        )
    return size


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
    return (picture, Track("sound", rows, rows + sound.rows, sound.guidance_scale, sound.shift))


def _check_latents(request: Request, plan: Plan) -> None:
    if request.latents is None:
        return
    shape = tuple(request.latents.shape)
    if shape not in (plan.latent_shape, (1, *plan.latent_shape)):
        raise UsageError(
            f"latents have shape {shape}; this request needs {plan.latent_shape}, with or without"
            " a batch of 1 before it"
        )
