"""A Wan transformer's configuration, and the names of its weights."""

from __future__ import annotations

from dataclasses import dataclass

from ...checkpoints import weights
from ...checkpoints.configs import ComponentConfig
from ...errors import UsageError
from .sizes import Wan

# Native name: published names, stacked along rows. A name may be a module's.
KEYS = {
    "patch_embedding": ("patch_embedding",),
    "time_embedder.0": ("condition_embedder.time_embedder.linear_1",),
    "time_embedder.2": ("condition_embedder.time_embedder.linear_2",),
    "time_proj": ("condition_embedder.time_proj",),
    "text_embedder.0": ("condition_embedder.text_embedder.linear_1",),
    "text_embedder.2": ("condition_embedder.text_embedder.linear_2",),
    "image_embedder.positions": ("condition_embedder.image_embedder.pos_embed",),
    "image_embedder.norm1": ("condition_embedder.image_embedder.norm1",),
    "image_embedder.ff_in": ("condition_embedder.image_embedder.ff.net.0.proj",),
    "image_embedder.ff_out": ("condition_embedder.image_embedder.ff.net.2",),
    "image_embedder.norm2": ("condition_embedder.image_embedder.norm2",),
    "blocks.{}.scale_shift_table": ("blocks.{}.scale_shift_table",),
    "blocks.{}.attn1.qkv": (
        "blocks.{}.attn1.to_q",
        "blocks.{}.attn1.to_k",
        "blocks.{}.attn1.to_v",
    ),
    "blocks.{}.attn1.norm_qk": ("blocks.{}.attn1.norm_q.weight", "blocks.{}.attn1.norm_k.weight"),
    "blocks.{}.attn1.out": ("blocks.{}.attn1.to_out.0",),
    "blocks.{}.norm2": ("blocks.{}.norm2",),
    "blocks.{}.attn2.q": ("blocks.{}.attn2.to_q",),
    "blocks.{}.attn2.kv": ("blocks.{}.attn2.to_k", "blocks.{}.attn2.to_v"),
    "blocks.{}.attn2.norm_q": ("blocks.{}.attn2.norm_q.weight",),
    "blocks.{}.attn2.norm_k": ("blocks.{}.attn2.norm_k.weight",),
    "blocks.{}.attn2.image_kv": ("blocks.{}.attn2.add_k_proj", "blocks.{}.attn2.add_v_proj"),
    "blocks.{}.attn2.norm_image_k": ("blocks.{}.attn2.norm_added_k.weight",),
    "blocks.{}.attn2.out": ("blocks.{}.attn2.to_out.0",),
    "blocks.{}.ffn_in": ("blocks.{}.ffn.net.0.proj",),
    "blocks.{}.ffn_out": ("blocks.{}.ffn.net.2",),
    "scale_shift_table": ("scale_shift_table",),
    "proj_out": ("proj_out",),
}
UNUSED = frozenset({"norm_added_q"})  # published files hold it, the reference does not read it


@dataclass(frozen=True)
class WanConfig(ComponentConfig):
    """The fields of a published transformer/config.json, under the same names.

    Variants are values: one that is shown pictures by a picture encoder has `image_dim` and
    `added_kv_proj_dim`, one that is shown two has positions for both (`pos_embed_seq_len`), one
    that is shown latents beside its own has more `in_channels` than `out_channels`.
    """

    OF = "Wan transformer"

    patch_size: tuple[int, int, int] = (1, 2, 2)
    num_attention_heads: int = 40
    attention_head_dim: int = 128
    in_channels: int = 16
    out_channels: int | None = 16
    text_dim: int = 4096
    freq_dim: int = 256
    ffn_dim: int = 13824
    num_layers: int = 40
    cross_attn_norm: bool = True
    qk_norm: str | None = "rms_norm_across_heads"
    eps: float = 1e-6
    image_dim: int | None = None
    added_kv_proj_dim: int | None = None
    rope_max_seq_len: int = 1024
    pos_embed_seq_len: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "patch_size", tuple(self.patch_size))
        object.__setattr__(self, "out_channels", self.out_channels or self.in_channels)
        if (self.image_dim is None) != (self.added_kv_proj_dim is None):
            raise UsageError(
                f"Wan transformer with image_dim={self.image_dim} and"
                f" added_kv_proj_dim={self.added_kv_proj_dim}: both are numbers, or both null"
            )
        if self.qk_norm != "rms_norm_across_heads":
            raise UsageError(f"qk_norm={self.qk_norm!r}: only 'rms_norm_across_heads' is known")

    @property
    def dim(self) -> int:
        """Width d of the residual stream."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def patch(self) -> tuple[int, int, int]:
        """Latents of a token along frames, rows and columns."""
        return self.patch_size

    def weight_table(self) -> weights.WeightTable:
        """How this configuration's published weights become native ones."""
        layouts = {"patch_embedding": as_rows(self.dim, self.in_channels, self.patch_size)}
        return weights.WeightTable(KEYS, layouts, Wan.KEEP_FP32, UNUSED)


def as_rows(dim: int, channels: int, patch_size: tuple[int, int, int]) -> weights.Layout:
    """A patch embedding's convolution as the rows of a product, and back; its bias as it is."""
    return weights.Layout(
        lambda kernel: kernel.flatten(1) if kernel.dim() > 1 else kernel,
        lambda rows: rows.view(dim, channels, *patch_size) if rows.dim() > 1 else rows,
    )
