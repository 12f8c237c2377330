"""What guidance does besides scaling: options of a request, without torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Union

from ..errors import UsageError

if TYPE_CHECKING:
    from ..sampling.sigmas import Schedule

Scale = Union[float, Sequence[float]]  # noqa: UP007  # one for all predictions, or one for each


@dataclass(frozen=True)
class Guidance:
    """What guidance does besides scaling.

    rescale: 0 to 1, how far the prediction's deviation is brought back to that of the prompt's
        branch (https://arxiv.org/abs/2305.08891, section 3.4).
    interval: guidance holds from this part of the steps to that one
        (https://arxiv.org/abs/2404.07724); the others run one branch.
    zero_star, zero_init_steps: CFG-Zero* (https://arxiv.org/abs/2503.18886): the negative branch is
        scaled to lie closest to the other, and the first steps predict nothing and run no branch.
    by_step: the picture's scale for each step instead of one for all; 1 runs one branch.
    """

    rescale: float = 0.0
    interval: tuple[float, float] = (0.0, 1.0)
    zero_star: bool = False
    zero_init_steps: int = 0
    by_step: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "interval", tuple(self.interval))
        if self.by_step is not None:
            object.__setattr__(self, "by_step", _checked(self.by_step))
        start, stop = self.interval
        if not 0 <= start < stop <= 1:
            raise UsageError(
                f"guidance interval is {start:g} to {stop:g}; parts of the steps from 0 to 1 work,"
                " the first below the second"
            )
        if not 0 <= self.rescale <= 1:
            raise UsageError(f"guidance rescale is {self.rescale:g}; it must be from 0 to 1")
        if self.zero_init_steps < 0:
            raise UsageError(f"zero_init_steps is {self.zero_init_steps}; it must be 0 or more")

    def scales(self, guidance_scale: Scale, schedule: Schedule) -> tuple[float, ...]:
        """A scale for each prediction of a schedule, 1 outside the interval.

        A list has one for each step, or one for each prediction where those are more (Heun).
        """
        steps = schedule.steps
        total, start, stop = steps[-1] + 1, *self.interval
        if self.zero_init_steps >= total:
            raise UsageError(
                f"zero_init_steps is {self.zero_init_steps} of {total} steps; fewer work"
            )
        if isinstance(guidance_scale, (int, float)):
            guidance_scale = (guidance_scale,) * total
        scales = _checked(guidance_scale)
        if len(scales) not in (total, len(steps)):
            raise UsageError(f"guidance has {len(scales)} scales; there are {total} steps")
        if len(scales) == total:
            scales = tuple(scales[step] for step in steps)
        held = range(int(start * total), int(stop * total))
        return tuple(
            scale if step in held else 1.0 for scale, step in zip(scales, steps, strict=True)
        )


PLAIN = Guidance()


def _checked(values: Sequence[float]) -> tuple[float, ...]:
    scales = tuple(float(scale) for scale in values)
    for scale in scales:
        if not (math.isfinite(scale) and scale >= 0):
            raise UsageError(f"guidance has the scale {scale:g}; 1 (no guidance) and above work")
    return scales
