"""Pictures to embeddings for a transformer that is shown them beside the text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..checkpoints import foreign
from ..checkpoints.checkpoint import Component
from ..execution.offload import Offload, Placed
from ..media.pictures import open_picture

if TYPE_CHECKING:
    from ..graphs.shells import Runner
    from ..media.pictures import Picture

ENCODERS = ("CLIPVisionModel", "CLIPVisionModelWithProjection")
PROCESSORS = ("CLIPImageProcessor", "CLIPImageProcessorFast", "CLIPImageProcessorPil")
BLOCKS = ("vision_model.encoder.layers", "encoder.layers")


class ImageEncoder:
    """CLIP's vision tower and its image processor, opened through transformers.

    The tower is read when the first picture comes, and `release` drops it. `offload`: where its
    weights are while it does not work; by default on the device. `graph`: the tower as it was
    exported, instead.
    """

    def __init__(
        self,
        processor: Component,
        encoder: Component,
        device: torch.device,
        dtype: torch.dtype,
        offload: Offload | None = None,
        graph: Runner | None = None,
    ) -> None:
        foreign.check_class(encoder, ENCODERS)
        foreign.check_class(processor, PROCESSORS)
        self.processor = foreign.open_helper(processor, "CLIPImageProcessor")
        self.component, self.device, self.dtype, self.graph = encoder, device, dtype, graph
        self.offload = offload or Offload(device)
        self._placed: Placed | None = None

    @torch.inference_mode()
    def encode(self, pictures: Sequence[Picture]) -> Tensor:
        """Embeddings (pictures, patches + 1, dim): the states that the last layer but one leaves.

        Pictures are paths, arrays or PIL images of any size. Raises `UsageError` for anything else.
        """
        shown = [open_picture(picture) for picture in pictures]
        pixels = self.processor(images=shown, return_tensors="pt").pixel_values
        pixels = pixels.to(self.device)
        if self.graph is not None:
            return self.graph({"pixel_values": pixels})["embeds"].to(self.dtype)
        states = self.open().use()(pixels, output_hidden_states=True).hidden_states
        return states[-2].to(self.dtype)

    def open(self) -> Placed:
        """The tower, read now if it is not open."""
        if self._placed is None:
            model = foreign.open_model(self.component, ENCODERS, self.dtype)
            self._placed = self.offload.place(model, BLOCKS)
        return self._placed

    def release(self) -> None:
        """Drop the tower from memory; it is read again when it is needed."""
        if self._placed is not None:
            self._placed.leave()
            self._placed = None
