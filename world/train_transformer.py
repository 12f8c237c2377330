"""Train the transformer and its text encoder on encoded clips, with timesteps per token.

Every batch mixes tasks by what each latent frame and the sound strip know already (timestep 0) and
how noisy the rest is; so first frames, continuations, in-betweens, sound for a given picture and
plain generation are all one model.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels import bind
from ..runtime.checkpoints.presets import TEXT_LENGTH
from ..runtime.conditioning.shown import bearing_frame
from ..runtime.models.wan.config import WanConfig
from ..runtime.models.wan.transformer import WanTransformer
from ..runtime.vaes.audio import STRIP_ROWS, KinemaSound, SoundConfig
from ..runtime.vaes.kinema import AutoencoderKinema
from .captions import held_out, sample_caption
from .optim import trapezoid
from .render import render
from .run import Process, Run, save_state
from .scene import NUM_FRAMES, SIZE, Scene, sample_scene
from .sound import render_sound
from .text import embed, new_text_encoder, token_table, tokenize

CONFIG = WanConfig(
    patch_size=(1, 2, 2),
    num_attention_heads=4,
    attention_head_dim=64,
    in_channels=16,
    out_channels=16,
    text_dim=256,
    freq_dim=256,
    ffn_dim=1024,
    num_layers=6,
)
SOUND_LAG = 4.0  # the sound's sigma is that of the picture shifted by this, so it is decided later
EXTRA_BOUNCES = 0.18  # share of scenes that must bounce, beside those that happen to
BATCH_SIZE = {"cpu": 32, "cuda": 512}  # for each process
# Direction is decided at the highest noise and outlines at the lowest: (until progress, shift).
SHIFTS = ((0.5, 8.0), (0.8, 3.5), (1.0, 2.0))
# A hundred tokens train faster on a CPU without the fused kernel, whose backward is slow.
WRITTEN_OUT = {"attention": "matmul", "biased_attention": "matmul"}
PICTURE_ROWS = 4  # of patches; the sound's is one more
# Channels, frames, rows and columns of a clip's latents, the sound's rows under the picture's.
LATENTS = (CONFIG.in_channels, 1 + NUM_FRAMES // 4, SIZE // 8 + STRIP_ROWS, SIZE // 8)


class Generator(nn.Module):
    """The two parts trained together."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer = WanTransformer(CONFIG, bind("cpu", backends=WRITTEN_OUT))
        self.text_encoder = new_text_encoder()
        initialise(self.transformer)


@torch.no_grad()
def initialise(model: WanTransformer) -> None:
    """Start as the identity: every branch's last product is zero, every gate is one.

    The pads of a text are 500 equal keys. Biases of opposite sign on queries and on keys that are
    nothing but bias cancel their count at the start, so that words are heard at once.
    """
    for part in model.text_embedder:
        if isinstance(part, nn.Linear):
            part.bias.zero_()
    for block in model.blocks:
        dim = block.attn2.q.bias.numel()
        sign = torch.randint(0, 2, (dim,)) * 2.0 - 1.0
        block.attn2.q.bias.copy_(0.58 * sign)
        block.attn2.kv.bias[:dim] = -0.02 * sign
        block.attn2.kv.bias[dim:] = 0.0
    for block in model.blocks:
        for last in (block.attn1.out, block.attn2.out, block.ffn_out):
            last.weight.zero_()
            last.bias.zero_()
        block.scale_shift_table.zero_()
        block.scale_shift_table[:, [2, 5]] = 1.0
    model.scale_shift_table.zero_()
    model.time_proj.weight.mul_(0.1)
    model.time_proj.bias.zero_()
    model.proj_out.weight.mul_(0.1)
    model.proj_out.bias.zero_()


def training_scene(rng: np.random.Generator) -> Scene:
    """A scene whose combination of colour, shape and motion is not held out."""
    motion = "bounce" if rng.random() < EXTRA_BOUNCES else None
    while True:
        scene = sample_scene(rng, motion=motion)
        if not held_out(scene.color, scene.shape, scene.motion):
            return scene


def fit_sound(clips: int = 400, seed: int = 3) -> KinemaSound:
    """Fit the linear codec to the sounds of this many scenes."""
    rng = np.random.default_rng(seed)
    codec = KinemaSound(SoundConfig(scale=20.0))
    waves = [
        render_sound(sample_scene(rng, motion="bounce" if i % 2 else None)) for i in range(clips)
    ]
    frames = torch.cat([codec.features(torch.from_numpy(w), NUM_FRAMES) for w in waves])
    codec.mean.copy_(frames.mean(0))
    codec.basis.copy_(
        torch.linalg.svd(frames - codec.mean, full_matrices=False)[2][: codec.config.components]
    )
    return codec


@torch.no_grad()
def encode_clips(
    vae: AutoencoderKinema,
    codec: KinemaSound,
    statistics: dict[str, list[float]],
    count: int,
    process: Process,
) -> tuple[list[Scene], Tensor]:
    """Draw scenes and encode them: latents (count, *LATENTS) in half precision."""
    rng = np.random.default_rng((process.rank, 5))
    scenes = [training_scene(rng) for _ in range(count)]
    latents = torch.empty(count, *LATENTS, dtype=torch.float16)
    mean, std = (
        torch.tensor(statistics[key], device=process.device).view(1, -1, 1, 1, 1)
        for key in ("latents_mean", "latents_std")
    )
    for first in range(0, count, 8):
        part = scenes[first : first + 8]
        pixels = torch.from_numpy(np.stack([render(s) for s in part])).permute(0, 4, 1, 2, 3)
        codes = [codec.encode(torch.from_numpy(render_sound(s)), NUM_FRAMES) for s in part]
        with process.autocast():
            picture = vae.encode(pixels.to(process.device).float() / 127.5 - 1)
        picture = ((picture.float() - mean) / std).cpu()
        rows = codec.to_rows(torch.stack(codes))
        latents[first : first + len(part)] = torch.cat([picture, rows], 3).half()
    return scenes, latents


def draw_sigmas(rng: np.random.Generator, size: int, frames: int, shift: float) -> np.ndarray:
    """Noise levels (size, frames, 2): picture and sound of each latent frame; 0 is given."""

    def draw(*shape: int, by: float = shift) -> np.ndarray:
        x = 1 / (1 + np.exp(-rng.standard_normal(shape)))
        return by * x / (1 + (by - 1) * x)

    sigmas = np.empty((size, frames, 2), np.float32)
    for row in sigmas:
        task = rng.random()
        picture = draw()
        row[:, 0], row[:, 1] = picture, SOUND_LAG * picture / (1 + (SOUND_LAG - 1) * picture)
        if task < 0.08:  # one timestep for all
            row[:, 1] = picture
        elif task < 0.26:  # sound for a given, or nearly finished, picture
            row[:, 0] = 0.0 if rng.random() < 0.6 else 0.3 * rng.random()
            row[:, 1] = draw(by=2.0)
        elif task < 0.34:  # a continuation, or the frames between
            row[: int(rng.integers(1, frames - 2))] = 0.0
            if rng.random() < 0.3:
                row[-1] = 0.0
        elif task < 0.36:  # picture for a given sound
            row[:, 1] = 0.0
        elif task < 0.40:  # every latent frame at a level of its own
            row[:, 0], row[:, 1] = draw(frames), draw(frames)
    return sigmas


def rows_of(sigmas: Tensor) -> Tensor:
    """(B, F, 2) to one value for each patch row: (B, F, PICTURE_ROWS + 1)."""
    picture = sigmas[..., :1].expand(-1, -1, PICTURE_ROWS)
    return torch.cat([picture, sigmas[..., 1:]], -1)


def train(
    folder: Path,
    minutes: float,
    process: Process,
    *,
    vae: AutoencoderKinema,
    statistics: dict[str, list[float]],
    clips: int,
    compile_blocks: bool = True,
) -> tuple[Generator, KinemaSound]:
    """Train for `minutes`, or go on from `folder/transformer.pt`; returns the averaged weights."""
    torch.manual_seed(process.rank)
    codec = fit_sound()
    scenes, latents = encoded_clips(folder, process, vae, codec, statistics, clips)
    model = Generator().to(process.device)
    run = Run("transformer", folder, minutes, model, _is_matrix, process, decay=0.996)
    rng = np.random.default_rng((process.rank, run.steps))
    if compile_blocks:
        for block in model.transformer.blocks:
            block.compile()
    batch_size, table = BATCH_SIZE[process.device.type], token_table()
    _, channels, frames, rows, columns = latents.shape
    bearings = bearing_frame(channels, rows, columns).to(process.device)
    rope = model.transformer.rope((frames + 1, PICTURE_ROWS + 1, columns // 2))
    given = F.pad(codec.given(frames)[0], (0, 0, 2 * PICTURE_ROWS, 0)).to(process.device)
    for progress in run:
        chosen = rng.integers(0, len(scenes), batch_size)
        target = latents[torch.from_numpy(chosen)].to(process.device).float()
        captions = [training_caption(rng, scenes[i]) for i in chosen]
        tokens, lengths = (x.to(process.device) for x in tokenize(captions, table))
        shift = next(shift for until, shift in SHIFTS if progress < until)
        drawn = torch.from_numpy(draw_sigmas(rng, batch_size, frames, shift))
        levels = rows_of(drawn.to(process.device))
        sigma = levels.repeat_interleave(2, -1)[:, None, :, :, None]
        noise = torch.randn_like(target)
        with process.autocast():
            embeds = embed(model.text_encoder, tokens, lengths)
            text = model.transformer.text_context(embeds, TEXT_LENGTH - lengths)
            timesteps = F.pad(1000.0 * levels, (0, 0, 0, 1))  # 0 for the frame of bearings
            modulation = model.transformer.modulation(timesteps[..., None])
            noisy = torch.where(given, target, (1 - sigma) * target + sigma * noise)
            seen = torch.cat([noisy, bearings.expand(batch_size, -1, -1, -1, -1)], 2)
            predicted = model.transformer(seen, modulation, text, rope)[:, :, :frames]
        error = (predicted.float() - (noise - target)).square() * (sigma > 0) * ~given
        strip = error[..., 2 * PICTURE_ROWS :, :].sum() / (~given[..., 2 * PICTURE_ROWS :, :]).sum()
        parts = {
            "picture": error[..., : 2 * PICTURE_ROWS, :].mean(),
            "sound": strip / len(error),
        }
        loss = parts["picture"] + 0.5 * parts["sound"]
        run.step(loss, trapezoid(progress, cooldown=0.35), parts)
    run.use_average()
    return model, codec


def encoded_clips(
    folder: Path,
    process: Process,
    vae: AutoencoderKinema,
    codec: KinemaSound,
    statistics: dict[str, list[float]],
    clips: int,
) -> tuple[list[Scene], Tensor]:
    """This process's share of the clips, from `folder` where an earlier run left them."""
    cache = folder / f"clips_{process.rank}_of_{process.count}.pt"
    if cache.exists():
        data = torch.load(cache, weights_only=True)
        return [Scene(**fields) for fields in data["scenes"]], data["latents"]
    scenes, latents = encode_clips(vae, codec, statistics, clips // process.count, process)
    save_state(cache, {"scenes": [dataclasses.asdict(s) for s in scenes], "latents": latents})
    return scenes, latents


def training_caption(rng: np.random.Generator, scene: Scene) -> str:
    """A caption; sometimes none, for guidance, and sometimes with a word nobody knows."""
    if rng.random() < 0.1:
        return ""
    caption = sample_caption(rng, scene)
    if rng.random() < 0.1:
        parts = caption.split()
        parts.insert(int(rng.integers(len(parts) + 1)), "zzz")
        caption = " ".join(parts)
    return caption


def _is_matrix(name: str, parameter: nn.Parameter) -> bool:
    return ".blocks." in name and parameter.ndim == 2
