"""What to make: a frozen description, checked for all that needs no model to check."""

from __future__ import annotations

import math
import operator
from dataclasses import asdict, dataclass, field, fields
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from ..media.clips import describe
from . import solver_names
from .conditions import Condition
from .guidance_options import PLAIN, Guidance

if TYPE_CHECKING:
    import torch

MAX_PROMPT_CHARS = 32_000
MAX_SEED = 2**63 - 1
MAX_GUIDANCE_SCALE = 100.0
OUTPUTS = ("video", "latents")
PICTURES = {"image": 0, "last_image": -1}  # and the frame each is at


@dataclass(frozen=True)
class Request:
    """What to make. Fields left at None take the model's own value when the request is planned.

    `seconds` asks for the smallest valid frame count that lasts at least so long; it excludes
    `num_frames`. `latents` is initial noise to use instead of the seed's. `output="latents"` stops
    before decoding. The seed has a fixed default: the same request makes the same video.

    `conditions` are pictures and clips that the video shows or is guided by; `image` and
    `last_image` are short for one at the first frame and one at the last. With neither height nor
    width the video has the shape of the first of them, at the model's own area.
    `guidance_scale_2` is for the second of two experts, by default `guidance_scale`; `guidance` is
    what guidance does besides scaling: rescale, interval, CFG-Zero*, a scale by step. `solver` is
    one of `solver_names.NAMES`, by default the checkpoint's own. `sigmas` are those to step through
    instead of the checkpoint's, as distilled models have them: falling, from 1 at most; a final 0
    may be left out. They exclude `num_inference_steps`. With `adjust`, a size or length that does
    not fit becomes the nearest that does, and clips are cut.
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
    guidance_scale_2: float | None = None
    guidance: Guidance = PLAIN
    solver: str | None = None
    sigmas: tuple[float, ...] | None = None
    image: Any = field(default=None, repr=False, compare=False)
    last_image: Any = field(default=None, repr=False, compare=False)
    conditions: tuple[Condition, ...] = ()
    adjust: bool = False
    latents: torch.Tensor | None = field(default=None, repr=False, compare=False)
    output: str = "video"

    def __post_init__(self) -> None:
        self._check_text()
        for name in ("num_frames", "height", "width", "seed", "num_inference_steps"):
            self._keep(name, _whole(name, getattr(self, name)))
        for name in ("seconds", "fps", "guidance_scale", "guidance_scale_2"):
            self._keep(name, _finite(name, getattr(self, name)))
        self._check_choices()
        self._keep("conditions", _conditions(self.conditions))
        if self.sigmas is not None:
            self._keep("sigmas", _sigmas(self.sigmas))

    @property
    def shown(self) -> tuple[Condition, ...]:
        """All conditions, the short ones first."""
        short = {frame: getattr(self, name) for name, frame in PICTURES.items()}
        first = [Condition(image, frame=at) for at, image in short.items() if image is not None]
        return (*first, *self.conditions)

    def as_dict(self) -> dict[str, Any]:
        """The fields that were set, ready for JSON; given latents appear as their shape, pictures
        as their file or size."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values["adjust"] = self.adjust or None
        values["guidance"] = asdict(self.guidance) if self.guidance != PLAIN else None
        values["conditions"] = [condition.as_dict() for condition in self.conditions] or None
        for name in PICTURES:
            values[name] = None if values[name] is None else describe(values[name])
        if self.latents is not None:
            values["latents"] = list(self.latents.shape)
        return {name: value for name, value in values.items() if value is not None}

    def as_saved(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """What a saved run keeps: values for JSON, and tensors. Noise that was given is spent."""
        values, tensors = self.as_dict(), {}
        for name in ("latents", *PICTURES):
            values.pop(name, None)
        values["conditions"] = []
        for i, condition in enumerate(self.shown):
            told, pictures = condition.as_saved()
            values["conditions"].append(told)
            tensors.update({f"{i}.{name}": tensor for name, tensor in pictures.items()})
        return values, tensors

    @classmethod
    def from_saved(cls, values: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Request:
        """The request of a saved run."""
        parts: list[dict[str, torch.Tensor]] = [{} for _ in values["conditions"]]
        for name, tensor in tensors.items():
            number, rest = name.split(".", 1)
            parts[int(number)][rest] = tensor
        given = [
            Condition.from_saved(*pair) for pair in zip(values["conditions"], parts, strict=True)
        ]
        guidance = Guidance(**values.get("guidance", {}))
        return cls(**{**values, "conditions": given, "guidance": guidance})

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
        for name in ("guidance_scale", "guidance_scale_2"):
            scale = getattr(self, name)
            if scale is not None and not 1 <= scale <= MAX_GUIDANCE_SCALE:
                raise UsageError(
                    f"{name} is {scale:g}; it must be from 1 (no guidance)"
                    f" to {MAX_GUIDANCE_SCALE:g}"
                )
        if self.sigmas is not None and self.num_inference_steps is not None:
            raise UsageError(
                f"num_inference_steps ({self.num_inference_steps}) and sigmas both set the steps;"
                " give one"
            )
        if not isinstance(self.guidance, Guidance):
            raise UsageError(f"guidance is {type(self.guidance).__name__}; a Guidance is expected")
        if self.solver is not None:
            solver_names.check(self.solver)
        if self.output not in OUTPUTS:
            raise UsageError(f"output is {self.output!r}; it must be one of {', '.join(OUTPUTS)}")


def _conditions(values: Any) -> tuple[Condition, ...]:
    if isinstance(values, Condition):
        return (values,)
    if not isinstance(values, (list, tuple)):
        raise UsageError(f"conditions are {type(values).__name__}; a list of Condition is expected")
    for value in values:
        if not isinstance(value, Condition):
            raise UsageError(f"a condition is {type(value).__name__}; a Condition is expected")
    return tuple(values)


def _sigmas(values: Any) -> tuple[float, ...]:
    try:
        numbers = tuple(_number("a sigma", value) for value in values)
    except TypeError:
        raise UsageError(f"sigmas are {values!r}; a list of numbers is expected") from None
    numbers = numbers[:-1] if numbers[-1:] == (0.0,) else numbers
    if not numbers:
        raise UsageError("sigmas are empty; give one at least")
    for before, after in pairwise((1.0 + 1e-9, *numbers)):
        if not 0 < after < before:
            raise UsageError(f"sigmas fall from 1 at most to above 0; {after:g} does not fit there")
    return numbers


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
    return None if value is None else _number(name, value)


def _number(name: str, value: Any) -> float:
    try:
        number = math.nan if isinstance(value, (bool, str)) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise UsageError(f"{name} is {value!r}; it must be a finite number")
    return number
