"""`kinema verify` and `kinema keys`: where a file comes from, and who signs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UsageError
from .app import Debug, Json, app
from .console import print_json, table
from .marks import MarkKey, SignChain, SignKey, read_mark_key

if TYPE_CHECKING:
    from ..provenance.verify import Verification

HOW = {
    "trusted": "trusted: signed, whole, and who signed is vouched for",
    "valid": "valid: signed and whole; nobody you named vouches for who signed",
    "invalid": "INVALID: changed since it was signed, or signed wrongly",
    "marked": "no manifest; an invisible mark, which anyone can make who has its key",
    "nothing": "nothing found: no manifest and no mark",
}

keys_app = typer.Typer(
    help="Make and show who signs the files that are written.", no_args_is_help=True
)
app.add_typer(keys_app, name="keys")


@app.command()
def verify(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A file of any kind.")],
    trust: Annotated[
        str | None, typer.Option(metavar="FILE", help="Authorities whose word you take, in PEM.")
    ] = None,
    mark_key: MarkKey = None,
    as_json: Json = False,
    debug: Debug = False,
) -> int:
    """Say where FILE comes from, and whether that holds.

    Exit codes: 0 valid or trusted, 1 invalid, 2 usage, 3 nothing found, 4 only an invisible mark.
    """
    from ..provenance.verify import verify

    found = verify(file, trust, read_mark_key(mark_key))
    if as_json:
        print_json({**found.as_dict(), "exit_code": found.exit_code})
    else:
        print(f"{file}: {HOW[found.state]}")
        for name, words in _lines(found):
            print(f"  {name:<13} {words}")
    return found.exit_code


@keys_app.command("init")
def init(
    force: Annotated[
        bool, typer.Option("--force", help="Make a new one; the old one is kept beside it.")
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Make an identity for development.

    It is a certificate authority and a leaf that it vouches for; the leaf signs.
    """
    from ..provenance import keys

    folder = keys.keys_folder()
    if folder.exists() and not force:
        raise UsageError(f"there is an identity in {str(folder)!r}; --force makes a new one")
    keys.make_development(anew=force)
    _show(as_json)


@keys_app.command("show")
def show(
    sign_key: SignKey = None,
    sign_chain: SignChain = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Say who signs.

    That is the keys given or in the environment, else the development identity.
    """
    _show(as_json, sign_key, sign_chain)


def _show(as_json: bool, key: str | None = None, chain: str | None = None) -> None:
    from ..provenance import keys

    identity = keys.opened(key, chain)
    told = {
        "name": identity.name,
        "algorithm": identity.algorithm,
        "expires": f"{identity.expires:%Y-%m-%d}",
        "development": identity.development,
    }
    if identity.development:
        told["folder"] = str(keys.keys_folder())
        told["authority"] = str(keys.keys_folder() / keys.ROOT)
    if as_json:
        return print_json(told)
    print(table([(name, str(value)) for name, value in told.items()]))


def _lines(found: Verification) -> list[tuple[str, str]]:
    """What a verification says, as names and words."""
    made, lines = found.generation, [("problem", problem) for problem in found.problems]
    if found.signed_by:
        lines.append(("signed by", f"{found.signed_by}, {found.when}, {found.software}"))
    lines += _making(made)
    for parent in found.lineage:
        signed = f"signed by {parent['signed_by']}" if parent["signed_by"] else "not signed"
        wrong = f"; {parent['problems'][0]}" if parent["problems"] else ""
        lines.append(("made from", f"{parent['title']}, {signed}{wrong}"))
    for name, mark in (("picture mark", found.picture_mark), ("sound mark", found.sound_mark)):
        words = "none" if mark is None else f"{mark['payload']}, {_sure(mark, made)}"
        lines.append((name, words))
    return lines


def _making(made: Any) -> list[tuple[str, str]]:
    lines = []
    if model := made.get("model"):
        lines.append(("model", f"{model.get('name')}, weights {model.get('weights')}"))
    if settings := made.get("settings"):
        lines.append(("settings", ", ".join(f"{k} {v}" for k, v in settings.items())))
    for name in ("prompt", "prompt_sha256"):
        if name in made:
            lines.append((name, str(made[name])))
            break
    if made.get("lossy"):
        lines.append(("lossy", ", ".join(made["lossy"])))
    return lines


def _sure(mark: Any, made: Any) -> str:
    same = {True: ", as the manifest says", False: ", not the one of the manifest"}
    told = same[mark["payload"] == made["mark"]] if "mark" in made else ""
    return f"{mark['bit_confidence']:.0%} of its bits, chance {mark['chance']:.0e}{told}"
