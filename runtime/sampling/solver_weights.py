"""What a step weighs: every update of a solver is a sum of latents and of clean latents."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import UsageError
from .sigmas import Level, Schedule

LEAST_LOG_SNR = math.log(1e-6)  # what UniPC takes for minus infinity, at sigmas of pure noise


def weighted_sum(weights: Sequence[float], tensors: Sequence[Tensor]) -> Tensor:
    """The sum of as many tensors as there are weights."""
    total = tensors[0] * weights[0]
    for weight, tensor in zip(weights[1:], tensors[1:], strict=False):
        total.add_(tensor, alpha=weight)
    return total


def towards(start: Level, end: Level) -> tuple[float, float]:
    """Weights of latents and clean latents that keep the noise and change its amount."""
    kept = end.sigma / start.sigma
    return kept, end.alpha - start.alpha * kept


def dpm_table(
    schedule: Schedule,
    order: int,
    solver_type: str,
    lower_order_final: bool,
    euler_at_final: bool,
    decay: float,
) -> list[tuple[tuple[float, ...], ...]]:
    """Weights of (latents, clean) and of (latents, clean, clean before), for each step.

    Where only the first order applies, both are of the first.
    """
    if order not in (1, 2):
        raise UsageError(f"DPM-Solver++ of order {order} is not supported; 1 and 2 are")
    if solver_type not in ("midpoint", "heun"):
        raise UsageError(f"DPM solver_type {solver_type!r} is not known; known: midpoint, heun")
    starts, ends, total = schedule.starts, schedule.ends, len(schedule)
    simple_end = euler_at_final or ends[-1].sigma == 0 or (lower_order_final and total < 15)
    table = []
    for step, (start, end) in enumerate(zip(starts, ends, strict=True)):
        h = end.log_snr - start.log_snr
        kept = end.sigma / start.sigma
        if decay != 1:
            kept *= math.exp((1 - decay) * h)
        gain = -end.alpha * math.expm1(-decay * h)
        first = (kept, gain)
        if order == 1 or step == 0 or (simple_end and step == total - 1):
            table.append((first, first))
            continue
        slope = gain / 2
        if solver_type == "heun":
            slope = end.alpha * (math.expm1(-decay * h) / (decay * h) + 1)
        slope *= h / (start.log_snr - starts[step - 1].log_snr)
        table.append((first, (kept, gain + slope, -slope)))
    return table


def unipc_weights(
    starts: Sequence[Level],
    ends: Sequence[Level],
    step: int,
    order: int,
    solver_type: str,
    correct: bool,
) -> list[float]:
    """Weights of one update from starts[step] to ends[step].

    They apply to (latents, clean latents at `step`, `step - 1`, ...); those of a corrector to
    (latents, the clean latents at `step + 1`, and the same).
    """
    start, end = starts[step], ends[step]
    here = _log_snr(start)
    h = _log_snr(end) - here
    ratios = [(_log_snr(starts[step - i]) - here) / h for i in range(1, order)]
    phi = math.expm1(-h)
    spread = -h if solver_type == "bh1" else phi
    slopes = _slopes([*ratios, 1.0], h, phi, spread, correct)
    scale = end.alpha * spread
    past = [-scale * slope / ratio for slope, ratio in zip(slopes, ratios, strict=False)]
    newest = [-scale * slopes[-1]] if correct else []
    current = -end.alpha * phi - sum(past) - sum(newest)
    return [end.sigma / start.sigma, *newest, current, *past]


def _slopes(ratios: list[float], h: float, phi: float, spread: float, correct: bool) -> list[float]:
    """What each difference of clean latents counts: the reference's `rhos_c` or `rhos_p`."""
    order = len(ratios)
    unknowns = order if correct else order - 1
    if unknowns == 0:
        return []
    if unknowns == 1:
        return [0.5]  # the simplified form that the reference takes too
    right, term, factorial = [], phi / -h - 1, 1
    for i in range(1, unknowns + 1):
        right.append(term * factorial / spread)
        factorial *= i + 1
        term = term / -h - 1 / factorial
    nodes = torch.tensor(ratios[:unknowns], dtype=torch.float64)
    powers = torch.stack([nodes**i for i in range(unknowns)])
    return torch.linalg.solve(powers, torch.tensor(right, dtype=torch.float64)).tolist()


def _log_snr(at: Level) -> float:
    return max(at.log_snr, LEAST_LOG_SNR)
