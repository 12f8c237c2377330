"""The `kinema` command. Every refusal is one line: exit code 2 for usage, 1 for failure, 130 for
Ctrl-C; with --json, one JSON object on standard output either way.

Nothing heavy is imported before a command needs it, so that `kinema --help` answers at once.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from contextlib import suppress
from typing import Annotated, NoReturn

import typer
from typer.exceptions import TyperException

from ...kernels.cli import app as kernels_app
from ..errors import KinemaError
from .console import fail

INTERRUPTED = 130

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(kernels_app, name="kernels")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def main() -> NoReturn:
    """Runs the command line of this process and ends it with the exit code."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    code = run(sys.argv[1:])
    with suppress(BrokenPipeError):
        sys.stdout.flush()
        sys.stderr.flush()
    # All files are closed by now; the interpreter's own way out takes a second to free torch.
    os._exit(code)


def run(argv: list[str]) -> int:
    """Runs one command line; returns its exit code, having printed at most one line of error."""
    as_json = "--json" in argv and argv[0] != "profile"  # where it names a file
    try:
        code = app(argv or ["--help"], prog_name="kinema", standalone_mode=False) or 0
        if code == INTERRUPTED:
            raise KeyboardInterrupt
        return code
    except KeyboardInterrupt:
        return fail("Interrupted", "stopped; nothing was written", INTERRUPTED, as_json)
    except TyperException as error:
        asked = getattr(getattr(error, "ctx", None), "command_path", "kinema")
        message = f"{error.format_message().rstrip('.')} ({asked} --help shows what works)"
        return fail("UsageError", message, error.exit_code, as_json)
    except Exception as error:
        if "--debug" in argv:
            traceback.print_exc()
        if isinstance(error, KinemaError):
            return fail(type(error).__name__, str(error), error.exit_code, as_json)
        message = f"unexpected {type(error).__name__}: {error} (--debug shows where)"
        return fail(type(error).__name__, message, KinemaError.exit_code, as_json)


def _say_version(asked: bool) -> None:
    if asked:
        from ... import __version__

        print(f"kinema {__version__}")
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Say the version.")
]


@app.callback()
def options(version: Version = False) -> None:
    """Make videos with sound from prompts, say how that goes, and serve it."""
