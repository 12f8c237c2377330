"""What launches ask of the compiler, recorded from launches on meta tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from ._triton import recording

# Bytes of shared memory that one block may have.
SHARED_LIMIT = {
    "sm_80": 166912,
    "sm_89": 101376,
    "sm_90": 232448,
    "sm_100": 232448,
    "sm_120": 101376,
}
ARCHES = tuple(SHARED_LIMIT)
# Warpgroup matrix products of sm_90: of bf16 and fp16, of fp8, of int8.
WGMMA = frozenset({"HGMMA", "QGMMA", "IGMMA"})
POINTERS = {
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float32: "*fp32",
    torch.float8_e4m3fn: "*fp8e4nv",
    torch.float8_e5m2: "*fp8e5",
    torch.int8: "*i8",
    torch.uint8: "*u8",
    torch.bool: "*i1",
    torch.int32: "*i32",
    torch.int64: "*i64",
}
OPTIONS = ("num_warps", "num_stages", "num_ctas", "maxnreg")


@dataclass(frozen=True)
class Compilation:
    """One kernel, compiled for one set of argument types.

    `signature` types the run-time arguments by name: "*bf16", "i32", "fp32",
    "tensordesc<bf16[64, 64]>"; every other is in `constexprs` (None for an absent pointer, 1 for a
    contiguous stride). `divisible` names multiples of 16: aligned pointers, integers.
    `needs`: machine instructions of which sm_90 must use at least one. `arches`: where it exists;
    `default`: those where it is what is launched unless told otherwise, which a CI run compiles.
    """

    op: str
    config: str
    kernel: Any
    signature: Mapping[str, str]
    constexprs: Mapping[str, Any] = field(default_factory=dict)
    divisible: frozenset[str] = frozenset()
    options: Mapping[str, Any] = field(default_factory=dict)
    default: tuple[str, ...] = ()
    needs: frozenset[str] = frozenset()
    arches: tuple[str, ...] = ARCHES


def defaults(dtype: torch.dtype) -> tuple[str, ...]:
    """Where CI compiles what a product or attention takes first: bf16, and fp16 for sm_90.

    fp32 takes three TF32 products, and spills at large heads.
    """
    return {torch.bfloat16: ARCHES, torch.float16: ("sm_90",)}.get(dtype, ())


def record(
    op: str,
    config: str,
    run: Callable[[], Any],
    *,
    default: tuple[str, ...] = (),
    needs: frozenset[str] = frozenset(),
    arches: tuple[str, ...] = ARCHES,
) -> Iterator[Compilation]:
    """What `run()`, which launches kernels on meta tensors, would have compiled.

    `run` must launch through `_triton.launch`. Arguments are specialized as Triton's launcher does:
    integers that are 1 become constants, multiples of 16 and pointers are known as such.
    """
    launches: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []
    with recording(lambda *launched: launches.append(launched)):
        run()
    for kernel, args, given in launches:
        options = {name: given.pop(name) for name in OPTIONS if name in given}
        values = {**dict(zip(kernel.arg_names, args, strict=False)), **given}
        types = {param.name: _type(param, values[param.name]) for param in kernel.params}
        part = f"{config}, {kernel.__name__.strip('_')}" if len(launches) > 1 else config
        yield Compilation(
            op,
            part,
            kernel,
            signature={name: kind for name, kind in types.items() if kind != "constexpr"},
            constexprs={name: values[name] for name, kind in types.items() if kind == "constexpr"},
            divisible=frozenset(
                param.name
                for param in kernel.params
                if types[param.name] != "constexpr" and _is_divisible(param, values[param.name])
            ),
            options=options,
            default=default,
            needs=needs,
            arches=arches,
        )


def _type(param: Any, value: Any) -> str:
    """How Triton's launcher types an argument."""
    if param.is_constexpr or value is None or isinstance(value, bool):
        return "constexpr"
    if isinstance(value, torch.Tensor):
        return POINTERS[value.dtype]
    if isinstance(value, float):
        return "fp32"
    if isinstance(value, int):
        if value == 1 and not param.do_not_specialize:
            return "constexpr"
        return "i32" if -(2**31) <= value < 2**31 else "i64"
    block = ", ".join(str(size) for size in value.block_shape)  # a host tensor descriptor
    return f"tensordesc<{POINTERS[value.base.dtype][1:]}[{block}]>"


def _is_divisible(param: Any, value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return True
    return isinstance(value, int) and value % 16 == 0 and not param.do_not_specialize
