"""Encoders of transformers as graphs: tensors in, one tensor out."""

from __future__ import annotations

from torch import Tensor, nn


class TextEncoderGraph(nn.Module):
    """A text encoder: tokens (B, L) and a mask of those that count, to states (B, L, dim)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor]:
        states = self.model(input_ids=input_ids, attention_mask=attention_mask)
        return (states.last_hidden_state,)


class ImageEncoderGraph(nn.Module):
    """A picture encoder: pixels (B, 3, H, W) to the states of its last layer but one."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> tuple[Tensor]:
        return (self.model(pixel_values, output_hidden_states=True).hidden_states[-2],)
