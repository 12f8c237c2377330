"""Between latents and models: what a model is shown of them, and what its predictions say.

Solvers see clean latents and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import Tensor

from ..errors import UsageError
from .sigmas import Level, Schedule

PREDICTION_TYPES = ("flow_prediction", "v_prediction", "epsilon", "sample")


def scale_input(
    predict: Callable[[Tensor, int], Tensor], schedule: Schedule
) -> Callable[[Tensor, int], Tensor]:
    """A denoiser of latents, from one of latents as its schedule scales them for the model."""
    scales = schedule.input_scales
    if scales is None:
        return predict
    return lambda latents, step: predict(latents * scales[step], step)


def clean_weights(schedule: Schedule, prediction_type: str) -> list[tuple[float, float]]:
    """Clean latents of each step are the first weight times latents plus the second times the
    prediction: of the flow (noise minus clean), of v (https://arxiv.org/abs/2202.00512, appendix
    D), of the noise (epsilon), or of the clean latents themselves (sample; EDM's denoiser)."""
    flow = prediction_type == "flow_prediction"
    if prediction_type != "sample" and flow != (schedule.noise == "flow"):
        works = "flow_prediction" if schedule.noise == "flow" else "epsilon or v_prediction"
        raise UsageError(
            f"prediction_type {prediction_type!r} does not go with {schedule.noise!r} sigmas;"
            f" {works} does, and sample"
        )
    weights = [_clean_weights(start, prediction_type) for start in schedule.starts]
    if flow and schedule.inverted:
        weights = [(of_latents, -of_prediction) for of_latents, of_prediction in weights]
    return weights


def _clean_weights(start: Level, prediction_type: str) -> tuple[float, float]:
    if prediction_type == "sample":
        return 0.0, 1.0
    if prediction_type == "flow_prediction":
        return 1.0, -start.sigma
    if prediction_type == "v_prediction":
        norm = math.hypot(start.alpha, start.sigma)
        return start.alpha / norm**2, -start.sigma / norm
    if start.alpha == 0:
        raise UsageError("epsilon says nothing of clean latents at pure noise; v_prediction does")
    return 1 / start.alpha, -start.sigma / start.alpha


def slope_weights(
    schedule: Schedule, weights: Sequence[tuple[float, float]]
) -> list[tuple[float, float]]:
    """Weights of what latents change by with sigma, (latents - clean) / sigma, from those of clean
    latents. In one sum of both it does not lose what their difference would."""
    if schedule.noise == "vp":
        raise UsageError("solver heun needs flow or EDM sigmas; of betas, euler or unipc works")
    return [
        ((1 - of_latents) / at.sigma, -of_prediction / at.sigma)
        for (of_latents, of_prediction), at in zip(weights, schedule.starts, strict=True)
    ]


def bounded(
    weights: Sequence[tuple[float, float]], schedule: Schedule, scaling: float
) -> list[tuple[float, float]]:
    """Weights with the boundary condition of consistency models, for which data has deviation 0.5:
    at timestep 0 latents are clean as they are."""
    held = []
    for (of_latents, of_prediction), timestep in zip(
        weights, schedule.timesteps.tolist(), strict=True
    ):
        norm = math.hypot(timestep * scaling, 0.5)
        skip, out = (0.5 / norm) ** 2, timestep * scaling / norm
        held.append((skip + out * of_latents, out * of_prediction))
    return held
