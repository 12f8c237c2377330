"""Every kernel on this GPU: right, how fast, against what the GPU can do and what others do.

    python -m kinema.benchmarks.kernels.run_all

Checks each kernel against its definition, times it at the models' shapes beside its peers and the
ceilings measured in the same run, and writes rows to benchmarks/results/ as they come. It stops at
`--minutes` and lists what it left out. What matters most is done first.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..measure import provenance, write_rows
from .cases import OPS
from .models import AWKWARD, MODELS
from .rows import Item, Row, said, title
from .targets import targets
from .timing import PREDICTED_GBPS, PREDICTED_TFLOPS
from .workers import work

CHECKERS = 4  # processes that check at once, which also compiles for the one that times
COMPILED = ("Wan2.1-1.3B 480p", "Wan2.1-14B 720p")  # torch.compile takes seconds a shape
TUNED = "Wan2.1-14B 480p"
PACKAGES = ("triton", "flash-attn", "fa3-fwd", "flash-attn-4", "nvidia-cudnn-cu13")
SAVE_S = 5.0


class Report:
    """Rows as they come, said and written."""

    def __init__(self, name: str) -> None:
        self.name, self.rows, self.left_out = name, [], []
        self.about = {**provenance(*PACKAGES), "gpu": _gpu()}
        self.saved = 0.0

    def say(self, row: Row) -> None:
        """Take a row."""
        self.rows.append(row)
        print(said(row), flush=True)
        if time.monotonic() > self.saved + SAVE_S:
            self.save()

    @property
    def limits(self) -> dict[str, float]:
        """The ceilings, once they are measured."""
        found = [row for row in self.rows if row["kind"] == "ceilings" and "error" not in row]
        return {name: value for name, value in found[0].items() if name != "kind"} if found else {}

    @property
    def wrong(self) -> list[Row]:
        """Rows of our own that are wrong or failed."""
        own = [row for row in self.rows if row["kind"] != "peer"]
        return [row for row in own if row.get("correct") is False or "error" in row]

    def save(self) -> Path:
        """Write all there is."""
        self.saved = time.monotonic()
        contents = {
            **self.about,
            "ceilings": self.limits,
            "predicted_from": {"tflops": PREDICTED_TFLOPS, "gbps": PREDICTED_GBPS},
            "targets": targets(self.rows),
            "left_out": [str(item) for item in self.left_out],
            "rows": [row for row in self.rows if row["kind"] != "ceilings"],
        }
        return write_rows(self.name, contents)


def main(argv: Sequence[str] | None = None) -> int:
    """Run; 0 if every kernel that ran was right."""
    options = _options(argv)
    if not torch.cuda.is_available():
        print("benchmarks/kernels/run_all.py needs an NVIDIA GPU; none is present", file=sys.stderr)
        return 1
    end = time.monotonic() + 60 * options.minutes
    report = Report(options.name or _slug())
    with tempfile.TemporaryDirectory() as folder:
        for groups, slots in stages(options.ops):
            if groups[0][0].stage not in ("ceilings", "check") and not report.limits:
                break
            left = (end - time.monotonic()) / 60
            report.left_out += work(groups, report.limits, left, report.say, Path(folder), slots)
    for name, value in targets(report.rows).items():
        print(f"{name}: {value}")
    if report.left_out:
        print(f"left out for time: {', '.join(map(str, report.left_out))}")
    print(f"written to {report.save()}")
    for row in report.wrong:
        print(f"WRONG {title(row)}: {row.get('error') or row['max_error']}")
    return 1 if report.wrong or not report.limits else 0


def stages(ops: Sequence[str]) -> list[tuple[list[list[Item]], int]]:
    """Groups of items, each group a process, and how many at once; in order of importance."""
    awkward = [[Item("check", op, AWKWARD.name)] for op in ops]
    checked = [[Item("check", op, model.name) for model in MODELS] for op in ops]
    timed = [Item("time", op, model.name) for model in MODELS for op in ops]
    tuned = [Item("tune", op, TUNED) for op in ops]
    compiled = [Item("compile", op, model) for model in COMPILED for op in ops]
    return [
        ([[Item("ceilings")]], 1),
        (awkward, CHECKERS),
        (checked, CHECKERS),
        ([timed + tuned + compiled], 1),
    ]


def _gpu() -> dict[str, Any]:
    device = torch.cuda.get_device_properties(0)
    return {
        "capability": f"{device.major}.{device.minor}",
        "multiprocessors": device.multi_processor_count,
        "memory_gib": round(device.total_memory / 2**30, 1),
        "cuda": torch.version.cuda,
    }


def _slug() -> str:
    name = torch.cuda.get_device_name().lower().removeprefix("nvidia ")
    return "kernels_" + "".join(c if c.isalnum() else "_" for c in name)


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=9.0, help="stop after these")
    parser.add_argument("--ops", nargs="+", default=list(OPS), choices=list(OPS))
    parser.add_argument("--name", help="of the file in benchmarks/results/, without .json")
    return parser.parse_args(argv)


if __name__ == "__main__":
    raise SystemExit(main())
