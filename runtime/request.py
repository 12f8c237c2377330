"""What to make: a frozen description, checked for all that needs no model to check."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from .errors import UsageError

if TYPE_CHECKING:
    import torch

MAX_PROMPT_CHARS = 32_000
MAX_SEED = 2**63 - 1
MAX_GUIDANCE_SCALE = 100.0
OUTPUTS = ("video", "latents")


@dataclass(frozen=True)
class Request:
    """What to make. Fields left at None take the model's own value when the request is planned.

    `seconds` asks for the smallest valid frame count that lasts at least so long; it excludes
    `num_frames`. `latents` is initial noise to use instead of the seed's. `output="latents"` stops
    before decoding. The seed has a fixed default: the same request makes the same video.
    Raises UsageError for what no model could run.
    """

    prompt: str
    negative_prompt: str = ""
    num_frames: int | None = None
    seconds: float | None = None
    height: int | None = None
    width: int | None = None
    fps: float | None = None
    seed: int = 0
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    latents: torch.Tensor | None = field(default=None, repr=False, compare=False)
    output: str = "video"

    def __post_init__(self) -> None:
        self._check_text()
        for name in ("num_frames", "height", "width", "seed", "num_inference_steps"):
            self._keep(name, _whole(name, getattr(self, name)))
        for name in ("seconds", "fps", "guidance_scale"):
            self._keep(name, _finite(name, getattr(self, name)))
        self._check_choices()

    def as_dict(self) -> dict[str, Any]:
        """The fields that were set, ready for JSON; given latents appear as their shape."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        if self.latents is not None:
            values["latents"] = list(self.latents.shape)
        return {name: value for name, value in values.items() if value is not None}

    def _keep(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _check_text(self) -> None:
        for name in ("prompt", "negative_prompt"):
            text = getattr(self, name)
            if not isinstance(text, str):
                raise UsageError(f"{name} must be text, not {type(text).__name__}")
            if len(text) > MAX_PROMPT_CHARS:
                raise UsageError(
                    f"{name} has {len(text):,} characters; at most {MAX_PROMPT_CHARS:,} are read"
                )
        if not self.prompt.strip():
            raise UsageError('prompt is empty; say what to show, such as "a red ball bounces"')

    def _check_choices(self) -> None:
        if self.seconds is not None and self.num_frames is not None:
            raise UsageError(
                f"seconds ({self.seconds:g}) and num_frames ({self.num_frames}) both set the"
                " length; give one"
            )
        if self.seconds is not None and self.seconds <= 0:
            raise UsageError(f"seconds is {self.seconds:g}; it must be above 0")
        if not 0 <= self.seed <= MAX_SEED:
            raise UsageError(f"seed is {self.seed}; it must be from 0 to {MAX_SEED}")
        if self.guidance_scale is not None and not 1 <= self.guidance_scale <= MAX_GUIDANCE_SCALE:
            raise UsageError(
                f"guidance_scale is {self.guidance_scale:g}; it must be from 1 (no guidance)"
                f" to {MAX_GUIDANCE_SCALE:g}"
            )
        if self.output not in OUTPUTS:
            raise UsageError(f"output is {self.output!r}; it must be one of {', '.join(OUTPUTS)}")


def _whole(name: str, value: Any) -> int | None:
    if value is None:
        if name == "seed":
            raise UsageError("seed is None; it must be a whole number")
        return None
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise UsageError(f"{name} is {value!r}; it must be a whole number") from None


def _finite(name: str, value: Any) -> float | None:
    if value is None:
        return None
    try:
        number = math.nan if isinstance(value, (bool, str)) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise UsageError(f"{name} is {value!r}; it must be a finite number")
    return number
