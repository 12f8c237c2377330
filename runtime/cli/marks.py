"""How files say where they come from: the options that `generate`, `serve` and `verify` share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import UsageError
from ..files import reason_of

if TYPE_CHECKING:
    from ..provenance.marking import Provenance

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


@dataclass(frozen=True)
class Marks:
    """What files to be written say of where they come from, a visible mark apart."""

    no_manifest: Annotated[
        bool, typer.Option("--no-manifest", help="Write no signed statement of how it was made.")
    ] = False
    no_invisible_mark: Annotated[
        bool, typer.Option("--no-invisible-mark", help="Leave the marks in picture and sound out.")
    ] = False
    tell_prompt: Annotated[
        bool,
        typer.Option(
            "--tell-prompt",
            help="Sign the prompt itself, not its hash; the file's comment tells it either way.",
        ),
    ] = False
    sign_key: SignKey = None
    sign_chain: SignChain = None
    mark_key: MarkKey = None

    def provenance(self, visible: bool) -> Provenance:
        """The same for the library; a key that cannot sign is refused here."""
        from ..provenance import keys
        from ..provenance.marking import Provenance

        signs = bool(self.sign_key or self.sign_chain) or not self.no_manifest
        return Provenance(
            manifest=not self.no_manifest,
            invisible=not self.no_invisible_mark,
            visible=visible,
            tell_prompt=self.tell_prompt,
            identity=keys.opened(self.sign_key, self.sign_chain) if signs else None,
            mark_key=read_mark_key(self.mark_key),
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
