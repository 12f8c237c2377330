"""What stands in for a component that runs as graphs: the same calls, no weights of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UsageError
from .manifest import GraphEntry
from .names import flatten

Runner = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]


class TransformerGraphs(nn.Module):
    """Binds and predicts as a transformer does. `config` is the transformer's own."""

    def __init__(
        self, config: Any, entry: GraphEntry, step: Runner, text_context: Runner, executor: str
    ) -> None:
        super().__init__()
        self.config, self.step, self.text_context = config, step, text_context
        self.ops = SimpleNamespace(backends={"transformer": executor})
        self.ports = {port.name: port for port in entry.inputs}

    def bind(
        self,
        latent_shape: tuple[int, ...],
        timesteps: Tensor,
        prompt_embeds: Tensor,
        pad_count: Tensor,
        **shown: Any,
    ) -> Callable[[Tensor, int], Tensor]:
        """`predict(latents, step)` for one request, its text's part computed now.

        Timesteps (num_steps,), or (num_steps, F, H, W) broadcasting to latents. Raises `UsageError`
        for timesteps that differ where the graph was exported for one.
        """
        given = {"prompt_embeds": prompt_embeds, "pad_count": pad_count, **shown}
        text = self.text_context(flatten("", given))
        steps = self._on_tokens(timesteps, tuple(latent_shape[-3:]))
        rows = len(pad_count)

        def predict(latents: Tensor, step: int) -> Tensor:
            inputs = {
                "latents": latents.float().expand(rows, *latents.shape[1:]),
                "timesteps": steps[step].expand(rows, *steps.shape[2:]),
                **text,
            }
            return self.step(inputs)["prediction"]

        return predict

    def _on_tokens(self, timesteps: Tensor, sides: tuple[int, ...]) -> Tensor:
        """(num_steps, 1, F or 1, H or 1, W or 1) on the token grid, as the graph takes them."""
        timesteps = timesteps.float()
        if timesteps.dim() == 1:
            timesteps = timesteps[:, None, None, None]
        shape = [len(timesteps)]
        for axis, (patch, length) in enumerate(zip(self.config.patch, sides, strict=True), 1):
            if timesteps.shape[axis] > 1:
                timesteps = timesteps.index_select(
                    axis, torch.arange(0, length, patch, device=timesteps.device)
                )
            varies = not isinstance(self.ports["timesteps"].shape[axis], int)
            if not varies and timesteps.shape[axis] > 1:
                raise UsageError(
                    f"timesteps differ along axis {axis} of the tokens, which this export has as"
                    " one; export the checkpoint anew"
                )
            shape.append(length // patch if varies else 1)
        return timesteps.expand(shape)[:, None]

    def block_lists(self) -> list[nn.ModuleList]:
        """None: its blocks are in the graph."""
        return []


class Coding:
    """First and next of an autoencoder's coder, by the graphs of that name."""

    def __init__(self, given: str, made: str, first: Runner, later: Runner) -> None:
        self.given, self.made, self.first_graph, self.next_graph = given, made, first, later

    def first(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Of the clip's first frame: the result, and what the next call needs."""
        return self._split(self.first_graph({self.given: x}))

    def next(self, x: Tensor, memory: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Of what follows."""
        return self._split(self.next_graph({self.given: x, **flatten("memory", memory)}))

    def _split(self, outputs: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
        made = outputs.pop(self.made)
        return made, list(outputs.values())
