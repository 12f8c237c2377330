"""Bytes of weights, told from headers, and which of them belong to a block."""

from __future__ import annotations

import pytest
import torch

from kinema.runtime import opening
from kinema.runtime.checkpoints.checkpoint import open_checkpoint
from kinema.runtime.planning import weight_sizes


def test_weights_are_counted_as_they_are_held():
    checkpoint, cpu = open_checkpoint(), torch.device("cpu")
    module = opening.open_component(checkpoint, "transformer", cpu, torch.bfloat16)
    sizes = weight_sizes.weight_bytes(checkpoint, "bfloat16")
    assert sizes["transformer"] == sum(x.nbytes for x in module.parameters())


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("blocks.3.attn1.to_q.weight", "blocks.3."),
        ("vace_blocks.0.proj_in.bias", "vace_blocks.0."),
        ("encoder.block.11.layer.0.SelfAttention.q.weight", "encoder.block.11."),
        ("vision_model.encoder.layers.7.mlp.fc1.weight", "vision_model.encoder.layers.7."),
        ("patch_embedding.weight", None),
        ("decoder.up_blocks.0.resnets.1.conv1.weight", None),
    ],
)
def test_blocks_are_told_by_their_names(name, block):
    found = weight_sizes.BLOCK.match(name)
    assert (found and found.group()) == block
