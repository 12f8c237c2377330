"""Published schedulers, a row for a class of the reference.

The table it makes, the solver it runs, its options with their defaults, and the values that are
supported where not all are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import UsageError
from . import tables
from .sigmas import Schedule

Settings = tuple[str, dict[str, Any]]  # a solver's name and what its function is given


@dataclass(frozen=True)
class Format:
    """One scheduler class: `table` makes its schedule, `solver` names what steps it.

    `choices` are the values that work of options that do not take any; `unused` options have no
    effect on what works. `lists` says of what a caller may give a list: sigmas, timesteps.
    `check` raises `UsageError` for options that do not go together.
    """

    table: Callable[[Mapping[str, Any], tables.Wanted], Schedule]
    solver: Callable[[Mapping[str, Any]], Settings]
    options: Mapping[str, Any]
    choices: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    unused: frozenset[str] = frozenset()
    lists: frozenset[str] = frozenset()
    check: Callable[[Mapping[str, Any]], None] = lambda options: None


def _one_curve(options: Mapping[str, Any]) -> None:
    if options["use_karras_sigmas"] and options["use_exponential_sigmas"]:
        raise UsageError("use_karras_sigmas and use_exponential_sigmas are both set; one works")


def _multistep(options: Mapping[str, Any]) -> None:
    _one_curve(options)
    flow = bool(options["use_flow_sigmas"])
    if flow != (options["prediction_type"] == "flow_prediction"):
        wanted = "flow_prediction" if flow else "epsilon, sample or v_prediction"
        raise UsageError(
            f"use_flow_sigmas={flow} with prediction_type={options['prediction_type']!r} is not"
            f" supported; {wanted} works"
        )
    for option in ("use_dynamic_shifting", "shift_terminal"):
        if options.get(option) and (not flow or options["use_karras_sigmas"]):
            raise UsageError(f"{option}={options[option]!r} works with plain flow sigmas alone")
    if flow and options["use_exponential_sigmas"]:
        raise UsageError("use_exponential_sigmas=True with use_flow_sigmas=True is not supported")


def _dpm_check(options: Mapping[str, Any]) -> None:
    _multistep(options)
    if options["use_flow_sigmas"] and options["use_karras_sigmas"]:
        raise UsageError("use_karras_sigmas=True with use_flow_sigmas=True is not supported")
    if options["use_flow_sigmas"] and options["final_sigmas_type"] != "zero":
        raise UsageError("flow sigmas end at zero; final_sigmas_type='zero' works")


def _unipc_solver(options: Mapping[str, Any]) -> Settings:
    return "unipc", {
        "order": options["solver_order"],
        "solver_type": options["solver_type"],
        "disable_corrector": tuple(options["disable_corrector"] or ()),
    }


def _dpm_solver(options: Mapping[str, Any]) -> Settings:
    names = {"dpmsolver++": "dpm++2m", "sde-dpmsolver++": "dpm++2m-sde"}
    taken = ("solver_type", "lower_order_final", "euler_at_final")
    settings = {key: options[key] for key in taken}
    return names[options["algorithm_type"]], {"order": options["solver_order"], **settings}


def _flow_solver(options: Mapping[str, Any]) -> Settings:
    return ("lcm" if options["stochastic_sampling"] else "euler"), {}


def _named(name: str, **settings: Any) -> Callable[[Mapping[str, Any]], Settings]:
    return lambda options: (name, settings)


NO_CLIPPING = {"clip_sample": (False,)}
BY_RESOLUTION = {  # of sigmas that move with the number of latent positions
    "use_dynamic_shifting": False,
    "time_shift_type": "exponential",
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
}
SHIFTED = {
    "num_train_timesteps": 1000,
    "shift": 1.0,
    **BY_RESOLUTION,
    "invert_sigmas": False,
    "shift_terminal": None,
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
}
SHIFTED_CHOICES = {
    "use_beta_sigmas": (False,),
    "time_shift_type": ("exponential", "linear"),
}
BETAS = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
    "timestep_spacing": "linspace",
    "steps_offset": 0,
    "rescale_betas_zero_snr": False,
}
LATENT_BETAS = {  # of models of latents
    **BETAS,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "timestep_spacing": "leading",
}
BETAS_CHOICES = {
    "beta_schedule": ("linear", "scaled_linear"),
    "prediction_type": ("epsilon", "sample", "v_prediction"),
    "timestep_spacing": ("linspace", "leading", "trailing"),
}
MULTISTEP = {
    **BETAS,
    "solver_order": 2,
    "thresholding": False,
    "lower_order_final": True,
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "use_flow_sigmas": False,
    "flow_shift": 1.0,
    "final_sigmas_type": "zero",
    **BY_RESOLUTION,  # its numbers are of pipelines, no options of the reference's classes
}
MULTISTEP_CHOICES = {
    **BETAS_CHOICES,
    "prediction_type": ("epsilon", "sample", "v_prediction", "flow_prediction"),
    "thresholding": (False,),
    "use_beta_sigmas": (False,),
    "final_sigmas_type": ("zero", "sigma_min"),
    "time_shift_type": ("exponential",),
}
CLIPPING = frozenset({"clip_sample_range", "sample_max_value", "dynamic_thresholding_ratio"})
COGVIDEOX = {
    **LATENT_BETAS,
    "set_alpha_to_one": True,
    "snr_shift_scale": 3.0,
}
# The reference's CogVideoX schedulers read clip_sample and do not clip.
COGVIDEOX_UNUSED = CLIPPING | {"clip_sample", "thresholding"}
# Options of older classes that configs of these still carry.
LEFT_OVER = frozenset({"clip_sample", "set_alpha_to_one", "skip_prk_steps"})

FORMATS = {
    "FlowMatchEulerDiscreteScheduler": Format(
        table=tables.flow_match,
        solver=_flow_solver,
        options={**SHIFTED, "stochastic_sampling": False},
        choices=SHIFTED_CHOICES,
        lists=frozenset({"sigmas", "timesteps"}),
        check=_one_curve,
    ),
    "FlowMatchHeunDiscreteScheduler": Format(
        table=tables.flow_match,
        solver=_named("heun"),
        options={"num_train_timesteps": 1000, "shift": 1.0},
        lists=frozenset({"sigmas", "timesteps"}),
    ),
    "FlowMatchLCMScheduler": Format(
        table=tables.flow_match,
        solver=_named("lcm"),
        options={**SHIFTED, "scale_factors": None},
        choices={**SHIFTED_CHOICES, "invert_sigmas": (False,), "scale_factors": (None,)},
        unused=frozenset({"upscale_mode"}),
        lists=frozenset({"sigmas", "timesteps"}),
        check=_one_curve,
    ),
    "UniPCMultistepScheduler": Format(
        table=tables.unipc,
        solver=_unipc_solver,
        options={
            **MULTISTEP,
            "solver_type": "bh2",
            "disable_corrector": (),
            "predict_x0": True,
            "solver_p": None,
            "sigma_min": None,
            "sigma_max": None,
            "shift_terminal": None,
        },
        choices={
            **MULTISTEP_CHOICES,
            "solver_order": (1, 2, 3),
            "solver_type": ("bh1", "bh2"),
            "predict_x0": (True,),
            "solver_p": (None,),
            "lower_order_final": (True,),
        },
        unused=frozenset({"dynamic_thresholding_ratio", "sample_max_value"}),
        lists=frozenset({"sigmas"}),
        check=_multistep,
    ),
    "DPMSolverMultistepScheduler": Format(
        table=tables.dpm,
        solver=_dpm_solver,
        options={
            **MULTISTEP,
            "algorithm_type": "dpmsolver++",
            "solver_type": "midpoint",
            "euler_at_final": False,
            "use_lu_lambdas": False,
            "lambda_min_clipped": -float("inf"),
            "variance_type": None,
        },
        choices={
            **MULTISTEP_CHOICES,
            "solver_order": (1, 2),
            "algorithm_type": ("dpmsolver++", "sde-dpmsolver++"),
            "solver_type": ("midpoint", "heun"),
            "use_lu_lambdas": (False,),
            "lambda_min_clipped": (-float("inf"),),
            "variance_type": (None,),
        },
        unused=frozenset({"dynamic_thresholding_ratio", "sample_max_value"}),
        lists=frozenset({"timesteps"}),
        check=_dpm_check,
    ),
    "EulerDiscreteScheduler": Format(
        table=tables.euler,
        solver=_named("euler"),
        options={
            **BETAS,
            "interpolation_type": "linear",
            "use_karras_sigmas": False,
            "use_exponential_sigmas": False,
            "use_beta_sigmas": False,
            "sigma_min": None,
            "sigma_max": None,
            "timestep_type": "discrete",
            "final_sigmas_type": "zero",
        },
        choices={
            **BETAS_CHOICES,
            "interpolation_type": ("linear",),
            "use_beta_sigmas": (False,),
            "timestep_type": ("discrete", "continuous"),
            "final_sigmas_type": ("zero", "sigma_min"),
        },
        unused=LEFT_OVER,
        lists=frozenset({"sigmas", "timesteps"}),
        check=_one_curve,
    ),
    "EulerAncestralDiscreteScheduler": Format(
        table=tables.euler,
        solver=_named("euler-ancestral"),
        options=BETAS,
        choices={**BETAS_CHOICES, "prediction_type": ("epsilon", "v_prediction")},
        unused=LEFT_OVER,
    ),
    "LCMScheduler": Format(
        table=tables.lcm,
        solver=lambda options: ("lcm", {"timestep_scaling": options["timestep_scaling"]}),
        options={
            **LATENT_BETAS,
            "original_inference_steps": 50,
            "clip_sample": False,
            "thresholding": False,
            "timestep_scaling": 10.0,
        },
        choices={**BETAS_CHOICES, **NO_CLIPPING, "thresholding": (False,)},
        unused=CLIPPING | {"set_alpha_to_one"},
        lists=frozenset({"timesteps"}),
    ),
    "DDIMScheduler": Format(
        table=tables.ddim,
        solver=_named("euler"),
        options={
            **BETAS,
            "timestep_spacing": "leading",
            "clip_sample": True,
            "thresholding": False,
            "set_alpha_to_one": True,
        },
        choices={**BETAS_CHOICES, **NO_CLIPPING, "thresholding": (False,)},
        unused=CLIPPING | {"skip_prk_steps"},
    ),
    "CogVideoXDDIMScheduler": Format(
        table=tables.cogvideox,
        solver=_named("euler"),
        options=COGVIDEOX,
        choices=BETAS_CHOICES,
        unused=COGVIDEOX_UNUSED,
    ),
    "CogVideoXDPMScheduler": Format(
        table=tables.cogvideox,
        solver=_named("dpm++2m-sde", lower_order_final=False, draws=2),
        options=COGVIDEOX,
        choices={**BETAS_CHOICES, "set_alpha_to_one": (True,)},
        unused=COGVIDEOX_UNUSED,
    ),
}
