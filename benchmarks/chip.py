"""Whether the kernels are right on this chip: each against its definition, in a process of its own.

`python -m kinema.benchmarks.gpu --check`
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch

from . import rows
from .rows import Row

CHECKED = (
    "attention", "norm_modulate", "qk_norm_rope", "gate_residual", "linear_gelu", "patchify",
    "unpatchify", "norm_silu", "guided_step",
)  # fmt: skip
SECONDS = 150.0
COMMAND = (sys.executable, "-m", "kinema.benchmarks.gpu")
QUANTITY = "error_over_allowed"


def check_apart(out: Path, device: torch.device) -> set[str]:
    """`check` in a process of its own, whose GPU context a bad kernel may ruin; what was wrong."""
    command = [*COMMAND, "--check", "--out", str(out)]
    command += ["--dry-run"] if device.type == "cpu" else []
    _process(command)
    device_name = rows.about("", on=device).device
    here = rows.select(rows.read(out), device=device_name, quantity=QUANTITY)
    return {f"{row.name} {row.runner}" for row in here if row.note}


def _process(command: Sequence[str]) -> None:
    try:
        subprocess.run(command, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        print(f"checking took longer than {SECONDS:g} s and was stopped", flush=True)


def check(out: Path, device: torch.device) -> int:
    """Every kernel's error over what is allowed: on sizes that divide no tile, then on true ones.

    0 if all are right. Ends early where an error took the GPU's context with it.
    """
    from .kernels.cases import cases
    from .kernels.models import AWKWARD, BY_NAME

    found: list[Row] = []
    on_gpu = device.type == "cuda"
    models = [AWKWARD, BY_NAME["Wan2.1-1.3B 480p"]] if on_gpu else [AWKWARD]
    dtype = torch.bfloat16 if on_gpu else torch.float32
    for model, op in product(models, CHECKED):
        for case in cases(op, model, str(device), dtype):
            for backend, call in _backends(case, device).items():
                found.append(_checked(case, backend, call, device))
                print(rows.said(found[-1]), found[-1].note, flush=True)
                rows.merge(found, out)
                if found[-1].note and on_gpu:
                    torch.cuda.synchronize()  # raises where nothing more can run
            if on_gpu:
                torch.cuda.empty_cache()
    return 1 if any(row.note for row in rows.select(found, quantity=QUANTITY)) else 0


def _backends(case: Any, device: torch.device) -> dict[str, Callable[[], Any]]:
    """Of a case; plain PyTorch where there is no GPU and so no other."""
    found = case.ours(str(device))
    return found or ({"torch": case.call(case.eager())} if device.type == "cpu" else {})


def _checked(case: Any, backend: str, call: Callable[[], Any], device: torch.device) -> Row:
    shapes = f"model={case.model} variant={case.variant or 'plain'}".replace(" ", "_")
    shapes = shapes.replace("_variant", " variant")
    dtype = str(case.needs.get("dtype", "")).removeprefix("torch.")
    about = rows.about("check", case.op, shapes, dtype, "triton", on=device)
    try:
        output = call()
        if case.part_of_args is None:
            return rows.skipped(about, backend, "it runs; too large for the definition")
        error, allowed, right = case.errors(output)
    except Exception as failure:
        note = f"{type(failure).__name__}: {failure}".splitlines()[0][:200]
        return rows.one(about, backend, QUANTITY, "1", float("inf"), note=note)
    share = error / allowed if allowed else float(error > 0)
    return rows.one(about, backend, QUANTITY, "1", share, note="" if right else "wrong")
