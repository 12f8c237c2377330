"""What signing costs: `python -m kinema.benchmarks.provenance`.

A clip at 720p is written once; signing it, reading and validating it, and signing an edit of it are
timed apart from encoding. The row, kept in results/provenance.json, has the bytes added as well.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

from ..runtime.media.mp4 import write_mp4
from ..runtime.provenance import keys, manifest
from .mark_clips import FPS, clip
from .measure import PROMPT, interleave, provenance, summary, write_rows

HEIGHT, WIDTH, SECONDS, RUNS = 720, 1280, 4, 30
REPORT = {
    "request": {"prompt": PROMPT, "seed": 0},
    "plan": {
        "num_frames": FPS * SECONDS,
        "height": HEIGHT,
        "width": WIDTH,
        "fps": FPS,
        "num_inference_steps": 50,
        "guidance_scale": 5.0,
        "seed": 0,
        "dtype": "bfloat16",
    },
    "model": {"name": "benchmark", "weights": "0" * 64},
    "executor": "eager",
}
MOST_MS, MOST_BYTES = 20, 6_000


def main(arguments: list[str] | None = None) -> None:
    """Measure, print and, if asked, keep one row."""
    parser = argparse.ArgumentParser(prog="python -m kinema.benchmarks.provenance")
    parser.add_argument("--write", action="store_true", help="keep the row in results/")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_DATA_HOME"] = folder  # an identity of its own
        row = measured(Path(folder))
    for name, value in row.items():
        print(f"{name}: {value}")
    print(f"aims: at most {MOST_MS} ms to sign, {MOST_BYTES} bytes")
    if options.write:
        write_rows("provenance", {"provenance": provenance("av", "numpy"), "rows": [row]})


def measured(folder: Path, runs: int = RUNS) -> dict[str, Any]:
    """Seconds and bytes of a manifest at 720p."""
    frames = clip("natural", FPS * SECONDS, HEIGHT, WIDTH, seed=0)
    unsigned = write_mp4(folder / "unsigned.mp4", frames, FPS, report=REPORT)
    signed, edited = folder / "signed.mp4", folder / "edited.mp4"
    identity, told = keys.development(), manifest.claims(REPORT, 0, False)

    def sign() -> None:
        manifest.sign(unsigned, signed, identity, told, "signed.mp4")

    def edit() -> None:
        manifest.sign(unsigned, edited, identity, told, "edited.mp4", signed)

    sign()
    works = {"sign": sign, "read": lambda: manifest.read(signed), "sign_edit": edit}
    return {
        "clip": f"{WIDTH}x{HEIGHT}, {SECONDS} s",
        "file_bytes": unsigned.stat().st_size,
        **{name: summary(spent) for name, spent in interleave(works, runs).items()},
        "added_bytes": signed.stat().st_size - unsigned.stat().st_size,
        "added_bytes_edit": edited.stat().st_size - unsigned.stat().st_size,
    }


if __name__ == "__main__":
    main()
