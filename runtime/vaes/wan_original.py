"""Names of the autoencoders in Wan's own repositories (`Wan2.1_VAE.pth`, `Wan2.2_VAE.pth`, once
converted).

The names are those of https://github.com/Wan-Video/Wan2.2: wan/modules/vae2_1.py, vae2_2.py.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..checkpoints.originals import Original, Originals

STAGES, BLOCKS = 4, 3  # of the decoder; the encoder's stages have a block less

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


def _merged(tables: Iterator[dict[str, str]]) -> dict[str, str]:
    return {ours: theirs for table in tables for ours, theirs in table.items()}


SHARED = {
    "quant_conv": "conv1",
    "post_quant_conv": "conv2",
    **_both("conv_in", "conv1"),
    **_both("norm_out", "head.0"),
    **_both("conv_out", "head.2"),
    **_both("mid_block.attentions.0", "middle.1"),
    **_block("encoder.mid_block.resnets.0", "encoder.middle.0"),
    **_block("decoder.mid_block.resnets.0", "decoder.middle.0"),
    **_block("encoder.mid_block.resnets.1", "encoder.middle.2"),
    **_block("decoder.mid_block.resnets.1", "decoder.middle.2"),
}


def _numbered_through() -> Iterator[dict[str, str]]:
    """Wan 2.1: one list of blocks and changes of resolution, the decoder's with stages."""
    yield _block("encoder.down_blocks.{}", "encoder.downsamples.{}")
    yield {"encoder.down_blocks.{}": "encoder.downsamples.{}"}
    for stage in range(STAGES):
        first, ours = stage * (BLOCKS + 1), f"decoder.up_blocks.{stage}"
        for number in range(BLOCKS):
            yield _block(f"{ours}.resnets.{number}", f"decoder.upsamples.{first + number}")
        yield {f"{ours}.upsamplers.0": f"decoder.upsamples.{first + BLOCKS}"}


def _in_stages() -> Iterator[dict[str, str]]:
    """Wan 2.2: a list in each stage, whose last is the change of resolution."""
    for side, way, blocks in (("encoder", "down", BLOCKS - 1), ("decoder", "up", BLOCKS)):
        for stage in range(STAGES):
            ours = f"{side}.{way}_blocks.{stage}"
            theirs = f"{side}.{way}samples.{stage}.{way}samples"
            for number in range(blocks):
                yield _block(f"{ours}.resnets.{number}", f"{theirs}.{number}")
            yield {f"{ours}.{way}sampler": f"{theirs}.{blocks}"}


WAN_2_1 = Original(
    SHARED | _merged(_numbered_through()), marks=frozenset({"decoder.middle.0.residual.0.gamma"})
)
WAN_2_2 = Original(
    SHARED | _merged(_in_stages()),
    marks=frozenset({"decoder.upsamples.0.upsamples.0.residual.0.gamma"}),
)
ORIGINAL = Originals((WAN_2_2, WAN_2_1))  # the mark of 2.1 is in both
