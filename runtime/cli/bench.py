"""`kinema bench`: this machine's time for a video and a step, beside what else could make them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .app import Debug, Json, app
from .console import print_json, say
from .extras import needing

commands = typer.Typer(
    help="Time kinema beside diffusers, cache-dit and onnxruntime.", invoke_without_command=True
)
app.add_typer(commands, name="bench")


@commands.callback()
def bench(
    context: typer.Context,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PART",
            help="video, step, decode (all three if not given); or cold_start, waterfall,"
            " scaling, load, turns, serve. May be repeated.",
        ),
    ] = None,
    repeats: Annotated[
        int, typer.Option(metavar="N", min=1, help="Times each is run, at most.")
    ] = 7,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE", help="A folder or a hub id; the embedded model if not given."
        ),
    ] = None,
    steps: Annotated[int, typer.Option(metavar="N", min=1, help="Of a video.")] = 20,
    dtype: Annotated[
        list[str] | None,
        typer.Option(metavar="DTYPE", help="float32 and bfloat16 if not given; repeat it."),
    ] = None,
    device: Annotated[str, typer.Option(metavar="DEVICE", help="cpu, cuda, ...")] = "cpu",
    no_compile: Annotated[
        bool, typer.Option("--no-compile", help="Leave all compilers out; they take minutes.")
    ] = False,
    exports: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where graphs are kept for another run.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="A CSV file for the rows, or a folder: one a device."),
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Time kinema beside diffusers, cache-dit and onnxruntime: same weights and noise, in turns."""
    if context.invoked_subcommand is not None:
        return
    from dataclasses import asdict

    from ...benchmarks.bench import Asked, run
    from ...benchmarks.rows import said

    dtypes = tuple(dtype or ("float32", "bfloat16"))
    asked = Asked(
        repeats=repeats, compiled=not no_compile, exports=exports, dtypes=dtypes, steps=steps,
        source=model, device=device,
    )  # fmt: skip
    show = (lambda row: None) if as_json else (lambda row: print(said(row), flush=True))
    with needing("bench", "the benchmark"):
        found = run(only or (), asked, out, show)
    if as_json:
        print_json([asdict(row) for row in found])
    if out is not None:
        say(f"rows are in {out}")


@commands.command()
def report(
    check: Annotated[
        bool, typer.Option("--check", help="Fail where one is out of date, and write nothing.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Make the tables and plots of README and docs from their rows."""
    from ...benchmarks.report import report as make

    for name in make(check):
        say(f"wrote {name}")


@commands.command()
def gate(
    write: Annotated[
        bool, typer.Option("--write", help="Measure anew what is committed; nothing else runs.")
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Fail where speed beside diffusers was lost, beyond the noise.

    A step and a video are timed.
    """
    from dataclasses import asdict

    from ...benchmarks import gate as gates

    with needing("bench", "the gate"):
        if write:
            return say(f"wrote {gates.write()}")
        verdicts = gates.check(say)
    if as_json:
        print_json([asdict(verdict) for verdict in verdicts])
    else:
        for verdict in verdicts:
            print(verdict)
    if any(verdict.lost for verdict in verdicts):
        raise typer.Exit(1)
