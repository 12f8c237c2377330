"""What a transformer is shown besides the noise: frames that hold, channels beside."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..sampling.guidance import Denoiser

Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Given:
    """Parts that are there are shown.

    `values` (C, F, H, W) hold wherever `mask` is true; `first` and `last` (1, C, n, h, W) are the
    frames that the clip begins and ends with, or their first h rows, clean and so at timestep 0;
    `after` (C, n, H, W) follows the clip, clean too; `beside` (1, C', F, H, W) are channels after
    the latents' own. `bound` is what the transformer is bound to besides the text.
    """

    mask: Tensor | None = None
    values: Tensor | None = None
    first: Tensor | None = None
    last: Tensor | None = None
    after: Tensor | None = None
    beside: Tensor | None = None
    bound: Mapping[str, Any] = field(default_factory=dict)

    def shape(self, latent_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of what the transformer sees, from that of the request's latents."""
        batch, channels, frames, *sides = latent_shape
        channels += 0 if self.beside is None else self.beside.shape[1]
        return (batch, channels, frames + _frames(self.after), *sides)

    def timesteps(self, timesteps: Tensor, frames: int) -> Tensor:
        """(S,) or (S, 1, H, 1), to (S, F + n, H or 1, 1) where frames have timestep 0."""
        held, end = list(self._held(frames)), _frames(self.after)
        if not held and end == 0:
            return timesteps
        if timesteps.dim() == 1:
            timesteps = timesteps[:, None, None, None]
        if held and self.mask is not None:  # rows of which only some may be given
            timesteps = timesteps.expand(-1, -1, self.mask.shape[-2], -1)
        timesteps = F.pad(timesteps.expand(-1, frames, -1, -1).clone(), (0, 0, 0, 0, 0, end))
        for part, at in held:
            timesteps[:, at : at + _frames(part), : part.shape[-2]] = 0
        return timesteps

    def show(self, predict: Denoiser) -> Denoiser:
        """A denoiser of the request's latents, from one of what the transformer sees."""
        changes = list(self._changes())

        def shown(latents: Tensor, step: int) -> Tensor:
            seen = latents
            for change in changes:
                seen = change(seen)
            return predict(seen, step)[:, :, : latents.shape[2]]

        return shown

    def finish(self, latents: Tensor) -> Tensor:
        """Latents with the frames that the clip begins and ends with, for decoding."""
        for part, at in self._held(latents.shape[2]):
            rows, until = part.shape[3], at + _frames(part)
            clean = part.to(latents).expand(len(latents), -1, -1, -1, -1)
            among = torch.cat([clean, latents[:, :, at:until, rows:]], dim=3)
            latents = torch.cat([latents[:, :, :at], among, latents[:, :, until:]], dim=2)
        return latents

    def _held(self, frames: int) -> Iterator[tuple[Tensor, int]]:
        """Frames that hold to the end, and where they begin, of so many."""
        if self.first is not None:
            yield self.first, 0
        if self.last is not None:
            yield self.last, frames - _frames(self.last)

    def _changes(self) -> Iterator[Change]:
        mask, values, after, beside = self.mask, self.values, self.after, self.beside
        if mask is not None:
            assert values is not None
            yield lambda seen: torch.where(mask, values, seen)
        if self.first is not None or self.last is not None:
            yield self.finish
        if after is not None:
            yield lambda seen: torch.cat([seen, after.expand(len(seen), *after.shape)], 2)
        if beside is not None:
            yield lambda seen: torch.cat([seen, beside.expand(len(seen), -1, -1, -1, -1)], 1)


NOTHING = Given()


def _frames(part: Tensor | None) -> int:
    return 0 if part is None else part.shape[-3]
