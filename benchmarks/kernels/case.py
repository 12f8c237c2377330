"""An operation on a set of arguments: who runs it here, and how far off an output is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from ...kernels import dispatch, reference
from ...kernels.formats import Quantized, dequantize

Call = Callable[..., Any]


def whole(value: Any) -> Any:
    """All of it."""
    return value


@dataclass(frozen=True)
class Case:
    """One operation on one set of arguments.

    The definition is compared on `part_of_args` of the arguments with `part_of_output` of an
    output; `exact` changes options for it, or replaces them for another `definition`. `peers`
    stand in for eager and compiled PyTorch.
    """

    op: str
    model: str
    variant: str
    args: tuple[Any, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    needs: Mapping[str, Any] = field(default_factory=dict)
    flops: float = 0.0
    bytes: float = 0.0
    lossy: bool = False
    exact: Mapping[str, Any] = field(default_factory=dict)
    definition: str | None = None
    part_of_args: Callable[[tuple[Any, ...]], tuple[Any, ...]] | None = whole
    part_of_output: Callable[[Any], Any] = whole
    peers: Mapping[str, Callable[[], Any]] | None = None

    def call(self, function: Call) -> Callable[[], Any]:
        """`function` on these arguments."""
        return partial(function, *self.args, **self.options)

    def ours(self, device: str) -> dict[str, Callable[[], Any]]:
        """What this package runs here, by backend; plain PyTorch's is a peer.

        Lossy backends are operations of their own here.
        """
        return {
            entry.name: self.call(entry.load())
            for entry in dispatch.backends(self.op)
            if entry.name != "torch"
            and entry.automatic
            and entry.missing(torch.device(device), self.needs) is None
        }

    def others(self, compiled: bool) -> dict[str, Callable[[], Any]]:
        """Peers: eager PyTorch, and if `compiled` torch.compile of the same."""
        if self.peers is not None:
            return dict(self.peers)
        eager = self.eager()
        found = {"eager": self.call(eager)}
        if compiled:
            found["compile"] = self.call(torch.compile(eager, fullgraph=True, dynamic=False))
        return found

    def eager(self) -> Call:
        """The operation in plain PyTorch."""
        table = {entry.name: entry for entry in dispatch.backends(self.op)}
        return table["torch"].load()

    def errors(self, output: Any) -> tuple[float, float, bool]:
        """Largest error of an output, what is allowed, and whether it and its RMS are within.

        Allowed is twice the error of plain PyTorch in the same dtype and half a unit in the last
        place of the largest value, both against the definition in fp32, or in fp64 for fp32.
        """
        assert self.part_of_args is not None  # what is too large to compare is not asked about
        args = self.part_of_args(self.args)
        actual = _leaves(self.part_of_output(output))
        plain = _leaves(self.eager()(*args, **self.options))
        definition = getattr(reference, self.definition or self.op)
        options = dict(self.exact) if self.definition else {**self.options, **self.exact}
        precise = _double if self.needs.get("dtype") == torch.float32 else _fp32
        truth = _leaves(definition(*tree_map(precise, args), **tree_map(precise, options)))
        worst = (0.0, 0.0, True)
        for own, other, true in zip(actual, plain, truth, strict=True):
            unit = torch.finfo(own.dtype).eps / 2 * true.abs().max().item()
            error, usual = ((x.to(true.dtype) - true).abs() for x in (own, other))
            allowed = 2 * usual.max().item() + unit
            fits = bool(error.isfinite().all()) and error.max().item() <= allowed
            fits &= _rms(error) <= 2 * _rms(usual) + unit
            if not fits or error.max().item() >= worst[0]:
                worst = (error.max().item(), allowed, fits and worst[2])
        return worst


def _leaves(value: Any) -> list[Tensor]:
    """Tensors of an output; 8-bit ones as the numbers they stand for."""
    if isinstance(value, Quantized):
        return [dequantize(value)]
    if isinstance(value, Tensor):
        return [value]
    return [leaf for item in value for leaf in _leaves(item)]


def _fp32(leaf: Any) -> Any:
    halves = (torch.bfloat16, torch.float16)
    return leaf.float() if isinstance(leaf, Tensor) and leaf.dtype in halves else leaf


def _double(leaf: Any) -> Any:
    return leaf.double() if isinstance(leaf, Tensor) and leaf.dtype == torch.float32 else leaf


def _rms(x: Tensor) -> float:
    return x.square().mean().sqrt().item()
