"""The Wan transformer, with everything that is constant in a request computed outside the step.

The reference is diffusers' `WanTransformer3DModel`, whose configuration and weights it takes.

Shape legend: B batch, F H W token grid, L tokens (F*H*W) or text tokens, N heads, D head size,
d = N*D. Modulation lives on a grid (1|B, 1|F, 1|H, 1|W) that broadcasts to the tokens'.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from math import prod
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .... import kernels
from ....kernels import Operations
from ...checkpoints import weights
from ...checkpoints.presets import TEXT_LENGTH
from ...errors import UsageError
from .. import batching
from ..layers import CutTables, Sizes, sinusoidal_embedding
from .blocks import ImageEmbedder, TextContext, WanBlock, join_texts, keys_values
from .config import WanConfig
from .sizes import KEY_MULTIPLE


class Modulation(NamedTuple):
    """What timesteps do to the tokens, fp32, with the timesteps' shape in front."""

    blocks: Tensor  # (..., 6, d)
    head: Tensor  # (..., d)

    def at(self, step: int) -> Modulation:
        """That of one step, where timesteps are (steps, ...)."""
        return Modulation(self.blocks[step], self.head[step])


class Bound:
    """`predict(latents, step)` of one request; sessions that step together share a forward."""

    def __init__(
        self, model: WanTransformer, modulation: Modulation, text: TextContext, rope: Any
    ) -> None:
        self.model, self.modulation, self.text, self.rope = model, modulation, text, rope
        self.company: tuple[list[TextContext], TextContext] | None = None  # and their texts joined

    def __call__(self, latents: Tensor, step: int) -> Tensor:
        return batching.forward(self, latents, step)

    def beside(self, prompt_embeds: Tensor, pad_count: Tensor, **shown: Any) -> Bound:
        """The same for other text, such as the other branch of guidance; see `bind`."""
        text = self.model.bound_text(prompt_embeds, pad_count, **shown)
        return Bound(self.model, self.modulation, text, self.rope)

    def alone(self, latents: Tensor, step: int) -> Tensor:
        """Prediction of latents (B, C, F, H, W), B rows for each branch."""
        return self.model(latents, self.modulation.at(step), self.text, self.rope).float()

    def key(self, latents: Tensor) -> Hashable:
        """Text alone can be joined; whoever is shown more is answered alone."""
        if type(self.text) is not TextContext or self.text.images is not None or len(latents) > 1:
            return id(self)
        return id(self.model), latents.shape, len(self.text.bias)

    def together(self, asked: Sequence[batching.Question]) -> list[Tensor]:
        """The predictions of several requests in one batch: first branches, then second ones."""
        texts, branches = [question.bound.text for question in asked], len(self.text.bias)
        if self.company is None or list(map(id, texts)) != list(map(id, self.company[0])):
            self.company = texts, join_texts(texts)
        parts = [question.bound.modulation.at(question.step) for question in asked]
        modulation = Modulation(*(torch.cat(rows * branches) for rows in zip(*parts, strict=True)))
        latents = torch.cat([question.latents for question in asked] * branches)
        rows = self.model(latents, modulation, self.company[1], self.rope).float()
        return [rows[index :: len(asked)] for index in range(len(asked))]


class WanTransformer(nn.Module):
    """Latents, timesteps and text to a flow prediction.

    `ops`: what it computes with, from `kernels.bind`; by default plain PyTorch, on any device.
    Compile it block by block: `for block in model.blocks: block.compile()`.
    """

    def __init__(self, config: WanConfig, ops: Operations | None = None) -> None:
        super().__init__()
        self.config, self.ops = config, ops or kernels.bind("cpu")
        self.key_multiple = KEY_MULTIPLE
        dim, patch = config.dim, prod(config.patch_size)
        assert config.out_channels is not None  # once the config is made
        self.patch_embedding = nn.Linear(config.in_channels * patch, dim)
        self.time_embedder = _two_layers(config.freq_dim, dim, nn.SiLU())
        self.time_proj = nn.Linear(dim, 6 * dim)
        self.text_embedder = _two_layers(config.text_dim, dim, nn.GELU(approximate="tanh"))
        if config.image_dim is not None:
            self.image_embedder = ImageEmbedder(config, self.ops)
        self.blocks: Any = nn.ModuleList(
            WanBlock(config, self.ops) for _ in range(config.num_layers)
        )
        self.scale_shift_table = nn.Parameter(torch.randn(1, 2, dim) / dim**0.5)
        self.proj_out = nn.Linear(dim, config.out_channels * patch)

    def block_lists(self) -> list[nn.ModuleList]:
        """The lists of equal blocks that make up most of the model."""
        return [self.blocks]

    # ---- constant in a request -------------------------------------------------------------------

    def grid(self, latent_shape: tuple[int, ...]) -> tuple[int, int, int]:
        """Token grid (F, H, W) of latents (..., F, H, W); `UsageError` if it does not fit."""
        sizes, patch = tuple(latent_shape[-3:]), self.config.patch_size
        if any(size % p for size, p in zip(sizes, patch, strict=True)):
            raise UsageError(
                f"latents {sizes} (frames, height, width) are not multiples of {patch}"
            )
        frames, rows, columns = (size // p for size, p in zip(sizes, patch, strict=True))
        grid = (frames, rows, columns)
        if max(grid) > self.config.rope_max_seq_len:
            limit = self.config.rope_max_seq_len
            raise UsageError(f"token grid {grid} exceeds {limit} positions along one axis")
        return grid

    def rope(self, grid: tuple[int, int, int]) -> Any:
        """Rotation tables of a token grid, as the bound operations read them."""
        return self.ops.rope(self.rope_tables(grid), self.config.attention_head_dim)

    def rope_tables(self, grid: tuple[int, int, int]) -> kernels.Rope:
        """The same, compact: a row for each position along each axis.

        Axes share a head's channels: a third each for height and width, time takes the rest.
        """
        head_dim, device = self.config.attention_head_dim, self.patch_embedding.weight.device
        pairs = (head_dim // 2 - 2 * (head_dim // 6), head_dim // 6, head_dim // 6)
        return kernels.rope_tables(grid, pairs, device=device)

    def grid_rope(self) -> tuple[CutTables, dict[str, int]]:
        """Rotation tables of any grid, and the most of its `Sizes`, for exporting."""
        most = self.config.rope_max_seq_len
        limits = {"frames": most, "rows": most, "columns": most}
        return CutTables(self.rope_tables((most, most, most))), limits

    def modulation(self, timesteps: Tensor, text: Any = None) -> Modulation:
        """Modulation vectors of timesteps of any shape (...,), in one product for all of them,
        whatever the text."""
        with _without_autocast(timesteps.device.type):
            hidden = sinusoidal_embedding(timesteps, self.config.freq_dim)
            embedding = self.time_embedder(hidden).to(self.time_proj.weight.dtype)
        blocks = self.time_proj(F.silu(embedding)).unflatten(-1, (6, -1))
        return Modulation(blocks.float(), embedding.float())

    def text_context(
        self, prompt_embeds: Tensor, pad_count: Tensor, image_embeds: Tensor | None = None
    ) -> TextContext:
        """Keys and values of every block, from (B, L, text_dim) and the number of pads of each row.

        `image_embeds` (pictures, L, image_dim): what a picture encoder saw, the same for all rows.
        """
        text, bias = self.embed_text(prompt_embeds, pad_count)
        if image_embeds is None:
            return keys_values(self.blocks, text, bias)
        image = self.image_embedder(image_embeds).expand(text.shape[0], -1, -1)
        return keys_values(self.blocks, text, bias, image)

    def embed_text(self, prompt_embeds: Tensor, pad_count: Tensor) -> tuple[Tensor, Tensor]:
        """The tokens (B, L, d) that blocks attend to, and the bias on their scores (B, 1, 1, L).

        Row b owns its first `TEXT_LENGTH - pad_count[b]` tokens; what lies beyond is masked out.
        The reference attends to the pads, which are zero embeddings and so all one same key: they
        become one extra token whose score is raised by log(pad_count), and masked at `pad_count` 0.
        """
        batch, length, _ = prompt_embeds.shape
        own = torch.arange(length, device=prompt_embeds.device) < TEXT_LENGTH - pad_count[:, None]
        merged = pad_count[:, None].float().log()
        bias = torch.cat([torch.zeros_like(merged).where(own, -torch.inf), merged], dim=1)
        # Attention kernels are several times faster on a round number of keys.
        extra = -(length + 1) % self.key_multiple
        bias = F.pad(bias, (0, extra), value=-torch.inf)
        text = self.text_embedder(F.pad(prompt_embeds, (0, 0, 0, 1 + extra)))
        return text, bias.view(batch, 1, 1, -1)

    # ---- the step --------------------------------------------------------------------------------

    def forward(
        self,
        latents: Tensor,
        modulation: Modulation,
        text: TextContext,
        rope: Any,
    ) -> Tensor:
        """Prediction for latents (B, C, F, H, W), all of them for each B rows of text.

        The branches of guidance differ by their text alone, so they share what comes before the
        first look at it; `modulation` then has one row.

        `modulation` is that of timesteps of shape (B,), or of any that broadcasts to the token grid
        (B, F, H, W): (B, F, 1, 1) is a timestep a frame, (B, 1, H, 1) one a row.
        """
        self.grid(latents.shape)
        if modulation.head.dim() == 2:
            modulation = Modulation(*(part[:, None, None, None] for part in modulation))
        patch, embed = self.config.patch_size, self.patch_embedding
        x = self.ops.patchify(latents, patch, embed.weight, embed.bias)
        x = x.to(embed.weight.dtype)  # autocast, when training, would leave it in bf16
        x = self.through_blocks(x, modulation.blocks, text, rope)
        shift, scale = (self.scale_shift_table + modulation.head[..., None, :]).unbind(-2)
        return self.ops.unpatchify(
            x,
            patch,
            self.proj_out.weight,
            self.proj_out.bias,
            scale=scale,
            shift=shift,
            norm="layer",
            eps=self.config.eps,
            channels_first=False,
        )

    def through_blocks(self, x: Tensor, modulation: Tensor, text: TextContext, rope: Any) -> Tensor:
        """(B, F, H, W, d) to the same, with a row for each of the text's."""
        for block, context in zip(self.blocks, text.of_blocks(), strict=True):
            x = block(x, modulation, *context, rope)
        return x

    @torch.no_grad()
    def bind(
        self,
        latent_shape: tuple[int, ...],
        timesteps: Tensor,
        prompt_embeds: Tensor,
        pad_count: Tensor,
        **shown: Any,
    ) -> Callable[[Tensor, int], Tensor]:
        """`predict(latents, step)` for one request, with all that is constant in it computed now.

        timesteps: (num_steps,), or broadcasting to latents at every step (num_steps, F, H, W);
        prompt_embeds and pad_count (see `text_context`): B rows for each branch of guidance;
        `shown`: what else `text_context` takes, such as `image_embeds`.
        It takes latents (B, C, F, H, W) in any dtype and returns fp32, B rows for each branch.
        """
        grid, weight = self.grid(latent_shape), self.patch_embedding.weight
        text = self.bound_text(prompt_embeds, pad_count, **shown)
        modulation = self.modulation(self._by_token(timesteps.to(weight.device)))
        return Bound(self, modulation, text, self.rope(grid))

    @torch.no_grad()
    def bound_text(self, prompt_embeds: Tensor, pad_count: Tensor, **shown: Any) -> Any:
        """`text_context` of what comes in any dtype, from any device."""
        weight = self.patch_embedding.weight
        shown = {k: v.to(weight) if isinstance(v, Tensor) else v for k, v in shown.items()}
        return self.text_context(prompt_embeds.to(weight), pad_count.to(weight.device), **shown)

    def denoise(
        self, latents: Tensor, timesteps: Tensor, prompt_embeds: Tensor, pad_count: Tensor
    ) -> Tensor:
        """Prediction with nothing prepared beforehand, for training.

        latents (B, C, F, H, W); timesteps in 0..1000 of shape (B,), or broadcasting to the token
        grid (B, F, H, W); prompt_embeds (B, L, text_dim); pad_count (B,), see `text_context`.
        """
        return self(
            latents,
            self.modulation(timesteps),
            self.text_context(prompt_embeds, pad_count),
            self.rope(self.grid(latents.shape)),
        )

    def _by_token(self, timesteps: Tensor) -> Tensor:
        """Timesteps (S, F, H, W) of latents, axes whole or 1, to (S, 1, f, h, w) of tokens."""
        if timesteps.dim() == 1:
            return timesteps[:, None]
        for axis, patch in enumerate(self.config.patch_size, start=1):
            if timesteps.shape[axis] > 1:
                of_patch = timesteps.unflatten(axis, (-1, patch))
                timesteps = of_patch.select(axis + 1, 0)
                if not torch.equal(of_patch, timesteps.unsqueeze(axis + 1).expand_as(of_patch)):
                    raise UsageError(f"timesteps differ within a patch of {self.config.patch_size}")
        return timesteps[:, None]

    # ---- exporting -------------------------------------------------------------------------------

    def example(self, sizes: Sizes) -> dict[str, Tensor]:
        """What `text_context` takes, by name, at a size: any values that it can work with."""
        batch, tokens = sizes.batch, sizes.tokens
        example = {
            "prompt_embeds": torch.randn(batch, tokens, self.config.text_dim),
            "pad_count": TEXT_LENGTH - tokens + torch.arange(batch) % tokens,
        }
        if self.config.image_dim is not None:
            both = self.config.pos_embed_seq_len
            pictures = (1, sizes.seen) if both is None else (2, both // 2)
            example["image_embeds"] = torch.randn(*pictures, self.config.image_dim)
        return example

    # ---- weights ---------------------------------------------------------------------------------

    def from_published(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A native state dict from tensors named and laid out as published."""
        return weights.from_published(self.config.weight_table(), self.state_dict(), tensors)

    def to_published(self, state_dict: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Tensors as published, from a native state dict (by default the model's)."""
        state_dict = self.state_dict() if state_dict is None else state_dict
        return weights.to_published(self.config.weight_table(), state_dict)


def _without_autocast(device: str) -> AbstractContextManager[Any]:
    """Nothing where there is none: an exported graph should not hold it."""
    return (
        torch.autocast(device, enabled=False)
        if torch.is_autocast_enabled(device)
        else nullcontext()
    )


def _two_layers(in_features: int, dim: int, activation: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(in_features, dim), activation, nn.Linear(dim, dim))
