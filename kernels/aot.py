"""Compiles kernels ahead of time, for chips that need not be present, and reads the machine code.

What is compiled, every operation's module says in `compilations()`.
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
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from . import dispatch
from ._compilations import ARCHES, SHARED_LIMIT, Compilation
from ._triton import tl, triton

AS_AMD = "sm_80"  # AMD's chips are given what this one is: pointers, no e4m3
# What is told of machine code: matrix products, bulk copies, and loads and stores of spills.
TOLD = re.compile(r"[A-Z]*G?MMA|UTMA[A-Z]+|UBLKCP|LDGSTS|LDL|STL")
OPCODE = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+\s+)?([A-Z0-9]+)")

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


def _read_nvidia(compiled: Any, log: str) -> Facts:
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


def _read_amd(compiled: Any, log: str) -> Facts:
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
    """Those of every operation."""
    modules = (import_module(f".{op}", __package__) for op in dispatch.TABLE)
    return tuple(compilation for module in modules for compilation in module.compilations())


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
