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
    so that one value on the edge between two steps does not drive both apart from there on. Each
    tensor of them is checked: how far its inputs must at least be from those here is in the RMS no
    more than `slack`, as a part of their own. That is a bound on the error's RMS and on nothing
    else: single values may be off by many times as much, where a norm or a product magnifies what
    came before. `moved` of `seen` values were rounded to another step than here.
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
        least = scale * distance(x / scale, given, self.to)
        if not _rms(least) <= self.slack * _rms(x):  # nor if it is no number
            raise KinemaError(f"the exported graph rounds what goes into {name} to other values")


def distance(steps: Tensor, given: Tensor, to: str) -> Tensor:
    """How far each of `steps` is from what rounds to the 8-bit value `given`; 0 where it does."""
    values = _all_values(to)
    at = torch.searchsorted(values, given.contiguous()).clamp(max=len(values) - 1)
    edges, end = (values[1:] + values[:-1]) / 2, torch.tensor([torch.inf])
    below, above = torch.cat([-end, edges])[at], torch.cat([edges, end])[at]
    return (below - steps).clamp(min=0) + (steps - above).clamp(min=0)


def _all_values(to: str) -> Tensor:
    """The 8-bit values in rising order, in fp32."""
    values = torch.arange(-128, 128, dtype=torch.int8).view(FORMATS[to][0]).float()
    return values[values.isfinite()].unique()


def _rms(x: Tensor) -> float:
    return x.double().square().mean().sqrt().item()


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
