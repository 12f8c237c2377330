"""Solvers as functions: built once from a table of sigmas, they take latents one step further.

A solver is pure: `latents, history = solve(latents, prediction, step, history)`, where `history` is
a tuple of tensors that starts empty. So a request can stop between any two steps and be resumed.
Predictions are flow predictions: noise minus clean latents.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .errors import UsageError
from .schedule import read_config

History = tuple[Tensor, ...]
Solver = Callable[[Tensor, Tensor, int, History], tuple[Tensor, History]]


def from_config(config: Mapping[str, Any]) -> Callable[[Tensor], Solver]:
    """What builds the solver of a scheduler config from a table of sigmas."""
    _, options = read_config(config)
    if "solver_order" not in options:
        return euler
    return partial(
        unipc,
        order=options["solver_order"],
        solver_type=options["solver_type"],
        disable_corrector=tuple(options["disable_corrector"] or ()),
    )


def euler(sigmas: Tensor) -> Solver:
    """First order: along the prediction to the next sigma."""
    deltas = sigmas.diff().tolist()

    def solve(
        latents: Tensor, prediction: Tensor, step: int, history: History = ()
    ) -> tuple[Tensor, History]:
        return torch.add(latents, prediction, alpha=deltas[step]), ()

    return solve


def unipc(
    sigmas: Tensor,
    order: int = 2,
    solver_type: str = "bh2",
    disable_corrector: Sequence[int] = (),
) -> Solver:
    """UniPC with corrector (Zhao et al., https://arxiv.org/abs/2302.04867), on clean predictions.

    Every update is a weighted sum of latents and of clean predictions, newest first, so all that
    depends on the sigmas is a table of weights. `history` holds the latents the last step started
    from and the clean predictions before. As `UniPCMultistepScheduler` with lower_order_final.
    """
    if not 1 <= order <= 3:
        raise UsageError(f"UniPC of order {order} is not supported; 1, 2 and 3 are")
    if solver_type not in ("bh1", "bh2"):
        raise UsageError(f"UniPC solver_type {solver_type!r} is not known; known: bh1, bh2")
    levels = sigmas.double().tolist()
    total = len(levels) - 1
    orders = [min(order, total - step, step + 1) for step in range(total)]
    predictors = [_weights(levels, i, orders[i], solver_type, False) for i in range(total)]
    correctors = [_weights(levels, i, orders[i], solver_type, True) for i in range(total - 1)]
    skipped = frozenset(disable_corrector)

    def solve(
        latents: Tensor, prediction: Tensor, step: int, history: History = ()
    ) -> tuple[Tensor, History]:
        clean = torch.add(latents, prediction, alpha=-levels[step])
        past = history[1:]
        if step > 0 and history and step - 1 not in skipped:
            latents = _weighted_sum(correctors[step - 1], (history[0], clean, *past))
        known = (clean, *past)[:order]
        return _weighted_sum(predictors[step], (latents, *known)), (latents, *known)

    return solve


def _weighted_sum(weights: Sequence[float], tensors: Sequence[Tensor]) -> Tensor:
    total = tensors[0] * weights[0]
    for weight, tensor in zip(weights[1:], tensors[1:], strict=False):
        total.add_(tensor, alpha=weight)
    return total


def _weights(
    sigmas: list[float], step: int, order: int, solver_type: str, correct: bool
) -> list[float]:
    """Weights of one update from sigmas[step] to the next.

    They apply to (latents, clean predictions at `step`, `step - 1`, ...); those of a corrector to
    (latents, the clean prediction at `step + 1`, and the same).
    """
    sigma, target = sigmas[step], sigmas[step + 1]
    here = _log_snr(sigma)
    h = _log_snr(target) - here
    ratios = [(_log_snr(sigmas[step - i]) - here) / h for i in range(1, order)]
    phi = math.expm1(-h)
    spread = -h if solver_type == "bh1" else phi
    slopes = _slopes([*ratios, 1.0], h, phi, spread, correct)
    scale = (1 - target) * spread
    past = [-scale * slope / ratio for slope, ratio in zip(slopes, ratios, strict=False)]
    newest = [-scale * slopes[-1]] if correct else []
    current = -(1 - target) * phi - sum(past) - sum(newest)
    return [target / sigma, *newest, current, *past]


def _slopes(ratios: list[float], h: float, phi: float, spread: float, correct: bool) -> list[float]:
    """What each difference of clean predictions counts: the reference's `rhos_c` or `rhos_p`."""
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


def _log_snr(sigma: float) -> float:
    return math.inf if sigma == 0 else math.log(1 - sigma) - math.log(sigma)
