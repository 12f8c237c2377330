"""What a request shows its transformer, made by the way in which the model takes conditions.

The embedded model is shown a frame of bearings too: a Wan transformer knows distances between
tokens only, by its rotations, and nothing tells it where a token lies. After the clip comes a frame
whose tokens tell their row and column; a token finds its own by looking in the same place.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..requests.conditions import ends, place
from ..vaes.encode import GROUP, encode_chunks, encode_pixels, groups, on_grey
from .control import control, pixels_of
from .given import NOTHING, Given

if TYPE_CHECKING:
    from ..engine import Engine
    from ..planning.plan import Plan
    from ..requests.request import Request

MOST = 8  # rows, and columns, of tokens that are told apart


def given_of(engine: Engine, request: Request, plan: Plan) -> Given:
    """What the transformer is shown besides the noise; `NOTHING` for a request of text alone."""
    presets = engine.checkpoint.presets
    make = _bearings if presets.bearings else MAKERS[presets.conditions]
    return make(engine, request, plan)


def _nothing(engine: Engine, request: Request, plan: Plan) -> Given:
    return NOTHING


def _first(engine: Engine, request: Request, plan: Plan) -> Given:
    """The first latent frame, as Wan 2.2 TI2V has it."""
    if not request.shown:
        return NOTHING
    (pixels,) = _pictures(request, plan).values()
    pixels = pixels[:, :, None].to(engine.device)
    return Given(first=encode_pixels(engine.use("vae"), pixels, plan.setting.tile))


def _ends(engine: Engine, request: Request, plan: Plan) -> Given:
    """The frames that the clip begins with, and those that it ends with."""
    return Given(**_at_ends(engine, request, plan)) if request.shown else NOTHING


def _at_ends(engine: Engine, request: Request, plan: Plan) -> dict[str, Any]:
    """`first` and `last`, as given; their sound, if the model has sound, is made.

    Those at the end are whole groups after the first, so a still comes before them. One picture
    stands for its group.
    """
    placed = place(request.shown, plan.num_frames)
    begin, end = ends(placed, plan.num_frames)
    vae, tile = engine.use("vae"), plan.setting.tile
    parts: dict[str, Any] = {}
    pictures = (picture for item in placed for picture in item.condition.pictures())
    pixels = [pixels_of(picture, plan).to(engine.device) for picture in pictures]
    if begin:
        parts["first"] = encode_chunks(vae, _chunks(pixels[:begin]), tile)
    if end:
        last = pixels[-end:] * (GROUP if end == 1 else 1)
        led = [last[0], *last]
        parts["last"] = encode_chunks(vae, _chunks(led), tile)[:, :, 1:]
    return parts


def _chunks(pixels: list[Tensor]) -> Iterator[Tensor]:
    """Pixels (1, 3, 1 or 4, H, W) of frames (1, 3, H, W)."""
    return (torch.stack(pixels[start:stop], dim=2) for start, stop in groups(len(pixels)))


def _beside(engine: Engine, request: Request, plan: Plan) -> Given:
    """A clip with its first frame, and perhaps its last, the others grey; and which they are."""
    pictures = _pictures(request, plan)
    clip = (chunk.to(engine.device) for chunk in on_grey(pictures, plan.num_frames))
    latents = encode_chunks(engine.use("vae"), clip, plan.setting.tile)
    known = torch.zeros(GROUP - 1 + plan.num_frames)
    known[[GROUP - 1 + index for index in pictures]] = 1
    known[:GROUP] = known[GROUP - 1]
    mask = known.view(1, -1, GROUP, 1, 1).transpose(1, 2).to(latents)
    mask = mask.expand(-1, -1, -1, *latents.shape[-2:])
    bound = {}
    if engine.transformer.config.image_dim is not None:
        seen = [next(condition.pictures()) for condition in request.shown]
        bound["image_embeds"] = engine.image_encoder.encode(seen)
    return Given(beside=torch.cat([mask, latents], dim=1), bound=bound)


def _pictures(request: Request, plan: Plan) -> dict[int, Tensor]:
    """Pixels (1, 3, H, W) by frame, of conditions that are one picture each."""
    return {
        item.start: pixels_of(next(item.condition.pictures()), plan)
        for item in place(request.shown, plan.num_frames)
    }


def _bearings(engine: Engine, request: Request, plan: Plan) -> Given:
    """What the embedded model was trained with."""
    channels, frames, rows, columns = plan.latent_shape
    mask = torch.zeros(plan.latent_shape, dtype=torch.bool)
    values = torch.zeros(plan.latent_shape)
    if engine.sound is not None:
        strip = (..., plan.tracks[-1].rows, slice(None))
        mask[strip], values[strip] = engine.sound.given(frames)
    after = bearing_frame(channels, rows, columns)
    parts: dict[str, Any] = {"mask": mask, "values": values, "after": after}
    moved = {name: part.to(engine.device) for name, part in parts.items()}
    return Given(**moved, **(_at_ends(engine, request, plan) if request.shown else {}))


def bearing_frame(channels: int, rows: int, columns: int) -> Tensor:
    """One latent frame (channels, 1, rows, columns) whose 2x2 patches tell their row and column."""
    height, width = rows // 2, columns // 2
    tokens = torch.zeros(height, width, channels * 4)
    tokens[..., :MOST] = 2.0 * torch.eye(height, MOST)[:, None]
    tokens[..., MOST : 2 * MOST] = 2.0 * torch.eye(width, MOST)
    tokens[..., 2 * MOST : 4 * MOST] = 1.0
    patches = tokens.unflatten(-1, (channels, 2, 2)).permute(2, 0, 3, 1, 4)
    return patches.reshape(channels, 1, rows, columns)


MAKERS = {
    "none": _nothing,
    "first": _first,
    "ends": _ends,
    "beside": _beside,
    "control": control,
}
