"""The text side of the embedded model: a small UMT5 over a word-level vocabulary."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..runtime.checkpoints.presets import TEXT_LENGTH
from .captions import vocabulary, words

if TYPE_CHECKING:
    from transformers import UMT5EncoderModel

PAD, EOS, UNK = "<pad>", "</s>", "<unk>"
MAX_TOKENS = 24  # of a training caption; the encoder itself takes up to TEXT_LENGTH
CONFIG = {
    "d_model": 256,
    "d_kv": 64,
    "d_ff": 512,
    "num_layers": 2,
    "num_heads": 4,
    "dropout_rate": 0.0,
    "relative_attention_num_buckets": 16,
    "relative_attention_max_distance": 24,
    "pad_token_id": 0,
    "eos_token_id": 1,
}


def token_table() -> dict[str, int]:
    """Every token and its number: the three special ones, then the vocabulary in order."""
    known = sorted({word for group in vocabulary().values() for word in group})
    return {token: i for i, token in enumerate([PAD, EOS, UNK, *known])}


def tokenize(captions: list[str], table: dict[str, int]) -> tuple[Tensor, Tensor]:
    """Token numbers (B, MAX_TOKENS) and lengths (B,), with the end token, as the tokenizer does."""
    rows = [
        [*[table.get(word, 2) for word in words(text)][: MAX_TOKENS - 1], 1] for text in captions
    ]
    tokens = torch.zeros(len(rows), MAX_TOKENS, dtype=torch.long)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = torch.tensor(row)
    return tokens, torch.tensor([len(row) for row in rows])


def write_tokenizer(folder: Path) -> None:
    """Write the word-level tokenizer in the layout transformers opens."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel(token_table(), unk_token=UNK))
    tokenizer.normalizer = normalizers.Lowercase()
    split = pre_tokenizers.Split(Regex("[^a-z0-9]+"), "removed")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {EOS}", special_tokens=[(EOS, 1)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNK,
        model_max_length=TEXT_LENGTH,
        clean_up_tokenization_spaces=False,
    )
    fast.save_pretrained(folder)


# What tells straight motions and rest apart. Before the transformer can show a direction these
# words all mean the same to it, and the encoder merges them for good unless they start far apart.
DIRECTION_WORDS = {
    "left": "left leftward leftwards",
    "right": "right rightward rightwards",
    "up": "up upward upwards top rises rising climbs climbing ascends ascending",
    "down": "down downward downwards bottom falls falling drops dropping sinks sinking descends"
    " descending",
    "still": "still rests resting stays staying sits sitting stands standing not",
}
DIRECTION_SCALE = 10.0  # of what such words share, in standard deviations of an embedding


def new_text_encoder() -> UMT5EncoderModel:
    """A fresh `UMT5EncoderModel` whose words for different directions start far apart."""
    from transformers import UMT5Config, UMT5EncoderModel

    table = token_table()
    encoder = UMT5EncoderModel(UMT5Config(vocab_size=len(table), **CONFIG))
    with torch.no_grad():
        for group in DIRECTION_WORDS.values():
            shared = DIRECTION_SCALE * torch.randn(CONFIG["d_model"])
            for word in group.split():
                encoder.shared.weight[table[word]] += shared
    return encoder


def embed(encoder: UMT5EncoderModel, tokens: Tensor, lengths: Tensor) -> Tensor:
    """Prompt embeddings (B, L, 256), zero at the pads as the reference pipeline has them."""
    own = torch.arange(tokens.shape[1])[None] < lengths[:, None]
    hidden = encoder(input_ids=tokens, attention_mask=own.long()).last_hidden_state
    return hidden * own[..., None]
