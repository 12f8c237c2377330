"""Pictures to embeddings for a transformer that is shown them beside the text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..checkpoints import foreign
from ..checkpoints.checkpoint import Component
from ..execution.offload import Offload
from ..media.pictures import open_picture
from .encoder import Encoder

if TYPE_CHECKING:
    from ..graphs.shells import Runner
    from ..media.pictures import Picture

PROCESSORS = ("CLIPImageProcessor", "CLIPImageProcessorFast", "CLIPImageProcessorPil")


class ImageEncoder(Encoder):
    """CLIP's vision tower, which is read when the first picture comes, and its image processor."""

    known = ("CLIPVisionModel", "CLIPVisionModelWithProjection")
    blocks = ("vision_model.encoder.layers", "encoder.layers")

    def __init__(
        self,
        processor: Component,
        encoder: Component,
        device: torch.device,
        dtype: torch.dtype,
        offload: Offload | None = None,
        graph: Runner | None = None,
    ) -> None:
        super().__init__(encoder, device, dtype, offload, graph)
        foreign.check_class(processor, PROCESSORS)
        self.processor = foreign.open_helper(processor, "CLIPImageProcessor")

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
