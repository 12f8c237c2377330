"""Names and configurations of Wan's own repositories, and of files repackaged from them.

The names are those of https://github.com/Wan-Video/Wan2.1: wan/modules/model.py, vace_model.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

from ...checkpoints.originals import Original
from ...checkpoints.shards import Entry, where
from ...errors import KinemaError

HEAD_DIM = 128  # of every published Wan; files without a config do not tell

# Published name: original name. A name may be a module's.
BLOCK = {
    "scale_shift_table": "modulation",
    "attn1.to_q": "self_attn.q",
    "attn1.to_k": "self_attn.k",
    "attn1.to_v": "self_attn.v",
    "attn1.to_out.0": "self_attn.o",
    "attn1.norm_q": "self_attn.norm_q",
    "attn1.norm_k": "self_attn.norm_k",
    "norm2": "norm3",
    "attn2.to_q": "cross_attn.q",
    "attn2.to_k": "cross_attn.k",
    "attn2.to_v": "cross_attn.v",
    "attn2.to_out.0": "cross_attn.o",
    "attn2.norm_q": "cross_attn.norm_q",
    "attn2.norm_k": "cross_attn.norm_k",
    "attn2.add_k_proj": "cross_attn.k_img",
    "attn2.add_v_proj": "cross_attn.v_img",
    "attn2.norm_added_k": "cross_attn.norm_k_img",
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
    "proj_in": "before_proj",
    "proj_out": "after_proj",
}
NAMES = {
    "patch_embedding": "patch_embedding",
    "vace_patch_embedding": "vace_patch_embedding",
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "condition_embedder.image_embedder.pos_embed": "img_emb.emb_pos",
    "condition_embedder.image_embedder.norm1": "img_emb.proj.0",
    "condition_embedder.image_embedder.ff.net.0.proj": "img_emb.proj.1",
    "condition_embedder.image_embedder.ff.net.2": "img_emb.proj.3",
    "condition_embedder.image_embedder.norm2": "img_emb.proj.4",
    **{f"blocks.{{}}.{ours}": f"blocks.{{}}.{theirs}" for ours, theirs in BLOCK.items()},
    **{f"vace_blocks.{{}}.{ours}": f"vace_blocks.{{}}.{theirs}" for ours, theirs in BLOCK.items()},
    "scale_shift_table": "head.modulation",
    "proj_out": "head.head",
}
ORIGINAL = Original(
    NAMES,
    marks=frozenset({"head.modulation", "head.head.weight"}),
    prefixes=("", "model.diffusion_model.", "diffusion_model.", "model."),
)


def is_published(given: Mapping[str, Any]) -> bool:
    """Whether a config.json has the published fields, and not the original ones."""
    return "num_attention_heads" in given


def config(given: Mapping[str, Any], entries: Mapping[str, Entry]) -> dict[str, Any]:
    """A published config.json: the one given, else what an original one and the weights tell.

    `given`: config.json in either form, or empty; `entries`: the weights, by published name.
    """
    if is_published(given):
        return dict(given)
    shape = _Shapes(entries)
    dim, in_channels, *patch = shape["patch_embedding.weight"]
    heads = given.get("num_heads", max(1, dim // HEAD_DIM))
    values = {
        "patch_size": patch,
        "num_attention_heads": heads,
        "attention_head_dim": dim // heads,
        "in_channels": in_channels,
        "out_channels": shape["proj_out.weight"][0] // prod(patch),
        "text_dim": shape["condition_embedder.text_embedder.linear_1.weight"][1],
        "freq_dim": shape["condition_embedder.time_embedder.linear_1.weight"][1],
        "ffn_dim": shape["blocks.0.ffn.net.0.proj.weight"][0],
        "num_layers": given.get("num_layers", _count(entries, "blocks.")),
        "cross_attn_norm": "blocks.0.norm2.weight" in entries,
        "eps": given.get("eps", 1e-6),
    }
    return {**values, **_image_config(dim, shape), **_vace_config(given, values, shape)}


def _image_config(dim: int, shape: _Shapes) -> dict[str, Any]:
    """Fields of a transformer that is shown the embedding of an image."""
    values: dict[str, Any] = {}
    if norm := shape.get("condition_embedder.image_embedder.norm1.weight"):
        values["image_dim"] = norm[0]
    if positions := shape.get("condition_embedder.image_embedder.pos_embed"):
        values["pos_embed_seq_len"] = positions[1]
    if "blocks.0.attn2.add_k_proj.weight" in shape:
        values["added_kv_proj_dim"] = dim
    return values


def _vace_config(
    given: Mapping[str, Any], values: Mapping[str, Any], shape: _Shapes
) -> dict[str, Any]:
    """Fields of a transformer with blocks of control; those steer every n-th of the others."""
    if not (patch := shape.get("vace_patch_embedding.weight")):
        return {}
    layers, count = values["num_layers"], _count(shape, "vace_blocks.")
    spread = list(range(0, layers, max(1, layers // max(1, count))))[:count]
    return {"vace_layers": given.get("vace_layers", spread), "vace_in_channels": patch[1]}


class _Shapes(dict[str, tuple[int, ...]]):
    """Shapes by published name; KinemaError for one that every Wan transformer has."""

    def __init__(self, entries: Mapping[str, Entry]) -> None:
        super().__init__({name: entry.shape for name, entry in entries.items()})
        self.file = next((entry.file for entry in entries.values()), None)

    def __missing__(self, name: str) -> tuple[int, ...]:
        file = "the checkpoint" if self.file is None else where(self.file)
        raise KinemaError(f"{file} is no Wan transformer: it has no {name}")


def _count(names: Mapping[str, Any], prefix: str) -> int:
    """How many blocks there are under a prefix."""
    numbers = {name.removeprefix(prefix).split(".")[0] for name in names if name.startswith(prefix)}
    return 1 + max((int(number) for number in numbers if number.isdigit()), default=-1)
