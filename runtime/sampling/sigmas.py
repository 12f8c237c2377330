"""What a table of sigmas means: latents at each step are some clean latents and some noise."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import UsageError

NOISES = ("flow", "vp", "ve")


class Level(NamedTuple):
    """Latents are `alpha` times clean ones plus `sigma` times noise of standard deviation 1."""

    alpha: float
    sigma: float

    @property
    def log_snr(self) -> float:
        """Half the logarithm of the signal-to-noise ratio: what solvers call lambda."""
        if self.sigma == 0:
            return math.inf
        return math.log(self.alpha / self.sigma) if self.alpha > 0 else -math.inf


def level(noise: str, sigma: float) -> Level:
    """The level of a table's sigma: see `Schedule`."""
    if noise == "flow":
        return Level(1 - sigma, sigma)
    if noise == "ve":
        return Level(1.0, sigma)
    alpha = 1 / math.hypot(1, sigma)
    return Level(alpha, alpha * sigma if math.isfinite(sigma) else 1.0)


@dataclass(frozen=True)
class Schedule:
    """A prediction at each of `timesteps` (num_predictions,): what the model is told of sigmas.

    `sigmas` fp32 (num_predictions + 1,) never rise, and end at 0 as a rule. What one means is
    `noise`: "flow", latents are (1 - sigma) clean + sigma noise; "ve", clean + sigma noise; "vp",
    that divided by sqrt(1 + sigma^2), so an infinite sigma is noise alone. `targets`
    (num_predictions,) are the sigmas that steps lead to where they are not the next ones.
    Noise of standard deviation 1 is multiplied by `initial_scale` to start from. Of an `inverted`
    flow the model is told how clean latents are, 1 - sigma, and predicts clean minus noise.
    """

    sigmas: Tensor
    timesteps: Tensor
    num_train_timesteps: int = 1000
    noise: str = "flow"
    targets: Tensor | None = None
    initial_scale: float = 1.0
    inverted: bool = False

    def __post_init__(self) -> None:
        if len(self.sigmas) != len(self.timesteps) + 1:
            counts = f"{len(self.sigmas)} sigmas, {len(self.timesteps)} timesteps"
            raise UsageError(f"a schedule needs one sigma more than timesteps; got {counts}")
        if len(self.timesteps) == 0:
            raise UsageError("a schedule without steps makes nothing; give one sigma at least")
        if self.noise not in NOISES:
            raise UsageError(f"noise {self.noise!r} is not known; known: {', '.join(NOISES)}")
        for step, (sigma, after) in enumerate(pairwise(self.sigmas.tolist()), start=1):
            if not sigma >= after:
                raise UsageError(
                    f"sigmas must fall; after {sigma:g} in step {step} comes {after:g}"
                )

    def __len__(self) -> int:
        """The number of predictions."""
        return len(self.timesteps)

    @property
    def steps(self) -> tuple[int, ...]:
        """The step to which each prediction belongs: its sigma's place among the distinct ones."""
        falls = (self.sigmas[:-1].diff() < 0).tolist()
        return tuple(accumulate(falls, initial=0))

    @property
    def starts(self) -> list[Level]:
        """The level at which each prediction is made."""
        return [level(self.noise, sigma) for sigma in self.sigmas[:-1].double().tolist()]

    @property
    def ends(self) -> list[Level]:
        """The level to which each step leads."""
        targets = self.sigmas[1:] if self.targets is None else self.targets
        return [level(self.noise, sigma) for sigma in targets.double().tolist()]

    @property
    def input_scales(self) -> tuple[float, ...] | None:
        """What latents are multiplied by before the model sees them, if by anything: where noise
        adds to them ("ve"), models are trained on 1 / sqrt(1 + sigma^2) of them."""
        if self.noise != "ve":
            return None
        return tuple(1 / math.hypot(1, sigma) for sigma in self.sigmas[:-1].tolist())

    def shifted(self, shift: float) -> Schedule:
        """The same steps at sigmas `shift * s / (1 + (shift - 1) * s)`: noisier for `shift` > 1."""
        if shift == 1:
            return self
        if self.noise != "flow":
            raise UsageError(f"a shift of {shift:g} needs flow sigmas; these are {self.noise!r}")
        sigmas = shift_sigmas(self.sigmas.double(), shift)
        told = 1 - sigmas[:-1] if self.inverted else sigmas[:-1]
        timesteps = (told * self.num_train_timesteps).to(self.timesteps.dtype)
        return replace(self, sigmas=sigmas.float(), timesteps=timesteps)

    def doubled(self) -> Schedule:
        """Two predictions at every sigma but the first and the last, for solvers that look ahead.

        Prediction 2i starts a step from the i-th sigma, 2i - 1 ends the step before it there: the
        last step, to 0, is not corrected. As `FlowMatchHeunDiscreteScheduler`.
        """
        if self.targets is not None:
            raise UsageError("a schedule whose steps do not lead to its own sigmas takes one look")
        first, middle, last = self.sigmas[:1], self.sigmas[1:-1], self.sigmas[-1:]
        sigmas = torch.cat([first, middle.repeat_interleave(2), last])
        told = self.timesteps
        timesteps = torch.cat([told[:1], told[1:].repeat_interleave(2)])
        return replace(self, sigmas=sigmas, timesteps=timesteps)


def shift_sigmas(sigmas, shift: float):
    """Sigmas (a number, an array or a tensor) with the noise-to-signal ratio times `shift`."""
    return shift * sigmas / (1 + (shift - 1) * sigmas)
