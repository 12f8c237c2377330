"""`kinema api-keys`: who may ask a server, as `kinema serve --api-key-file` reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .app import Debug, Json, app
from .console import print_json, say, table

commands = typer.Typer(help="Make, list and remove the API keys of kinema serve.")
app.add_typer(commands, name="api-keys")

Name = Annotated[str, typer.Argument(metavar="NAME", help="Whose key it is.")]
File = Annotated[
    Path, typer.Option("--file", metavar="FILE", help="What kinema serve --api-key-file reads.")
]
NEEDS_START = "a server reads the file when it starts"


@commands.command()
def new(name: Name, file: File, as_json: Json = False, debug: Debug = False) -> None:
    """Make a key. It is printed once; the file holds its hash alone."""
    from ..serve.keys import new_key

    key = new_key(file.expanduser(), name)
    if as_json:
        print_json({"name": name, "key": key, "file": str(file)})
    else:
        print(key)
        say(f"its hash is in {file} as {name!r}; {NEEDS_START}")


@commands.command("list")
def list_(file: File, as_json: Json = False, debug: Debug = False) -> None:
    """Say who has a key, and what the database calls them."""
    from ..serve.keys import list_keys

    keys = list_keys(file.expanduser())
    if as_json:
        print_json([{"name": name or None, "owner": owner} for name, owner in keys])
    else:
        print(table([(name or "(no name)", owner) for name, owner in keys]))


@commands.command()
def remove(name: Name, file: File, debug: Debug = False) -> None:
    """Take a key out of the file; its videos stay."""
    from ..serve.keys import remove_key

    remove_key(file.expanduser(), name)
    say(f"{name!r} is gone from {file}; {NEEDS_START}")
