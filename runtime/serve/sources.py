"""A video that another is made of: its frames at a rate, and its sound. Only files written here."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from ..clips import open_frames
from ..media import fit_samples


class Source:
    """A stored video."""

    def __init__(self, path: Path) -> None:
        import av

        self.path = path
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            self.fps = float(stream.average_rate or stream.guessed_rate)
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

    def first(self, count: int, fps: float) -> list[np.ndarray]:
        """So many frames from the start on; the last one stands where there are too few."""
        frames = list(islice(self.at(fps), count))
        return frames + frames[-1:] * (count - len(frames))

    def last(self, count: int) -> list[np.ndarray]:
        """The last frames, at its own rate; the first one stands where there are too few."""
        frames: list[np.ndarray] = []
        for frame in open_frames(self.path):
            frames = [*frames, frame][-count:]
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
