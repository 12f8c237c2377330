"""The Wan transformers (`transformer.py`, `vace.py`) in sizes: what they cost, without torch.

Legend: B rows, L tokens, K keys of the text, d width, F H W of latents.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any, ClassVar

from ...checkpoints.presets import PICTURE_TOKENS
from ...ledger import FP32, Ledger, Shapes, Size

KEY_MULTIPLE = 16  # text keys are padded to it


class Wan:
    """One request of one configuration, weights and activations in items of so many bytes."""

    KEEP_FP32 = frozenset({"time_embedder", "scale_shift_table", "norm1", "norm2"})
    DEFAULTS: ClassVar[Mapping[str, Any]] = {
        "patch_size": (1, 2, 2),
        "num_attention_heads": 40,
        "attention_head_dim": 128,
        "in_channels": 16,
        "out_channels": 16,
        "text_dim": 4096,
        "freq_dim": 256,
        "ffn_dim": 13824,
        "num_layers": 40,
        "image_dim": None,
        "pos_embed_seq_len": None,
    }

    def __init__(
        self, ledger: Ledger, config: Mapping[str, Any], shapes: Shapes, item: int
    ) -> None:
        config = {**self.DEFAULTS, **config}
        self.ledger, self.config, self.shapes, self.item = ledger, config, shapes, item
        self.heads, self.head_dim = config["num_attention_heads"], config["attention_head_dim"]
        self.dim, self.layers = self.heads * self.head_dim, config["num_layers"]
        self.patch = prod(config["patch_size"])
        sides = zip(shapes.latents[1:], config["patch_size"], strict=True)
        self.grid = tuple(side // patch for side, patch in sides)
        self.tokens = prod(self.grid)
        self.text_keys = -(-(shapes.text_tokens + 1) // KEY_MULTIPLE) * KEY_MULTIPLE
        self.image_tokens = 0
        if config["image_dim"] is not None:
            self.image_tokens = config["pos_embed_seq_len"] or PICTURE_TOKENS

    @property
    def timesteps(self) -> tuple[int, ...]:
        """How many of a step differ along the grid."""
        return tuple(
            side if varies else 1
            for side, varies in zip(self.grid, self.shapes.timestep_axes, strict=True)
        )

    # ---- constant in a request -------------------------------------------------------------------

    def bind(self) -> list[Size]:
        """What `WanTransformer.bind` computes and keeps."""
        tables = 1 if self.ledger.fused else 4  # halves of angles; turns; factors of every channel
        rope = self.ledger.new(self.tokens, tables * self.head_dim, item=FP32)
        return [*self._text(), *self._image(), *self._modulation(), rope]

    def _text(self) -> list[Size]:
        ledger, rows, keys = self.ledger, self.shapes.rows, self.text_keys
        embeds = ledger.new(rows, keys, self.config["text_dim"], item=self.item)
        text = ledger.linear(ledger.each(ledger.linear(embeds, self.dim)), self.dim)
        blocks = self._count_blocks()
        with ledger.repeat(blocks):
            both = ledger.linear(text, 2 * self.dim, packed=True)
            ledger.norm_modulate(ledger.each(both, shape=text.shape), norm="rms", affine=True)
        del both
        parts = 3 if ledger.fused else 2  # values as a view hold what keys were made from
        return [ledger.new(blocks, rows, keys, parts * self.dim, item=self.item)]

    def _count_blocks(self) -> int:
        return self.layers

    def _image(self) -> list[Size]:
        if not (count := self.image_tokens):
            return []
        image = self.ledger.new(self.shapes.rows, count, self.dim, item=self.item)
        with self.ledger.repeat(self.layers):
            self.ledger.linear(image, 2 * self.dim, packed=True)
        return [self.ledger.new(self.layers, *image.shape[:2], 3 * self.dim, item=self.item)]

    def _modulation(self) -> list[Size]:
        ledger, count = self.ledger, self.shapes.steps * prod(self.timesteps)
        angles = ledger.new(count, self.config["freq_dim"], item=FP32)
        hidden = ledger.linear(ledger.each(ledger.linear(angles, self.dim)), self.dim)
        embedding = ledger.cast(hidden, self.item)
        blocks = ledger.linear(ledger.each(embedding), 6 * self.dim)
        return [ledger.cast(blocks, FP32), ledger.cast(embedding, FP32)]

    # ---- the step --------------------------------------------------------------------------------

    def step(self) -> None:
        """`WanTransformer.forward`, and the cast of what it gives."""
        ledger, in_channels = self.ledger, self.config["in_channels"]
        out_channels = self.config["out_channels"] or in_channels
        latents = ledger.new(in_channels, *self.shapes.latents[1:], item=FP32)
        patches = ledger.each(latents, shape=(1, self.tokens, in_channels * self.patch))
        x = ledger.linear(ledger.cast(patches, self.item), self.dim)
        del patches
        x = self._through_blocks(x)
        x = ledger.linear(ledger.norm_modulate(x, modulated=True), out_channels * self.patch)
        ledger.cast(ledger.each(x), FP32)

    def _through_blocks(self, x: Size) -> Size:
        x = self._block(x, self.shapes.rows)
        if self.layers > 1:
            with self.ledger.repeat(self.layers - 1):
                x = self._block(x, self.shapes.rows)
        return x

    def _block(self, x: Size, rows: int) -> Size:
        ledger = self.ledger
        table = ledger.new(*self.timesteps, 6, self.dim, item=FP32)  # noqa: F841
        hidden = ledger.norm_modulate(x, modulated=True)
        hidden = self._self_attention(hidden)
        x, hidden = ledger.add_and_norm(x, hidden, gated=True)
        if rows > x.shape[0]:
            x, hidden = (ledger.each(part, shape=(rows, *part.shape[1:])) for part in (x, hidden))
        hidden = self._cross_attention(hidden)
        x, hidden = ledger.add_and_norm(x, hidden, modulated=True)
        return ledger.gate_residual(x, self._feed_forward(hidden))

    def _self_attention(self, x: Size) -> Size:
        both = self.ledger.linear(x, 3 * self.dim, packed=True)
        query, key = self.ledger.qk_norm_rope(both)  # noqa: RUF059
        value = query if self.ledger.fused else self.ledger.each(query)  # side by side
        out = self.ledger.attention(query, self.tokens, self.heads, self.head_dim)
        del value
        tokens = out if self.ledger.fused else self.ledger.each(out)  # heads side by side again
        return self.ledger.linear(tokens, self.dim, packed=True)

    def _cross_attention(self, x: Size) -> Size:
        ledger, sizes = self.ledger, (self.heads, self.head_dim)
        query = ledger.linear(x, self.dim, packed=True)
        query = ledger.norm_modulate(query, norm="rms", affine=True)
        out = ledger.attention(query, self.text_keys, *sizes)
        if count := self.image_tokens:
            out = ledger.each(out, ledger.attention(query, count, *sizes))
        return ledger.linear(out, self.dim, packed=True)

    def _feed_forward(self, x: Size) -> Size:
        ledger = self.ledger
        hidden = ledger.linear(x, self.config["ffn_dim"], packed=True)
        if ledger.packed:
            ledger.spend("activation", hidden.item, hidden.count)  # within the product
        elif not ledger.fused:
            hidden = ledger.activate(hidden)
        return ledger.linear(hidden, self.dim, packed=True)


class WanVace(Wan):
    """The same with blocks of control, each of which steers a block."""

    DEFAULTS: ClassVar[Mapping[str, Any]] = {
        **Wan.DEFAULTS,
        "vace_layers": (0, 5, 10, 15, 20, 25, 30, 35),
        "vace_in_channels": 96,
    }

    def bind(self) -> list[Size]:
        """As `Wan.bind`, and the tokens of control."""
        channels = self.config["vace_in_channels"] * self.patch
        patches = self.ledger.new(1, self.tokens, channels, item=self.item)
        control = self.ledger.linear(self.ledger.linear(patches, self.dim), self.dim)
        del patches
        return [*super().bind(), control]

    def _count_blocks(self) -> int:
        return self.layers + len(self.config["vace_layers"])

    def _through_blocks(self, x: Size) -> Size:
        ledger, rows, steered = self.ledger, self.shapes.rows, len(self.config["vace_layers"])
        control = ledger.each(x, x)
        for times, steers in ((1, True), (steered - 1, True), (self.layers - steered, False)):
            if times == 0:
                continue
            with ledger.repeat(times):
                x = self._block(x, rows)
                if steers:
                    control = self._block(control, rows)
                    x = ledger.each(x, ledger.linear(control, self.dim, packed=True))
        return x
