"""Measured rows, committed as `results/<device>.csv`: one quantity a line, with where it came from.

Rows of one bench, name and dtype on a device were made in one run, taking turns; a new run takes
their place. docs/numbers.md tells what each column holds.
"""

from __future__ import annotations

import csv
import io
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..runtime.files import whole_or_nothing
from . import measure

NUMBERS = ("median", "p20", "p80", "psnr", "ssim")
DIGITS = 6  # significant ones, which no measurement has
Seconds = Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Row:
    """One quantity. An empty string or None is what was not recorded, or does not apply."""

    device: str = ""
    driver: str = ""
    threads: int | None = None
    versions: str = ""
    commit: str = ""
    date: str = ""
    bench: str = ""
    name: str = ""
    shapes: str = ""
    dtype: str = ""
    runner: str = ""
    quantity: str = ""
    unit: str = ""
    base: str = ""
    median: float | None = None
    p20: float | None = None
    p80: float | None = None
    n: int | None = None
    psnr: float | None = None
    ssim: float | None = None
    note: str = ""

    @property
    def sizes(self) -> dict[str, str]:
        """`shapes` by name."""
        pairs = (part.partition("=") for part in self.shapes.split())
        return {name: size for name, _, size in pairs}

    @property
    def run(self) -> tuple[str, ...]:
        """Equal for rows of one run."""
        return self.device, self.bench, self.name, self.dtype

    @property
    def value(self) -> float:
        """The median, of a row that was measured."""
        assert self.median is not None, self  # what was skipped has none
        return self.median

    @property
    def percentiles(self) -> tuple[float, float] | None:
        """The 20th and the 80th; None for a single value."""
        return None if self.p20 is None or self.p80 is None else (self.p20, self.p80)


COLUMNS = tuple(field.name for field in fields(Row))


# ---- making them ---------------------------------------------------------------------------------


def about(
    bench: str, name: str = "", shapes: str = "", dtype: str = "", *packages: str, on: Any = "cpu"
) -> Row:
    """A row of these versions and this commit, with nothing measured yet; `on` a CPU or a GPU."""
    told = measure.provenance(*packages)
    on_gpu = "" if str(on).startswith("cpu") else driver()
    versions = {"python": told["python"], **told["versions"]}
    return Row(
        device=told["device"] if on_gpu else measure.cpu(),
        driver=on_gpu,
        threads=None if on_gpu else told["threads"],
        versions="; ".join(f"{package} {version}" for package, version in versions.items()),
        commit=told["commit"],
        date=told["date"],
        bench=bench,
        name=name,
        shapes=shapes,
        dtype=dtype,
    )


@lru_cache
def driver() -> str:
    """The version of the GPU's driver; empty where there is no GPU."""
    import torch

    if not torch.cuda.is_available():
        return ""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    except OSError:
        found = ""
    return found.splitlines()[0] if found else f"CUDA {torch.version.cuda}"


def timed(
    like: Row, seconds: Seconds, base: str, quality: Mapping[str, Any] | None = None
) -> list[Row]:
    """Seconds of each runner, then its ratio to `base`: of neighbouring calls, above 1 is faster.

    quality: (psnr, ssim) of a runner's video.
    """
    found = []
    for runner, values in seconds.items():
        psnr, ssim = (quality or {}).get(runner, (None, None))
        row = replace(like, runner=runner, psnr=psnr, ssim=ssim)
        found.append(spread(replace(row, quantity="seconds", unit="s"), values))
        if runner != base:
            ratio = replace(row, quantity="ratio", unit="times", base=base)
            found.append(spread(ratio, measure.ratios(seconds[base], values)))
    return found


def spread(like: Row, values: Sequence[float]) -> Row:
    """A row with the median and the 20th and 80th percentile of values."""
    return replace(like, **measure.spread(values)._asdict(), n=len(values))


def one(like: Row, runner: str, quantity: str, unit: str, value: float, **more: Any) -> Row:
    """A row of a single value."""
    found = {"runner": runner, "quantity": quantity, "unit": unit, "median": float(value)}
    return replace(like, **found, **more)


def apart(like: Row, errors: Mapping[str, float], base: str) -> list[Row]:
    """RMS of what differs from `base` over its RMS, of each runner."""
    return [
        one(like, runner, "error_over_rms", "1", error, base=base)
        for runner, error in errors.items()
    ]


def skipped(like: Row, runner: str, reason: str) -> Row:
    """A row that says why there is none."""
    return replace(like, runner=runner, quantity="skipped", note=" ".join(reason.split()))


def said(row: Row) -> str:
    """A row as a line of text."""
    where = " ".join(filter(None, (row.bench, row.name, row.shapes, row.dtype, row.runner)))
    if row.quantity == "skipped":
        return f"{where}: skipped, {row.note}"
    spread = " ({:.4g} to {:.4g})".format(*row.percentiles) if row.percentiles else ""
    beside = f" beside {row.base}" if row.base else ""
    video = "" if row.psnr is None else f", PSNR {row.psnr:.1f} dB, SSIM {row.ssim:.4f}"
    quantity = row.quantity.replace("_", " ")
    return f"{where}: {quantity} {row.value:.4g}{spread} {row.unit}{beside}{video}"


# ---- files ---------------------------------------------------------------------------------------


def slug(device: str) -> str:
    """A device's name as that of a file."""
    plain = re.sub(r"\((R|TM|C)\)|NVIDIA ", "", device)
    return re.sub(r"[^a-z0-9]+", "_", plain.lower()).strip("_")


def path_of(device: str) -> Path:
    """The file that a device's rows are in."""
    return measure.RESULTS / f"{slug(device)}.csv"


def read(path: Path | None = None) -> list[Row]:
    """The rows of a file; of all devices by default."""
    paths = [path] if path else sorted(measure.RESULTS.glob("*.csv"))
    return [row for file in paths if file.is_file() for row in parse(file.read_text())]


def parse(text: str) -> list[Row]:
    """Rows of a table with a header."""
    return [Row(**_values(line)) for line in csv.DictReader(io.StringIO(text))]


def _values(line: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = dict(line)
    for name in NUMBERS:
        found[name] = float(line[name]) if line[name] else None
    for name in ("threads", "n"):
        found[name] = int(line[name]) if line[name] else None
    return found


def as_text(rows: Iterable[Row]) -> str:
    """Rows as a table with a header."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([_cell(getattr(row, name)) for name in COLUMNS] for row in rows)
    return out.getvalue()


def _cell(value: Any) -> Any:
    return f"{value:.{DIGITS}g}" if isinstance(value, float) else value


def merge(rows: Sequence[Row], path: Path | None = None) -> list[Path]:
    """Put rows into their devices' files (or into `path`), in place of older ones of these runs."""
    files: dict[Path, list[Row]] = {}
    for row in rows:
        files.setdefault(path or path_of(row.device), []).append(row)
    for file, mine in files.items():
        anew = {row.run for row in mine}
        kept = [row for row in read(file) if row.run not in anew]
        file.parent.mkdir(parents=True, exist_ok=True)
        with whole_or_nothing(file) as unfinished:
            unfinished.write_text(as_text([*kept, *mine]))
    return list(files)


def select(rows: Iterable[Row], **wanted: Any) -> list[Row]:
    """Rows whose fields are these."""
    return [
        row for row in rows if all(getattr(row, name) == value for name, value in wanted.items())
    ]
