"""A glimpse of latents at any step: a linear projection to RGB, fitted for each autoencoder.

A picture an eighth as large, in a fraction of a millisecond: enough to see what is being made. The
fit is least squares between colour patches that the autoencoder encodes and the patches' own
colours; a checkpoint may bring one that was fitted on pictures like its own (`preview.json` beside
the autoencoder's config).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..checkpoints.checkpoint import Component
from ..checkpoints.foreign import fingerprint
from ..errors import KinemaError, UsageError
from ..files import cache_folder, whole_or_nothing, write_cache
from .encode import encode_pixels
from .geometry import GROUP, stride_of
from .picture_vae import PictureVAE

FILE = "preview.json"
CLIPS, CELLS = 10, 8  # colour patches to fit with: clips of latents so many cells a side
RIDGE = 1e-4  # of the variance: keeps a channel that the patches leave still from blowing up


@dataclass(frozen=True)
class Projection:
    """RGB from 0 to 1 is `latents @ weight + bias`, of normalised latents.

    r2: the part of the colours' variance that it explains, on patches that it was not fitted on.
    """

    weight: Tensor  # (C, 3)
    bias: Tensor  # (3,)
    r2: float

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {"weight": self.weight.tolist(), "bias": self.bias.tolist(), "r2": self.r2}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Projection:
        """From JSON; raises `ValueError` for another form."""
        weight, bias = torch.tensor(values["weight"]), torch.tensor(values["bias"])
        if weight.dim() != 2 or weight.shape[1] != 3 or bias.shape != (3,):
            raise ValueError(f"weight {tuple(weight.shape)}, bias {tuple(bias.shape)}")
        return cls(weight, bias, float(values["r2"]))


@torch.inference_mode()
def preview(
    latents: Tensor, projection: Projection, size: tuple[int, int] | None = None
) -> np.ndarray:
    """Frames uint8 (F, h, w, 3), one for each latent frame, of normalised latents (1, C, F, H, W).

    size: (height, width) to show them at; by default one pixel for each of the latents'. The rows
    are the picture's: a track of sound is cut off before. Noise shows as noise: give `denoised`
    latents where there are any.
    """
    if latents.dim() != 5 or latents.shape[:2] != (1, len(projection.weight)):
        wanted = f"(1, {len(projection.weight)}, frames, height, width)"
        raise UsageError(f"latents to preview have shape {tuple(latents.shape)}; {wanted} works")
    weight, bias = (part.to(latents.device) for part in (projection.weight, projection.bias))
    cells = latents[0].float().flatten(1).T  # (F*H*W, C)
    colours = torch.addmm(bias, cells, weight).mul_(255).clamp_(0, 255).round_().to(torch.uint8)
    frames = colours.view(*latents.shape[2:], 3)
    if size is not None:
        scaled = F.interpolate(frames.permute(0, 3, 1, 2), size, mode="bilinear")
        frames = scaled.permute(0, 2, 3, 1)
    return frames.contiguous().cpu().numpy()


def denoised(before: Tensor, after: Tensor, sigma_before: float, sigma_after: float) -> Tensor:
    """What a step of a flow model was heading for, from the latents at its two ends.

    Along a straight line x = (1 - sigma) clean + sigma noise, so the ends tell where sigma is 0.
    """
    if not sigma_before > sigma_after:
        raise UsageError(f"sigma goes from {sigma_before:g} to {sigma_after:g}; a step lowers it")
    return torch.lerp(after, before, -sigma_after / (sigma_before - sigma_after))


# ---- fitting -------------------------------------------------------------------------------------


def projection_of(component: Component, vae: PictureVAE) -> Projection:
    """A checkpoint's projection, by its autoencoder: what lies beside its config, else what was
    fitted before, else fitted now and kept in the user's cache folder.

    Raises `KinemaError` for a `preview.json` that is damaged.
    """
    brought = component.folder / FILE
    if brought.is_file():
        try:
            return _read(brought)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise KinemaError(f"cannot read {FILE} of the autoencoder: {error}") from None
    kept = cache_folder() / f"preview-{fingerprint(component)[:24]}.json"
    try:
        return _read(kept)
    except (OSError, ValueError, KeyError, TypeError):  # not there, or damaged: made anew
        found = fit(vae)
    write_cache(kept.name, json.dumps(found.as_dict()) + "\n")
    return found


def write(file: Path, projection: Projection, **origin: Any) -> None:
    """Write a projection, and what it was fitted on."""
    with whole_or_nothing(file) as unfinished:
        unfinished.write_text(json.dumps({**projection.as_dict(), **origin}) + "\n")


def _read(file: Path) -> Projection:
    return Projection.from_dict(json.loads(file.read_text()))


@torch.inference_mode()
def fit(vae: PictureVAE, clips: Iterable[Tensor] | None = None) -> Projection:
    """The projection of an autoencoder, from clips of pixels (1, 3, 1+4k, H, W) in -1..1.

    By default from patches of colour. One clip in five is held out, for `r2`.
    """
    like = next(vae.parameters())
    fitted: list[tuple[Tensor, Tensor]] = []
    held: list[tuple[Tensor, Tensor]] = []
    for number, clip in enumerate(patches(vae) if clips is None else clips):
        latents = encode_pixels(vae, clip.to(like.device))
        pair = _cells(latents), _cells(colours_of(clip.to(like.device), latents.shape[2:]))
        (held if number % 5 == 4 else fitted).append(pair)
    weight, bias = solve(*(torch.cat(side) for side in zip(*fitted, strict=True)))
    cells, colours = (torch.cat(side) for side in zip(*(held or fitted), strict=True))
    left = (colours - cells @ weight - bias).square().sum()
    r2 = 1 - left / (colours - colours.mean(0)).square().sum()
    return Projection(weight.float().cpu(), bias.float().cpu(), round(float(r2), 4))


def solve(cells: Tensor, colours: Tensor) -> tuple[Tensor, Tensor]:
    """Weight (C, 3) and bias (3,) by least squares, of cells (n, C) and colours (n, 3)."""
    mean, goal = cells.mean(0), colours.mean(0)
    centred = cells - mean
    square = centred.T @ centred
    square += RIDGE * square.diagonal().mean() * torch.eye(len(square)).to(square)
    weight = torch.linalg.solve(square, centred.T @ (colours - goal))
    return weight, goal - mean @ weight


def colours_of(clip: Tensor, grid: Sequence[int]) -> Tensor:
    """Mean colours (1, 3, F, H, W) from 0 to 1 of what each cell of latents stands for."""
    frames, height, width = grid
    small = F.adaptive_avg_pool3d(clip.float(), (clip.shape[2], height, width))
    rest = small[:, :, 1:].unflatten(2, (frames - 1, -1)).mean(3) if frames > 1 else small[:, :, :0]
    return (torch.cat([small[:, :, :1], rest], dim=2) + 1) / 2


def patches(vae: PictureVAE, count: int = CLIPS) -> Iterator[Tensor]:
    """Clips of five frames: soft blots of random colour that drift, always the same ones."""
    generator = torch.Generator().manual_seed(0)
    side = CELLS * stride_of(vae.config)
    for number in range(count):
        blots = 2 + number % CELLS  # of a few large to many small
        field = torch.rand(1, 3, blots, blots + 2, generator=generator) * 2 - 1
        wide = F.interpolate(field, (side, side * 5 // 4), mode="bicubic").clamp(-1, 1)
        starts = (frame * side // 16 for frame in range(1 + GROUP))
        yield torch.stack([wide[..., start : start + side] for start in starts], dim=2)


def _cells(x: Tensor) -> Tensor:
    """(1, C, F, H, W) to (F*H*W, C), in float64."""
    return x[0].flatten(1).T.double()
