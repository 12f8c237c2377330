"""Text encoders, as transformers runs them, in sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..ledger import FP32, Ledger, Size


def umt5(ledger: Ledger, config: Mapping[str, Any], tokens: int, item: int) -> int:
    """`UMT5EncoderModel`, one prompt; gives the width of its embeddings."""
    dim, heads, inner = config["d_model"], config["num_heads"], config["d_kv"]
    gated = "gated" in config.get("feed_forward_proj", "relu")

    def norm(x: Size) -> Size:
        wide = ledger.cast(x, FP32)
        ledger.each(wide)
        return ledger.each(ledger.cast(ledger.each(wide), item))

    def attention(x: Size) -> Size:
        query, key, value = (ledger.linear(x, heads * inner) for _ in range(3))  # noqa: RUF059
        bias = ledger.new(heads, tokens, tokens, item=item)
        scores = ledger.each(ledger.each(bias, bias), bias)
        ledger.spend("attention", item, 4 * heads * inner * tokens**2)
        scores = ledger.each(scores)  # softmax
        return ledger.linear(ledger.each(query), dim)

    def feed_forward(x: Size) -> Size:
        hidden = ledger.activate(ledger.linear(x, config["d_ff"]))
        if gated:
            hidden = ledger.each(hidden, ledger.linear(x, config["d_ff"]))
        return ledger.linear(hidden, dim)

    x = ledger.each(ledger.new(1, tokens, dim, item=item))
    with ledger.repeat(config["num_layers"]):
        x = ledger.each(x, attention(norm(x)))
        x = ledger.each(x, feed_forward(norm(x)))
    norm(x)
    return dim
