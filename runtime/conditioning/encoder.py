"""An encoder of transformers' whose weights are read when it first has something to encode."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch

from ..checkpoints import foreign
from ..checkpoints.checkpoint import Component
from ..execution.offload import Offload, Placed

if TYPE_CHECKING:
    from ..graphs.shells import Runner


class Encoder:
    """What encoders of prompts and of pictures share, opened from local files only.

    `offload`: where its weights are while it does not work; by default on the device. `graph`: the
    encoder as it was exported, instead. Raises `KinemaError` for a class that is not known.
    """

    known: ClassVar[tuple[str, ...]]  # class names
    blocks: ClassVar[tuple[str, ...]]  # where one of them has its list of blocks

    def __init__(
        self,
        component: Component,
        device: torch.device,
        dtype: torch.dtype,
        offload: Offload | None = None,
        graph: Runner | None = None,
    ) -> None:
        foreign.check_class(component, self.known)
        self.component, self.device, self.dtype, self.graph = component, device, dtype, graph
        self.offload = offload or Offload(device)
        self._placed: Placed | None = None

    def open(self) -> Placed:
        """The encoder, read now if it is not open. Raises `KinemaError` for damaged weights."""
        if self._placed is None:
            model = foreign.open_model(self.component, self.known, self.dtype)
            self._placed = self.offload.place(model, self.blocks)
        return self._placed
