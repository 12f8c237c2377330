"""What one operator is, computes and moves: its class, FLOPs and bytes, from the tensors it took
and gave.

Bytes are those of an operator that reads each input once and writes each output once; an axis that
is only repeated is read once. FLOPs are counted of products, attention and convolutions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .classes import ATTENTION, CONVOLUTIONS, COPIES, ELEMENTWISE, PRODUCTS

Inputs = Sequence[Any]
Counter = Callable[[Inputs, Tensor], int]  # arguments and the first output, to FLOPs


class Call(NamedTuple):
    """One call of an operator. `kind` is its class, None where it computes nothing."""

    name: str
    kind: str | None
    flops: int
    bytes: int
    dtype: str


def describe(
    function: torch._ops.OpOverload, args: Inputs, kwargs: Mapping[str, Any], result: Any
) -> Call:
    """What a call did, from its arguments and what it gave."""
    name = function._schema.name.replace("::", ".")
    given = list(_tensors(args)) + [t for key, t in kwargs.items() if isinstance(t, Tensor)]
    made = list(_tensors([result]))
    read = [tensor for tensor in given if tensor is not kwargs.get("out")]
    dtype = _dtype(read or made)
    kind = _kind(name, args, bool(read))
    mutates = function._schema.is_mutable
    if not mutates:  # what lies in an input's memory is that input, seen in another way
        homes = {_home(tensor) for tensor in read}
        made = [tensor for tensor in made if _home(tensor) not in homes]
    if kind is None or not made:
        return Call(name, None, 0, 0, dtype)
    moved = _moved(name, read, made)
    return Call(name, kind, _flops(name, args, made[0]), moved, dtype)


def class_of_kernel(name: str) -> str:
    """The class of a GPU's kernel of which nothing but the name is known."""
    lower = name.lower()
    for words, kind in KERNELS:
        if any(word in lower for word in words):
            return kind
    return ELEMENTWISE


KERNELS = (
    (("flash", "fmha", "attention", "sdpa"), ATTENTION),
    (("conv", "implicit", "wgrad", "dgrad"), CONVOLUTIONS),
    (("gemm", "nvjet", "cutlass", "matmul", "splitk", "gemv", "_mm_"), PRODUCTS),
    (("memcpy", "memset", "copy", "cat", "transpose"), COPIES),
)


# ---- classes -------------------------------------------------------------------------------------


def _kind(name: str, args: Inputs, reads: bool) -> str | None:
    if name in FLOPS:
        counted = PRODUCT_IF_WEIGHED.get(name)
        if counted is None or (len(args) > counted and args[counted] is not None):
            return FLOPS[name][0]
        return COPIES
    if "attention" in name:
        return ATTENTION
    if "conv" in name and "convert" not in name:
        return CONVOLUTIONS
    if name in COPYING:
        return COPIES
    if name in IDLE:
        return None
    return ELEMENTWISE if reads else None


# Operators that take memory, or say something of it, and neither read nor write it.
IDLE = frozenset(
    {"aten.new_empty", "aten.empty_like", "aten.new_empty_strided", "aten.detach_", "aten.resize_"}
)
COPYING = frozenset(
    {
        "aten._to_copy",
        "aten.cat",
        "aten.clone",
        "aten.constant_pad_nd",
        "aten.contiguous",
        "aten.copy_",
        "aten.flatten",
        "aten.index",
        "aten.index_select",
        "aten.pad",
        "aten.repeat",
        "aten.repeat_interleave",
        "aten.reshape",
        "aten.roll",
        "aten.stack",
        "aten.to",
    }
)


# ---- FLOPs ---------------------------------------------------------------------------------------


def _flops(name: str, args: Inputs, out: Tensor) -> int:
    return FLOPS[name][1](args, out) if name in FLOPS else 0


def _product(of: int) -> Counter:
    """Two for each number of the output and each that is summed over: the last axis of `of`."""
    return lambda args, out: 2 * out.numel() * args[of].shape[-1]


def _attended(args: Inputs, out: Tensor) -> int:
    """Scores and their sum of values: (..., L, D) to (..., S, D)."""
    query, key, value = args[:3]
    *rows, length, width = query.shape
    return 2 * prod(rows) * length * key.shape[-2] * (width + value.shape[-1])


def _convolved(args: Inputs, out: Tensor) -> int:
    return 2 * out.numel() * prod(args[1].shape[1:])


def _convolution(args: Inputs, out: Tensor) -> int:
    transposed = len(args) > 6 and args[6]
    return _convolved(args, args[0] if transposed else out)


def _patched(args: Inputs, out: Tensor) -> int:
    """Pixels gathered into tokens (..., d) by a weight (d, pixels of a patch)."""
    weight = args[2]
    return 2 * (out.numel() // weight.shape[0]) * weight.numel() if weight is not None else 0


def _unpatched(args: Inputs, out: Tensor) -> int:
    """Tokens (..., d) spread into pixels by a weight (pixels of a patch, d)."""
    tokens, weight = args[0], args[2]
    return 2 * tokens.numel() * weight.shape[0] if weight is not None else 0


FLOPS: dict[str, tuple[str, Counter]] = {
    **{
        name: (PRODUCTS, _product(0))
        for name in (
            "aten.linear",
            "aten.mm",
            "aten.bmm",
            "aten.matmul",
            "aten.mv",
            "aten._scaled_mm",
            "mkldnn._linear_pointwise",
            "mkl._mkl_linear",
            "kinema.linear_gelu",
            "kinema.linear_gelu_cublaslt",
            "kinema.quantized_linear",
        )
    },
    "aten.addmm": (PRODUCTS, _product(1)),
    "aten.baddbmm": (PRODUCTS, _product(1)),
    "aten._addmm_activation": (PRODUCTS, _product(1)),
    "kinema.patchify": (PRODUCTS, _patched),
    "kinema.unpatchify": (PRODUCTS, _unpatched),
    **{
        name: (ATTENTION, _attended)
        for name in (
            "aten.scaled_dot_product_attention",
            "aten._scaled_dot_product_flash_attention",
            "aten._scaled_dot_product_flash_attention_for_cpu",
            "aten._scaled_dot_product_efficient_attention",
            "aten._scaled_dot_product_cudnn_attention",
            "aten._scaled_dot_product_attention_math",
            "kinema.attention",
            "kinema.quantized_attention",
            "kinema.flash2_attention",
            "kinema.flash3_attention",
            "kinema.flash4_attention",
        )
    },
    "aten.convolution": (CONVOLUTIONS, _convolution),
    "aten._convolution": (CONVOLUTIONS, _convolution),
    **{
        f"aten.conv{n}d": (CONVOLUTIONS, _convolved) for n in (1, 2, 3)
    },
}  # fmt: skip
# Operators that multiply only where an argument at this place is there.
PRODUCT_IF_WEIGHED = {"kinema.patchify": 2, "kinema.unpatchify": 2}


# ---- bytes ---------------------------------------------------------------------------------------

GATHERING = frozenset({"aten.index", "aten.index_select", "aten.embedding", "aten.gather"})


def _moved(name: str, read: Iterable[Tensor], made: Iterable[Tensor]) -> int:
    written = sum(_bytes(tensor) for tensor in made)
    if name in GATHERING:  # no more of a table than is taken from it
        return 2 * written
    once = {id(tensor): tensor for tensor in read}
    return written + sum(_bytes(tensor) for tensor in once.values())


def _bytes(tensor: Tensor) -> int:
    if tensor.is_mkldnn or tensor.layout != torch.strided:
        return tensor.numel() * tensor.element_size()
    pairs = zip(tensor.shape, tensor.stride(), strict=True)
    return prod(size for size, stride in pairs if stride) * tensor.element_size()


def _home(tensor: Tensor) -> int:
    """Equal for tensors of one memory."""
    if tensor.is_mkldnn or tensor.layout != torch.strided:
        return id(tensor)
    return tensor.untyped_storage()._cdata


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _dtype(tensors: Sequence[Tensor]) -> str:
    return str(tensors[0].dtype).removeprefix("torch.") if tensors else "float32"
