"""Train the picture autoencoder: the small `AutoencoderKinema`, on clips rendered on the fly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..runtime.vaes.kinema import AutoencoderKinema, KinemaVAEConfig
from .optim import trapezoid
from .render import masks, render
from .run import Process, Run
from .scene import NUM_FRAMES, sample_scene

CLIP_FRAMES = 17  # frames of a training clip: one latent frame alone, then four of four
BATCH_SIZE = 6  # for each process
LATENT_NOISE = 0.12  # in standard deviations, so that the decoder bears an imperfect denoiser


def train(folder: Path, minutes: float, process: Process) -> AutoencoderKinema:
    """Train for `minutes`, or go on from `folder/vae.pt`; returns the averaged weights."""
    torch.manual_seed(process.rank)
    vae = new_vae().to(process.device)
    run = Run("vae", folder, minutes, vae, _is_matrix, process)
    rng = np.random.default_rng((process.rank, run.steps))
    for progress in run:
        pixels, weight = (x.to(process.device) for x in batch(rng, BATCH_SIZE))
        with process.autocast():
            latents = vae.encode(pixels)
            deviation = latents.detach().float().std(dim=(0, 2, 3, 4), keepdim=True)
            noisy = latents + LATENT_NOISE * deviation * torch.randn_like(latents)
            decoded = vae.decode(noisy).float()
        error = decoded - pixels
        picture = (weight * (error.abs() + 2 * error.square())).mean() / weight.mean()
        # A loose hold on the scale of the latents; the noise above is relative to it.
        scale = (latents.float().square().mean() - 1).square()
        run.step(picture + 1e-3 * scale, trapezoid(progress), {"picture": picture})
    run.use_average()
    return vae


def new_vae() -> AutoencoderKinema:
    """A fresh autoencoder in the layout convolutions are fastest in on a CPU."""
    return AutoencoderKinema(KinemaVAEConfig()).to(
        memory_format=torch.channels_last  # pyright: ignore[reportCallIssue]  # of no overload in torch
    )


def batch(rng: np.random.Generator, size: int) -> tuple[Tensor, Tensor]:
    """Pixels (size, 3, CLIP_FRAMES, H, W) in -1..1 and loss weights of the same grid."""
    pictures, weights = [], []
    for _ in range(size):
        motion = "bounce" if rng.random() < 0.3 else None
        scene = sample_scene(rng, motion=motion)
        first = int(rng.integers(0, NUM_FRAMES - CLIP_FRAMES + 1))
        pictures.append(render(scene, first + CLIP_FRAMES)[first:])
        weights.append(masks(scene, first + CLIP_FRAMES)[first:])
    pixels = torch.from_numpy(np.stack(pictures)).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
    alpha = torch.from_numpy(np.stack(weights))
    near = F.max_pool2d(alpha, 5, stride=1, padding=2)
    outline = near + F.max_pool2d(-alpha, 5, stride=1, padding=2)  # dilation less erosion
    blurred = F.avg_pool3d(pixels, (1, 5, 5), stride=1, padding=(0, 2, 2), count_include_pad=False)
    detail = (pixels - blurred).abs().mean(1)
    return pixels, (1 + 3 * near + 6 * outline + 10 * detail)[:, None]


@torch.no_grad()
def statistics(
    vae: AutoencoderKinema, device: torch.device, clips: int = 64, seed: int = 1
) -> dict[str, list[float]]:
    """Mean and standard deviation of each latent channel over rendered clips."""
    rng = np.random.default_rng(seed)
    latents = []
    for _ in range(clips):
        frames = torch.from_numpy(render(sample_scene(rng))).permute(3, 0, 1, 2)[None].to(device)
        latents.append(vae.encode(frames.float() / 127.5 - 1))
    stacked = torch.cat(latents).transpose(0, 1).flatten(1)
    return {"latents_mean": stacked.mean(1).tolist(), "latents_std": stacked.std(1).tolist()}


def _is_matrix(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim == 4 and "conv_in" not in name and "conv_out" not in name
