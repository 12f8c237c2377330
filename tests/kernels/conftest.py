"""Kernels run in Triton's interpreter here, on CPU tensors, with its faults mended."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

HAS_TRITON = find_spec("triton") is not None

if HAS_TRITON:
    if "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1":
        raise RuntimeError("Triton was imported before its interpreter was asked for")
    os.environ["TRITON_INTERPRET"] = "1"
else:
    collect_ignore_glob = ["test_*.py"]


def mend_interpreter() -> None:
    """Casts round to nearest even and saturate as on a GPU; bf16 products multiply values.

    The interpreter truncates fp32 to bf16, mishandles carries in fp8, and multiplies the bit
    patterns of bf16 operands.
    """
    import numpy as np
    import triton.language as tl
    from triton.runtime import interpreter

    dtypes = {tl.bfloat16: torch.bfloat16, tl.float8e4nv: torch.float8_e4m3fn}
    convert, dot = interpreter._convert_float, interpreter.InterpreterBuilder.create_dot

    def convert_float(data, source, target, rounding_mode):
        if source != tl.float32 or target not in dtypes:
            return convert(data, source, target, rounding_mode)
        rounded = torch.from_numpy(np.array(data, dtype=np.float32)).to(dtypes[target])
        unsigned = np.uint16 if target == tl.bfloat16 else np.uint8
        return rounded.view(torch.uint8).numpy().view(unsigned).reshape(data.shape)

    def widen(handle):
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        values = (handle.data.astype(np.uint32) << 16).view(np.float32)
        return interpreter.TensorHandle(values, tl.float32)

    def create_dot(self, a, b, *rest):
        return dot(self, widen(a), widen(b), *rest)

    interpreter._convert_float = convert_float
    interpreter.InterpreterBuilder.create_dot = create_dot


if HAS_TRITON:
    mend_interpreter()


def pytest_configure(config: pytest.Config) -> None:
    """The interpreter's sigmoid of a large negative number is 1 / (1 + inf), which is right."""
    config.addinivalue_line("filterwarnings", "ignore:overflow encountered in exp:RuntimeWarning")


@pytest.fixture
def truth() -> Callable[..., Any]:
    """`truth(definition, ...)`: a function of `reference`, with all tensors in float64."""

    def call(definition: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        def double(leaf: Any) -> Any:
            return leaf.double() if isinstance(leaf, Tensor) else leaf

        return definition(*tree_map(double, args), **tree_map(double, kwargs))

    return call


@pytest.fixture(autouse=True)
def _alike_on_every_machine(one_thread: None) -> None:
    """Sums in one order."""


@pytest.fixture(params=[torch.bfloat16, torch.float16, torch.float32], ids=["bf16", "fp16", "fp32"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture
def assert_as_accurate() -> Callable[..., None]:
    """`check(actual, plain, truth)`: as near the truth as PyTorch is in the same dtype, twice over.

    truth: the definition in float64; plain: PyTorch's answer in the dtype of `actual`. Half a unit
    in the last place of the largest value is let pass besides, as `plain` may be lucky.
    """

    def check(actual: Tensor, plain: Tensor, truth: Tensor, multiple: float = 2.0) -> None:
        assert actual.dtype == plain.dtype
        assert actual.shape == truth.shape
        if truth.numel() == 0:
            return
        unit = torch.finfo(actual.dtype).eps / 2
        largest = truth.abs().max().item()
        error, allowed = (actual.double() - truth).abs(), (plain.double() - truth).abs()
        assert error.isfinite().all()
        for name, measure in (("max", torch.max), ("rms", _rms)):
            limit = multiple * measure(allowed).item() + unit * largest
            found = measure(error).item()
            assert found <= limit, f"{name} error {found:.3g} exceeds {limit:.3g}"

    return check


def _rms(x: Tensor) -> Tensor:
    return x.square().mean().sqrt()
