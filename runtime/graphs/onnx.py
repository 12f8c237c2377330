"""Runs an ONNX graph with onnxruntime: inputs and outputs are where torch has them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import KinemaError
from ..files import reason_of
from .manifest import GraphEntry, Port
from .shapes import shape_at, sizes_of

# Element types of ONNX, https://onnx.ai/onnx/api/classes.html#tensorproto
ELEMENTS = {"float32": 1, "int64": 7, "float16": 10, "bfloat16": 16}
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class OnnxRunner:
    """One graph: `runner(inputs)` gives its outputs by name, in memory of their own.

    An input that stays where it is from call to call is bound once. Raises `KinemaError` where
    onnxruntime is missing, cannot work on the device or refuses the file.
    """

    def __init__(self, file: Path, entry: GraphEntry, device: torch.device) -> None:
        self.entry, self.device = entry, device
        _check_types(entry, device)
        self.session = _open(file, device)
        self.binding = self.session.io_binding()
        self.bound: dict[str, tuple[int, torch.Size]] = {}

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        entry = self.entry
        held = {port.name: self._as_bound(port, inputs[port.name]) for port in entry.inputs}
        sizes = sizes_of(entry.inputs, {name: x.shape for name, x in held.items()})
        outputs = {}
        for port in entry.outputs:
            dtype = getattr(torch, port.dtype)
            outputs[port.name] = torch.empty(shape_at(port, sizes), dtype=dtype, device=self.device)
            self.binding.bind_output(port.name, *self._where(outputs[port.name]))
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()
        self.session.run_with_iobinding(self.binding)
        return outputs

    def _as_bound(self, port: Port, x: Tensor) -> Tensor:
        """The input as the graph reads it, bound if it was not."""
        x = x.to(self.device, getattr(torch, port.dtype)).contiguous()
        if self.bound.get(port.name) != (x.data_ptr(), x.shape):
            self.binding.bind_input(port.name, *self._where(x))
            self.bound[port.name] = (x.data_ptr(), x.shape)
        return x

    def _where(self, x: Tensor) -> tuple[str, int, int, tuple[int, ...], int]:
        element = ELEMENTS[str(x.dtype).removeprefix("torch.")]
        return self.device.type, self.device.index or 0, element, tuple(x.shape), x.data_ptr()


def _check_types(entry: GraphEntry, device: torch.device) -> None:
    dtypes = {port.dtype for port in entry.inputs + entry.outputs}
    if device.type == "cpu" and "bfloat16" in dtypes:
        raise KinemaError(
            f"{entry.name} is in bfloat16, which onnxruntime lacks on a CPU; export in fp32 or fp16"
            " to run it here"
        )


def _open(file: Path, device: torch.device) -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise KinemaError(
            "ONNX graphs are run by onnxruntime: pip install 'kinema[export]'"
        ) from None
    provider, there = PROVIDERS.get(device.type), onnxruntime.get_available_providers()
    if provider is None or provider not in there:
        raise KinemaError(
            f"this onnxruntime has no provider for {device.type}; it has {', '.join(there)}:"
            " device='cpu', or pip install onnxruntime-gpu"
        )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        return onnxruntime.InferenceSession(file, options, providers=[provider])
    except Exception as error:  # onnxruntime raises its own kinds
        told = reason_of(error)
        raise KinemaError(f"onnxruntime cannot open {file.parent.name}: {told}") from error
