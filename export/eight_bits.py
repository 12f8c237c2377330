"""Products of 8-bit values, as PyTorch computes them: what a quantized graph is compared with.

Scales are symmetric: a value is a whole number of steps (int8), or an e4m3 number of them (fp8).
Rounding is to the nearest, ties to even, and what is beyond the largest value becomes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..kernels.formats import FORMATS, LEAST_PEAK
from ..runtime.errors import KinemaError

LARGEST = {name: limit for name, (_, limit) in FORMATS.items()}
LEAST = {"fp8": -LARGEST["fp8"], "int8": -128.0}  # of inputs; weights are symmetric


class Weight(NamedTuple):
    """8-bit `values` (out, in) and the `scale` (out,) of each row."""

    values: Tensor
    scale: Tensor


class Scales(NamedTuple):
    """What a product is quantized with: its input's scale, and its weight."""

    x: Tensor
    weight: Weight


def settle(layer: nn.Linear, x_scale: float, to: str, dtype: torch.dtype = torch.float32) -> Scales:
    """Scales as a graph that computes in `dtype` holds them, and the weight rounded with these."""
    weight = layer.weight.detach().float()
    peak = weight.abs().amax(dim=1).clamp(min=LEAST_PEAK)
    scale = (peak / LARGEST[to]).to(dtype).clamp(min=torch.finfo(dtype).tiny)
    steps = (weight / scale.float()[:, None]).clamp(-LARGEST[to], LARGEST[to])
    return Scales(torch.tensor(x_scale).to(dtype), Weight(_values(steps, to), scale))


def nearest(steps: Tensor, to: str) -> Tensor:
    """The nearest 8-bit values, as numbers of the dtype that they came in."""
    return _values(steps.clamp(LEAST[to], LARGEST[to]), to).to(steps.dtype)


def _values(steps: Tensor, to: str) -> Tensor:
    return (steps.round() if to == "int8" else steps).to(FORMATS[to][0])


class Twin:
    """A model whose layers compute with rounded inputs and weights inside `with`, in fp32.

    In `steps` it may be given what another made of the inputs, in 8-bit steps. Those are used then,
    so that one value on the edge between two steps does not drive both apart from there on. Each is
    checked: only what rounding of the input within `slack` of itself (a part of it and of the RMS)
    gives will do. `moved` of `seen` values were rounded to another step than here.
    """

    def __init__(
        self, layers: Mapping[str, nn.Linear], scales: Mapping[str, Scales], to: str, slack: float
    ) -> None:
        self.layers = {name: layers[name] for name in scales}
        self.scales, self.to, self.slack = scales, to, slack
        self.steps: dict[str, Tensor] = {}
        self.moved = self.seen = 0

    def __enter__(self) -> Twin:
        self.exact = {name: layer.weight for name, layer in self.layers.items()}
        for name, layer in self.layers.items():
            values, scale = self.scales[name].weight
            weight = values.float() * scale.float()[:, None]
            layer.weight = nn.Parameter(weight, requires_grad=False)
        self.watching = watched(self.layers, self._round)
        self.watching.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.watching.__exit__(None, None, None)
        for name, layer in self.layers.items():
            layer.weight = self.exact[name]

    def _round(self, name: str, x: Tensor) -> Tensor:
        scale = self.scales[name].x.float()
        steps = nearest(x / scale, self.to)
        if name in self.steps:
            given = self.steps[name].view(x.shape)
            self._check(name, x, given)
            self.moved += int((given != steps).sum())
            self.seen += steps.numel()
            steps = given
        return steps * scale

    def _check(self, name: str, x: Tensor, given: Tensor) -> None:
        scale = self.scales[name].x.float()
        slack = self.slack * (x.abs() + x.square().mean().sqrt())
        least, most = (nearest((x + way * slack) / scale, self.to) for way in (-1, 1))
        if not ((least <= given) & (given <= most)).all():
            raise KinemaError(f"the exported graph rounds what goes into {name} to other values")


@contextmanager
def watched(
    layers: Mapping[str, nn.Linear], see: Callable[[str, Tensor], Tensor | None]
) -> Iterator[None]:
    """Inside, `see(name, x)` is told of each layer's input, and may give another."""

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor]], Tensor | None]:
        return lambda module, inputs: see(name, inputs[0])

    handles = [layer.register_forward_pre_hook(hook(name)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
