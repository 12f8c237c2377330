"""A denoising step's forward as a CUDA graph: one launch instead of one for every kernel.

A graph reads and writes fixed memory, so a forward is captured for its sizes, its inputs are copied
to where the graph reads them, and what it writes is copied out. It has been written to what PyTorch
documents of `torch.cuda.CUDAGraph`, and has not been measured.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

BUCKETS = 4  # sizes whose graphs are kept
CHANGING = 2  # leading arguments that differ at every step: latents, and what a timestep does

# capture(forward) -> (replay, output): `replay()` runs the forward anew into the same output
Replay = Callable[[], None]
Capture = Callable[[Callable[[], Tensor]], tuple[Replay, Tensor]]


class CudaCapture:
    """Captures on a stream of its own; graphs share a pool, in which one's memory is another's too.

    So no two of them may run at once, and an output lives until the next graph runs.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.stream = device, torch.cuda.Stream(device)
        self.pool: Any = None
        self.graphs: weakref.WeakSet[torch.cuda.CUDAGraph] = weakref.WeakSet()

    def __call__(self, forward: Callable[[], Tensor]) -> tuple[Replay, Tensor]:
        """Run once, so that kernels are compiled and tuned, and once more to be captured."""
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self.device)
        if not self.graphs:  # a pool that no graph uses is given up
            self.pool = torch.cuda.graph_pool_handle()
        with torch.cuda.device(self.device):
            self.stream.wait_stream(current)
            with torch.cuda.stream(self.stream):
                forward()
            current.wait_stream(self.stream)
            # Other threads may allocate meanwhile.
            options = {"stream": self.stream, "capture_error_mode": "thread_local"}
            with torch.cuda.graph(graph, pool=self.pool, **options):
                output = forward()
        self.graphs.add(graph)
        return graph.replay, output


class Bucket:
    """A forward captured for the sizes of its inputs, and the memory it reads and writes."""

    def __init__(
        self, forward: Callable[..., Tensor], args: Sequence[Any], capture: Capture
    ) -> None:
        leaves, spec = pytree.tree_flatten(list(args))
        # Each call may come in inference mode or without; these are written to in both.
        with torch.inference_mode(False):
            self.buffers = [_like(x) if isinstance(x, Tensor) else x for x in leaves]
        self.changing = len(pytree.tree_leaves(list(args[:CHANGING])))
        self.held: list[Any] = [None] * len(leaves)  # weak: what lies in each buffer
        self._fill(leaves)
        inputs = pytree.tree_unflatten(self.buffers, spec)
        self.replay, self.output = capture(lambda: forward(*inputs))

    def run(self, leaves: Sequence[Any]) -> Tensor:
        """The forward of inputs of these sizes, in memory of its own."""
        self._fill(leaves)
        self.replay()
        return self.output.clone()

    def _fill(self, leaves: Sequence[Any]) -> None:
        """Copy what is not in its buffer yet: text, once a request; what changes, every time."""
        for index, (leaf, buffer) in enumerate(zip(leaves, self.buffers, strict=True)):
            if not isinstance(leaf, Tensor):
                continue
            held = self.held[index]
            if index < self.changing or held is None or held() is not leaf:
                buffer.copy_(leaf)
                self.held[index] = weakref.ref(leaf)


class Graphed:
    """A forward that is captured for each size it meets; the `buckets` used last are kept.

    Arguments are tensors, numbers and tuples or lists of them. Those after the first two are
    constant while the same objects come. Weights stay where they are; who moves or replaces them
    calls `forget`. Threads take turns.
    """

    def __init__(
        self, forward: Callable[..., Tensor], capture: Capture, buckets: int = BUCKETS
    ) -> None:
        self.forward, self.capture, self.most = forward, capture, buckets
        self.buckets: OrderedDict[Hashable, Bucket] = OrderedDict()
        self.lock = threading.Lock()

    @torch.no_grad()
    def __call__(self, *args: Any) -> Tensor:
        """What the forward gives."""
        leaves, spec = pytree.tree_flatten(list(args))
        key = (spec, *map(_size, leaves))
        with self.lock:
            if key not in self.buckets:
                while len(self.buckets) >= self.most:
                    self.buckets.popitem(last=False)
                self.buckets[key] = Bucket(self.forward, args, self.capture)
            self.buckets.move_to_end(key)
            return self.buckets[key].run(leaves)

    def forget(self) -> None:
        """Drop every graph and its memory; sizes are captured anew."""
        with self.lock:
            self.buckets.clear()


def apply(model: Any) -> None:
    """Make an open transformer's forward run as graphs, in place."""
    model.forward = Graphed(model.forward, CudaCapture(next(model.parameters()).device))


def missing(device: torch.device) -> str | None:
    """Why there can be no graphs on a device; None where there can."""
    if device.type != "cuda":
        return f"CUDA graphs need a GPU, not a {device.type}; 'eager' runs everywhere"
    return None


def missing_for_offload(offload: str) -> str | None:
    """Why there can be no graphs while weights are offloaded; None where they are not."""
    if offload == "none":
        return None
    return f"a CUDA graph reads weights where they were, and offload {offload!r} moves them"


def _size(leaf: Any) -> Hashable:
    if isinstance(leaf, Tensor):
        return leaf.shape, leaf.dtype, leaf.device
    return leaf


def _like(x: Tensor) -> Tensor:
    """Memory laid out as a tensor's, so that the same kernels read it; nothing lies in it twice."""
    if any(stride == 0 and size > 1 for size, stride in zip(x.shape, x.stride(), strict=True)):
        return torch.empty(x.shape, dtype=x.dtype, device=x.device)
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device)
