"""Prompts to embeddings, as the reference pipeline makes them: zero at the pads, no mask after."""

from __future__ import annotations

import html
import re
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .checkpoint import Component
from .errors import KinemaError

MAX_TOKENS = 512  # what the reference pads and cuts prompts to


class PromptEmbeds(NamedTuple):
    """Embeddings (B, L, text_dim), zero beyond each row's own tokens; its pads up to 512 (B,)."""

    embeds: Tensor
    pad_count: Tensor


class TextEncoder:
    """A tokenizer and an encoder, both opened through transformers from local files only."""

    def __init__(
        self, tokenizer: Component, encoder: Component, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.tokenizer = _open_tokenizer(tokenizer)
        self.model = _open_encoder(encoder, dtype).to(device)
        self.device = device

    @torch.inference_mode()
    def encode(self, prompts: list[str]) -> PromptEmbeds:
        """Embeddings of several prompts, as long as the longest of them."""
        batch = self.tokenizer(
            [clean(prompt) for prompt in prompts],
            padding=True,
            truncation=True,
            max_length=MAX_TOKENS,
            return_tensors="pt",
        ).to(self.device)
        mask = batch.attention_mask
        hidden = self.model(input_ids=batch.input_ids, attention_mask=mask).last_hidden_state
        return PromptEmbeds(hidden * mask[..., None].to(hidden.dtype), MAX_TOKENS - mask.sum(1))

    def warnings(self, prompt: str) -> list[str]:
        """What of the prompt the model cannot take in: unknown words, and what is cut off."""
        text = clean(prompt)
        tokens = self.tokenizer(text, return_offsets_mapping=self.tokenizer.is_fast)
        notes = []
        if self.tokenizer.is_fast and (unknown := _unknown_words(self.tokenizer, tokens, text)):
            notes.append(f"the model has never seen: {', '.join(unknown)}")
        if len(tokens.input_ids) > MAX_TOKENS:
            notes.append(
                f"the prompt has {len(tokens.input_ids)} tokens; those after {MAX_TOKENS} are cut"
            )
        return notes


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


def _open_tokenizer(component: Component) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            component.folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:
        raise KinemaError(f"cannot open {_where(component)}: {_first_line(error)}") from error


def _open_encoder(component: Component, dtype: torch.dtype) -> Any:
    from transformers import UMT5EncoderModel
    from transformers.utils import logging

    known = {"UMT5EncoderModel": UMT5EncoderModel}
    if component.class_name not in known:
        raise KinemaError(
            f"text encoder {component.class_name} is not known; known: {', '.join(known)}"
        )
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model = known[component.class_name].from_pretrained(
            component.folder,
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
        )
    except Exception as error:
        raise KinemaError(f"cannot open {_where(component)}: {_first_line(error)}") from error
    finally:
        if shown:
            logging.enable_progress_bar()
    return model.eval()


def _where(component: Component) -> str:
    return "/".join(component.folder.parts[-2:])


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
