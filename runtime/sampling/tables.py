"""How published schedulers lay out their sigmas, bit by bit.

A function for a class makes a `Schedule` from its options and what is wanted of it. The
operations, their order and their dtypes are the reference's, or the last bit would differ.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import UsageError
from .betas import (
    Options,
    alphas_cumprod,
    betas,
    finite_sigmas,
    rescaled_roots,
    sigma_of,
    times_of,
)
from .sigmas import Schedule, shift_sigmas

KARRAS_RHO = 7.0


@dataclass(frozen=True)
class Wanted:
    """Steps asked for: how many, and sigmas or timesteps to take in place of the scheduler's.

    `sequence_length` is the number of latent positions, where the resolution moves the sigmas.
    """

    count: int
    sigmas: tuple[float, ...] | None = None
    timesteps: tuple[float, ...] | None = None
    sequence_length: int | None = None


def flow_match(options: Options, wanted: Wanted) -> Schedule:
    """As `FlowMatchEulerDiscreteScheduler`, which shifts the already shifted range."""
    num_train = options["num_train_timesteps"]
    told = None if wanted.timesteps is None else np.array(wanted.timesteps, np.float32)
    if wanted.sigmas is not None:
        sigmas = np.array(wanted.sigmas, np.float32)
    elif told is not None:
        sigmas = told / num_train
    else:
        first, last = _flow_range(options)
        sigmas = np.linspace(first, last, wanted.count) / num_train
    sigmas = _shifted(sigmas, options, options["shift"], wanted)
    if options.get("use_karras_sigmas"):
        sigmas = _karras(sigmas[-1].item(), sigmas[0].item(), wanted.count)
    elif options.get("use_exponential_sigmas"):
        sigmas = _exponential(sigmas[-1].item(), sigmas[0].item(), wanted.count)
    sigmas = torch.from_numpy(sigmas).float()
    timesteps = sigmas * num_train if told is None else torch.from_numpy(told)
    inverted = bool(options.get("invert_sigmas"))
    if inverted:
        timesteps = (1 - sigmas) * num_train
    table = torch.cat([sigmas, torch.zeros(1)])
    return Schedule(table, timesteps, num_train, inverted=inverted)


def unipc(options: Options, wanted: Wanted) -> Schedule:
    """As `UniPCMultistepScheduler`; timesteps are whole numbers."""
    if not options["use_flow_sigmas"]:
        return _multistep(options, wanted, last_of_table=True)
    num_train = options["num_train_timesteps"]
    if options["use_karras_sigmas"]:
        ratios = _karras(*_ends(options, finite_sigmas(options)), wanted.count)
        return _whole(ratios / (ratios + 1), options)
    if wanted.sigmas is not None:
        sigmas = np.array(wanted.sigmas, np.float64)
    else:
        sigmas = np.linspace(1, 1 / num_train, wanted.count + 1)[:-1]
    sigmas = _shifted(sigmas, options, options["flow_shift"], wanted)
    if abs(sigmas[0] - 1) < 1e-6:
        sigmas[0] -= 1e-6  # the solver takes the logarithm of 1 - sigma
    return _whole(sigmas, options)


def dpm(options: Options, wanted: Wanted) -> Schedule:
    """As `DPMSolverMultistepScheduler`, whose flow sigmas start below 1."""
    if not options["use_flow_sigmas"]:
        return _multistep(options, wanted, last_of_table=False)
    shift = options["flow_shift"]
    if options["use_dynamic_shifting"]:
        shift = np.exp(_dynamic_shift(options, wanted))
    sigmas = 1.0 - np.linspace(1, 1 / options["num_train_timesteps"], wanted.count + 1)
    return _whole(np.flip(shift_sigmas(sigmas, shift))[:-1].copy(), options)


def euler(options: Options, wanted: Wanted) -> Schedule:
    """As `EulerDiscreteScheduler` and `EulerAncestralDiscreteScheduler`: noise adds to latents."""
    trained = finite_sigmas(options)
    last = trained[0] if options.get("final_sigmas_type") == "sigma_min" else 0.0
    if wanted.sigmas is not None:
        sigmas = np.array(wanted.sigmas, np.float32)
        timesteps, last = times_of(sigmas, trained), 0.0
    else:
        timesteps = _spaced(options, wanted, extra=0).astype(np.float32)
        sigmas = np.interp(timesteps, np.arange(len(trained)), trained)
        if options.get("use_karras_sigmas"):
            sigmas = _karras(*_ends(options, sigmas[::-1]), wanted.count)
            timesteps = times_of(sigmas, trained)
        elif options.get("use_exponential_sigmas"):
            sigmas = _exponential(*_ends(options, sigmas[::-1]), wanted.count)
            timesteps = times_of(sigmas, trained)
    table = torch.from_numpy(np.append(sigmas, last).astype(np.float32))
    told = torch.from_numpy(timesteps.astype(np.float32))
    if (
        options.get("timestep_type") == "continuous"
        and options["prediction_type"] == "v_prediction"
    ):
        told = torch.Tensor([0.25 * sigma.log() for sigma in table[:-1]])
    scale = table.max()
    if options["timestep_spacing"] == "leading":
        scale = (scale**2 + 1) ** 0.5
    num_train = options["num_train_timesteps"]
    return Schedule(table, told, num_train, noise="ve", initial_scale=scale.item())


def ddim(options: Options, wanted: Wanted) -> Schedule:
    """As `DDIMScheduler`. Its steps are all equally long, whatever the timesteps are."""
    return _equal_steps(options, wanted, alphas_cumprod(options))


def cogvideox(options: Options, wanted: Wanted) -> Schedule:
    """As `CogVideoXDDIMScheduler` and `CogVideoXDPMScheduler`, which shift and then rescale."""
    shares = torch.cumprod(1.0 - betas(options, torch.float64), dim=0)
    scale = options["snr_shift_scale"]
    shares = shares / (scale + (1 - scale) * shares)
    if options["rescale_betas_zero_snr"]:
        shares = rescaled_roots(shares) ** 2
    return _equal_steps(options, wanted, shares)


def lcm(options: Options, wanted: Wanted) -> Schedule:
    """As `LCMScheduler`: some of the steps of the schedule that was distilled."""
    num_train, original = options["num_train_timesteps"], options["original_inference_steps"]
    if wanted.timesteps is not None:
        timesteps = np.array(wanted.timesteps, np.int64)
    elif wanted.count > original:
        raise UsageError(
            f"num_inference_steps={wanted.count} is more than the {original} steps that this"
            f" scheduler's model was distilled from: nearest {original}"
        )
    else:
        distilled = np.arange(original, 0, -1) * (num_train // original) - 1
        picked = np.linspace(0, original, num=wanted.count, endpoint=False)
        timesteps = distilled[np.floor(picked).astype(np.int64)]
    timesteps = torch.from_numpy(timesteps)
    sigmas = sigma_of(alphas_cumprod(options)[timesteps]).float()
    table = torch.cat([sigmas, torch.zeros(1)])
    return Schedule(table, timesteps, num_train, noise="vp")


# ---- flow sigmas ---------------------------------------------------------------------------------


def _flow_range(options: Options) -> tuple[float, float]:
    num_train = options["num_train_timesteps"]
    ends = torch.tensor([num_train, 1], dtype=torch.float32) / num_train
    if not options.get("use_dynamic_shifting"):
        ends = shift_sigmas(ends, options["shift"])
    first, last = (end * num_train for end in ends.tolist())
    return first, last


def _shifted(sigmas: np.ndarray, options: Options, shift: float, wanted: Wanted) -> np.ndarray:
    """Sigmas moved by a constant or by the resolution, then stretched to end where asked."""
    if options.get("use_dynamic_shifting"):
        mu = _dynamic_shift(options, wanted)
        ratio = mu if options["time_shift_type"] == "linear" else math.exp(mu)
        sigmas = ratio / (ratio + (1 / sigmas - 1))
    else:
        sigmas = shift_sigmas(sigmas, shift)
    if terminal := options.get("shift_terminal"):
        clean = 1 - sigmas
        if clean[-1] == 0:
            raise UsageError(f"shift_terminal={terminal:g} needs 2 steps at least; 1 was asked for")
        sigmas = 1 - (clean / (clean[-1] / (1 - terminal)))
    return sigmas


def _dynamic_shift(options: Options, wanted: Wanted) -> float:
    """The reference pipelines' mu: linear in the number of latent positions."""
    if wanted.sequence_length is None:
        raise UsageError(
            "use_dynamic_shifting=True moves sigmas by the resolution: give sequence_length"
        )
    fewest, most = options["base_image_seq_len"], options["max_image_seq_len"]
    slope = (options["max_shift"] - options["base_shift"]) / (most - fewest)
    return wanted.sequence_length * slope + (options["base_shift"] - slope * fewest)


def _whole(sigmas: np.ndarray, options: Options) -> Schedule:
    """A table of flow sigmas whose timesteps are cut to whole numbers."""
    num_train = options["num_train_timesteps"]
    timesteps = torch.from_numpy(sigmas * num_train).to(torch.int64)
    last = sigmas[-1] if options["final_sigmas_type"] == "sigma_min" else 0
    return Schedule(
        torch.from_numpy(np.append(sigmas, last).astype(np.float32)), timesteps, num_train
    )


# ---- curves between two sigmas -------------------------------------------------------------------


def _ends(options: Options, rising: np.ndarray) -> tuple[float, float]:
    """The least and the largest sigma: as the options say, or else of the table."""
    least, largest = options.get("sigma_min"), options.get("sigma_max")
    return (
        rising[0].item() if least is None else least,
        rising[-1].item() if largest is None else largest,
    )


def _karras(least: float, largest: float, count: int) -> np.ndarray:
    """Even steps of the 7th root (https://arxiv.org/abs/2206.00364, equation 5)."""
    low, high = least ** (1 / KARRAS_RHO), largest ** (1 / KARRAS_RHO)
    return (high + np.linspace(0, 1, count) * (low - high)) ** KARRAS_RHO


def _exponential(least: float, largest: float, count: int) -> np.ndarray:
    """Even steps of the logarithm."""
    return np.exp(np.linspace(math.log(largest), math.log(least), count))


# ---- sigmas of betas -----------------------------------------------------------------------------


def _spaced(options: Options, wanted: Wanted, extra: int) -> np.ndarray:
    """Falling training timesteps; `extra` is 1 where the reference drops one more at the end."""
    num_train, count = options["num_train_timesteps"], wanted.count
    if wanted.timesteps is not None:
        return np.array(wanted.timesteps)
    if options["timestep_spacing"] == "linspace":
        return np.linspace(0, num_train - 1, count + extra)[::-1][:count]
    if options["timestep_spacing"] == "leading":
        ratio = num_train // (count + extra)
        return (np.arange(count + extra) * ratio)[::-1][:count] + options["steps_offset"]
    return np.arange(num_train, 0, -num_train / count).round() - 1


def _multistep(options: Options, wanted: Wanted, last_of_table: bool) -> Schedule:
    """`UniPCMultistepScheduler` and `DPMSolverMultistepScheduler` on betas."""
    trained = finite_sigmas(options)
    if options["use_karras_sigmas"]:
        sigmas = _karras(*_ends(options, trained), wanted.count)
        timesteps = times_of(sigmas, trained).round()
    elif options["use_exponential_sigmas"]:
        sigmas = _exponential(*_ends(options, trained), wanted.count)
        timesteps = times_of(sigmas, trained)
    else:
        timesteps = _spaced(options, wanted, extra=1).round().astype(np.int64)
        sigmas, last_of_table = np.interp(timesteps, np.arange(len(trained)), trained), False
    last = 0
    if options["final_sigmas_type"] == "sigma_min":
        last = sigmas[-1] if last_of_table else trained[0]
    table = torch.from_numpy(np.append(sigmas, last).astype(np.float32))
    told = torch.from_numpy(timesteps).to(torch.int64)
    return Schedule(table, told, options["num_train_timesteps"], noise="vp")


def _equal_steps(options: Options, wanted: Wanted, shares: Tensor) -> Schedule:
    """Steps of one length, from the share of signal at each training timestep."""
    num_train = options["num_train_timesteps"]
    if wanted.count > num_train:
        raise UsageError(
            f"num_inference_steps={wanted.count} is more than this scheduler's"
            f" {num_train} training timesteps: nearest {num_train}"
        )
    timesteps = torch.from_numpy(_spaced(options, wanted, extra=0).round().astype(np.int64))
    before = timesteps - num_train // wanted.count
    final = torch.ones(()) if options["set_alpha_to_one"] else shares[0]
    targets = sigma_of(torch.where(before >= 0, shares[before.clamp(min=0)], final)).float()
    sigmas = sigma_of(shares[timesteps]).float()
    table = torch.cat([sigmas, targets[-1:]])
    own = None if torch.equal(targets, table[1:]) else targets
    return Schedule(table, timesteps, num_train, noise="vp", targets=own)
