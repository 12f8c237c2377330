"""The Wan transformer with blocks of control: clips, masks and references steer it (VACE).

The reference is diffusers' `WanVACETransformer3DModel`, whose configuration and weights it takes;
the method is https://arxiv.org/abs/2503.07598. Shapes as in `transformer.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ....kernels import Operations
from ...checkpoints import weights
from ...errors import UsageError
from ..layers import Sizes
from .blocks import TextContext, WanBlock, keys_values
from .config import KEYS, WanConfig, as_rows
from .transformer import WanTransformer

CONTROL_KEYS = {
    "control_embedding": ("vace_patch_embedding",),
    "control_in": ("vace_blocks.0.proj_in",),
    "vace_blocks.{}.hint": ("vace_blocks.{}.proj_out",),
    **{
        f"vace_{native}": tuple(f"vace_{name}" for name in published)
        for native, published in KEYS.items()
        if native.startswith("blocks.")
    },
}


@dataclass(frozen=True)
class WanVaceConfig(WanConfig):
    """The fields of a published transformer/config.json, under the same names."""

    vace_layers: tuple[int, ...] = (0, 5, 10, 15, 20, 25, 30, 35)
    vace_in_channels: int = 96

    def __post_init__(self) -> None:
        super().__post_init__()
        layers = tuple(self.vace_layers)
        object.__setattr__(self, "vace_layers", layers)
        if 0 not in layers or list(layers) != sorted(set(layers)) or layers[-1] >= self.num_layers:
            raise UsageError(
                f"vace_layers {list(layers)} must rise from 0 to {self.num_layers - 1} at most"
            )

    def weight_table(self) -> weights.WeightTable:
        """How this configuration's published weights become native ones."""
        table = super().weight_table()
        layouts = {
            **table.layouts,
            "vace_patch_embedding": as_rows(self.dim, self.vace_in_channels, self.patch_size),
        }
        return replace(table, rules={**table.rules, **CONTROL_KEYS}, layouts=layouts)


class ControlContext(NamedTuple):
    """What text and control add to every step."""

    text: TextContext
    control_text: TextContext  # of the blocks of control
    control: Tensor  # (1, F, H, W, d): what the first block of control adds to the tokens
    scale: float | Tensor  # of what they add to the others


class ControlBlock(WanBlock):
    """A block whose output also steers one of the others, through `hint`."""

    def __init__(self, config: WanConfig, ops: Operations) -> None:
        super().__init__(config, ops)
        self.hint = nn.Linear(config.dim, config.dim)


class WanVaceTransformer(WanTransformer):
    """Latents, timesteps, text and control to a flow prediction."""

    config: WanVaceConfig

    def __init__(self, config: WanVaceConfig, ops: Operations | None = None) -> None:
        super().__init__(config, ops)
        patch = prod(config.patch_size)
        self.control_embedding = nn.Linear(config.vace_in_channels * patch, config.dim)
        self.control_in = nn.Linear(config.dim, config.dim)
        self.vace_blocks: Any = nn.ModuleList(
            ControlBlock(config, self.ops) for _ in config.vace_layers
        )

    def block_lists(self) -> list[nn.ModuleList]:
        """The lists of equal blocks that make up most of the model."""
        return [self.blocks, self.vace_blocks]

    def text_context(
        self,
        prompt_embeds: Tensor,
        pad_count: Tensor,
        control: Tensor | None = None,
        control_scale: float | Tensor = 1.0,
    ) -> ControlContext:
        """Keys and values of every block, and `control` (1, C, F, H, W) of the latents' shape as
        tokens; what the blocks of control add to the others counts `control_scale`."""
        if control is None:
            raise UsageError("this transformer needs control latents; give control")
        text, bias = self.embed_text(prompt_embeds, pad_count)
        embed = self.control_embedding
        tokens = self.ops.patchify(control, self.config.patch_size, embed.weight, embed.bias)
        return ControlContext(
            keys_values(self.blocks, text, bias),
            keys_values(self.vace_blocks, text, bias),
            self.control_in(tokens.to(embed.weight.dtype)),
            control_scale,
        )

    def through_blocks(
        self, x: Tensor, modulation: Tensor, context: ControlContext, rope: Any
    ) -> Tensor:
        """(B, F, H, W, d) to the same, with a row for each of the text's."""
        control, steered = context.control + x, frozenset(self.config.vace_layers)
        controls = zip(self.vace_blocks, context.control_text.of_blocks(), strict=True)
        for i, (block, own) in enumerate(zip(self.blocks, context.text.of_blocks(), strict=True)):
            x = block(x, modulation, *own, rope)
            if i in steered:
                steering, seen = next(controls)
                control = steering(control, modulation, *seen, rope)
                x = _plus(x, steering.hint(control), context.scale)
        return x

    def example(self, sizes: Sizes) -> dict[str, Tensor]:
        """What `text_context` takes, by name, at a size: any values that it can work with."""
        grid = zip((sizes.frames, sizes.rows, sizes.columns), self.config.patch_size, strict=True)
        sides = (size * patch for size, patch in grid)
        return {
            **super().example(sizes),
            "control": torch.randn(1, self.config.vace_in_channels, *sides),
            "control_scale": torch.tensor(1.0),
        }


def _plus(x: Tensor, hint: Tensor, scale: float | Tensor) -> Tensor:
    """In one pass where the scale is a number; in an exported graph it is an input."""
    if isinstance(scale, Tensor):
        return x + hint * scale
    return torch.add(x, hint, alpha=scale)
