"""What a transformer is shown besides the noise: frames that hold, channels beside, clips encoded.

The embedded model is shown a frame of bearings too: a Wan transformer knows distances between
tokens only, by its rotations, and nothing tells it where a token lies. After the clip comes a frame
whose tokens tell their row and column; a token finds its own by looking in the same place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checkpoints.presets import presets_of
from ..media.clips import mask_picture
from ..media.pictures import open_picture
from ..requests.conditions import Placed, ends, place, references
from ..sampling.guidance import Denoiser
from ..vaes.encode import (
    GROUP,
    encode_chunks,
    encode_pixels,
    groups,
    on_grey,
    to_pixels,
)

if TYPE_CHECKING:
    from ..engine import Engine
    from ..planning.plan import Plan
    from ..requests.request import Request

MOST = 8  # rows, and columns, of tokens that are told apart
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


# ---- of a request --------------------------------------------------------------------------------


def given_of(engine: Engine, request: Request, plan: Plan) -> Given | None:
    """What the transformer is shown besides the noise; None for a request of text alone."""
    presets = presets_of(engine.checkpoint)
    make = _bearings if presets.bearings else MAKERS[presets.conditions]
    return make(engine, request, plan)


def _nothing(engine: Engine, request: Request, plan: Plan) -> None:
    return None


def _first(engine: Engine, request: Request, plan: Plan) -> Given | None:
    """The first latent frame, as Wan 2.2 TI2V has it."""
    if not request.shown:
        return None
    (pixels,) = _pictures(request, plan).values()
    pixels = pixels[:, :, None].to(engine.device)
    return Given(first=encode_pixels(engine.use("vae"), pixels, plan.setting.tile))


def _ends(engine: Engine, request: Request, plan: Plan) -> Given | None:
    """The frames that the clip begins with, and those that it ends with."""
    return Given(**_at_ends(engine, request, plan)) if request.shown else None


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
    pixels = [_pixels(picture, plan).to(engine.device) for picture in pictures]
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
        item.start: _pixels(next(item.condition.pictures()), plan)
        for item in place(request.shown, plan.num_frames)
    }


def _pixels(picture: Any, plan: Plan) -> Tensor:
    return to_pixels(open_picture(picture), plan.height, plan.width)


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


# ---- clips, masks and references (VACE) ----------------------------------------------------------


def _control(engine: Engine, request: Request, plan: Plan) -> Given:
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
    for start in range(0, plan.num_frames, GROUP):
        chunk = [next(frames) for _ in range(GROUP if start else 1)]
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
            yield _pixels(picture, plan), _mask(mask, plan)
        done = stop
    for _ in range(done, plan.num_frames):
        yield grey, new


def _mask(mask: Any, plan: Plan) -> Tensor:
    """A mask (1, 1, H, W) in 0..1 of a number or a picture."""
    if isinstance(mask, (int, float)):
        return torch.full((1, 1, plan.height, plan.width), float(mask))
    return ((_pixels(mask_picture(mask), plan)[:, :1] + 1) / 2).clamp(0, 1)


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


MAKERS = {
    "none": _nothing,
    "first": _first,
    "ends": _ends,
    "beside": _beside,
    "control": _control,
}
