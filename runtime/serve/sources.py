"""A video that another is made of: its frames at a rate, and its sound. Only files written here."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ..files import whole_or_nothing
from ..media.clips import open_frames
from ..media.mp4 import fit_samples
from .orders import BACKWARD, SOURCE, Order

# A video's first and last frames as the model made them: no codec, no mark, its own size.
EDGES, SOURCE_EDGES = "edges.npz", "source-edges.npz"


class Source:
    """A stored video."""

    def __init__(self, path: Path) -> None:
        import av

        self.path = path
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            rate = stream.average_rate or stream.guessed_rate
            assert rate is not None and stream.duration is not None and stream.time_base is not None
            self.fps = float(rate)
            codec = stream.codec_context
            self.width, self.height = codec.width, codec.height
            self.seconds = float(stream.duration * stream.time_base)

    def at(self, fps: float) -> Iterator[np.ndarray]:
        """Frames uint8 (height, width, 3), repeated or left out to come at another rate."""
        shown = 0
        for index, frame in enumerate(open_frames(self.path)):
            until = round((index + 1) * fps / self.fps)
            for _ in range(shown, until):
                yield frame
            shown = max(shown, until)

    def first(self, count: int, fps: float, start: int = 0) -> list[np.ndarray]:
        """So many frames from one on; the last one stands where there are too few."""
        frames = list(islice(self.at(fps), start, start + count)) or self.last(1, fps)
        return frames + frames[-1:] * (count - len(frames))

    def last(self, count: int, fps: float) -> list[np.ndarray]:
        """The last frames; the first one stands where there are too few."""
        frames = list(deque(self.at(fps), count))
        return frames[:1] * (count - len(frames)) + frames

    def sound(self, sample_rate: int, seconds: float) -> np.ndarray:
        """Samples float32 (n, 1) that last so long, silence where there are none."""
        import av

        parts = [np.zeros(0, np.float32)]
        with av.open(str(self.path)) as container:
            for stream in container.streams.audio[:1]:
                resampler = av.AudioResampler("fltp", "mono", sample_rate)
                for frame in container.decode(stream):
                    parts += [part.to_ndarray()[0] for part in resampler.resample(frame)]
                parts += [part.to_ndarray()[0] for part in resampler.resample(None)]
        return fit_samples(np.concatenate(parts)[:, None], round(seconds * sample_rate))


Edges = dict[str, np.ndarray]  # "start" and "end", frames (n, h, w, 3), where they are known


def keep_edges(folder: Path, edges: Edges, fps: float) -> None:
    """Keep them for whoever goes on from a finished video."""
    kept: dict[str, Any] = {"fps": np.float64(fps), **edges}
    with whole_or_nothing(folder / EDGES) as unfinished, unfinished.open("wb") as file:
        np.savez_compressed(file, **kept)


def source_edges(folder: Path, fps: float) -> Edges:
    """Those of an extension's source, where they are known at this rate."""
    if not (folder / SOURCE_EDGES).exists():
        return {}
    with np.load(folder / SOURCE_EDGES) as kept:
        known = {name: kept[name] for name in kept.files}
    return known if known.pop("fps") == fps else {}


def neighbours(folder: Path, order: Order, count: int, fps: float) -> list[np.ndarray]:
    """The frames that an extension is shown: its source's last, or first if it comes before it."""
    source, edges = Source(folder / SOURCE), source_edges(folder, fps)
    if order.direction == BACKWARD:
        frames = edges.get("start", ())[:count]
        return list(frames) if len(frames) == count else source.first(count, fps)
    frames = edges.get("end", ())[-count:]
    return list(frames) if len(frames) == count else source.last(count, fps)
