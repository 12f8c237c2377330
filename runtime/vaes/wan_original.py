"""Names of the autoencoder in Wan 2.1's own repositories (`Wan2.1_VAE.pth`, once converted).

The names are those of https://github.com/Wan-Video/Wan2.1: wan/modules/vae.py.
"""

from __future__ import annotations

from ..originals import Original

STAGES, BLOCKS = 4, 3  # of the decoder, whose original names are numbered through

# Published name: original name. A name may be a module's.
PARTS = {
    "norm1": "residual.0",
    "conv1": "residual.2",
    "norm2": "residual.3",
    "conv2": "residual.6",
    "conv_shortcut": "shortcut",
}


def _both(published: str, original: str) -> dict[str, str]:
    """A module of the encoder and its twin in the decoder."""
    return {f"{side}.{published}": f"{side}.{original}" for side in ("encoder", "decoder")}


def _block(published: str, original: str) -> dict[str, str]:
    """The parts of a residual block."""
    return {f"{published}.{ours}": f"{original}.{theirs}" for ours, theirs in PARTS.items()}


NAMES = {
    "quant_conv": "conv1",
    "post_quant_conv": "conv2",
    **_both("conv_in", "conv1"),
    **_both("norm_out", "head.0"),
    **_both("conv_out", "head.2"),
    **_both("mid_block.attentions.0", "middle.1"),
}
for _side in ("encoder", "decoder"):
    NAMES |= _block(f"{_side}.mid_block.resnets.0", f"{_side}.middle.0")
    NAMES |= _block(f"{_side}.mid_block.resnets.1", f"{_side}.middle.2")
NAMES |= _block("encoder.down_blocks.{}", "encoder.downsamples.{}")
NAMES["encoder.down_blocks.{}"] = "encoder.downsamples.{}"
for _stage in range(STAGES):
    _first, _last = _stage * (BLOCKS + 1), _stage * (BLOCKS + 1) + BLOCKS
    for _number in range(BLOCKS):
        NAMES |= _block(
            f"decoder.up_blocks.{_stage}.resnets.{_number}",
            f"decoder.upsamples.{_first + _number}",
        )
    NAMES[f"decoder.up_blocks.{_stage}.upsamplers.0"] = f"decoder.upsamples.{_last}"

ORIGINAL = Original(NAMES, marks=frozenset({"decoder.middle.0.residual.0.gamma"}))
