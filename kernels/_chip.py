"""What a launch depends on: the chip's capability, how much runs at once, how it copies tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def capability(device: torch.device) -> int:
    """Major compute capability; 8, the least, on AMD and for tensors of Triton's interpreter."""
    nvidia = device.type == "cuda" and torch.version.hip is None
    return torch.cuda.get_device_capability(device)[0] if nvidia else 8


def multiprocessors(device: torch.device) -> int:
    """Programs that run at once; few on the CPU, where Triton's interpreter takes them in turn."""
    if device.type != "cuda":
        return 3
    return torch.cuda.get_device_properties(device).multi_processor_count


def describable(*tensors: Tensor) -> bool:
    """Whether the tensor copy engine can address them: 16-byte steps, the last axis contiguous."""
    return all(
        tensor.stride(-1) == 1
        and tensor.data_ptr() % 16 == 0
        and all(step * tensor.itemsize % 16 == 0 for step in tensor.stride()[:-1])
        for tensor in tensors
    )


def describe(
    tensors: Sequence[Tensor], blocks: Sequence[Sequence[int]], descriptors: bool
) -> Sequence[Any]:
    """What a kernel reads tensors through: host tensor descriptors, or the tensors themselves."""
    if not descriptors:
        return tensors
    from triton.tools.tensor_descriptor import TensorDescriptor

    pairs = zip(tensors, blocks, strict=True)
    return [TensorDescriptor.from_tensor(tensor, list(block)) for tensor, block in pairs]
