"""The blocks of a Wan transformer, and what of the text and of pictures they attend to.

Shape legend: B batch, F H W token grid, L tokens (F*H*W) or text tokens, N heads, D head size,
d = N*D. Modulation lives on a grid (1|B, 1|F, 1|H, 1|W) that broadcasts to the tokens'.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ....kernels import Operations
from ..layers import LinearGelu
from .config import WanConfig


class ImageContext(NamedTuple):
    """Keys and values of what a picture encoder saw, for one block."""

    key: Tensor  # (B, N, L, D)
    value: Tensor


class TextContext(NamedTuple):
    """What the text adds to every step: each block's keys and values, and a bias on the scores."""

    keys: list[Tensor]  # num_layers of (B, N, L, D)
    values: list[Tensor]
    bias: Tensor  # (B, 1, 1, L), fp32
    images: list[ImageContext] | None = None  # each block's

    def of_blocks(self) -> Iterator[tuple[Any, ...]]:
        """What each block attends to besides the tokens: key, value, bias, image."""
        for i, (key, value) in enumerate(zip(self.keys, self.values, strict=True)):
            yield key, value, self.bias, None if self.images is None else self.images[i]


def join_texts(texts: Sequence[TextContext]) -> TextContext:
    """One text of several with as many branches, shorter ones masked at their ends."""
    longest = max(text.bias.shape[-1] for text in texts)

    def joined(parts: Sequence[Tensor], axis: int, fill: float = 0.0) -> Tensor:
        pad = [0, 0] * (-axis - 1)
        rows = [F.pad(p, (*pad, 0, longest - p.shape[axis]), value=fill) for p in parts]
        return torch.stack(rows, dim=1).flatten(0, 1)

    keys = [joined(parts, -2) for parts in zip(*(text.keys for text in texts), strict=True)]
    values = [joined(parts, -2) for parts in zip(*(text.values for text in texts), strict=True)]
    return TextContext(keys, values, joined([text.bias for text in texts], -1, -torch.inf))


def keys_values(
    blocks: Iterable[WanBlock], text: Tensor, bias: Tensor, image: Tensor | None = None
) -> TextContext:
    """What blocks attend to: tokens (B, L, d) of the text, and of a picture encoder."""
    keys, values, images = [], [], []
    for block in blocks:
        key, value = block.attn2.keys_values(text)
        keys.append(key)
        values.append(value)
        if image is not None:
            images.append(block.attn2.image_keys_values(image))
    return TextContext(keys, values, bias, images or None)


class SelfAttention(nn.Module):
    def __init__(self, config: WanConfig, ops: Operations) -> None:
        super().__init__()
        self.heads, self.eps, self.ops = config.num_attention_heads, config.eps, ops
        self.qkv = nn.Linear(config.dim, 3 * config.dim)
        self.norm_qk = nn.Parameter(torch.ones(2 * config.dim))
        self.out = nn.Linear(config.dim, config.dim)

    def forward(self, x: Tensor, rope: Any) -> Tensor:
        """(B, L, d) to (B, L, d)."""
        query, key, value = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(2)
        norm_q, norm_k = self.norm_qk.chunk(2)
        query, key = self.ops.qk_norm_rope(
            query,
            key,
            rope,
            q_weight=norm_q,
            k_weight=norm_k,
            eps=self.eps,
            interleaved=True,
            layout=self.ops.layout,
        )
        out = self.ops.attention(query, key, value.transpose(1, 2))
        return self.out(out.transpose(1, 2).flatten(2))


class CrossAttention(nn.Module):
    def __init__(self, config: WanConfig, ops: Operations) -> None:
        super().__init__()
        self.heads, self.eps, self.ops = config.num_attention_heads, config.eps, ops
        self.q = nn.Linear(config.dim, config.dim)
        self.kv = nn.Linear(config.dim, 2 * config.dim)
        self.norm_q = nn.Parameter(torch.ones(config.dim))
        self.norm_k = nn.Parameter(torch.ones(config.dim))
        if config.added_kv_proj_dim is not None:
            self.image_kv = nn.Linear(config.added_kv_proj_dim, 2 * config.dim)
            self.norm_image_k = nn.Parameter(torch.ones(config.dim))
        self.out = nn.Linear(config.dim, config.dim)

    def keys_values(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L, d) to keys and values (B, N, L, D)."""
        key, value = self.kv(text).chunk(2, dim=-1)
        value = self._heads(value)
        if self.ops.layout == "bnld":  # what its attention would copy at every step
            value = value.contiguous()
        return self._heads(self._norm(key, self.norm_k)), value

    def image_keys_values(self, image: Tensor) -> ImageContext:
        """The same of what a picture encoder saw."""
        key, value = self.image_kv(image).chunk(2, dim=-1)
        return ImageContext(self._heads(self._norm(key, self.norm_image_k)), self._heads(value))

    def forward(
        self, x: Tensor, key: Tensor, value: Tensor, bias: Tensor, image: ImageContext | None = None
    ) -> Tensor:
        """(B, L, d) to (B, L, d)."""
        query = self._heads(self._norm(self.q(x), self.norm_q))
        out = self.ops.biased_attention(query, key, value, bias)
        if image is not None:
            out = out + self.ops.attention(query, *image)
        return self.out(out.transpose(1, 2).flatten(2))

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return self.ops.norm_modulate(x, norm="rms", weight=weight, eps=self.eps)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class WanBlock(nn.Module):
    def __init__(self, config: WanConfig, ops: Operations) -> None:
        super().__init__()
        self.eps, self.ops = config.eps, ops
        self.scale_shift_table = nn.Parameter(torch.randn(1, 6, config.dim) / config.dim**0.5)
        self.attn1 = SelfAttention(config, ops)
        self.norm2 = nn.LayerNorm(config.dim, config.eps) if config.cross_attn_norm else None
        self.attn2 = CrossAttention(config, ops)
        self.ffn_in = LinearGelu(config.dim, config.ffn_dim, ops)
        self.ffn_out = nn.Linear(config.ffn_dim, config.dim)

    def forward(
        self,
        x: Tensor,
        modulation: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Tensor,
        image: ImageContext | None,
        rope: Any,
    ) -> Tensor:
        """(B, F, H, W, d) to the same, or to as many rows as the text has if they are more.

        `modulation` (1|B, 1|F, 1|H, 1|W, 6, d).
        """
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = (
            self.scale_shift_table + modulation
        ).unbind(-2)
        hidden = self.ops.norm_modulate(x, scale, shift, eps=self.eps)
        hidden = self.attn1(hidden.flatten(1, 3), rope).view_as(x)
        x, hidden = self._add_and_norm2(x, hidden, gate)
        if (branches := key.shape[0] // x.shape[0]) > 1:
            x, hidden = (rows.repeat(branches, 1, 1, 1, 1) for rows in (x, hidden))
        hidden = self.attn2(hidden.flatten(1, 3), key, value, bias, image).view_as(x)
        x, hidden = self.ops.norm_modulate(x, ffn_scale, ffn_shift, eps=self.eps, residual=hidden)
        return self.ops.gate_residual(x, self.ffn_out(self.ffn_in(hidden)), ffn_gate)

    def _add_and_norm2(self, x: Tensor, branch: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
        if self.norm2 is None:
            x = self.ops.gate_residual(x, branch, gate)
            return x, x
        return self.ops.norm_modulate(
            x,
            weight=self.norm2.weight,
            bias=self.norm2.bias,
            eps=self.norm2.eps,
            residual=branch,
            gate=gate,
        )


class ImageEmbedder(nn.Module):
    """What a picture encoder saw, as tokens of the transformer's width."""

    def __init__(self, config: WanConfig, ops: Operations) -> None:
        super().__init__()
        self.ops, dim, width = ops, config.image_dim, config.added_kv_proj_dim
        assert dim is not None and width is not None
        self.positions = None
        if config.pos_embed_seq_len is not None:
            self.positions = nn.Parameter(torch.zeros(1, config.pos_embed_seq_len, dim))
        self.norm1 = nn.LayerNorm(dim)
        self.ff_in, self.ff_out = nn.Linear(dim, dim), nn.Linear(dim, width)
        self.norm2 = nn.LayerNorm(width)

    def forward(self, embeds: Tensor) -> Tensor:
        """(pictures, L, image_dim) to (1, L, d), or to (1, 2L, d) where two pictures are seen."""
        if self.positions is not None:
            embeds = embeds.flatten(0, 1)[None] + self.positions
        hidden = self.ff_out(F.gelu(self.ff_in(self._norm(embeds, self.norm1))))
        return self._norm(hidden, self.norm2)

    def _norm(self, x: Tensor, norm: nn.LayerNorm) -> Tensor:
        return self.ops.norm_modulate(x, weight=norm.weight, bias=norm.bias, eps=norm.eps)
