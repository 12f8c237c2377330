"""Clips, masks and references as VACE models are shown them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..media.clips import mask_picture
from ..media.pictures import open_picture
from ..requests.conditions import Placed, place, references
from ..vaes.encode import encode_chunks, encode_pixels, groups, to_pixels
from .given import Given

if TYPE_CHECKING:
    from ..engine import Engine
    from ..planning.plan import Plan
    from ..requests.request import Request


def control(engine: Engine, request: Request, plan: Plan) -> Given:
    """Latents of what stays and of what guides, and the mask; references before them.

    As the reference pipeline with a clip as long as the video. Where none is given, frames are grey
    and made anew.
    """
    placed = place(request.shown, plan.num_frames, cut=request.adjust)
    stays = (pixels * (1 - (mask > 0.5).float()) for pixels, mask in _clip(placed, plan))
    guides = (pixels * (mask > 0.5).float() for pixels, mask in _clip(placed, plan))
    vae, tile = engine.use("vae"), plan.setting.tile
    parts = [
        encode_chunks(vae, (chunk.to(engine.device) for chunk in chunks), tile)
        for chunks in (stays, guides)
    ]
    masks = torch.cat([mask for _, mask in _clip(placed, plan)], dim=2)[0, 0]
    parts.append(fold_mask(masks, parts[0].shape[-3:]).to(parts[0])[None])
    control = torch.cat(parts, dim=1)
    for picture in references(request.shown):
        pixels = on_canvas(picture, plan)[:, :, None].to(engine.device)
        latents = encode_pixels(vae, pixels, tile)
        absent = (0, 0, 0, 0, 0, 0, 0, control.shape[1] - latents.shape[1])
        control = torch.cat([F.pad(latents, absent), control], dim=2)
    strength = request.shown[0].strength if request.shown else 1.0
    return Given(bound={"control": control, "control_scale": strength})


def _clip(placed: list[Placed], plan: Plan) -> Iterator[tuple[Tensor, Tensor]]:
    """Pixels (1, 3, n, H, W) and masks (1, 1, n, H, W) in 0..1, in chunks of 1, 4, 4, ...."""
    frames = _frames_of(placed, plan)
    for start, stop in groups(plan.num_frames):
        chunk = [next(frames) for _ in range(start, stop)]
        pixels, masks = zip(*chunk, strict=True)
        yield torch.stack(pixels, dim=2), torch.stack(masks, dim=2)


def _frames_of(placed: list[Placed], plan: Plan) -> Iterator[tuple[Tensor, Tensor]]:
    grey, new = torch.zeros(1, 3, plan.height, plan.width), _mask(1.0, plan)
    done = 0
    for condition, start, stop in placed:
        for _ in range(done, start):
            yield grey, new
        pairs = zip(condition.pictures(), condition.masks(), strict=True)
        for _, (picture, mask) in zip(range(start, stop), pairs, strict=False):
            yield pixels_of(picture, plan), _mask(mask, plan)
        done = stop
    for _ in range(done, plan.num_frames):
        yield grey, new


def _mask(mask: Any, plan: Plan) -> Tensor:
    """A mask (1, 1, H, W) in 0..1 of a number or a picture."""
    if isinstance(mask, (int, float)):
        return torch.full((1, 1, plan.height, plan.width), float(mask))
    return ((pixels_of(mask_picture(mask), plan)[:, :1] + 1) / 2).clamp(0, 1)


def fold_mask(masks: Tensor, latent_size: tuple[int, ...]) -> Tensor:
    """Masks (F, H, W) of frames to (pixels of a latent, f, h, w), a frame for each latent frame."""
    height, width = latent_size[1:]
    stride = masks.shape[1] // height
    folded = masks.view(-1, height, stride, width, stride).permute(2, 4, 0, 1, 3).flatten(0, 1)
    return F.interpolate(folded[None], size=latent_size, mode="nearest-exact")[0]


def on_canvas(picture: Any, plan: Plan) -> Tensor:
    """Pixels (1, 3, H, W) of a reference, whole, in the middle of a white frame."""
    opened = open_picture(picture)
    pixels = to_pixels(opened, *(side - side % 8 for side in (opened.height, opened.width)))
    scale = min(plan.height / pixels.shape[2], plan.width / pixels.shape[3])
    height, width = (int(side * scale) for side in pixels.shape[2:])
    small = F.interpolate(pixels, size=(height, width), mode="bilinear", align_corners=False)
    top, left = (plan.height - height) // 2, (plan.width - width) // 2
    canvas = torch.ones(1, 3, plan.height, plan.width)
    canvas[:, :, top : top + height, left : left + width] = small
    return canvas


def pixels_of(picture: Any, plan: Plan) -> Tensor:
    """Pixels (1, 3, H, W) in -1..1 of a picture in the plan's size."""
    return to_pixels(open_picture(picture), plan.height, plan.width)
