"""`kinema kernels`: what this machine can run, and what every chip would be given."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

app = typer.Typer(help="Say which kernels there are, and compile them for any chip.")
Json = Annotated[bool, typer.Option("--json", help="Print a JSON list instead of a table.")]
COLUMNS = ("op", "config", "arch", "registers", "spills", "shared", "instructions")


@app.command("list")
def list_(
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, ...; a GPU if there is one.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Say which backends of each operation work here, or why not."""
    from .dispatch import listing

    rows = listing(device)
    if as_json:
        return print(json.dumps(rows, indent=2))
    for row in rows:
        print(f"{row['op']:<24} {row['backend']:<12} {row['reason'] or 'available'}")


@app.command()
def check(
    arch: Annotated[
        list[str] | None, typer.Option(help="Such as sm_90 or gfx942; may be given again.")
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Every configuration, not only the default ones.")
    ] = False,
    op: Annotated[str | None, typer.Option(help="Only this operation.")] = None,
    jobs: Annotated[
        int | None, typer.Option(help="Processes; one for each core if not given.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compile kernels ahead of time, for chips that need not be here.

    Fails where a default configuration spills registers, where one wants more shared memory than
    the chip has, or where a matrix kernel for sm_90 has no warpgroup products.
    """
    from . import aot, dispatch

    known = (*aot.ARCHES, "gfx942")
    if unknown := [name for name in arch or () if name not in known]:
        raise typer.BadParameter(f"--arch {unknown[0]} is not known; known: {', '.join(known)}")
    if op is not None and op not in dispatch.TABLE:
        raise typer.BadParameter(f"--op {op} is not known; known: {', '.join(dispatch.TABLE)}")
    try:
        rows = aot.check(arch or aot.ARCHES, everything, op, jobs, _progress)
    except RuntimeError as error:
        print(f"kinema: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    print(json.dumps(rows, indent=2) if as_json else _table(rows))
    if failed := aot.failures(rows, aot.needs()):
        print("\n".join(f"kinema: {line}" for line in failed), file=sys.stderr)
        raise typer.Exit(1)


def _progress(done: int, total: int) -> None:
    if sys.stderr.isatty():
        print(f"\r{done}/{total} compiled", end="" if done < total else "\n", file=sys.stderr)


def _table(rows: list[dict[str, Any]]) -> str:
    cells = [COLUMNS, *([_cell(row, name) for name in COLUMNS] for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(COLUMNS))]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    )


def _cell(row: dict[str, Any], name: str) -> str:
    if name == "instructions":
        counts = " ".join(f"{key}:{count}" for key, count in row[name].items())
        return row.get("error") or counts
    if name == "config":
        return row[name] + ("" if row["default"] else " (not default)")
    return "-" if row[name] is None else str(row[name])


if __name__ == "__main__":
    app()
