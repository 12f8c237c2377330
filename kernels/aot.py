"""Compiles kernels ahead of time, for chips that need not be present, and reads the machine code.

Every operation's module has `compilations()`: what its launches ask of the compiler, recorded from
launches on meta tensors.
"""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import os
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from . import dispatch
from ._triton import recording, tl, triton

# Bytes of shared memory that one block may have.
SHARED_LIMIT = {
    "sm_80": 166912,
    "sm_89": 101376,
    "sm_90": 232448,
    "sm_100": 232448,
    "sm_120": 101376,
}
ARCHES = tuple(SHARED_LIMIT)
AS_AMD = "sm_80"  # AMD's chips are given what this one is: pointers, no e4m3
# Warpgroup matrix products of sm_90: of bf16 and fp16, of fp8, of int8.
WGMMA = frozenset({"HGMMA", "QGMMA", "IGMMA"})
# What is told of machine code: matrix products, bulk copies, and loads and stores of spills.
TOLD = re.compile(r"[A-Z]*G?MMA|UTMA[A-Z]+|UBLKCP|LDGSTS|LDL|STL")
OPCODE = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+\s+)?([A-Z0-9]+)")
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


def compilations() -> Iterator[Compilation]:
    """Those of every operation."""
    for op in dispatch.TABLE:
        yield from import_module(f".{op}", __package__).compilations()


# ---- compiling -----------------------------------------------------------------------------------

Row = dict[str, Any]  # op, config, default, arch, and facts
Facts = dict[str, Any]  # registers, spills, shared, instructions; or error as well


def check(
    arches: Sequence[str] = ARCHES,
    everything: bool = False,
    only: str | None = None,
    jobs: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Row]:
    """Compile the default configurations (or all) for `arches`; a row for each, read or cached.

    `only`: one operation. Raises `RuntimeError` where Triton is missing or interpreting.
    """
    if tl is None:
        raise RuntimeError("Triton is not installed: pip install triton (Linux)")
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise RuntimeError("TRITON_INTERPRET=1 is set; kernels compile only without it")
    tasks = [
        (index, arch)
        for index, compilation in enumerate(_all())
        for arch in arches
        if only in (None, compilation.op) and _like(arch) in compilation.arches
        if everything or _like(arch) in compilation.default
    ]
    missing = {file: task for task in tasks if not (file := _cache_file(*task)).is_file()}
    found: dict[Path, Facts] = {}
    for file, facts in zip(missing, _facts_of_all(list(missing.values()), jobs), strict=True):
        found[file] = facts
        progress(len(found), len(missing))
    return [_row(*task, found) for task in tasks]


def _row(index: int, arch: str, found: Mapping[Path, Facts]) -> Row:
    compilation, file = _all()[index], _cache_file(index, arch)
    facts = found[file] if file in found else json.loads(file.read_text())
    names = {"op": compilation.op, "config": compilation.config}
    return {**names, "default": _like(arch) in compilation.default, "arch": arch, **facts}


def _like(arch: str) -> str:
    return arch if arch in ARCHES else AS_AMD


def needs() -> dict[tuple[str, str], frozenset[str]]:
    """What each configuration must use of on sm_90, by operation and name."""
    return {(found.op, found.config): found.needs for found in _all()}


def failures(rows: Iterable[Row], needs: Mapping[tuple[str, str], frozenset[str]]) -> list[str]:
    """What must not be, a line each: what does not compile, spills in a default configuration,
    too much shared memory, a matrix kernel for sm_90 without warpgroup products. AMD is only told.
    """
    found = []
    for row in rows:
        if row["arch"] not in SHARED_LIMIT:
            continue
        name = f"{row['op']} {row['config']} on {row['arch']}"
        if "error" in row:
            found.append(f"{name} does not compile: {row['error']}")
            continue
        limit, need = SHARED_LIMIT[row["arch"]], needs.get((row["op"], row["config"]))
        if row["default"] and row["spills"]:
            found.append(f"{name} spills {row['spills']} bytes; a default one must not")
        if row["shared"] > limit:
            found.append(f"{name} wants {row['shared']} bytes of shared memory; {limit} are there")
        if row["arch"] == "sm_90" and need and not need & row["instructions"].keys():
            found.append(f"{name} has no warpgroup product ({', '.join(sorted(need))})")
    return found


def compile_one(compilation: Compilation, arch: str) -> Facts:
    """Compile for `arch`, such as "sm_90" or "gfx942", and read the result."""
    nothing = {"registers": None, "spills": None, "shared": None, "instructions": {}}
    try:
        compiled, log = _compile(compilation, arch)
        read = _read_nvidia if arch.startswith("sm_") else _read_amd
        return {"shared": compiled.metadata.shared, **read(compiled, log)}
    except Exception as error:  # a compiler may raise anything; the caller judges
        return {**nothing, "error": _why(error)}


def _why(error: BaseException) -> str:
    """The innermost cause on one line, and the line of source it is about."""
    said = ""
    while True:
        lines = [line.strip() for line in str(error).splitlines() if line.strip(" ^")]
        said = lines[-1] if lines else said
        if error.__cause__ is None:
            return f"{type(error).__name__}: {said}"
        error = error.__cause__


def _compile(compilation: Compilation, arch: str) -> tuple[Any, str]:
    """Triton's compiled kernel, and what the assembler said."""
    from triton import compile, knobs
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = compilation.kernel
    source = ASTSource(
        kernel,
        {name: compilation.signature.get(name, "constexpr") for name in kernel.arg_names},
        dict(compilation.constexprs),
        {
            (index,): [["tt.divisibility", 16]]
            for index, name in enumerate(kernel.arg_names)
            if name in compilation.divisible
        },
    )
    if arch.startswith("sm_"):
        target = GPUTarget("cuda", int(arch[3:]), 32)
    else:
        target = GPUTarget("hip", arch, 64)
    knobs.compilation.always_compile = True  # Triton's own cache keeps no log
    knobs.nvidia.dump_ptxas_log = True
    log = io.StringIO()
    with redirect_stdout(log):
        compiled = compile(source, target=target, options=dict(compilation.options))
    return compiled, log.getvalue()


def _read_nvidia(compiled: Any, log: str) -> Row:
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [knobs.nvidia.nvdisasm.path, "-c", file.name]
        code = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    counts = Counter(OPCODE.findall(code))
    return {
        "registers": int(re.findall(r"Used (\d+) registers", log)[-1]),
        "spills": sum(int(size) for size in re.findall(r"(\d+) bytes spill", log)),
        "instructions": {name: counts[name] for name in sorted(counts) if TOLD.fullmatch(name)},
    }


def _read_amd(compiled: Any, log: str) -> Row:
    code = compiled.asm["amdgcn"]
    counts = Counter(re.findall(r"^\s+(v_mfma\w*)", code, re.MULTILINE))
    numbers = dict(re.findall(r"\.(vgpr_count|private_segment_fixed_size):\s+(\d+)", code))
    return {
        "registers": int(numbers["vgpr_count"]),
        "spills": int(numbers["private_segment_fixed_size"]),
        "instructions": dict(sorted(counts.items())),
    }


@cache
def _all() -> tuple[Compilation, ...]:
    return tuple(compilations())


def _facts_of_all(tasks: Sequence[tuple[int, str]], jobs: int | None) -> Iterator[Facts]:
    jobs = min(jobs or os.cpu_count() or 1, len(tasks) // 4)
    if jobs < 2:
        yield from (_facts(*task) for task in tasks)
        return
    context = multiprocessing.get_context("spawn")  # a fork of a threaded process may hang
    with ProcessPoolExecutor(jobs, context) as pool:
        yield from pool.map(_facts, *zip(*tasks, strict=True))


def _facts(index: int, arch: str) -> Facts:
    """Of one compilation, kept for the next time; errors, which may pass, are not."""
    facts = compile_one(_all()[index], arch)
    if "error" not in facts:
        file = _cache_file(index, arch)
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(f".{os.getpid()}")
        part.write_text(json.dumps(facts))
        part.replace(file)
    return facts


@cache
def _cache_file(index: int, arch: str) -> Path:
    """Where facts are kept: named by all that they depend on, the kernel's source above all."""
    compilation = _all()[index]
    parts = [
        compilation.kernel.cache_key,
        *(sorted(part.items()) for part in (compilation.signature, compilation.options)),
        sorted((name, repr(value)) for name, value in compilation.constexprs.items()),
        sorted(compilation.divisible),
        (arch, triton.__version__, Path(__file__).read_text()),
    ]
    key = hashlib.sha256(repr(parts).encode()).hexdigest()
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "kinema" / "kernels" / f"{key}.json"
