"""TensorRT and CUDA as the runner of engines needs them, and nothing that decides.

Written to the documented interface. None of it has run on a GPU: no engine was opened, no context
made, no graph captured.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import KinemaError, UsageError
from .tensorrt import Range, Shape, find, listener

DTYPES = {
    "FLOAT": torch.float32,
    "HALF": torch.float16,
    "BF16": torch.bfloat16,
    "FP8": torch.float8_e4m3fn,
    "INT64": torch.int64,
    "INT32": torch.int32,
    "INT8": torch.int8,
    "UINT8": torch.uint8,
    "BOOL": torch.bool,
}


class Machine:
    """A CUDA device with a stream beside torch's."""

    def __init__(self, device: torch.device) -> None:
        if device.type != "cuda" or not torch.cuda.is_available():
            raise UsageError(f"TensorRT runs on NVIDIA GPUs, not on {device.type}")
        self.device = device
        self.stream = torch.cuda.Stream(device)

    def arch(self) -> str:
        return "sm_{}{}".format(*torch.cuda.get_device_capability(self.device))

    def version(self, flavour: str) -> str:
        return find(flavour).__version__

    def open(self, file: Path, flavour: str, weight_budget: int | None) -> Engine:
        return Engine(find(flavour), file, self, weight_budget)

    def empty(self, shape: Shape, dtype: torch.dtype) -> Tensor:
        return torch.empty(tuple(shape), dtype=dtype, device=self.device)

    @contextmanager
    def own_stream(self) -> Iterator[None]:
        """After what torch was told before, and before what it is told next."""
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        try:
            with torch.cuda.device(self.device):
                yield
        finally:
            current.wait_stream(self.stream)

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """What does the same work again on its stream, as a CUDA graph."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
            work()

        def replay() -> None:
            with torch.cuda.stream(self.stream):
                graph.replay()

        return replay

    def finish(self) -> None:
        self.stream.synchronize()


class Engine:
    """A deserialized engine. Its contexts share one piece of memory: they run one after the other.

    A graph survives changes to its context only where memory is the application's. Engines that
    stream weights allocate their own, for each context.
    """

    def __init__(self, trt: Any, file: Path, machine: Machine, weight_budget: int | None) -> None:
        self.trt, self.machine, self.log = trt, machine, listener(trt)
        self.runtime = trt.Runtime(self.log)
        with torch.cuda.device(machine.device):
            self.engine = self._read(file)
            self._stream_weights(file, weight_budget)
        self.profiles = [
            {name: self._range(name, i) for name in self._names("INPUT")}
            for i in range(self.engine.num_optimization_profiles)
        ]
        self.inputs = {name: self._dtype(name) for name in self._names("INPUT")}
        self.outputs = {name: self._dtype(name) for name in self._names("OUTPUT")}
        self.memory = None
        if not self.engine.streamable_weights_size:
            size = max(self.engine.device_memory_size_v2, 1)
            self.memory = machine.empty((size,), torch.uint8)

    def context(self, profile: int, shapes: Mapping[str, Shape]) -> Context:
        """One that works at these shapes, its buffers not yet bound."""
        config = self.engine.create_runtime_config()
        if self.memory is not None:
            strategy = self.trt.ExecutionContextAllocationStrategy.USER_MANAGED
            config.set_execution_context_allocation_strategy(strategy)
        # TensorRT-RTX would swap better kernels in later, and a captured graph keeps what it has.
        special = getattr(self.trt, "DynamicShapesKernelSpecializationStrategy", None)
        if special:
            config.dynamic_shapes_kernel_specialization_strategy = special.EAGER
        with torch.cuda.device(self.machine.device):
            context = self.engine.create_execution_context(config)
        if context is None:
            raise KinemaError(f"TensorRT has no memory for another shape: {self.log.reason()}")
        if self.memory is not None:
            context.set_device_memory(self.memory.data_ptr(), self.memory.numel())
        return Context(context, profile, shapes, self.machine.stream, self.log)

    def _read(self, file: Path) -> Any:
        try:
            with file.open("rb") as handle:
                data = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise KinemaError(f"cannot read {str(file)!r}: {error}") from error
        with data:
            engine = self.runtime.deserialize_cuda_engine(data)
        if engine is None:
            raise KinemaError(f"TensorRT cannot open {str(file)!r}: {self.log.reason()}")
        return engine

    def _stream_weights(self, file: Path, budget: int | None) -> None:
        if budget is None:
            return
        if not self.engine.streamable_weights_size:
            raise UsageError(f"{file.name} was not built to stream weights; no budget works")
        if budget < 0:
            raise UsageError(f"the weight budget of {file.name} is {budget} bytes; 0 or more work")
        self.engine.weight_streaming_budget_v2 = budget

    def _names(self, mode: str) -> list[str]:
        names = map(self.engine.get_tensor_name, range(self.engine.num_io_tensors))
        wanted = getattr(self.trt.TensorIOMode, mode)
        return [name for name in names if self.engine.get_tensor_mode(name) == wanted]

    def _range(self, name: str, profile: int) -> Range:
        return Range(*map(tuple, self.engine.get_tensor_profile_shape(name, profile)))

    def _dtype(self, name: str) -> torch.dtype:
        return DTYPES[self.engine.get_tensor_dtype(name).name]


class Context:
    """An execution context at given shapes."""

    def __init__(
        self, context: Any, profile: int, shapes: Mapping[str, Shape], stream: Any, log: Any
    ) -> None:
        self.context, self.stream, self.log = context, stream, log
        context.set_optimization_profile_async(profile, stream.cuda_stream)
        for name, shape in shapes.items():
            if not context.set_input_shape(name, tuple(shape)):
                raise KinemaError(f"TensorRT refuses {name} {tuple(shape)}: {log.reason()}")

    def shape(self, name: str) -> tuple[int, ...]:
        shape = tuple(self.context.get_tensor_shape(name))
        if any(size < 0 for size in shape):
            raise KinemaError(f"the shape of {name} depends on values; only on shapes works")
        return shape

    def bind(self, name: str, buffer: Tensor) -> None:
        self.context.set_tensor_address(name, buffer.data_ptr())

    def can_be_captured(self) -> bool:
        """Whether a graph can hold it; plain TensorRT has no such question."""
        asked = getattr(self.context, "is_stream_capturable", None)
        return asked is None or asked(self.stream.cuda_stream)

    def enqueue(self) -> None:
        if not self.context.execute_async_v3(self.stream.cuda_stream):
            raise KinemaError(f"TensorRT failed: {self.log.reason()}")
