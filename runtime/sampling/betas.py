"""Noise as schedulers of betas have it: how much signal and noise each training timestep holds.

The operations, their order and their dtypes are the reference's, or the last bit would differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

Options = Mapping[str, Any]
LEAST_SIGNAL = 2**-24  # what the reference takes for an ending signal of 0: sigma stays finite


def betas(options: Options, dtype: torch.dtype = torch.float32) -> Tensor:
    """The variance of the noise that each training timestep adds (num_train_timesteps,)."""
    start, end = options["beta_start"], options["beta_end"]
    num_train = options["num_train_timesteps"]
    if options["trained_betas"] is not None:
        return torch.tensor(options["trained_betas"], dtype=torch.float32)
    if options["beta_schedule"] == "linear":
        return torch.linspace(start, end, num_train, dtype=torch.float32)
    return torch.linspace(start**0.5, end**0.5, num_train, dtype=dtype) ** 2


def alphas_cumprod(options: Options) -> Tensor:
    """The share of signal in the latents' variance at each training timestep."""
    added = betas(options)
    if options["rescale_betas_zero_snr"]:
        shares = rescaled_roots(torch.cumprod(1.0 - added, dim=0)) ** 2
        added = 1 - torch.cat([shares[:1], shares[1:] / shares[:-1]])
    return torch.cumprod(1.0 - added, dim=0)


def rescaled_roots(shares: Tensor) -> Tensor:
    """Square roots stretched to end at 0 (https://arxiv.org/abs/2305.08891, algorithm 1)."""
    roots = shares.sqrt()
    first, last = roots[0].clone(), roots[-1].clone()
    roots -= last
    roots *= first / (first - last)
    return roots


def sigma_of(shares: Tensor) -> Tensor:
    """Noise to signal, where signal has these shares of the variance: "ve" and "vp" sigmas."""
    return ((1 - shares) / shares) ** 0.5


def finite_sigmas(options: Options) -> np.ndarray:
    """The sigma of each training timestep, rising; the last is finite where no signal is left."""
    shares = alphas_cumprod(options)
    if options["rescale_betas_zero_snr"]:
        shares[-1] = LEAST_SIGNAL
    return sigma_of(shares).numpy()


def times_of(sigmas: np.ndarray, known_sigmas: np.ndarray) -> np.ndarray:
    """Where sigmas lie among those of the training timesteps, by their logarithms."""
    known, wanted = np.log(known_sigmas), np.log(np.maximum(sigmas, 1e-10))
    below = np.clip(np.searchsorted(known, wanted, side="right") - 1, 0, len(known) - 2)
    low, high = known[below], known[below + 1]
    weight = np.clip((low - wanted) / (low - high), 0, 1)
    return (1 - weight) * below + weight * (below + 1)
