"""A training run that can be killed and resumed: clock, step, weight average, state and log."""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .optim import Muon, sum_over_processes

LOG_EVERY, SAVE_EVERY = 20, 150  # steps
CPU = torch.device("cpu")


@dataclasses.dataclass(frozen=True)
class Process:
    """One of `count` processes that train together, each on its own part of the data."""

    rank: int = 0
    count: int = 1
    device: torch.device = CPU

    def agree(self, value: float) -> float:
        """The first process's value, so that all of them stop at the same step."""
        if self.count == 1:
            return value
        shared = torch.tensor([value], dtype=torch.float64)
        dist.broadcast(shared, 0)
        return float(shared)

    def autocast(self) -> torch.autocast:
        """bfloat16 in products, as everything here is trained."""
        return torch.autocast(self.device.type, torch.bfloat16)


class Run:
    """Iterate for `minutes` of training time, counted over all resumptions; yields progress 0..1.

    `is_matrix(name, parameter)` picks what Muon trains; AdamW takes the rest. The state is
    `folder/NAME.pt`, the log `folder/NAME.log`.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        minutes: float,
        module: nn.Module,
        is_matrix: Callable[[str, nn.Parameter], bool],
        process: Process,
        decay: float = 0.995,
    ) -> None:
        named = dict(module.named_parameters())
        matrices = [p for key, p in named.items() if is_matrix(key, p)]
        chosen = {id(p) for p in matrices}
        self.module, self.process, self.minutes, self.decay = module, process, minutes, decay
        self.parameters = list(named.values())
        self.optimiser = Muon(matrices, [p for p in self.parameters if id(p) not in chosen])
        self.average = {key: p.detach().clone() for key, p in named.items()}
        self.steps, self.spent, self.losses = 0, 0.0, []
        self.state_file, self.log_file = folder / f"{name}.pt", folder / f"{name}.log"
        if self.state_file.exists():
            self._load()

    def __iter__(self) -> Iterator[float]:
        """Progress before each step; ends when the time is up, with the state saved."""
        before, started = self.spent, time.monotonic()
        while True:
            self.spent = before + time.monotonic() - started
            progress = self.process.agree(min(self.spent / max(60 * self.minutes, 1e-9), 1.0))
            if progress >= 1.0:
                self._save()
                return
            yield progress
            if self.steps % SAVE_EVERY == 0:  # the caller has taken its step
                self._save()

    def step(self, loss: Tensor, scale: float, parts: dict[str, Tensor]) -> None:
        """One update with the learning rates times `scale`; `parts` of the loss are for the log."""
        loss.backward()
        if self.process.count > 1:
            gradients = [p.grad for p in self.parameters if p.grad is not None]
            sum_over_processes(gradients)
            torch._foreach_div_(gradients, self.process.count)
        norm = nn.utils.clip_grad_norm_(self.parameters, 1.0)
        if not math.isfinite(norm):
            raise FloatingPointError(f"the gradient is not finite at step {self.steps}")
        self.optimiser.step(scale)
        self.optimiser.zero_grad()
        self.steps += 1
        self._update_average()
        self.losses.append({key: value.detach() for key, value in parts.items()})
        if self.process.rank == 0 and self.steps % LOG_EVERY == 0:
            self._log()

    @torch.no_grad()
    def use_average(self) -> None:
        """Put the averaged weights into the module."""
        for key, parameter in self.module.named_parameters():
            parameter.copy_(self.average[key])

    @torch.no_grad()
    def _update_average(self) -> None:
        decay = min(self.decay, self.steps / (self.steps + 9))
        for key, parameter in self.module.named_parameters():
            self.average[key].lerp_(parameter, 1 - decay)

    def _log(self) -> None:
        recent, self.losses = self.losses, []
        means = {key: sum(float(row[key]) for row in recent) / len(recent) for key in recent[0]}
        text = " ".join(f"{key} {value:.4f}" for key, value in means.items())
        with self.log_file.open("a") as log:
            log.write(f"{self.spent / 60:.1f} min, step {self.steps}: {text}\n")

    def _load(self) -> None:
        state = torch.load(self.state_file, weights_only=True, map_location=self.process.device)
        self.module.load_state_dict(state["module"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.average = state["average"]
        self.steps, self.spent = state["steps"], state["spent"]

    def _save(self) -> None:
        if self.process.rank == 0:
            state = {
                "module": self.module.state_dict(),
                "optimiser": self.optimiser.state_dict(),
                "average": self.average,
                "steps": self.steps,
                "spent": self.spent,
            }
            save_state(self.state_file, state)


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write beside and rename, so that a killed run leaves the previous state."""
    temporary = path.with_suffix(".partial")
    torch.save(state, temporary)
    os.replace(temporary, path)
