"""The models whose shapes are measured, one row each."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod


@dataclass(frozen=True)
class Model:
    """One transformer at one resolution, batch 1.

    `text` counts the keys of cross attention, or where `joint` the text tokens beside the video's:
    in front ("before") or behind ("after").
    """

    name: str
    grid: tuple[int, int, int]  # tokens along time, height, width
    heads: int
    head_dim: int
    ffn: int
    blocks: int
    text: int
    joint: str | None = None
    norm: str = "rms_across_heads"
    pairs: tuple[int, int, int] = (22, 21, 21)  # rotated channel pairs of the three axes
    interleaved: bool = False
    theta: float = 10000.0
    patch: tuple[int, int, int] = (1, 2, 2)
    channels: int = 16  # of the latents
    frame: tuple[int, int] = (480, 832)

    @property
    def dim(self) -> int:
        return self.heads * self.head_dim

    @property
    def tokens(self) -> int:
        """Tokens of self attention."""
        return prod(self.grid) + (self.text if self.joint else 0)

    @property
    def before(self) -> int:
        """Text tokens in front of the video's."""
        return self.text if self.joint == "before" else 0

    @property
    def after(self) -> int:
        """Text tokens behind the video's."""
        return self.text if self.joint == "after" else 0


WAN = {"head_dim": 128, "text": 512, "interleaved": True}
SMALL = {**WAN, "heads": 12, "ffn": 8960, "blocks": 30}
LARGE = {**WAN, "heads": 40, "ffn": 13824, "blocks": 40}
COGVIDEOX = Model(
    "CogVideoX-5b 480p", (13, 30, 45), 48, 64, 12288, 42, 226, joint="before",
    norm="layer_per_head", pairs=(8, 12, 12), interleaved=True, frame=(480, 720),
)  # fmt: skip
HUNYUAN = Model(
    "HunyuanVideo 720p", (33, 45, 80), 24, 128, 12288, 60, 256, joint="after",
    norm="rms_per_head", pairs=(8, 28, 28), interleaved=True, theta=256.0, frame=(720, 1280),
)  # fmt: skip
LTX2 = Model(
    "LTX-2 704p", (16, 22, 38), 32, 128, 16384, 48, 1024,
    pairs=(684, 682, 682), patch=(1, 1, 1), channels=128, frame=(704, 1216),
)  # fmt: skip

MODELS = (
    Model("Wan2.1-1.3B 480p", (21, 30, 52), **SMALL),
    Model("Wan2.1-14B 480p", (21, 30, 52), **LARGE),
    Model("Wan2.1-14B 720p", (21, 45, 80), frame=(720, 1280), **LARGE),
    COGVIDEOX,
    HUNYUAN,
    LTX2,
    Model("Wan2.1-1.3B 720p", (21, 45, 80), frame=(720, 1280), **SMALL),
)
# Sizes that divide no tile, for a check on the chip, and for machines without one; multiples of 16
# where PyTorch's 8-bit products want them.
AWKWARD = Model("awkward", (3, 5, 7), 3, 64, 208, 1, 31, pairs=(12, 10, 10), frame=(20, 28))
BY_NAME = {model.name: model for model in (*MODELS, AWKWARD)}
