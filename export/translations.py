"""What the registered operators are in ONNX, for `torch.onnx.export(custom_translation_table=...)`.

Opset 23 has an operator for attention, RMSNorm and the rotation; opset 18 is what older runtimes
know, so there they are taken apart. Dtypes flow as in `kernels.torch_backend`: norms, modulation
and angles in fp32, products and attention in the dtype of their input.

Functions take the opset and then what the operator takes: tensors and symbolic sizes are
`onnx_ir.Value`, everything else is plain Python.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import onnx_ir as ir
import torch
from onnxscript import values

from .. import kernels
from ..kernels.reference import LEAST_DEVIATION
from ..runtime.errors import UsageError
from .nodes import (
    FP32,
    Opset,
    Value,
    affine,
    cast,
    eight_bit,
    fp32,
    gelu,
    group_norm,
    index,
    ints,
    linear,
    modulate,
    norm_and_affine,
    number,
    once,
    pixel_norm,
    quantize_tokens,
)
from .options import OPSETS
from .rotation import Size, turning


def translations(opset: int) -> dict[torch._ops.OpOverload, Callable[..., Any]]:
    """The table for one of `OPSETS`; raises `UsageError` for another."""
    if opset not in OPSETS:
        raise UsageError(f"opset {opset} is not known; {', '.join(map(str, OPSETS))} work")
    op = values.Opset("", opset)
    table = {_overload(name): _bound(op, function) for name, function in TRANSLATED.items()}
    return {**table, **{overload: _bound(op, function) for overload, function in PYTORCH.items()}}


def _overload(name: str) -> torch._ops.OpOverload:
    getattr(kernels, name.removesuffix("_cublaslt"))  # imported, so registered
    return getattr(torch.ops.kinema, name).default


def _bound(op: Opset, function: Callable[..., Any]) -> Callable[..., Any]:
    def translated(*arguments):  # the exporter reads annotations, and would convert arguments
        return function(op, *arguments)

    translated.__name__ = function.__name__
    return translated


# ---- operators -----------------------------------------------------------------------------------


def gate_residual(op: Opset, x: Value, y: Value, gate: Value | None) -> Value:
    if gate is None:
        return op.Add(x, y)
    return cast(op, op.Add(fp32(op, x), op.Mul(fp32(op, y), fp32(op, gate))), x.dtype)


def norm_modulate(
    op: Opset, x: Value, scale: Value | None, shift: Value | None, norm: str, weight: Value | None,
    bias: Value | None, eps: float, residual: Value | None, gate: Value | None,
    quantize: str | None,
) -> list[Value]:  # fmt: skip
    dtype, channels = x.dtype, x.shape[-1]
    first = [] if residual is None else [x := gate_residual(op, x, residual, gate)]
    hidden = cast(op, x, FP32, dtype)
    hidden = norm_and_affine(op, hidden, channels, norm, weight, bias, eps)
    hidden = modulate(op, hidden, scale, shift)
    if quantize is not None:
        return [*first, *quantize_tokens(op, hidden, quantize)]
    return [*first, cast(op, hidden, dtype)]


def qk_norm_rope(
    op: Opset, q: Value, k: Value, cos: Value | None, sin: Value | None,
    grid: Sequence[Size], pairs: Sequence[int], norm: str, q_weight: Value | None,
    k_weight: Value | None, q_bias: Value | None, k_bias: Value | None, eps: float,
    interleaved: bool, start: Size, layout: str,
) -> tuple[Value, Value]:  # fmt: skip
    _, _, heads, head_dim = q.shape
    kind, over = norm.split("_", 1)
    channels = heads * head_dim if over == "across_heads" else head_dim
    turn = None if cos is None else turning(op, q, cos, sin, grid, pairs, start, interleaved)
    out = []
    for x, weight, bias in ((q, q_weight, q_bias), (k, k_weight, k_bias)):
        hidden = fp32(op, x)
        if over == "across_heads":
            hidden = op.Reshape(hidden, ints(op, [0, 0, channels]))
        hidden = norm_and_affine(op, hidden, channels, kind, weight, bias, eps)
        if over == "across_heads":
            hidden = op.Reshape(hidden, ints(op, [0, 0, heads, head_dim]))
        hidden = op.Transpose(hidden, perm=[0, 2, 1, 3])
        out.append(cast(op, hidden if turn is None else turn(hidden), x.dtype))
    return out[0], out[1]


def attention(
    op: Opset, query: Value, key: Value, value: Value, bias: Value | None, scale: float
) -> Value:
    if op.version >= 23:
        mask = None if bias is None else _mask(op, bias, query)
        out, *_ = op.Attention(query, key, value, mask, scale=scale)
        return out
    query, dtype = cast(op, op.Mul(fp32(op, query), number(op, scale)), query.dtype), query.dtype
    scores = op.MatMul(query, op.Transpose(key, perm=[0, 1, 3, 2]))
    scores = cast(op, scores, FP32, dtype)
    scores = scores if bias is None else op.Add(scores, fp32(op, bias))
    return op.MatMul(cast(op, op.Softmax(scores, axis=-1), dtype), value)


def _mask(op: Opset, bias: Value, query: Value) -> Value:
    """A bias of keys, repeated for each query: onnxruntime does not broadcast along that axis."""

    def made() -> Value:
        shape = op.Concat(ints(op, [1, 1]), op.Shape(query, start=2, end=3), ints(op, [1]), axis=0)
        return op.Expand(cast(op, bias, query.dtype, bias.dtype), shape)

    return once(bias, ("mask", str(query.shape[2]), query.dtype), made)


def linear_gelu(op: Opset, x: Value, weight: Value, bias: Value | None) -> Value:
    return gelu(op, linear(op, x, weight, bias, x.dtype))


def patchify(
    op: Opset, latents: Value, patch_size: Sequence[int], weight: Value | None, bias: Value | None,
    channels_first: bool,
) -> Value:  # fmt: skip
    channels = latents.shape[1]
    p, q, r = (ints(op, [patch]) for patch in patch_size)
    f, h, w = (
        op.Div(op.Shape(latents, start=axis, end=axis + 1), patch)
        for axis, patch in enumerate((p, q, r), start=2)
    )
    shape = op.Concat(ints(op, [0, channels]), f, p, h, q, w, r, axis=0)
    order = (0, 2, 4, 6, 1, 3, 5, 7) if channels_first else (0, 2, 4, 6, 3, 5, 7, 1)
    patches = op.Transpose(op.Reshape(latents, shape), perm=order)
    tokens = op.Reshape(patches, ints(op, [0, 0, 0, 0, channels * prod(patch_size)]))
    if weight is None:
        return tokens
    return linear(op, cast(op, tokens, weight.dtype, latents.dtype), weight, bias, weight.dtype)


def unpatchify(
    op: Opset, tokens: Value, patch_size: Sequence[int], weight: Value | None, bias: Value | None,
    scale: Value | None, shift: Value | None, norm: str | None, norm_weight: Value | None,
    norm_bias: Value | None, eps: float, channels_first: bool,
) -> Value:  # fmt: skip
    width = tokens.shape[-1]
    grid = op.Shape(tokens, start=1, end=3)
    if weight is not None:
        dtype, hidden = tokens.dtype, fp32(op, tokens)
        if norm is not None:
            hidden = norm_and_affine(op, hidden, width, norm, norm_weight, norm_bias, eps)
        else:
            hidden = affine(op, hidden, norm_weight, norm_bias)
        hidden = cast(op, modulate(op, hidden, scale, shift), dtype)
        tokens, width = linear(op, hidden, weight, bias, dtype), weight.shape[0]
    p, q, r = patch_size
    channels = width // prod(patch_size)
    packed = [channels, p, q, r] if channels_first else [p, q, r, channels]
    order = (0, 4, 1, 5, 2, 6, 3, 7) if channels_first else (0, 7, 1, 4, 2, 5, 3, 6)
    patches = op.Transpose(op.Reshape(tokens, ints(op, [0, 0, 0, 0, *packed])), perm=order)
    rows = op.Mul(grid, ints(op, [p, q]))
    shape = op.Concat(ints(op, [0, 0]), rows, ints(op, [-1]), axis=0)
    return op.Reshape(patches, shape)


def guided_step(
    op: Opset, latents: Value, positive: Value, negative: Value | None, weights: Value,
    history: Sequence[Value], guidance_scale: float, rescale: float,
) -> Sequence[Value]:  # fmt: skip
    positive = fp32(op, positive)
    guided = positive
    if negative is not None:
        negative = fp32(op, negative)
        guided = op.Add(negative, op.Mul(op.Sub(positive, negative), number(op, guidance_scale)))
    if rescale:
        guided = _rescale(op, guided, positive, len(latents.shape), rescale)
    row, shape = ints(op, [1, -1]), op.Shape(latents)
    terms = (op.Reshape(term, row) for term in (latents, guided, *history))
    sums = op.MatMul(weights, op.Concat(*terms, axis=0))
    rows = (op.Gather(sums, index(op, i), axis=0) for i in range(weights.shape[0]))
    return [op.Reshape(output, shape) for output in rows]


def _rescale(op: Opset, guided: Value, positive: Value, axes: int, rescale: float) -> Value:
    """The guided prediction with its deviation pulled towards the positive one's."""
    over = ints(op, range(1, axes))

    def moments(x: Value) -> tuple[Value, Value]:
        mean = op.ReduceMean(x, over, keepdims=1)
        centred = op.Sub(x, mean)
        return mean, op.ReduceMean(op.Mul(centred, centred), over, keepdims=1)

    (_, wanted), (mean, found) = moments(positive), moments(guided)
    least = op.Mul(mean, number(op, LEAST_DEVIATION))
    ratio = op.Where(
        op.LessOrEqual(found, op.Mul(least, least)),
        number(op, 1.0),
        op.Sqrt(op.Div(wanted, found)),
    )
    ratio = op.Add(op.Mul(ratio, number(op, rescale)), number(op, 1 - rescale))
    return op.Mul(guided, ratio)


def norm_silu(
    op: Opset, x: Value, weight: Value | None, bias: Value | None, norm: str, groups: int,
    eps: float, padding: Sequence[int], before: Value | None, repeat_first: bool,
) -> Value:  # fmt: skip
    time, rows, columns = padding
    normalize = pixel_norm if norm == "rms" else group_norm
    hidden = normalize(op, fp32(op, x), groups, eps)
    vectors = (
        None if v is None else op.Reshape(v, ints(op, [-1, 1, 1, 1])) for v in (weight, bias)
    )
    hidden = affine(op, hidden, *(None if v is None else op.Cast(v, to=FP32) for v in vectors))
    hidden = cast(op, op.Mul(hidden, op.Sigmoid(hidden)), x.dtype)
    if before is not None:
        hidden = op.Concat(cast(op, before, x.dtype, before.dtype), hidden, axis=2)
    elif repeat_first and time:
        first = op.Slice(hidden, ints(op, [0]), ints(op, [1]), ints(op, [2]))
        hidden = op.Concat(*[first] * time, hidden, axis=2)
    zeros = 0 if before is not None or repeat_first else time
    if zeros or rows or columns:
        hidden = op.Pad(hidden, ints(op, [0, 0, zeros, rows, columns, 0, 0, 0, rows, columns]))
    return hidden


def quantized_linear(
    op: Opset, x: Value, x_scale: Value | None, weight: Value, weight_scale: Value,
    bias: Value | None, activated: bool, dtype: ir.DataType,
) -> Value:  # fmt: skip
    if x_scale is None:
        to = "int8" if weight.dtype == ir.DataType.INT8 else "fp8"
        x, x_scale = quantize_tokens(op, fp32(op, x), to)
    halves = dtype == ir.DataType.BFLOAT16 and op.version >= 23  # exact in bf16, as in fp32
    exact = dtype if halves else FP32
    columns = eight_bit(op, op.Transpose(weight, perm=[1, 0]), exact)
    hidden = cast(op, op.MatMul(eight_bit(op, x, exact), columns), FP32, exact)
    hidden = op.Mul(op.Mul(hidden, x_scale), op.Transpose(weight_scale, perm=[1, 0]))
    hidden = hidden if bias is None else op.Add(hidden, fp32(op, bias))
    return cast(op, gelu(op, hidden) if activated else hidden, dtype)


def nearest(op: Opset, x: Value, size: Any, scales: Sequence[float]) -> Value:
    """Pictures grown by whole factors, where `nearest-exact` repeats each pixel: one operator
    instead of the exporter's gather."""
    factors = op.Constant(value_floats=[1.0, 1.0, *scales])
    return op.Resize(
        x,
        None,
        factors,
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )


def unbind(op: Opset, x: Value, axis: int = 0) -> list[Value]:
    """PyTorch's own, in one node that splits; its exporter writes a slice for each part."""
    count = x.shape[axis]
    parts = op.Split(x, axis=axis, num_outputs=count)
    parts = [parts] if count == 1 else parts
    return [op.Squeeze(part, ints(op, [axis])) for part in parts]


TRANSLATED: dict[str, Callable[..., Any]] = {
    "gate_residual": gate_residual,
    "norm_modulate": norm_modulate,
    "qk_norm_rope": qk_norm_rope,
    "attention": attention,
    "linear_gelu": linear_gelu,
    "linear_gelu_cublaslt": linear_gelu,
    "patchify": patchify,
    "unpatchify": unpatchify,
    "guided_step": guided_step,
    "norm_silu": norm_silu,
    "quantized_linear": quantized_linear,
}
# Operators of PyTorch's own that the exporter takes apart.
PYTORCH = {
    torch.ops.aten.unbind.int: unbind,
    torch.ops.aten._upsample_nearest_exact2d.vec: nearest,
}
