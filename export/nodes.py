"""What translations are put together from: constants, casts, norms, products, in ONNX nodes."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from ..kernels.formats import FORMATS, LEAST_PEAK
from ..runtime.errors import UsageError

FP32, INT64 = ir.DataType.FLOAT, ir.DataType.INT64
EIGHT_BIT = {"int8": ir.DataType.INT8, "fp8": ir.DataType.FLOAT8E4M3FN}
# What is onnxscript's: its own types say that an operator may give nothing, and onnx_ir's that a
# value may be without shape or dtype. Those of a graph under export have both.
Opset: TypeAlias = Any  # onnxscript.values.Opset
Value: TypeAlias = Any  # onnx_ir.Value


def shape_of(value: Value) -> tuple[int | str, ...]:
    """Numbers, and expressions of what varies, such as "2*rows"."""
    return tuple(axis if isinstance(axis, int) else axis.value for axis in value.shape)


def once(value: Value, key: Hashable, make: Callable[[], Any]) -> Any:
    """What `make` makes of a value that layers share, made for the first of them."""
    made = value.meta.setdefault("kinema.made", {})
    if key not in made:
        made[key] = make()
    return made[key]


def ints(op: Opset, values: Sequence[int]) -> Value:
    """A constant (n,) of int64."""
    return op.Constant(value=ir.tensor(list(values), dtype=INT64))


def number(op: Opset, value: float) -> Value:
    """A constant () of fp32."""
    return op.Constant(value=ir.tensor(value, dtype=FP32))


def cast(op: Opset, x: Value, to: ir.DataType, dtype: ir.DataType = FP32) -> Value:
    """x, which has `dtype`, in the dtype `to`; itself where that is the same."""
    return x if dtype == to else op.Cast(x, to=to)


def fp32(op: Opset, x: Value) -> Value:
    """An operator's argument in fp32; of what is made here the dtype is not written down."""
    return cast(op, x, FP32, x.dtype)


def index(op: Opset, value: int) -> Value:
    """A constant () of int64."""
    return op.Constant(value=ir.tensor(value, dtype=INT64))


# ---- norms, modulation, products -----------------------------------------------------------------


def norm_and_affine(
    op: Opset, x: Value, channels: int, norm: str, weight: Value | None, bias: Value | None,
    eps: float,
) -> Value:  # fmt: skip
    """LayerNorm or RMSNorm with its affine over the last axis, fp32 to fp32."""
    ones = op.Constant(value=ir.tensor(np.ones(channels, np.float32)))
    weight = ones if weight is None else fp32(op, weight)
    bias = None if bias is None else fp32(op, bias)
    if norm == "layer":
        hidden, *_ = op.LayerNormalization(x, weight, bias, axis=-1, epsilon=eps)
        return hidden
    if op.version >= 23:
        hidden = op.RMSNormalization(x, weight, axis=-1, epsilon=eps)
    else:
        hidden = op.Mul(_over_root_mean_square(op, x, [-1], eps), weight)
    return hidden if bias is None else op.Add(hidden, bias)


def _over_root_mean_square(op: Opset, x: Value, axes: Sequence[int], eps: float) -> Value:
    mean = op.ReduceMean(op.Mul(x, x), ints(op, axes), keepdims=1)
    return op.Div(x, op.Sqrt(op.Add(mean, number(op, eps))))


def pixel_norm(op: Opset, x: Value, groups: int, eps: float) -> Value:
    """RMSNorm over the channels of each pixel of x (B, C, F, H, W)."""
    return _over_root_mean_square(op, x, [1], eps)


def group_norm(op: Opset, x: Value, groups: int, eps: float) -> Value:
    """GroupNorm of x (B, C, F, H, W), without its affine."""
    ones = op.Constant(value=ir.tensor(np.ones(groups, np.float32)))
    zeros = op.Constant(value=ir.tensor(np.zeros(groups, np.float32)))
    grouped = op.Reshape(x, ints(op, [0, groups, -1]))
    return op.Reshape(op.InstanceNormalization(grouped, ones, zeros, epsilon=eps), op.Shape(x))


def modulate(op: Opset, x: Value, scale: Value | None, shift: Value | None) -> Value:
    """`x * (1 + scale) + shift`, each where given, in fp32."""
    factor = None if scale is None else op.Add(fp32(op, scale), number(op, 1.0))
    return affine(op, x, factor, None if shift is None else fp32(op, shift))


def affine(op: Opset, x: Value, factor: Value | None, shift: Value | None) -> Value:
    """`x * factor + shift`, each where given."""
    x = x if factor is None else op.Mul(x, factor)
    return x if shift is None else op.Add(x, shift)


def linear(op: Opset, x: Value, weight: Value, bias: Value | None, dtype: ir.DataType) -> Value:
    """`x @ weight^T + bias` in `dtype`, which x has."""
    columns = op.Transpose(cast(op, weight, dtype, weight.dtype), perm=[1, 0])
    hidden = op.MatMul(x, columns)
    return hidden if bias is None else op.Add(hidden, cast(op, bias, dtype, bias.dtype))


def gelu(op: Opset, x: Value) -> Value:
    """The tanh form."""
    if op.version >= 20:
        return op.Gelu(x, approximate="tanh")
    cube = op.Mul(op.Mul(x, x), x)
    inner = op.Add(x, op.Mul(cube, op.CastLike(number(op, 0.044715), x)))
    inner = op.Mul(inner, op.CastLike(number(op, (2 / np.pi) ** 0.5), x))
    half = op.Mul(x, op.CastLike(number(op, 0.5), x))
    return op.Mul(half, op.Add(op.Tanh(inner), op.CastLike(number(op, 1.0), x)))


def quantize_tokens(op: Opset, x: Value, to: str) -> list[Value]:
    """As `kernels.formats.quantize_tokens`, ending in the node that compilers know: of scale 1,
    which rounds and saturates."""
    if to == "fp8" and op.version < 19:
        raise UsageError(f"opset {op.version} has no fp8; 23 or int8 works")
    _, limit = FORMATS[to]
    peak = op.ReduceMax(op.Abs(x), ints(op, [-1]), keepdims=1)
    peak = op.Max(peak, number(op, LEAST_PEAK))
    values = op.Mul(x, op.Div(number(op, limit), peak))
    zero = op.Constant(value=ir.tensor(0, dtype=EIGHT_BIT[to]))
    values = op.QuantizeLinear(values, number(op, 1.0), zero)
    return [values, op.Div(peak, number(op, limit))]


def eight_bit(op: Opset, x: Value, dtype: ir.DataType) -> Value:
    """8-bit values as they are, in another dtype."""
    return op.DequantizeLinear(x, op.Constant(value=ir.tensor(1.0, dtype=dtype)))
