"""What the visible mark costs: `python -m kinema.benchmarks.visible_mark`.

Milliseconds a frame, in a stay and where it dims, beside copying the frame and beside writing it to
a file in the same run; and how long drawing the mark takes, once. `--write` keeps the rows in
results/visible_mark.json.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from ..runtime.media.mp4 import write_mp4
from ..runtime.provenance.visible_mark import STAY_SECONDS, VisibleMark
from .measure import interleave, provenance, ratios, write_rows

SIZES = ((64, 64), (480, 832), (720, 1280), (2160, 3840))
FPS, FRAMES = 24, 12


def main(arguments: list[str] | None = None) -> None:
    """Measure, print and, if asked, keep the rows."""
    parser = argparse.ArgumentParser(prog="python -m kinema.benchmarks.visible_mark")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--write", action="store_true", help="keep the rows in results/")
    options = parser.parse_args(arguments)
    rows = []
    for size in SIZES:
        rows.append(measure(*size, options.repeats))
        print(rows[-1], flush=True)
    if options.write:
        path = write_rows("visible_mark", {"provenance": provenance("pillow", "av"), "rows": rows})
        print(f"wrote {path}")


def measure(height: int, width: int, repeats: int) -> dict[str, Any]:
    """A row: a dozen frames of a moving picture, marked, copied and written, taking turns."""
    mark, frames = VisibleMark(height, width, FPS), list(moving(height, width))
    dimmed = round(STAY_SECONDS * FPS)
    with tempfile.TemporaryDirectory() as folder:
        works = {
            "mark": lambda: each(frames, lambda frame, index: mark.apply(frame, index)),
            "mark, dimmed": lambda: each(frames, lambda frame, _: mark.apply(frame, dimmed)),
            "copy": lambda: each(frames, lambda frame, _: frame.copy()),
            "write": lambda: write_mp4(Path(folder) / "a.mp4", frames, FPS),
            "draw": lambda: VisibleMark(height, width, FPS),
        }
        seconds = interleave(works, repeats)
    drawn = median(seconds.pop("draw"))
    return {
        "height": height,
        "width": width,
        "ms_a_frame": {n: round(1e3 * median(s) / FRAMES, 4) for n, s in seconds.items()},
        "mark_to_copy": round(median(ratios(seconds["mark"], seconds["copy"])), 3),
        "mark_to_write": round(median(ratios(seconds["mark"], seconds["write"])), 4),
        "draw_once_ms": round(1e3 * drawn, 2),
        "repeats": repeats,
    }


def each(frames: list[np.ndarray], work: Callable[[np.ndarray, int], np.ndarray]) -> None:
    """One frame after the other; what comes of it is let go, as a file's writer does."""
    for index, frame in enumerate(frames):
        work(frame, index)


def moving(height: int, width: int) -> Iterator[np.ndarray]:
    """Smooth colours that drift, with grain."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    grain = np.random.default_rng(0).normal(0, 4, (height, width, 1)).astype(np.float32)
    for index in range(FRAMES):
        waves = [np.sin(x / 40 + index / 5), np.cos(y / 50 - index / 9), np.sin((x + y) / 60)]
        yield np.clip(127 + 90 * np.stack(waves, axis=-1) + grain, 0, 255).astype(np.uint8)


if __name__ == "__main__":
    main()
