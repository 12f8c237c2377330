"""Solvers as functions: built once from a schedule, they take latents one step further.

A solver is pure: `latents, history = solve(latents, prediction, step, history)`, where `history` is
a tuple of tensors that starts empty. So a request can stop between any two steps and be resumed,
to the same bits. Predictions are of any kind of `predictions.py`; what a solver sees of them
are clean latents. Each step is a weighted sum, and all that depends on the schedule is a table of
weights. Solvers that add noise draw it from a generator on the CPU whose state is in the history.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..errors import UsageError
from ..requests.solver_names import STOCHASTIC, check
from .predictions import PREDICTION_TYPES, bounded, clean_weights, slope_weights
from .scheduler_configs import read_config
from .sigmas import Schedule, level
from .solver_weights import dpm_table, towards, unipc_weights, weighted_sum

History = tuple[Tensor, ...]
Solver = Callable[[Tensor, Tensor, int, History], tuple[Tensor, History]]
# build(schedule, generator=None) -> solve; solvers that draw noise need the generator
Build = Callable[..., Solver]

SDE_DECAY = 2.0  # of the noise that latents hold, in log SNR, against 1 without fresh noise


def from_config(config: Mapping[str, Any], solver: str | None = None) -> Build:
    """What builds the solver of a scheduler config, or the named one for its predictions."""
    format_, options = read_config(config)
    own, settings = format_.solver(options)
    if solver is not None and solver != own:
        own, settings = solver, {}
    return named(own, options.get("prediction_type", "flow_prediction"), **settings)


def named(name: str, prediction_type: str = "flow_prediction", **settings: Any) -> Build:
    """What builds a solver of `solver_names.NAMES`, with settings of its function."""
    check(name)
    if prediction_type not in PREDICTION_TYPES:
        known = ", ".join(PREDICTION_TYPES)
        raise UsageError(f"prediction_type {prediction_type!r} is not known; known: {known}")
    return partial(_build, name, prediction_type, settings)


def _build(
    name: str,
    prediction_type: str,
    settings: Mapping[str, Any],
    schedule: Schedule,
    generator: torch.Generator | None = None,
) -> Solver:
    if name == "euler" and schedule.noise == "flow" and prediction_type == "flow_prediction":
        return euler(1 - schedule.sigmas if schedule.inverted else schedule.sigmas)
    settings = dict(settings)
    weights = clean_weights(schedule, prediction_type)
    if "timestep_scaling" in settings:
        weights = bounded(weights, schedule, settings.pop("timestep_scaling"))
    if name in STOCHASTIC:
        if generator is None:
            raise UsageError(f"solver {name} adds noise at every step; give it a generator")
        settings["generator"] = generator
    if name == "heun":
        weights = slope_weights(schedule, weights)
    return on_weighted(NAMED[name](schedule, **settings), weights)


def on_weighted(solve_seen: Solver, weights: Sequence[tuple[float, float]]) -> Solver:
    """A solver of predictions from one of what they say: clean latents, or slopes."""

    def solve(
        latents: Tensor, prediction: Tensor, step: int, history: History = ()
    ) -> tuple[Tensor, History]:
        of_latents, of_prediction = weights[step]
        if of_latents == 1:
            seen = torch.add(latents, prediction, alpha=of_prediction)
        elif of_latents == 0:
            seen = prediction * of_prediction  # never the prediction itself: histories keep it
        else:
            seen = weighted_sum((of_latents, of_prediction), (latents, prediction))
        return solve_seen(latents, seen, step, history)

    return solve


# ---- solvers without noise -----------------------------------------------------------------------


def euler(sigmas: Tensor) -> Solver:
    """First order, on flow predictions: along the prediction to the next sigma."""
    deltas = sigmas.diff().tolist()

    def solve(
        latents: Tensor, prediction: Tensor, step: int, history: History = ()
    ) -> tuple[Tensor, History]:
        return torch.add(latents, prediction, alpha=deltas[step]), ()

    return solve


def first_order(schedule: Schedule) -> Solver:
    """First order, on clean latents: Euler's steps where noise is added to latents, DDIM's where
    the variance is kept (https://arxiv.org/abs/2010.02502)."""
    weights = [towards(*ends) for ends in zip(schedule.starts, schedule.ends, strict=True)]

    def solve(
        latents: Tensor, clean: Tensor, step: int, history: History = ()
    ) -> tuple[Tensor, History]:
        return weighted_sum(weights[step], (latents, clean)), ()

    return solve


def heun(schedule: Schedule) -> Solver:
    """Second order in two predictions (https://arxiv.org/abs/2206.00364, algorithm 1), on slopes
    and a doubled schedule: even steps go ahead, odd ones go again from where they started, along
    the mean of both slopes. As `FlowMatchHeunDiscreteScheduler`.
    """
    sigmas = schedule.sigmas.double().tolist()
    if len(schedule) % 2 == 0 or sigmas[1:-1:2] != sigmas[2:-1:2]:
        raise UsageError("solver heun needs a schedule with inner sigmas twice: Schedule.doubled()")
    deltas = [after - before for before, after in pairwise(sigmas)]

    def solve(
        latents: Tensor, slope: Tensor, step: int, history: History = ()
    ) -> tuple[Tensor, History]:
        if step % 2:
            half = deltas[step - 1] / 2
            return weighted_sum((1.0, half, half), (*history, slope)), ()
        return torch.add(latents, slope, alpha=deltas[step]), (latents, slope)

    return solve


def dpm(
    schedule: Schedule,
    order: int = 2,
    solver_type: str = "midpoint",
    lower_order_final: bool = True,
    euler_at_final: bool = False,
) -> Solver:
    """DPM-Solver++ (Lu et al., https://arxiv.org/abs/2211.01095), multistep, on clean latents.

    `history` holds the clean latents of the step before. As `DPMSolverMultistepScheduler`.
    """
    table = dpm_table(schedule, order, solver_type, lower_order_final, euler_at_final, decay=1.0)

    def solve(
        latents: Tensor, clean: Tensor, step: int, history: History = ()
    ) -> tuple[Tensor, History]:
        weights = table[step][len(history)]
        return weighted_sum(weights, (latents, clean, *history)), (clean,) * (order - 1)

    return solve


def unipc(
    schedule: Schedule,
    order: int = 2,
    solver_type: str = "bh2",
    disable_corrector: Sequence[int] = (),
) -> Solver:
    """UniPC with corrector (Zhao et al., https://arxiv.org/abs/2302.04867), on clean latents.

    `history` holds the latents the last step started from and clean latents, newest first. As
    `UniPCMultistepScheduler` with lower_order_final.
    """
    if not 1 <= order <= 3:
        raise UsageError(f"UniPC of order {order} is not supported; 1, 2 and 3 are")
    if solver_type not in ("bh1", "bh2"):
        raise UsageError(f"UniPC solver_type {solver_type!r} is not known; known: bh1, bh2")
    total, starts, ends = len(schedule), schedule.starts, schedule.ends
    # The weights of each step for each number of clean latents known before it, this one included.
    orders = [
        [min(known, order, total - step) for known in range(1, min(step + 1, order) + 1)]
        for step in range(total)
    ]
    weigh = partial(unipc_weights, starts, ends, solver_type=solver_type)
    predictors = [[weigh(i, of, correct=False) for of in orders[i]] for i in range(total)]
    correctors = [[weigh(i, of, correct=True) for of in orders[i]] for i in range(total - 1)]
    skipped = frozenset(disable_corrector)

    def solve(
        latents: Tensor, clean: Tensor, step: int, history: History = ()
    ) -> tuple[Tensor, History]:
        past = history[1:]
        if past and step - 1 not in skipped:
            latents = weighted_sum(correctors[step - 1][len(past) - 1], (history[0], clean, *past))
        known = (clean, *past)[:order]
        return weighted_sum(predictors[step][len(known) - 1], (latents, *known)), (latents, *known)

    return solve


# ---- solvers with noise --------------------------------------------------------------------------


def lcm(schedule: Schedule, generator: torch.Generator) -> Solver:
    """Clean latents, noised anew to the next sigma (https://arxiv.org/abs/2310.04378), for models
    distilled to few steps. As `FlowMatchLCMScheduler` and `LCMScheduler`."""
    ends, first = schedule.ends, generator.get_state()

    def solve(
        latents: Tensor, clean: Tensor, step: int, history: History = ()
    ) -> tuple[Tensor, History]:
        end = ends[step]
        noise, state = _draw(latents, end.sigma, *(history or (first,)))
        return weighted_sum((end.alpha, end.sigma), (clean, noise)), (state,)

    return solve


def euler_ancestral(schedule: Schedule, generator: torch.Generator) -> Solver:
    """A first-order step below the next sigma, and fresh noise up to it. As
    `EulerAncestralDiscreteScheduler`, and `LTXEulerAncestralRFScheduler` for flow sigmas."""
    sigmas = schedule.sigmas.double().tolist()
    weights, first = [], generator.get_state()
    for start, end, of, to in zip(schedule.starts, schedule.ends, sigmas, sigmas[1:], strict=False):
        below = level(schedule.noise, to * (to / of))
        rise = end.alpha / below.alpha
        fresh = math.sqrt(max(0.0, end.sigma**2 - (rise * below.sigma) ** 2))
        weights.append((*(rise * weight for weight in towards(start, below)), fresh))

    def solve(
        latents: Tensor, clean: Tensor, step: int, history: History = ()
    ) -> tuple[Tensor, History]:
        noise, state = _draw(latents, weights[step][-1], *(history or (first,)))
        return weighted_sum(weights[step], (latents, clean, noise)), (state,)

    return solve


def dpm_sde(
    schedule: Schedule,
    generator: torch.Generator,
    order: int = 2,
    solver_type: str = "midpoint",
    lower_order_final: bool = True,
    euler_at_final: bool = False,
    draws: int = 1,
) -> Solver:
    """SDE-DPM-Solver++ (https://arxiv.org/abs/2211.01095, appendix), multistep, on clean latents.

    As `DPMSolverMultistepScheduler` with sde-dpmsolver++. `CogVideoXDPMScheduler` draws twice in
    steps of second order, and takes the second.
    """
    table = dpm_table(schedule, order, solver_type, lower_order_final, euler_at_final, SDE_DECAY)
    starts, ends, first = schedule.starts, schedule.ends, generator.get_state()
    spans = [end.log_snr - start.log_snr for start, end in zip(starts, ends, strict=True)]
    fresh = [end.sigma * math.sqrt(-math.expm1(-2 * h)) for end, h in zip(ends, spans, strict=True)]

    def solve(
        latents: Tensor, clean: Tensor, step: int, history: History = ()
    ) -> tuple[Tensor, History]:
        state, *past = history or (first,)
        weights = table[step][len(past)]
        for _ in range(draws if weights[2:] else 1):
            noise, state = _draw(latents, fresh[step], state)
        moved = weighted_sum(
            (*weights, fresh[step]), (latents, clean, *past[: len(weights) - 2], noise)
        )
        return moved, (state, *(clean,) * (order - 1))

    return solve


def generators(generator: torch.Generator, count: int) -> list[torch.Generator]:
    """A generator for each of several tracks: the first goes on where the given one stands, as the
    reference's would, the others are seeded from it, so that no two tracks draw the same noise."""
    first, spare = torch.Generator("cpu"), torch.Generator("cpu")
    first.set_state(generator.get_state())
    spare.set_state(generator.get_state())
    seeds = torch.randint(2**62, (count - 1,), generator=spare).tolist()
    return [first, *(torch.Generator("cpu").manual_seed(seed) for seed in seeds)]


def _draw(latents: Tensor, weight: float, state: Tensor) -> tuple[Tensor, Tensor]:
    """Noise like the latents, drawn on the CPU, and the generator's state after it."""
    if weight == 0:
        return torch.zeros((), dtype=latents.dtype, device=latents.device), state
    generator = torch.Generator("cpu")
    generator.set_state(state.cpu())
    noise = torch.randn(latents.shape, generator=generator, dtype=latents.dtype)
    return noise.to(latents.device), generator.get_state()


NAMED: dict[str, Callable[..., Solver]] = {
    "euler": first_order,
    "heun": heun,
    "dpm++2m": dpm,
    "dpm++2m-sde": dpm_sde,
    "unipc": unipc,
    "unipc-1": partial(unipc, order=1),
    "unipc-3": partial(unipc, order=3),
    "lcm": lcm,
    "euler-ancestral": euler_ancestral,
}
