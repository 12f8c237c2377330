"""The solvers a request may name, and what a plan needs to know of them. No torch."""

from __future__ import annotations

from ..errors import UsageError

NAMES = (
    "euler",
    "heun",
    "dpm++2m",
    "dpm++2m-sde",
    "unipc",
    "unipc-1",
    "unipc-3",
    "lcm",
    "euler-ancestral",
)
LOOK_AHEAD = frozenset({"heun"})  # predict twice at all sigmas but the first and the last
STOCHASTIC = frozenset({"dpm++2m-sde", "lcm", "euler-ancestral"})  # draw noise at every step


def check(name: str) -> str:
    """The name, if it is known."""
    if name not in NAMES:
        raise UsageError(f"solver {name!r} is not known; known: {', '.join(NAMES)}")
    return name


def count_predictions(name: str, num_steps: int) -> int:
    """How often the model runs, for a number of steps."""
    return 2 * num_steps - 1 if name in LOOK_AHEAD else num_steps
