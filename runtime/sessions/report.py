"""What a video's report says of how it was made."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from ..engine import Engine
    from ..planning.plan import Plan
    from ..requests.request import Request


def report(
    engine: Engine,
    request: Request,
    plan: Plan,
    seconds: Mapping[str, float],
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Request, plan, model, versions, seconds by stage, warnings: what JSON can hold.

    `notes`: what went otherwise than planned.
    """
    from ... import __version__

    origin, graphs = engine.origin(request), engine.graphs
    return {
        "request": origin["request"],
        "plan": plan.as_dict(),
        "executor": engine.executor,
        "offload": engine.offload.mode,
        "backends": engine.transformer.ops.backends,
        "model": origin["model"],
        **({} if graphs is None else {"engines": graphs.told()}),
        "loras": origin["loras"],
        "versions": {
            "kinema": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "seconds": {stage: round(value, 4) for stage, value in seconds.items()},
        "warnings": [*notes, *engine.text_encoder.warnings(request.prompt)],
    }
