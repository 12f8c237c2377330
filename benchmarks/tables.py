"""Tables of committed results, in Markdown. Nothing in them is typed in by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby

from . import measure
from .file_tables import OF_FILES
from .measure import BASE
from .rows import Row, select

NONE_YET = "*No such row has been measured yet.*"
APART = "RMS of what differs from kinema eager over the RMS, in the same dtype"
SHOWN = ("seconds", "skipped")  # quantities that have a line of their own


# ---- of rows -------------------------------------------------------------------------------------


def end_to_end(rows: Sequence[Row]) -> str:
    """Seconds of whole videos beside diffusers, and of the whole command."""
    videos = _timed(select(rows, bench="video"))
    command = select(rows, bench="cold_start", quantity="seconds")
    if not videos:
        return NONE_YET
    blank = " |" * (videos[0].count("|") - 4)
    for row in command:
        videos.append(f"| `{row.runner}`, to its end | {_seconds(row)} | {_spread(row)} |{blank}")
    first = select(rows, bench="video")[0].sizes
    told = (
        f"Latents {first['latents']}, {first['steps']} steps, guidance {first['guidance']}, from"
        " prompt to latents; PSNR and SSIM of the decoded video against kinema eager in float32"
    )
    return _table(videos, told, select(rows, bench="video") + command)


def step_cpu(rows: Sequence[Row]) -> str:
    """One guided step beside diffusers, on random weights."""
    mine = select(rows, bench="step", name="12 layers")
    told = "12 layers, 512 wide, 1,500 tokens, both branches of guidance; apart: " + APART
    return _table(_timed(mine), told, mine)


def executors(rows: Sequence[Row]) -> str:
    """A step, and a decode, of the embedded model by everything that can run it."""
    mine = select(rows, bench="step", name="embedded") + select(rows, bench="decode")
    told = "A step is both branches of guidance; apart: " + APART
    return _table(_timed(mine), told, mine)


def waterfall(rows: Sequence[Row]) -> str:
    """One technique on top of another."""
    mine = select(rows, bench="waterfall")
    told = "Each line has all techniques above it, but for the first, which is the reference"
    return _table(_timed(mine, grouped=False), told, mine)


def scaling(rows: Sequence[Row]) -> str:
    """Time against tokens, steps and batch."""
    lines = []
    for row in select(rows, bench="scaling", quantity="seconds"):
        sizes = row.sizes
        shown = " | ".join(sizes[axis] for axis in ("tokens", "steps", "batch"))
        ratio = select(rows, bench="scaling", shapes=row.shapes, name=row.name, runner=row.runner,
                       quantity="ratio")  # fmt: skip
        times = _times(ratio[0]) if ratio else ""
        lines.append(f"| {row.name} | {shown} | {row.runner} | {_seconds(row)} | {times} |")
    head = ["| against | tokens | steps | batch | by | time | times as fast |", "|---" * 7 + "|"]
    return _table(lines and head + lines, "", select(rows, bench="scaling"))


def load(rows: Sequence[Row]) -> str:
    """Opening weights beside reading their bytes."""
    mine = select(rows, bench="load")
    sizes = mine[0].sizes if mine else {}
    told = ", ".join(f"{name} {value}" for name, value in sizes.items())
    return _table(_timed(mine, beside="read"), told, mine)


def turns(rows: Sequence[Row]) -> str:
    """What taking turns costs, and what it brings."""
    kinds = ("turns", "throughput", "latency")
    mine = [row for row in rows if row.bench in kinds and "seconds" in row.quantity]
    lines = ["| | what | dtype | sizes | time | 20th to 80th percentile |", "|---" * 6 + "|"]
    for row in mine:
        what = row.runner + (", 95th percentile" if row.quantity == "p95_seconds" else "")
        cells = (row.bench, what, row.dtype, row.shapes, _seconds(row), _spread(row))
        lines.append("| " + " | ".join(cells) + " |")
    return _table(lines if mine else [], "", mine)


def plan(rows: Sequence[Row]) -> str:
    """What a plan said beside what happened."""
    mine = select(rows, bench="plan")
    lines = ["| model | | predicted | measured | ratio |", "|---" * 5 + "|"]
    for row in select(mine, runner="predicted"):
        same = {"name": row.name, "dtype": row.dtype, "quantity": row.quantity}
        (found,) = select(mine, runner="measured", **same)
        show = _seconds if row.unit == "s" else _megabytes
        what = row.quantity.replace("_bytes", " memory").replace("_seconds", "")
        cells = (f"{row.name}, {row.dtype}", what, show(row), show(found))
        lines.append("| " + " | ".join(cells) + f" | {row.value / found.value:.2f} |")
    return _table(lines if mine else [], "", mine)


def serve(rows: Sequence[Row]) -> str:
    """A server under load."""
    mine = select(rows, bench="serve")
    lines = ["| what | by | quantity | value | 20th to 80th percentile |", "|---" * 5 + "|"]
    for row in (row for row in mine if row.quantity != "skipped"):
        value = _seconds(row) if row.unit == "s" else f"{row.median:.4g} {row.unit}"
        what = " ".join(filter(None, (row.name, row.shapes)))
        quantity = row.quantity.replace("_", " ")
        lines.append(f"| {what} | {row.runner} | {quantity} | {value} | {_spread(row)} |")
    return _table(lines if mine else [], "", mine)


def gpu(rows: Sequence[Row]) -> str:
    """A forward of a model of true size on a GPU, by executor and by attention."""
    mine = [row for row in rows if row.driver and row.bench in ("step", "attention")]
    told = "A guided step: two forwards of diffusers, one of ours; random weights"
    return _table(_timed(mine), told, mine)


# ---- parts of them -------------------------------------------------------------------------------


def _timed(rows: Sequence[Row], beside: str = BASE, grouped: bool = True) -> list[str]:
    """Lines of a table of runners; a bold line before those of one name and dtype."""
    if not rows:
        return []
    extra = _extra(rows)
    head = ["by", "time", "20th to 80th percentile", "times as fast", *extra]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for (bench, name, dtype), group in groupby(rows, lambda r: (r.bench, r.name, r.dtype)):
        mine = list(group)
        bases = {row.base for row in mine if row.quantity == "ratio"}
        base = beside if beside in bases or not bases else min(bases)
        if grouped:
            what = {"step": "a step of ", "decode": "a decode of "}.get(bench, "")
            blank = " |" * (len(head) - 1)
            lines.append(f"| **{what}{name}, {dtype}**, beside {base} |{blank}")
        lines += (_line(row, mine, base, extra) for row in mine if row.quantity in SHOWN)
    return lines


def _extra(rows: Sequence[Row]) -> list[str]:
    """Columns that some row fills."""
    found = []
    if any(row.psnr is not None for row in rows):
        found += ["PSNR, dB", "SSIM"]
    if any(row.quantity == "error_over_rms" for row in rows):
        found.append("apart")
    if any(row.quantity == "share_of_floor" for row in rows):
        found.append("of the floor")
    if any(row.quantity == "peak_bytes" for row in rows):
        found.append("peak memory")
    return found


def _line(row: Row, group: Sequence[Row], base: str, extra: Sequence[str]) -> str:
    if row.quantity == "skipped":
        return f"| {row.runner} | left out: {row.note} |" + " |" * (len(extra) + 2)
    same = {"runner": row.runner, "shapes": row.shapes}
    ratio = select(group, quantity="ratio", base=base, **same)
    error = select(group, quantity="error_over_rms", **same)
    share = select(group, quantity="share_of_floor", **same)
    peak = select(group, quantity="peak_bytes", **same)
    cells = {
        "PSNR, dB": "" if row.psnr is None else f"{row.psnr:.1f}",
        "SSIM": "" if row.ssim is None else f"{row.ssim:.4f}",
        "apart": f"{error[0].median:.0e}" if error and error[0].median else "",
        "of the floor": f"{share[0].median:.0%}" if share else "",
        "peak memory": _megabytes(peak[0]) if peak else "",
    }
    shown = [row.runner, _seconds(row), _spread(row), _times(ratio[0]) if ratio else ""]
    return "| " + " | ".join([*shown, *(cells[name] for name in extra)]) + " |"


def _seconds(row: Row) -> str:
    return f"{row.value:.2f} s" if row.value >= 1 else _small(row.value)


def _small(seconds: float) -> str:
    return f"{1e3 * seconds:.1f} ms" if seconds >= 1e-3 else f"{1e6 * seconds:.1f} µs"


def _megabytes(row: Row) -> str:
    return f"{row.value / 1e6:.1f} MB"


def _spread(row: Row) -> str:
    if row.percentiles is None:
        return ""
    low, high = row.percentiles
    if row.unit != "s":
        return f"{low:.4g} to {high:.4g}"
    if row.value >= 1:
        return f"{low:.2f} to {high:.2f}"
    scale = 1e3 if row.value >= 1e-3 else 1e6
    return f"{scale * low:.1f} to {scale * high:.1f}"


def _times(row: Row) -> str:
    spread = " ({:.2f} to {:.2f})".format(*row.percentiles) if row.percentiles else ""
    return f"{row.value:.2f}{spread}"


def _table(lines: Sequence[str], told: str, rows: Sequence[Row]) -> str:
    if not lines:
        return NONE_YET
    return "\n".join(lines) + f"\n\n{'; '.join(filter(None, (told, _where(rows))))}."


def _where(rows: Sequence[Row]) -> str:
    """Device, versions, commits and dates of rows."""
    threads = [_threads(row.threads) for row in rows if row.threads]
    versions = [part for row in rows for part in row.versions.split("; ")]
    commits = [f"commit {row.commit}" for row in rows if row.commit]
    drivers = [f"driver {row.driver}" for row in rows if row.driver]
    dates = sorted({row.date for row in rows if row.date})
    every = [[row.device for row in rows], drivers, threads, versions, commits, dates]
    return ", ".join(part for parts in every for part in dict.fromkeys(parts))


def _threads(count: int) -> str:
    return f"{count} thread{'s' * (count != 1)}"


# ---- by name -------------------------------------------------------------------------------------


OF_ROWS: dict[str, Callable[[Sequence[Row]], str]] = {
    make.__name__: make
    for make in (
        end_to_end, step_cpu, executors, waterfall, scaling, load, turns, plan, serve, gpu
    )
}  # fmt: skip
NAMES = (*OF_ROWS, *OF_FILES)


def table(name: str, rows: Iterable[Row]) -> str | None:
    """A table, one device's after another's; None where its file is not there."""
    if name in OF_ROWS:
        made = list(_by_device(OF_ROWS[name], list(rows)))
        return "\n\n".join(made) or NONE_YET
    file = measure.RESULTS / f"{name}.json"
    return OF_FILES[name](json.loads(file.read_text())) if file.is_file() else None


def _by_device(make: Callable[[Sequence[Row]], str], rows: Sequence[Row]) -> Iterator[str]:
    for device in dict.fromkeys(row.device for row in rows):
        made = make(select(rows, device=device))
        if made != NONE_YET:
            yield made
