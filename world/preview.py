"""Fit the embedded model's preview on rendered scenes: `python -m kinema.world.preview`.

Writes `vae/preview.json` of the checkpoint that ships (or of `--folder`), with what it explains of
scenes that it was not fitted on.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..runtime import opening
from ..runtime.checkpoints.checkpoint import EMBEDDED_FOLDER, open_checkpoint
from ..runtime.vaes import preview
from .render import render
from .scene import sample_scene

SCENES = 50  # one in five is held out


def main(arguments: Sequence[str] | None = None) -> None:
    """Fit, write and tell how well."""
    parser = argparse.ArgumentParser(prog="python -m kinema.world.preview")
    parser.add_argument("--folder", type=Path, default=EMBEDDED_FOLDER)
    options = parser.parse_args(arguments)
    checkpoint = open_checkpoint(options.folder)
    vae = opening.open_component(checkpoint, "vae", torch.device("cpu"), torch.float32)
    found = preview.fit(vae, scenes(SCENES))
    file = checkpoint.component("vae").folder / preview.FILE
    preview.write(file, found, fitted_on=f"{SCENES} rendered scenes, one in five held out for r2")
    print(f"r2 {found.r2:.4f}; wrote {file}")


def scenes(count: int, seed: int = 3) -> Iterator[Tensor]:
    """Pixels (1, 3, frames, H, W) in -1..1 of random scenes."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        frames = torch.from_numpy(render(sample_scene(rng)))
        yield frames.permute(3, 0, 1, 2)[None].float() / 127.5 - 1


if __name__ == "__main__":
    main()
