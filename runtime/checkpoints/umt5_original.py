"""Names of the text encoder in Wan's own repositories (`models_t5_umt5-xxl-enc-bf16.pth`, once
converted).

The names are those of https://github.com/Wan-Video/Wan2.2: wan/modules/t5.py.
"""

from __future__ import annotations

from .originals import Original

# Published name: original name. A name may be a module's.
ATTENTION = {
    "layer_norm": "norm1",
    "SelfAttention.q": "attn.q",
    "SelfAttention.k": "attn.k",
    "SelfAttention.v": "attn.v",
    "SelfAttention.o": "attn.o",
    "SelfAttention.relative_attention_bias": "pos_embedding.embedding",
}
FEED_FORWARD = {
    "layer_norm": "norm2",
    "DenseReluDense.wi_0": "ffn.gate.0",
    "DenseReluDense.wi_1": "ffn.fc1",
    "DenseReluDense.wo": "ffn.fc2",
}
ORIGINAL = Original(
    {
        "shared": "token_embedding",
        "encoder.final_layer_norm": "norm",
        **{f"encoder.block.{{}}.layer.0.{k}": f"blocks.{{}}.{v}" for k, v in ATTENTION.items()},
        **{f"encoder.block.{{}}.layer.1.{k}": f"blocks.{{}}.{v}" for k, v in FEED_FORWARD.items()},
    },
    marks=frozenset({"token_embedding.weight"}),
)
