"""Graphs as torch.export has them: what every format is made of."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from .axes import dynamic_shapes

if TYPE_CHECKING:
    from .graphs import Graph

LOGGERS = ("torch.onnx", "onnxscript", "onnx_ir")


def trace(graph: Graph) -> torch.export.ExportedProgram:
    """A graph as torch.export has it, its axes free within their limits."""
    inputs = graph.examples(graph.base)
    shapes = dynamic_shapes(graph.axes(), graph.most)
    with torch.no_grad(), quiet():
        module = Flat(graph.module, tuple(inputs))
        return torch.export.export(
            module, (tuple(inputs.values()),), dynamic_shapes=(shapes,), strict=False
        )


class Flat(torch.nn.Module):
    """A graph's module, of one tuple of tensors."""

    def __init__(self, module: torch.nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.module, self.names = module, names

    def forward(self, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return self.module(*inputs)


@contextmanager
def quiet() -> Iterator[None]:
    """Without the exporters' own remarks; what matters is raised."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
