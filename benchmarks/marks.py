"""What the invisible marks survive, and cost: `python -m kinema.benchmarks.marks`.

Channel bits read back after each attack, before any correction, and how many payloads were whole;
what 64x64 carries; scores of clips without a mark; milliseconds a frame. `--write`
puts rows into results/marks.json one by one; a run that was stopped goes on with `--resume` too.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from ..runtime.provenance import picture_mark, sound_mark
from ..runtime.provenance.code import (
    CHANNEL_BITS,
    CHECK_BITS,
    Found,
    decode,
    encode,
    probability_of_chance,
)
from ..runtime.provenance.picture_mark import MOST_CHANCE, PictureMark, Reader
from ..runtime.provenance.sound_mark import SoundMark
from ..world import render, scene
from .mark_clips import FPS, PICTURE_ATTACKS, SOUND_ATTACKS, SOUNDS, SURFACES, clip, x264
from .measure import RESULTS, interleave, provenance, summary, write_rows

KEY = picture_mark.DEFAULT_KEY
HEIGHT, WIDTH, SECONDS = 720, 1280, 4
SEEDS = 2  # clips of a kind
SMALL_CLIPS, SMALL_CRFS = 64, (None, 12, 23, 28)
UNMARKED = {"world 64x64": 10_000, "noise 64x64": 2_000, "noise 427x240": 500}
NORMAL = {0.9: 1.2816, 0.95: 1.6449, 0.98: 2.0537, 0.99: 2.3263}  # quantiles, in spreads
SOUND_RATE, SOUND_SEEDS = 48_000, 8


def main(arguments: list[str] | None = None) -> None:
    """Measure, print and, if asked, keep row after row."""
    parser = argparse.ArgumentParser(prog="python -m kinema.benchmarks.marks")
    parser.add_argument("--resume", action="store_true", help="keep the rows there are")
    parser.add_argument("--minutes", type=float, default=12, help="start no row after them")
    parser.add_argument("--write", action="store_true", help="keep the rows in results/")
    options = parser.parse_args(arguments)
    path = RESULTS / "marks.json"
    rows = json.loads(path.read_text())["rows"] if options.resume and path.exists() else {}
    until = time.monotonic() + 60 * options.minutes
    for name, measure in tasks():
        if name in rows or time.monotonic() > until:
            continue
        rows[name] = measure()
        print(f"{name}: {rows[name]}", flush=True)
        if options.write:
            write_rows("marks", {"provenance": provenance("av", "numpy"), "rows": rows})
    left = [name for name, _ in tasks() if name not in rows]
    print(f"left for --resume: {', '.join(left)}" if left else "whole")
    print(json.dumps(table(rows), indent=1))


def tasks() -> Iterator[tuple[str, Any]]:
    """Names of rows and what measures them, the short ones first."""
    yield "speed", speed
    yield "sound", lambda: [sound_row(kind) for kind in SOUNDS]
    yield "64x64", lambda: [small_row(crf) for crf in SMALL_CRFS]
    for name, count in UNMARKED.items():
        yield f"unmarked: {name}", lambda name=name, count=count: unmarked(name, count)
    for seed in range(SEEDS):
        for kind in ("world", *SURFACES):
            yield f"{kind} {seed}", lambda kind=kind, seed=seed: picture_row(kind, seed)


def table(rows: dict[str, Any]) -> dict[str, Any]:
    """By attack: the mean part of channel bits over clips, the worst clip, payloads read."""
    clips = {name: row["attacks"] for name, row in rows.items() if "attacks" in row}
    summed = {}
    for attack in PICTURE_ATTACKS if clips else ():
        bits = {name: attacks[attack]["bits"] for name, attacks in clips.items()}
        worst = min(bits, key=bits.__getitem__)
        summed[attack] = {
            "bits": round(float(np.mean(list(bits.values()))), 4),
            "worst": f"{worst}: {bits[worst]}",
            "payloads": f"{sum(a[attack]['read'] for a in clips.values())} of {len(clips)}",
        }
    return summed


def speed() -> dict[str, Any]:
    """Milliseconds to mark a 720p frame, alone and with two threads taking frames."""
    frames = clip("natural", 24, HEIGHT, WIDTH, 0)
    mark = PictureMark(0, KEY, HEIGHT, WIDTH)
    pool = ThreadPoolExecutor(2)
    reader = Reader(KEY, *picture_mark.embedding_grid(HEIGHT, WIDTH), HEIGHT, WIDTH)
    works = {
        "one thread": lambda: [mark.apply(frame, 0).size for frame in frames],
        "two threads": lambda: list(pool.map(lambda frame: mark.apply(frame, 0).size, frames)),
        "read": lambda: [reader.add(frame) for frame in frames],
    }
    seconds = interleave(works, 7)
    pool.shutdown()
    per_frame = {n: [s / len(frames) for s in all_] for n, all_ in seconds.items()}
    return {name: summary(values) for name, values in per_frame.items()}


def picture_row(kind: str, seed: int) -> dict[str, Any]:
    """A clip of 720p over four seconds, after every attack."""
    frames = clip(kind, SECONDS * FPS, HEIGHT, WIDTH, seed)
    payload = _payload(kind, seed)
    mark = PictureMark(payload, KEY, HEIGHT, WIDTH)
    marked = [mark.apply(frame, i) for i, frame in enumerate(frames)]
    attacks = {}
    for name, attack in PICTURE_ATTACKS.items():
        attacked = attack(marked)
        height, width = attacked[0].shape[:2]
        reader = Reader(KEY, *picture_mark.embedding_grid(HEIGHT, WIDTH), height, width)
        for frame in attacked:
            reader.add(frame)
        attacks[name] = _answer(reader.soft(), reader.found(attempts=2), payload)
    return {"psnr_db": _psnr(frames[::8], marked[::8]), "attacks": attacks}


def small_row(crf: int | None) -> dict[str, Any]:
    """Clips of the embedded model's size."""
    answers, errors = [], []
    for seed in range(SMALL_CLIPS):
        frames = list(render.render(scene.sample_scene(np.random.default_rng(seed))))
        payload = _payload("small", seed)
        mark = PictureMark(payload, KEY, *frames[0].shape[:2])
        marked = [mark.apply(frame, i) for i, frame in enumerate(frames)]
        errors.append(_psnr(frames, marked))
        reader = _read_small(marked if crf is None else x264(marked, crf), KEY)
        answers.append(_answer(reader.soft(), reader.found(), payload))
    return {"crf": crf, "psnr_db": min(errors), **_summed(answers)}


def sound_row(kind: str) -> dict[str, Any]:
    """Sounds of a kind after every attack; those without a mark as well."""
    answers: dict[str, list[dict[str, Any]]] = {name: [] for name in SOUND_ATTACKS}
    ratios, false = [], 0
    for seed in range(SOUND_SEEDS):
        samples, rate = SOUNDS[kind](SECONDS, SOUND_RATE, seed)
        payload = _payload(kind, seed)
        marked = SoundMark(payload, KEY, rate).apply(samples)
        ratios.append(10 * np.log10(np.sum(samples**2) / np.sum((marked - samples) ** 2)))
        false += sound_mark.read(samples, rate) is not None
        for name, attack in SOUND_ATTACKS.items():
            attacked = attack((marked, rate))
            soft = sound_mark.soft_bits(*attacked, KEY)
            best = max(soft, key=lambda s: (decode(s)[0] is not None, decode(s)[1]))
            answers[name].append(_answer(best, sound_mark.read(*attacked), payload))
    return {
        "kind": kind,
        "snr_db": [round(float(r), 1) for r in (min(ratios), np.median(ratios), max(ratios))],
        "attacks": {name: _summed(found) for name, found in answers.items()},
        "found_unmarked": false,
    }


def unmarked(name: str, count: int) -> dict[str, Any]:
    """Scores of what has no mark: under the public key, and each under a key of its own.

    Clips of a small world resemble each other; keys of their own make the draws independent, and
    the tail is fitted over those.
    """
    found, scores, checks = 0, [], 0
    for seed in range(count):
        frames, grid = _unmarked_clip(name, seed)
        for key in (KEY, seed.to_bytes(8, "big")):
            reader = Reader(key, *grid, *frames[0].shape[:2])
            for frame in frames:
                reader.add(frame)
            found += reader.found() is not None
            payload, score, _ = decode(reader.soft())
            checks += payload is not None
        scores.append(score)
    mean, spread, tail = fitted_tail(scores)
    return {
        "clips": count,
        "readings": 2 * count,
        "found": found,
        "checksums_that_fit": checks,
        "expected_to_fit": round(2 * count * 2.0**-CHECK_BITS, 2),
        "highest_score": round(max(scores), 4),
        "fit": {"mean": round(mean, 4), "spread": round(spread, 5)},
        "false_positives_fitted": float(f"{2 * tail * 2.0**-CHECK_BITS:.2g}"),  # of two grids
    }


def fitted_tail(scores: list[float]) -> tuple[float, float, float]:
    """Mean and spread of a normal tail through the upper quantiles, and what lies above the limit.

    The limit is the least score that `read` takes for a mark where it tries two grids.
    """
    upper = np.quantile(scores, list(NORMAL))
    spread, mean = np.polyfit(list(NORMAL.values()), upper, 1)
    limit = next(s for s in np.arange(0.6, 1, 1e-3) if probability_of_chance(s, 2) <= MOST_CHANCE)
    return float(mean), float(spread), 0.5 * math.erfc((limit - mean) / spread / math.sqrt(2))


def _unmarked_clip(name: str, seed: int) -> tuple[list[np.ndarray], tuple[int, int]]:
    rng = np.random.default_rng([seed, 1])
    if name.startswith("world"):
        frames = render.render(scene.sample_scene(rng), 5)
        return list(frames), picture_mark.embedding_grid(*frames.shape[1:3])
    height, width = (240, 427) if "427" in name else (64, 64)
    frames = rng.integers(0, 256, (4, height, width, 3), np.uint8)
    return list(frames), picture_mark.embedding_grid(height, width)


def _read_small(frames: list[np.ndarray], key: bytes) -> Reader:
    size = frames[0].shape[:2]
    reader = Reader(key, *picture_mark.embedding_grid(*size), *size)
    for frame in frames:
        reader.add(frame)
    return reader


def _answer(soft: np.ndarray, found: Found | None, payload: int) -> dict[str, Any]:
    right = int(np.sum((soft > 0) == encode(payload)))
    return {
        "bits": round(right / CHANNEL_BITS, 4),
        "read": found is not None and found.payload == payload,
        "wrong": found is not None and found.payload != payload,
    }


def _summed(answers: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "bits": round(float(np.mean([a["bits"] for a in answers])), 4),
        "read": f"{sum(a['read'] for a in answers)} of {len(answers)}",
        "wrong": sum(a["wrong"] for a in answers),
    }


def _payload(kind: str, seed: int) -> int:
    return int(np.random.default_rng([*kind.encode(), seed]).integers(2**32))


def _psnr(frames: list[np.ndarray], marked: list[np.ndarray]) -> float:
    pairs = zip(frames, marked, strict=True)
    errors = [np.mean(np.square(a.astype(np.float32) - b)) for a, b in pairs]
    return round(float(10 * np.log10(255**2 / np.mean(errors))), 2)


if __name__ == "__main__":
    main()
