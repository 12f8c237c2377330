"""What a checkpoint's index may name, and where all that is known of it lives.

A row holds places, `module:name` below this package; what stands there is imported when it is
asked for. Families are named here, and in their own modules, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, TypeVar

from .errors import KinemaError


@dataclass(frozen=True)
class Transformer:
    """A transformer of our own.

    `config` has `from_dict`, `weight_table()`, which names published weights, and
    `attention_head_dim`; `model` is made of it and of the bound `Operations`. `sizes` is made of a
    ledger, a config.json, `Shapes` and the bytes of an item, with `bind()`, which counts what is
    constant in a request and gives what of it is held, `step()`, and `KEEP_FP32`, parts of names of
    weights that are held in float32. `original`, if it is given, is the module of the names that
    the repository of the model's authors gives the weights (`ORIGINAL`, `is_published`, `config`).
    `lora` are the name a LoRA for it goes by, and a pattern of its keys, dots as underscores.
    """

    model: str
    config: str
    sizes: str
    original: str | None = None
    lora: tuple[str, str] | None = None


@dataclass(frozen=True)
class Part:
    """Any other component. `opens` is a class, made of its `config`, whose weights are our own, or
    where no config is given a function of folder, device and dtype. `sizes` counts its work."""

    opens: str
    sizes: str
    config: str | None = None


WAN_LORA = ("Wan", r"(^|(?<!transformer)_)blocks_\d+_(self_attn|cross_attn|attn1|attn2|ffn)")
TRANSFORMERS = {
    "WanTransformer3DModel": Transformer(
        model="models.wan.transformer:WanTransformer",
        config="models.wan.config:WanConfig",
        sizes="models.wan.sizes:Wan",
        original="models.wan.original",
        lora=WAN_LORA,
    ),
    "WanVACETransformer3DModel": Transformer(
        model="models.wan.vace:WanVaceTransformer",
        config="models.wan.vace:WanVaceConfig",
        sizes="models.wan.sizes:WanVace",
        original="models.wan.original",
        lora=WAN_LORA,
    ),
}
# `sizes`: of a ledger and a config.json, with `decode(latents, tile)`, `encode(latents)` and
# `why_whole(config)`, which says why it does not work in tiles, or None
VAES = {
    "AutoencoderKinema": Part(
        opens="vaes.kinema:AutoencoderKinema",
        config="vaes.kinema:KinemaVAEConfig",
        sizes="vaes.kinema_sizes:KinemaVae",
    ),
    "AutoencoderKLWan": Part(opens="vaes.wan:open_wan_vae", sizes="vaes.wan_sizes:WanVae"),
}
# `sizes`: a function of a ledger, a config.json, the frames of the video and the samples
SOUNDS = {
    "KinemaSound": Part(
        opens="vaes.audio:KinemaSound",
        config="vaes.audio:SoundConfig",
        sizes="vaes.audio_sizes:kinema_sound",
    )
}
# Sizes alone, since another library opens them: a function of a ledger, a config.json, tokens and
# the bytes of an item, which gives the width of the embeddings
TEXT_ENCODERS = {"UMT5EncoderModel": "conditioning.text_sizes:umt5"}
# Pipeline classes: `presets_of(checkpoint)`, what it makes unless told otherwise, and its limits
PIPELINES = dict.fromkeys(
    ("WanPipeline", "WanImageToVideoPipeline", "WanVACEPipeline", "WanDMDPipeline"),
    "models.wan.presets:presets_of",
)

Row = TypeVar("Row")


def at(place: str) -> Any:
    """What stands at a place: a module, or a name in one (`module:name`)."""
    module, _, name = place.partition(":")
    found = import_module(f".{module}", __package__)
    return getattr(found, name) if name else found


def row(table: Mapping[str, Row], class_name: str, what: str) -> Row:
    """A class's row; raises `KinemaError`, naming the known classes, for `what` is another."""
    if class_name not in table:
        kind, known = class_name[:80].split("\n")[0], ", ".join(sorted(table))
        raise KinemaError(f"{what} is a {kind}, which is not known; known: {known}")
    return table[class_name]
