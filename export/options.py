"""What an export was asked for, settled: names of dtypes and sizes, and what fits together."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from ..runtime.errors import UsageError

WRITERS = {
    "onnx": "onnx:OnnxWriter",
    "tensorrt": "engines:TensorRTWriter",
    "aoti": "aoti:AotiWriter",
}
SERVER = "triton-server"  # which runs the model as it is
FORMATS = (*WRITERS, SERVER)
OPSETS = (18, 23, 24)
DEFAULT_OPSET = 23
# What is asked for: the dtype that the rest is computed in, and the format of the products' values.
DTYPES = {
    "fp32": ("float32", None),
    "fp16": ("float16", None),
    "bf16": ("bfloat16", None),
    "fp8": ("bfloat16", "fp8"),  # float16 would overflow where values are large
    "int8": ("bfloat16", "int8"),
}
SHAPE = re.compile(r"(\d+)x(\d+)x(\d+)")
ARCH = re.compile(r"sm_(\d+)")


class Clip(NamedTuple):
    """A size that an export is made for."""

    width: int
    height: int
    num_frames: int


@dataclass(frozen=True)
class Options:
    """Settled. `dtype`: what is computed in; `quantize`: "fp8" or "int8" where products are."""

    to: str
    dtype: str
    quantize: str | None = None
    clips: tuple[Clip, ...] = ()
    arch: tuple[str, ...] = ()
    opset: int = DEFAULT_OPSET
    calibration: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """As a manifest holds them."""
        return asdict(self)


def as_options(
    to: str,
    *,
    dtype: str | None = None,
    shapes: Sequence[str] = (),
    arch: Sequence[str] = (),
    opset: int | None = None,
    calibration: Sequence[str] = (),
) -> Options:
    """Options that can be met together; raises `UsageError` for one that cannot, saying what can.

    dtype: fp32 by default, which every runtime takes; fp16 for TensorRT.
    """
    if to not in FORMATS:
        raise UsageError(f"cannot export to {to!r}; known: {', '.join(FORMATS)}")
    dtype = dtype or ("fp16" if to == "tensorrt" else "fp32")
    if dtype not in DTYPES:
        raise UsageError(f"dtype {dtype!r} is not known; known: {', '.join(DTYPES)}")
    compute, quantize = DTYPES[dtype]
    if quantize and to == "onnx":
        compute = "float32"  # what onnxruntime computes in on a CPU
    if quantize and to not in ("onnx", "tensorrt"):
        raise UsageError(f"dtype {dtype} is for onnx and tensorrt; {to} takes fp32, fp16 or bf16")
    if shapes and to != "tensorrt":
        raise UsageError(f"shapes are for tensorrt; {to} takes any size as it is")
    if arch and to != "tensorrt":
        raise UsageError(f"arch is for tensorrt; {to} has none to choose")
    if opset is not None and to not in ("onnx", "tensorrt"):
        raise UsageError(f"opset is for onnx and tensorrt; {to} has none")
    if opset is not None and opset not in OPSETS:
        raise UsageError(f"opset is {opset}; {', '.join(map(str, OPSETS))} work")
    if to == "tensorrt" and not arch:
        raise UsageError("which GPU? name it: arch sm_89, sm_120, ...; several may be given")
    if calibration and not quantize:
        raise UsageError(f"calibration is for fp8 and int8; {dtype} needs none")
    if bad := [name for name in arch if not ARCH.fullmatch(name)]:
        raise UsageError(f"arch {bad[0]!r} is not one; such as sm_89")
    clips = tuple(map(_clip, shapes))
    return Options(
        to, compute, quantize, clips, tuple(arch), opset or DEFAULT_OPSET, tuple(calibration)
    )


def _clip(text: str) -> Clip:
    if not (found := SHAPE.fullmatch(text)):
        raise UsageError(f"shape {text!r} is not WIDTHxHEIGHTxFRAMES, such as 832x480x81")
    return Clip(*map(int, found.groups()))
