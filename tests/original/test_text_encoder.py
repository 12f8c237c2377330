"""Text encoders from the original repositories, which are pickles until they are converted."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from kinema.runtime.checkpoints import foreign
from kinema.runtime.errors import KinemaError

from .conftest import component_of, convert, original_text_encoder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_an_original_text_encoder_opens_as_a_published_one(tmp_path, text_encoder, dtype):
    original = original_text_encoder(text_encoder)
    assert set(original) == {
        "token_embedding.weight",
        "norm.weight",
        *(
            f"blocks.{i}.{part}.weight"
            for i in (0, 1)
            for part in (
                *("norm1", "attn.q", "attn.k", "attn.v", "attn.o", "pos_embedding.embedding"),
                *("norm2", "ffn.gate.0", "ffn.fc1", "ffn.fc2"),
            )
        ),
    }
    (tmp_path / "own").mkdir()
    convert(original, "models_t5_umt5-xxl-enc-bf16.pth", tmp_path / "own")
    opened = foreign.open_model(
        component_of(text_encoder, tmp_path / "own"), ("UMT5EncoderModel",), dtype
    )
    text_encoder.save_pretrained(tmp_path / "published")
    wanted = foreign.open_model(
        component_of(text_encoder, tmp_path / "published"), ("UMT5EncoderModel",), dtype
    )
    assert {n: w.dtype for n, w in opened.state_dict().items()} == {
        n: w.dtype for n, w in wanted.state_dict().items()
    }
    tokens = torch.tensor([[3, 5, 7, 1]])
    assert torch.equal(opened(tokens).last_hidden_state, wanted(tokens).last_hidden_state)


def test_what_an_original_text_encoder_lacks_is_listed(tmp_path, text_encoder):
    original = original_text_encoder(text_encoder)
    del original["blocks.1.ffn.fc2.weight"]
    save_file({**original, "head.weight": torch.ones(2)}, tmp_path / "t5.safetensors")
    with pytest.raises(KinemaError, match=r"missing: encoder\.block\.1\..*wo.*known: head"):
        foreign.open_model(
            component_of(text_encoder, tmp_path), ("UMT5EncoderModel",), torch.float32
        )
