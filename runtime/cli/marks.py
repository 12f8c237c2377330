"""How files say where they come from: the options that `generate`, `serve` and `verify` share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import UsageError
from ..files import reason_of

if TYPE_CHECKING:
    from ..provenance.marking import Provenance

NoManifest = Annotated[
    bool, typer.Option("--no-manifest", help="Write no signed statement of how it was made.")
]
NoInvisibleMark = Annotated[
    bool, typer.Option("--no-invisible-mark", help="Leave the marks in picture and sound out.")
]
TellPrompt = Annotated[
    bool,
    typer.Option(
        "--tell-prompt",
        help="Sign the prompt itself, not its hash; the file's comment tells it either way.",
    ),
]
SignKey = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="Who signs: a private key in PEM; else $KINEMA_SIGN_KEY."),
]
SignChain = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="Its certificates, leaf first; else $KINEMA_SIGN_CHAIN."),
]
MarkKey = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="The key of the invisible marks; a public one if not given."),
]
LEAST_KEY_BYTES = 16


def provenance_of(
    *,
    no_manifest: bool,
    no_invisible_mark: bool,
    visible: bool,
    tell_prompt: bool,
    sign_key: str | None,
    sign_chain: str | None,
    mark_key: str | None,
) -> Provenance:
    """What the options say of files to be written; a key that cannot sign is refused here."""
    from ..provenance import keys
    from ..provenance.marking import Provenance

    signs = bool(sign_key or sign_chain) or not no_manifest
    return Provenance(
        manifest=not no_manifest,
        invisible=not no_invisible_mark,
        visible=visible,
        tell_prompt=tell_prompt,
        identity=keys.opened(sign_key, sign_chain) if signs else None,
        mark_key=read_mark_key(mark_key),
    ).ready()


def read_mark_key(file: str | None) -> bytes | None:
    """The bytes of a key file. Raises `UsageError` for one that is too short."""
    if file is None:
        return None
    try:
        key = Path(file).expanduser().read_bytes()
    except OSError as error:
        raise UsageError(f"--mark-key {file!r} cannot be read: {reason_of(error)}") from None
    if len(key) < LEAST_KEY_BYTES:
        raise UsageError(
            f"--mark-key {file!r} has {len(key)} bytes; {LEAST_KEY_BYTES} or more are a key"
        )
    return key
