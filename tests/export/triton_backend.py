"""What the server gives `model.py`, in the shape of triton_python_backend_utils.

After github.com/triton-inference-server/python_backend: README.md, src/pb_stub.cc and
src/resources/triton_python_backend_utils.py.
"""

from __future__ import annotations

import queue
import threading
from typing import Any

import numpy as np

TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1
NUMPY = {"TYPE_UINT8": "uint8", "TYPE_INT32": "int32", "TYPE_FP32": "float32"}


class TritonError:
    """A message with a code."""

    UNKNOWN, INTERNAL, NOT_FOUND, INVALID_ARG, UNAVAILABLE, UNSUPPORTED, ALREADY_EXISTS = range(7)
    CANCELLED = 7

    def __init__(self, message: str, code: int = INTERNAL) -> None:
        if not isinstance(message, str) or not isinstance(code, int):
            raise TypeError("incompatible constructor arguments")
        self._message, self._code = message, code

    def message(self) -> str:
        return self._message

    def code(self) -> int:
        return self._code


class Tensor:
    """A named array; strings are objects of bytes."""

    def __init__(self, name: str, array: np.ndarray) -> None:
        if not isinstance(array, np.ndarray):
            raise TypeError("incompatible constructor arguments")
        self._name, self._array = name, array

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray:
        return self._array


class InferenceResponse:
    """Tensors, or an error."""

    def __init__(self, output_tensors: list[Tensor] = (), error: TritonError | None = None) -> None:
        if error is not None and not isinstance(error, TritonError):
            raise TypeError("incompatible constructor arguments")
        self._tensors, self._error = list(output_tensors), error

    def output_tensors(self) -> list[Tensor]:
        return self._tensors

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> TritonError | None:
        return self._error


class InferenceResponseSender:
    """Takes one response of a request of a model that is not decoupled."""

    def __init__(self) -> None:
        self.sent: queue.Queue[InferenceResponse] = queue.Queue()
        self.cancelled, self.closed = threading.Event(), False

    def is_cancelled(self) -> bool:
        return self.cancelled.is_set()

    def send(self, response: InferenceResponse | None = None, flags: int = 0) -> None:
        if self.closed:
            raise RuntimeError("Unable to send response. Response sender has been closed.")
        if flags not in (0, TRITONSERVER_RESPONSE_COMPLETE_FINAL):
            raise RuntimeError("Unable to send response. Unsupported flag provided.")
        self.closed = flags == TRITONSERVER_RESPONSE_COMPLETE_FINAL
        self.sent.put(response)


class InferenceRequest:
    """Inputs by name, and the outputs that the client asked for."""

    def __init__(self, inputs: dict[str, Any], wanted: list[str]) -> None:
        self._inputs = [Tensor(name, np.asarray(value)) for name, value in inputs.items()]
        self._wanted, self.sender = wanted, InferenceResponseSender()

    def inputs(self) -> list[Tensor]:
        return self._inputs

    def requested_output_names(self) -> list[str]:
        return self._wanted

    def get_response_sender(self) -> InferenceResponseSender:
        return self.sender

    def answer(self, timeout: float = 120) -> InferenceResponse:
        """What the client gets; for tests."""
        return self.sender.sent.get(timeout=timeout)


def get_input_tensor_by_name(request: InferenceRequest, name: str) -> Tensor | None:
    return next((tensor for tensor in request.inputs() if tensor.name() == name), None)
