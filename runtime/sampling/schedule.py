"""Noise schedules as data: the sigmas a request steps through, and the timesteps the model is told.

Tables are those of the reference schedulers, bit by bit; a config is a scheduler_config.json.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch

from ..errors import UsageError
from ..requests.solver_names import LOOK_AHEAD, check
from .scheduler_configs import read_config
from .scheduler_formats import Format
from .sigmas import Schedule
from .tables import Wanted


def from_config(
    config: Mapping[str, Any],
    num_steps: int | None = None,
    *,
    solver: str | None = None,
    sigmas: Sequence[float] | None = None,
    timesteps: Sequence[float] | None = None,
    sequence_length: int | None = None,
) -> Schedule:
    """The table of a scheduler config for a number of steps, or for a list of values.

    Lists mean what the class's `set_timesteps` takes them for: sigmas are shifted as its own would
    be (a final 0 may be left out), timesteps are told to the model as they stand. `from_sigmas`
    takes sigmas as they stand. `solver` is a name of `solver_names.NAMES` where the class's own is
    not wanted; Heun's looks at most sigmas twice. `sequence_length`, the number of latent positions
    (frames x rows x columns, of patches), is needed where the resolution moves the sigmas.
    Raises `UsageError` for a class, an option or a list that is not supported, naming what is.
    """
    format_, options = read_config(config)
    solver = format_.solver(options)[0] if solver is None else check(solver)
    wanted = _wanted(num_steps, sigmas, timesteps, sequence_length)
    _check_lists(config["_class_name"], format_, options, wanted)
    table = format_.table(options, wanted)
    return table.doubled() if solver in LOOK_AHEAD else table


def from_sigmas(
    sigmas: Sequence[float],
    timesteps: Sequence[float] | None = None,
    num_train_timesteps: int = 1000,
    inverted: bool = False,
) -> Schedule:
    """Flow sigmas as they stand, as those of distilled models; a final 0 may be left out.

    The model is told `timesteps`, by default sigmas times `num_train_timesteps`; of an `inverted`
    flow (see `Schedule`) what is left of 1 times that.
    """
    table = torch.tensor([*falling("sigmas", sigmas, 1.0), 0.0])
    if timesteps is None:
        told = (1 - table[:-1] if inverted else table[:-1]) * num_train_timesteps
        return Schedule(table, told, num_train_timesteps, inverted=inverted)
    told = torch.tensor(falling("timesteps", timesteps, num_train_timesteps))
    return Schedule(table, told, num_train_timesteps)


def falling(name: str, values: Sequence[float], most: float = math.inf) -> tuple[float, ...]:
    """Checked values, each below the one before, from `most` down; sigmas without a final 0."""
    numbers = tuple(float(value) for value in values)
    if name == "sigmas" and numbers[-1:] == (0.0,):
        numbers = numbers[:-1]
    if not numbers:
        raise UsageError(f"{name} is empty; give one value at least")
    for number in numbers:
        least = number > 0 or (name == "timesteps" and number == 0)
        if not (least and number <= most and math.isfinite(number)):
            raise UsageError(f"{name} has {number:g}; values must be above 0 and at most {most:g}")
    for before, after in pairwise(numbers):
        if after >= before:
            raise UsageError(f"{name} must fall; after {before:g} comes {after:g}")
    return numbers


def _wanted(
    num_steps: int | None,
    sigmas: Sequence[float] | None,
    timesteps: Sequence[float] | None,
    sequence_length: int | None,
) -> Wanted:
    lists = {"sigmas": sigmas, "timesteps": timesteps}
    given = {name: falling(name, values) for name, values in lists.items() if values is not None}
    for name, values in given.items():
        if num_steps is None:
            num_steps = len(values)
        if len(values) != num_steps:
            raise UsageError(
                f"{name} has {len(values)} values; {num_steps} steps need as many values as steps"
            )
    if num_steps is None or num_steps < 1:
        raise UsageError(f"num_inference_steps={num_steps} must be at least 1")
    return Wanted(num_steps, given.get("sigmas"), given.get("timesteps"), sequence_length)


def _check_lists(name: str, format_: Format, options: Mapping[str, Any], wanted: Wanted) -> None:
    """Refuse lists that the class does not take with these options, and values out of range."""
    flow = "shift" in options or bool(options.get("use_flow_sigmas"))
    works = set(format_.lists)
    if "use_flow_sigmas" in options:
        works &= {"sigmas"} if flow else {"timesteps"}
    if options.get("use_karras_sigmas") or options.get("use_exponential_sigmas"):
        works = set()
    given = [kind for kind in ("sigmas", "timesteps") if getattr(wanted, kind) is not None]
    if not works.issuperset(given):
        shown = f"a list of {' or '.join(sorted(works))}" if works else "a number of steps"
        raise UsageError(f"{name} takes no list of {given[-1]} with these options; {shown} works")
    if len(given) == 2 and "shift" not in options:
        raise UsageError(f"{name} takes a list of sigmas or one of timesteps, not both")
    num_train = options["num_train_timesteps"]
    for kind in given:
        last = num_train if flow else num_train - 1  # timesteps of betas are places in a table
        falling(
            kind, getattr(wanted, kind), last if kind == "timesteps" else 1 if flow else math.inf
        )
