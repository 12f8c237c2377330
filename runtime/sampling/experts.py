"""Two transformers that share a request's steps: one for much noise, one for little (Wan 2.2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from .guidance import Denoiser

if TYPE_CHECKING:
    from ..planning.plan import Plan, Track
    from .sigmas import Schedule


class Expert(NamedTuple):
    """A transformer by its component's name, and the predictions it makes."""

    name: str
    steps: range

    @property
    def part(self) -> slice:
        return slice(self.steps.start, self.steps.stop)


def experts_of(plan: Plan, schedule: Schedule) -> list[Expert]:
    """Those with something to do, in order."""
    total = len(schedule)
    if plan.boundary_ratio is None:
        return [Expert("transformer", range(total))]
    switch = _switch(schedule, plan.boundary_ratio)
    both = Expert("transformer", range(switch)), Expert("transformer_2", range(switch, total))
    return [expert for expert in both if expert.steps]


def with_scales(plan: Plan, schedule: Schedule) -> Sequence[Track]:
    """A plan's tracks, whose guidance scale is a list by step where the request has one, and where
    two experts have one each."""
    picture, *others = plan.tracks
    if plan.guidance.by_step is not None:
        return [replace(picture, guidance_scale=plan.guidance.by_step), *others]
    if plan.boundary_ratio is None:
        return plan.tracks
    assert plan.guidance_scale_2 is not None  # of every plan with a boundary
    scales = plan.boundary_ratio, plan.guidance_scale, plan.guidance_scale_2
    return [replace(t, guidance_scale=scales_of_experts(schedule, *scales)) for t in plan.tracks]


def scales_of_experts(
    schedule: Schedule, boundary_ratio: float, guidance_scale: float, guidance_scale_2: float
) -> tuple[float, ...]:
    """A scale for each prediction: the first's, then the second's."""
    switch = _switch(schedule, boundary_ratio)
    return (guidance_scale,) * switch + (guidance_scale_2,) * (len(schedule) - switch)


def _switch(schedule: Schedule, boundary_ratio: float) -> int:
    """The first prediction that is the second's: its timestep is below the boundary, which is a
    part of the training timesteps."""
    boundary = boundary_ratio * schedule.num_train_timesteps
    return int((schedule.timesteps >= boundary).sum())


def in_turn(
    experts: Sequence[Expert], bind: Callable[[Expert], Denoiser], used: Callable[[int], bool]
) -> Denoiser:
    """A denoiser that is one expert after another, asked at the steps that are `used`.

    The first is bound now if it is used at all. Another is bound when it is first asked, and takes
    the place of what the one before it had computed.
    """
    turns = [(expert, i) for expert in experts for i in range(len(expert.steps))]
    bound: dict[Expert, Denoiser] = {}
    if any(map(used, experts[0].steps)):
        bound[experts[0]] = bind(experts[0])

    def predict(latents: Tensor, step: int) -> Tensor:
        expert, own_step = turns[step]
        if expert not in bound:
            bound.clear()
            bound[expert] = bind(expert)
        return bound[expert](latents, own_step)

    return predict
