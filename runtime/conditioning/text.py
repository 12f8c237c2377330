"""Prompts to embeddings, as the reference pipeline makes them: zero at the pads, no mask after."""

from __future__ import annotations

import hashlib
import html
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from .. import registry
from ..checkpoints import foreign
from ..checkpoints.checkpoint import Component
from ..checkpoints.presets import TEXT_LENGTH
from ..execution.offload import Offload
from .encoder import Encoder
from .text_cache import EmbeddingCache

if TYPE_CHECKING:
    from ..graphs.shells import Runner

SHOWN = 60  # characters of what is cut that a warning quotes


class PromptEmbeds(NamedTuple):
    """Embeddings (B, L, text_dim), zero beyond each row's own tokens, and its pads up to the
    length that prompts are cut at (B,)."""

    embeds: Tensor
    pad_count: Tensor


class TextEncoder(Encoder):
    """A tokenizer and an encoder, which is read when a prompt comes that is not in the cache.

    Prompts are cut at `limit` tokens.
    """

    known = tuple(registry.TEXT_ENCODERS)
    blocks = ("encoder.block",)

    def __init__(
        self,
        tokenizer: Component,
        encoder: Component,
        device: torch.device,
        dtype: torch.dtype,
        offload: Offload | None = None,
        cache: EmbeddingCache | None = None,
        graph: Runner | None = None,
        limit: int = TEXT_LENGTH,
    ) -> None:
        super().__init__(encoder, device, dtype, offload, graph)
        self.tokenizer = foreign.open_helper(tokenizer, "AutoTokenizer", trust_remote_code=False)
        self.cache, self.limit = EmbeddingCache() if cache is None else cache, limit
        kind = "" if graph is None else " graph"
        self.identity = f"{foreign.fingerprint(encoder)} {dtype} {device.type}{kind}"

    @torch.inference_mode()
    def encode(self, prompts: Sequence[str]) -> PromptEmbeds:
        """Embeddings of several prompts, as long as the longest of them.

        Each is encoded alone, so that it does not depend on its neighbours or on the cache.
        """
        rows = [self._tokens(prompt) for prompt in prompts]
        found: dict[tuple[int, ...], Any] = {row: self.cache.get(self._key(row)) for row in rows}
        if absent := [row for row, embeds in found.items() if embeds is None]:
            for row, embeds in zip(absent, self._run(absent), strict=True):
                self.cache.put(self._key(row), embeds)
                found[row] = embeds
        embeds = [found[row].to(self.device) for row in rows]
        pad_count = torch.tensor([self.limit - len(row) for row in rows], device=self.device)
        return PromptEmbeds(pad_sequence(embeds, batch_first=True), pad_count)

    def warnings(self, prompt: str) -> list[str]:
        """What of the prompt the model cannot take in: unknown words, and what is cut off."""
        text = clean(prompt)
        tokens = self.tokenizer(text, return_offsets_mapping=self.tokenizer.is_fast)
        notes = []
        if self.tokenizer.is_fast and (unknown := _unknown_words(self.tokenizer, tokens, text)):
            notes.append(f"the model has never seen: {', '.join(unknown)}")
        if (count := len(tokens.input_ids)) > self.limit:
            cut = self._cut(text)
            notes.append(
                f"the prompt has {count} tokens; those after {self.limit} are cut"
                + (f": {cut!r}" if cut else "")
            )
        return notes

    def _cut(self, text: str) -> str:
        """What of a text is beyond the limit, shortened."""
        if not self.tokenizer.is_fast:
            return ""
        kept = self.tokenizer(
            text, truncation=True, max_length=self.limit, return_offsets_mapping=True
        )
        rest = text[max(stop for _, stop in kept.offset_mapping) :].strip()
        return rest if len(rest) <= SHOWN else f"{rest[:SHOWN].rstrip()}..."

    def _tokens(self, prompt: str) -> tuple[int, ...]:
        tokens = self.tokenizer(clean(prompt), truncation=True, max_length=self.limit)
        return tuple(tokens.input_ids)

    def _key(self, tokens: tuple[int, ...]) -> str:
        return hashlib.sha256(f"{self.identity} {tokens}".encode()).hexdigest()

    def _run(self, rows: Sequence[tuple[int, ...]]) -> list[Tensor]:
        """Embeddings (length, text_dim) of rows of tokens, on the CPU."""
        tokens = (torch.tensor([row], device=self.device) for row in rows)
        if self.graph is None:
            model = self.open().use()
            states = (model(input_ids=row).last_hidden_state for row in tokens)
        else:
            given = ({"input_ids": row, "attention_mask": torch.ones_like(row)} for row in tokens)
            states = (self.graph(inputs)["embeds"] for inputs in given)
        return [state[0].to("cpu", self.dtype) for state in states]


def clean(prompt: str) -> str:
    """The prompt as the reference cleans it: mended, unescaped, single spaces."""
    try:
        import ftfy

        prompt = ftfy.fix_text(prompt)
    except ImportError:
        pass  # the reference also goes without
    prompt = html.unescape(html.unescape(prompt))
    return re.sub(r"\s+", " ", prompt).strip()


def _unknown_words(tokenizer: Any, tokens: Any, text: str) -> list[str]:
    spans = zip(tokens.input_ids, tokens.offset_mapping, strict=True)
    found = [text[a:b] for token, (a, b) in spans if token == tokenizer.unk_token_id and b > a]
    return list(dict.fromkeys(found))
