"""Muon, with AdamW beside it.

Muon orthogonalises the momentum of every weight matrix (Jordan et al., 2024,
https://kellerjordan.github.io/posts/muon/); embeddings, gains, biases and the first and last
projections take AdamW.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn


class Muon:
    """Muon for `matrices` (any rank >= 2, flattened to rows), AdamW for `others`."""

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        others: Iterable[nn.Parameter],
        *,
        lr: float = 0.02,
        adam_lr: float = 1e-3,
        momentum: float = 0.95,
        weight_decay: float = 0.01,
    ) -> None:
        self.matrices = list(matrices)
        self.momentum, self.lr, self.weight_decay = momentum, lr, weight_decay
        self.buffers = [torch.zeros_like(p) for p in self.matrices]
        self.adam = torch.optim.AdamW(list(others), lr=adam_lr, betas=(0.9, 0.98), weight_decay=0.0)
        self.adam_lr = adam_lr

    @torch.no_grad()
    def step(self, scale: float = 1.0) -> None:
        """One update with both learning rates multiplied by `scale`."""
        rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        updates = [torch.zeros_like(p) for p in self.matrices]
        for i, (weight, buffer) in enumerate(zip(self.matrices, self.buffers, strict=True)):
            assert weight.grad is not None
            buffer.lerp_(weight.grad, 1 - self.momentum)
            if i % world == rank:  # each process orthogonalises its share
                direction = weight.grad.lerp(buffer, self.momentum).flatten(1)
                updates[i] = orthogonal_update(direction).view_as(weight)
        sum_over_processes(updates)
        for weight, update in zip(self.matrices, updates, strict=True):
            weight.mul_(1 - self.lr * scale * self.weight_decay)
            weight.add_(update, alpha=-self.lr * scale)
        for group in self.adam.param_groups:
            group["lr"] = self.adam_lr * scale
        self.adam.step()

    def zero_grad(self) -> None:
        """Forget the gradients of all parameters."""
        for weight in self.matrices:
            weight.grad = None
        self.adam.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run goes on with."""
        return {"buffers": self.buffers, "adam": self.adam.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave, for the same parameters in the same order."""
        for mine, saved in zip(self.buffers, state["buffers"], strict=True):
            mine.copy_(saved)
        self.adam.load_state_dict(state["adam"])


def orthogonal_update(direction: torch.Tensor) -> torch.Tensor:
    """The update for a gradient direction (rows, columns).

    A matrix with two or three times as many rows as columns is taken for packed projections (kv,
    qkv), which are orthogonalised one by one.
    """
    rows, columns = direction.shape
    packed = rows // columns if rows in (2 * columns, 3 * columns) else 1
    parts = [orthogonalise(part) for part in direction.chunk(packed)]
    return torch.cat(parts) * max(1.0, rows / packed / columns) ** 0.5


def orthogonalise(matrix: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Approximate U V^T of `matrix` = U S V^T by a quintic Newton-Schulz iteration in bf16."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.to(torch.bfloat16)
    transposed = x.shape[0] > x.shape[1]
    x = x.T if transposed else x
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.T if transposed else x).to(matrix.dtype)


def trapezoid(progress: float, *, warmup: float = 0.02, cooldown: float = 0.3) -> float:
    """Learning-rate multiplier at `progress` in 0..1: linear up, flat, linear down to zero."""
    if progress < warmup:
        return (progress + 1e-3) / (warmup + 1e-3)
    return min(1.0, max(0.0, (1.0 - progress) / cooldown))


def sum_over_processes(tensors: list[torch.Tensor]) -> None:
    """Replace each tensor by its sum over the processes (nothing to do for one)."""
    if not dist.is_initialized():
        return
    flat = torch.cat([t.flatten() for t in tensors])
    dist.all_reduce(flat)
    for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))
