"""Noise schedules as data: the sigmas a request steps through, and the timesteps the model is told.

Tables are those of the reference schedulers, bit by bit; a config is a scheduler_config.json.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .errors import UsageError


@dataclass(frozen=True)
class Schedule:
    """`sigmas` fp32 (num_steps + 1,), falling from about 1 to 0; `timesteps` (num_steps,): what the
    model is told of them, in 0..num_train_timesteps."""

    sigmas: Tensor
    timesteps: Tensor
    num_train_timesteps: int = 1000

    def __post_init__(self) -> None:
        if len(self.sigmas) != len(self.timesteps) + 1:
            counts = f"{len(self.sigmas)} sigmas, {len(self.timesteps)} timesteps"
            raise UsageError(f"a schedule needs one sigma more than timesteps; got {counts}")

    def __len__(self) -> int:
        return len(self.timesteps)

    def shifted(self, shift: float) -> Schedule:
        """The same steps at sigmas `shift * s / (1 + (shift - 1) * s)`: noisier for `shift` > 1."""
        if shift == 1:
            return self
        sigmas = _shift(self.sigmas.double(), shift)
        timesteps = (sigmas[:-1] * self.num_train_timesteps).to(self.timesteps.dtype)
        return replace(self, sigmas=sigmas.float(), timesteps=timesteps)


def from_config(config: Mapping[str, Any], num_steps: int) -> Schedule:
    """The table of a scheduler config for a number of steps.

    Raises `UsageError` for a class or an option that is not supported, naming what is.
    """
    if num_steps < 1:
        raise UsageError(f"num_inference_steps={num_steps} must be at least 1")
    format_, options = read_config(config)
    return format_.table(options, num_steps)


@dataclass(frozen=True)
class Format:
    """One scheduler class: its table, its options with their defaults, and the values that work.

    An option in `only` works with that value alone, and must be given if `required`, since the
    reference's default is another; one in `unused` has no effect with those values.
    """

    table: Callable[[dict[str, Any], int], Schedule]
    options: Mapping[str, Any]
    only: Mapping[str, Any]
    unused: frozenset[str]
    required: frozenset[str] = frozenset()


def read_config(config: Mapping[str, Any]) -> tuple[Format, dict[str, Any]]:
    """The format of a config's `_class_name` and its options, checked, defaults filled in."""
    name = config.get("_class_name")
    if name not in FORMATS:
        raise UsageError(f"scheduler {name!r} is not known; known: {', '.join(FORMATS)}")
    format_ = FORMATS[name]
    given = {key: value for key, value in config.items() if not key.startswith("_")}
    known = {*format_.options, *format_.only, *format_.unused}
    if unknown := sorted(set(given) - known):
        raise UsageError(
            f"{name} has no option {', '.join(unknown)}; known: {', '.join(sorted(known))}"
        )
    for option, value in format_.only.items():
        found = given.get(option, None if option in format_.required else value)
        if found != value:
            raise UsageError(f"{name} with {option}={found!r} is not supported; {value!r} works")
    return format_, {key: given.get(key, default) for key, default in format_.options.items()}


def _flow_match_euler(options: dict[str, Any], num_steps: int) -> Schedule:
    """As `FlowMatchEulerDiscreteScheduler`, which shifts the already shifted range."""
    shift, num_train = options["shift"], options["num_train_timesteps"]
    ends = _shift(torch.tensor([num_train, 1], dtype=torch.float32) / num_train, shift)
    first, last = (end * num_train for end in ends.tolist())
    sigmas = _shift(np.linspace(first, last, num_steps) / num_train, shift)
    sigmas = torch.from_numpy(sigmas).float()
    return Schedule(torch.cat([sigmas, torch.zeros(1)]), sigmas * num_train, num_train)


def _unipc(options: dict[str, Any], num_steps: int) -> Schedule:
    """As `UniPCMultistepScheduler.set_timesteps` with flow sigmas; timesteps are whole numbers."""
    num_train = options["num_train_timesteps"]
    sigmas = _shift(np.linspace(1, 1 / num_train, num_steps + 1)[:-1], options["flow_shift"])
    if abs(sigmas[0] - 1) < 1e-6:
        sigmas[0] -= 1e-6  # the solver takes the logarithm of 1 - sigma
    timesteps = torch.from_numpy(sigmas * num_train).to(torch.int64)
    table = torch.from_numpy(np.append(sigmas, 0).astype(np.float32))
    return Schedule(table, timesteps, num_train)


def _shift(sigmas: Any, shift: float) -> Any:
    return shift * sigmas / (1 + (shift - 1) * sigmas)


FORMATS = {
    "FlowMatchEulerDiscreteScheduler": Format(
        table=_flow_match_euler,
        options={"num_train_timesteps": 1000, "shift": 1.0},
        only={
            "use_dynamic_shifting": False,
            "invert_sigmas": False,
            "shift_terminal": None,
            "use_karras_sigmas": False,
            "use_exponential_sigmas": False,
            "use_beta_sigmas": False,
            "stochastic_sampling": False,
        },
        unused=frozenset(
            {
                "base_shift",
                "max_shift",
                "base_image_seq_len",
                "max_image_seq_len",
                "time_shift_type",
            }
        ),
    ),
    "UniPCMultistepScheduler": Format(
        table=_unipc,
        options={
            "num_train_timesteps": 1000,
            "flow_shift": 1.0,
            "solver_order": 2,
            "solver_type": "bh2",
            "disable_corrector": (),
        },
        only={
            "prediction_type": "flow_prediction",
            "use_flow_sigmas": True,
            "predict_x0": True,
            "lower_order_final": True,
            "final_sigmas_type": "zero",
            "thresholding": False,
            "solver_p": None,
            "use_dynamic_shifting": False,
            "shift_terminal": None,
            "use_karras_sigmas": False,
            "use_exponential_sigmas": False,
            "use_beta_sigmas": False,
        },
        unused=frozenset(
            {
                "beta_start",
                "beta_end",
                "beta_schedule",
                "trained_betas",
                "rescale_betas_zero_snr",
                "timestep_spacing",
                "steps_offset",
                "dynamic_thresholding_ratio",
                "sample_max_value",
                "time_shift_type",
                "sigma_min",
                "sigma_max",
            }
        ),
        required=frozenset({"prediction_type", "use_flow_sigmas"}),
    ),
}
