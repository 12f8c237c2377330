"""The sound of a video that is made in parts: each passes into the next, so that none clicks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from .orders import Part

FADE = 0.03  # seconds in which the sound of one part passes into that of the next


class Soundtrack:
    """Samples float32 (n, channels) as they come: parts one after another, or the last one first.

    A part's samples cover all of its frames; those of the frames that were there before it, or are
    dropped after it, are only passed into or out of.
    """

    def __init__(self, sample_rate: int, fps: float, backward: bool) -> None:
        self.sample_rate, self.fps, self.backward = sample_rate, fps, backward
        self._kept: list[np.ndarray] = []
        self._beyond = np.zeros((0, 1), np.float32)  # of a part, after what is kept of it

    def add_part(self, part: Part, samples: np.ndarray) -> None:
        """A part's, between what is there of it; of the same moments one passes into the other."""
        a_frame = self.sample_rate / self.fps
        first = 0 if self.backward else round(part.overlap * a_frame)
        until = first + round(part.kept * a_frame)
        there, new, beyond = samples[:first], samples[first:until], samples[until:]
        if not self.backward:
            if self._kept:
                fade_out(self._kept[-1], there, self._fade)
            self._kept.append(new)
            return
        if self._kept:
            fade_in(self._kept[0], beyond, self._fade)
        else:
            self._beyond = beyond
        self._kept.insert(0, new)

    def add_source(self, samples: np.ndarray) -> None:
        """That of the video that is extended, before all parts or after them."""
        self._kept.append(samples)
        fade_in(samples, self._beyond, self._fade)

    def whole(self) -> np.ndarray | None:
        """All of it in turn; None where nothing sounds."""
        return np.concatenate(self._kept) if self._kept else None

    @property
    def _fade(self) -> int:
        """Samples."""
        return round(FADE * self.sample_rate)


def fade_out(samples: np.ndarray, others: np.ndarray, most: int) -> None:
    """Let samples (n, channels) end as others, of the same moment, do, so that none clicks."""
    if count := min(most, len(samples), len(others)):
        weight = np.linspace(0, 1, count, dtype=np.float32)[:, None]
        samples[-count:] += weight * (others[-count:] - samples[-count:])


def fade_in(samples: np.ndarray, others: np.ndarray, most: int) -> None:
    """Let samples (n, channels) begin as others do."""
    fade_out(samples[::-1], others[::-1], most)
