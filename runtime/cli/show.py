"""`kinema models` and `kinema info`: what can be opened, and what a file says of itself."""

from __future__ import annotations

from textwrap import fill
from typing import Annotated

import typer

from .app import Debug, Json, app
from .console import plain, print_json, table

ALSO = (
    ("FOLDER", "a checkpoint on disk: a folder with a model_index.json"),
    ("ORG/NAME", "a checkpoint on the hub, fetched once"),
    ("FILE", "a transformer's .safetensors, on top of a checkpoint (--base)"),
)
HANGING = {"subsequent_indent": " " * 15, "break_on_hyphens": False}


@app.command()
def models(as_json: Json = False, debug: Debug = False) -> None:
    """Say what can be opened, and what the embedded model understands."""
    from ..checkpoints.checkpoint import known_models

    listing = known_models()
    if as_json:
        return print_json(listing)
    rows = [*((known["name"], known["what"]) for known in listing), *ALSO]
    print(table(rows))
    embedded = listing[0]
    presets = embedded["presets"]
    print(f"\nThe embedded model makes {presets['num_frames']} frames", end=" ")
    print(f"{presets['width']}x{presets['height']} at {presets['fps']:g} fps. It understands:")
    for category, words in embedded["words"].items():
        print(fill(", ".join(words), 80, initial_indent=f"  {category:<12} ", **HANGING))
    print("\nTry:")
    for prompt in embedded["examples"]:
        print(f'  kinema generate "{prompt}" -o video.mp4')


@app.command()
def info(
    file: Annotated[str, typer.Argument(metavar="FILE", help="An MP4 that kinema wrote.")],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Say what a finished file says about itself."""
    from ..media.video import read_info
    from ..provenance.verify import verify

    found = read_info(file)
    found["provenance"] = verify(file).as_dict()
    if as_json:
        return print_json(found)
    for section, value in found.items():
        if not isinstance(value, dict):
            print(f"{plain(section)}: {plain(value)}")
            continue
        print(f"{plain(section)}:")
        for name, entry in value.items():
            print(f"  {plain(name)}: {plain(entry)}")
