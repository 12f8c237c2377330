"""What the embedded model makes of frames it is shown: `python -m kinema.benchmarks.shown`.

True clips of the world with captions and seeds of their own; for each kind of frames shown, how
often what was asked is found, and how far what was made strays from the clip.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

import kinema

from ..runtime.requests.conditions import Condition
from ..world.captions import sample_caption
from ..world.detect import detect
from ..world.render import render
from ..world.scene import MOTIONS, Scene, sample_scene
from .measure import provenance, write_rows

CLIPS, SEED, FIRST_SEED = 20, 2026, 100


class Shown(NamedTuple):
    """Frames of a clip that a model is shown: so many of the first, and of the last."""

    first: int = 0
    last: int = 0

    def conditions(self, clip: np.ndarray) -> tuple[Condition, ...]:
        """Of a clip uint8 (frames, h, w, 3)."""
        told = []
        if self.first:
            told.append(_given(clip[: self.first], 0))
        if self.last:
            told.append(_given(clip[-self.last :], -self.last))
        return tuple(told)

    def made(self, num_frames: int) -> slice:
        """The frames that are left to make, but those that a last picture stands for."""
        return slice(self.first, num_frames - (4 if self.last else 0))


KINDS = {
    "nothing": Shown(),
    "first frame": Shown(first=1),
    "5 first": Shown(first=5),
    "9 first": Shown(first=9),
    "4 last": Shown(last=4),
    "last frame": Shown(last=1),
    "first and last frame": Shown(first=1, last=1),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure every kind, print it and, if asked, keep it in results/shown.json."""
    parser = argparse.ArgumentParser(prog="python -m kinema.benchmarks.shown")
    parser.add_argument("--clips", type=int, default=CLIPS)
    parser.add_argument("--steps", type=int, help="of the model's own number if not given")
    parser.add_argument("--write", action="store_true", help="keep the rows in results/")
    options = parser.parse_args(arguments)
    engine, rows = kinema.load(), {}
    for name, shown in KINDS.items():
        rows[name] = measure(engine, shown, options.clips, options.steps)
        print(f"{name}: {rows[name]}", flush=True)
    if options.write:
        told = {"provenance": provenance("numpy"), "clips": options.clips, "rows": rows}
        write_rows("shown", told)


def measure(engine: kinema.Engine, shown: Shown, clips: int, steps: int | None) -> dict[str, float]:
    """Means over clips; `pixels_off` and `psnr_db` of the frames that were made."""
    answers = [
        _answer(engine, shown, scene, caption, FIRST_SEED + index, steps)
        for index, (scene, caption) in enumerate(scenes(clips))
    ]
    means = {name: np.nanmean([answer[name] for answer in answers]) for name in answers[0]}
    return {name: round(float(mean), 3) for name, mean in means.items()}


def scenes(count: int) -> list[tuple[Scene, str]]:
    """Scenes, every motion as often, with a caption each."""
    rng = np.random.default_rng(SEED)
    drawn = [sample_scene(rng, motion=MOTIONS[i % len(MOTIONS)]) for i in range(count)]
    return [(scene, sample_caption(rng, scene)) for scene in drawn]


def _answer(
    engine: kinema.Engine, shown: Shown, scene: Scene, caption: str, seed: int, steps: int | None
) -> dict[str, Any]:
    true = render(scene)
    video = engine.generate(
        caption, seed=seed, conditions=shown.conditions(true), num_inference_steps=steps
    )
    rate, fps = engine.sound.config.sample_rate, int(video.fps)
    frames = video.frames
    assert frames is not None  # pictures were asked for
    found, wanted = detect(frames, video.audio, rate, fps), detect(true, None, rate, fps)
    new = shown.made(len(true))
    error = np.square(frames[new].astype(float) - true[new]).mean()
    return {
        "motion": found.motion == scene.motion,
        "colour": found.color == scene.color,
        "shape": found.shape == scene.shape,
        "background": found.background == scene.background,
        "pixels_off": np.nanmean(np.linalg.norm(found.centres - wanted.centres, axis=1)[new]),
        "psnr_db": 10 * np.log10(255**2 / error),
    }


def _given(frames: np.ndarray, at: int) -> Condition:
    if len(frames) == 1:
        return Condition(frames[0], frame=at)
    return Condition(frames=list(frames), frame=at)


if __name__ == "__main__":
    main()
