"""Triton where it is installed; elsewhere kernels are still defined, and say so when launched."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

if TYPE_CHECKING:  # a kernel looks like Python and is not: its types are the compiler's to check
    triton: Any

    class _Names(type):
        def __getattr__(cls, name: str) -> Any: ...

    class tl(metaclass=_Names):
        constexpr: TypeAlias = Any
else:
    try:
        import triton
        import triton.language as tl
    except ImportError:
        tl = None

        class _Kernel:
            """Stands where a kernel would."""

            def __init__(self, function: Any) -> None:
                self.name = f"{function.__module__}.{function.__name__}"

            def __getitem__(self, grid: Any) -> Any:
                raise RuntimeError(f"{self.name} needs Triton: pip install triton (Linux)")

        class triton:
            """The names of Triton that modules use when they are imported."""

            @staticmethod
            def jit(function: Any = None, **_: Any) -> Any:
                return triton.jit if function is None else _Kernel(function)


Recorder = Callable[[Any, tuple[Any, ...], dict[str, Any]], None]
_recorder: ContextVar[Recorder | None] = ContextVar("recorder", default=None)


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **options: Any) -> None:
    """`kernel[grid](*args, **options)` on the device of the first argument, a tensor."""
    if (record := _recorder.get()) is not None:
        return record(kernel, args, options)
    with torch.cuda.device_of(getattr(args[0], "base", args[0])):
        kernel[grid](*args, **options)


@contextmanager
def recording(record: Recorder) -> Iterator[None]:
    """Hand launches to `record(kernel, args, options)` instead of a device."""
    token = _recorder.set(record)
    try:
        yield
    finally:
        _recorder.reset(token)


def ceil_div(a: int, b: int) -> int:
    """`a / b`, rounded up."""
    return -(-a // b)


def power_of_2(n: int) -> int:
    """The least power of two that is `n` or more."""
    return 1 << max(n - 1, 0).bit_length()


__all__ = ["ceil_div", "launch", "power_of_2", "recording", "tl", "triton"]
