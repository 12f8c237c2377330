"""How many branches of guidance the steps of a request run."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from ..requests.solver_names import count_predictions

if TYPE_CHECKING:
    from .plan import Plan


def branches_of_steps(plan: Plan) -> Counter[int]:
    """Predictions by the branches they run: none, one or two; `guidance.count_branches` decides.

    Of two experts whose scales differ in that, all steps count as the one that is guided.
    """
    steps, options = plan.num_inference_steps, plan.guidance
    total = steps if plan.solver is None else count_predictions(plan.solver, steps)
    looks_ahead = total > steps  # predicts at each level but the first twice
    start, stop = (int(part * steps) for part in options.interval)
    found: Counter[int] = Counter()
    for prediction in range(total):
        step = (prediction + 1) // 2 if looks_ahead else prediction
        scales = [track.guidance_scale for track in plan.tracks] + [plan.guidance_scale_2 or 0]
        if options.by_step is not None:
            scales = [options.by_step[step], *(t.guidance_scale for t in plan.tracks[1:])]
        if prediction < options.zero_init_steps:
            found[0] += 1
        else:
            found[2 if start <= step < stop and max(scales) > 1 else 1] += 1
    return found
