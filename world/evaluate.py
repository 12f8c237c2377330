"""How well a model follows prompts of the world: `python -m kinema.world.evaluate`.

Generates the held-out prompts with fixed seeds through the public interface, measures every clip
with the detector, and writes a table (Markdown and JSON), a contact sheet of the first twelve
prompts, and the first bounce with its spectrogram.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .captions import Attributes, heldout_prompts
from .detect import STRICT_IOU, Detection, detect
from .onsets import synchrony
from .scene import MOTIONS

ATTRIBUTES = ("color", "shape", "motion", "background")
TOLERANCE = 1.0  # frames between a contact and its sound
SHEET_ROWS = 12


def score(expected: Sequence[Attributes], found: Sequence[Detection]) -> dict[str, Any]:
    """The table of detections of clips that were to show the expected attributes.

    Rates from 0 to 1, None where there is nothing to count. An attribute that is None was left open
    and is not counted.
    """
    pairs = list(zip(expected, found, strict=True))
    rows = [_judge(*pair) for pair in pairs]
    by_motion = {
        motion: _mean_rows(
            [row for row, e in zip(rows, expected, strict=True) if e.motion == motion]
        )
        for motion in MOTIONS
    }
    return {"clips": len(rows), **_mean_rows(rows), "by_motion": by_motion, "sound": _sound(pairs)}


def _judge(expected: Attributes, found: Detection) -> dict[str, float]:
    """What counts for one clip: 1 or 0 for every attribute that was asked for."""
    asked = {a: getattr(expected, a) for a in ATTRIBUTES if getattr(expected, a) is not None}
    right = {a: float(getattr(found, a) == value) for a, value in asked.items()}
    row = {**right, "all_four": min(right.values(), default=1.0)}
    row["camera"] = float(found.camera == "static")
    shape = expected.shape or found.shape
    if shape in found.iou:
        row["strict_shape"] = float(found.strict(shape))
        row["outline_iou"] = found.iou[shape]
    return row


def _mean_rows(rows: Sequence[dict[str, float]]) -> dict[str, float | None]:
    names = (*ATTRIBUTES, "all_four", "strict_shape", "outline_iou", "camera")
    values = {name: [row[name] for row in rows if name in row] for name in names}
    return {name: float(np.mean(v)) if v else None for name, v in values.items()}


def _sound(pairs: Sequence[tuple[Attributes, Detection]]) -> dict[str, Any]:
    """Onsets against contacts that the same clip's picture shows, where a bounce was asked for."""
    bounces = [f for e, f in pairs if e.motion in ("bounce", None) and len(f.contacts)]
    silent = [f for e, f in pairs if e.motion not in ("bounce", None)]
    contacts, onsets = [f.contacts for f in bounces], [f.onsets for f in bounces]
    false = sum(len(f.onsets) for f in silent)
    return {
        "clips": len(bounces),
        "contacts": sum(map(len, contacts)),
        "onsets": sum(map(len, onsets)),
        "tolerance_frames": TOLERANCE,
        **synchrony(contacts, onsets, TOLERANCE),
        "half_a_frame": synchrony(contacts, onsets, TOLERANCE / 2),
        "false_onsets_per_silent_clip": false / len(silent) if silent else None,
    }


# ---- from a model to a table ----


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, evaluate, write, print."""
    parser = argparse.ArgumentParser(prog="python -m kinema.world.evaluate", description=__doc__)
    parser.add_argument("--model", help="the embedded one by default; a folder or a hub id")
    parser.add_argument("--prompts", type=int, default=200, metavar="N")
    parser.add_argument("--seed", type=int, default=0, help="of the first clip; others follow")
    parser.add_argument("--steps", type=int, help="the model's own by default")
    parser.add_argument("--guidance-scale", type=float, help="the model's own by default")
    parser.add_argument("--out", type=Path, help="writes FILE.md and FILE.json", metavar="FILE")
    parser.add_argument("--sheet", type=Path, help="writes FILE.png and FILE-bounce.png")
    options = parser.parse_args(arguments)
    if options.prompts < 1:
        parser.error(f"--prompts is {options.prompts}; at least 1")
    try:
        result = evaluate(options)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    text = to_markdown(result)
    if options.out:
        write(options.out.with_suffix(".md"), text)
        write(options.out.with_suffix(".json"), json.dumps(result, indent=1) + "\n")
    print(text)


def evaluate(options: argparse.Namespace) -> dict[str, Any]:
    """Generate and measure; draws the sheet on the way if one is asked for."""
    from .. import load

    engine = load(options.model)
    fields = {"num_inference_steps": options.steps, "guidance_scale": options.guidance_scale}
    prompts = heldout_prompts(options.prompts)
    found, rows, shown = [], [], []
    report: dict[str, Any] = {}
    started = time.perf_counter()
    for i, (prompt, expected) in enumerate(prompts):
        video = engine.generate(prompt, seed=options.seed + i, **fields)
        assert video.frames is not None
        detection = detect(video.frames, video.audio, video.sample_rate or 16000, video.fps)
        found.append(detection)
        rows.append(_row(prompt, options.seed + i, expected, detection))
        if i < SHEET_ROWS:
            shown.append((prompt, expected, video, detection))
        report = report or video.report
        _tell(i + 1, len(prompts), started)
    if options.sheet:
        draw(options.sheet, shown)
    return {
        "provenance": _provenance(options, report),
        "table": score([attributes for _, attributes in prompts], found),
        "rows": rows,
    }


def draw(path: Path, shown: Sequence[tuple[str, Attributes, Any, Detection]]) -> None:
    """The contact sheet, and the first bounce that was asked for among its clips, if any sounds."""
    from .sheet import bounce_figure, contact_sheet

    path.parent.mkdir(parents=True, exist_ok=True)
    sheet = contact_sheet([prompt for prompt, *_ in shown], [v.frames for _, _, v, _ in shown])
    sheet.save(path.with_suffix(".png"), optimize=True)
    for prompt, expected, video, found in shown:
        if expected.motion == "bounce" and video.audio is not None:
            times = found.contacts, found.onsets
            figure = bounce_figure(
                prompt, video.frames, video.audio, video.sample_rate, video.fps, *times
            )
            figure.save(path.with_name(f"{path.stem}-bounce.png"), optimize=True)
            return


def _row(prompt: str, seed: int, expected: Attributes, found: Detection) -> dict[str, Any]:
    names = (*ATTRIBUTES, "camera")
    return {
        "prompt": prompt,
        "seed": seed,
        "expected": dataclasses.asdict(expected),
        "found": {name: getattr(found, name) for name in names},
        "iou": {shape: round(value, 3) for shape, value in found.iou.items()},
        "contacts": found.contacts.round(2).tolist(),
        "onsets": found.onsets.round(2).tolist(),
    }


def _provenance(options: argparse.Namespace, report: dict[str, Any]) -> dict[str, Any]:
    plan = report["plan"]
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "commit": _commit(),
        "versions": {**report["versions"], "numpy": np.__version__},
        "machine": platform.machine(),
        "model": report["model"],
        "prompts": options.prompts,
        "seeds": [options.seed, options.seed + options.prompts - 1],
        "settings": {key: value for key, value in plan.items() if key != "seed"},
    }


def _commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _tell(done: int, count: int, started: float) -> None:
    if done % 10 == 0 or done == count:
        each = (time.perf_counter() - started) / done
        print(f"{done}/{count} clips, {each:.2f} s each", file=sys.stderr)


# ---- the table as text ----


def to_markdown(result: dict[str, Any]) -> str:
    """The result of `evaluate` as a page of tables."""
    table, where = result["table"], result["provenance"]
    names = [*ATTRIBUTES, "all_four", "strict_shape", "outline_iou", "camera"]
    head = ["prompts", "clips", *(name.replace("_", " ") for name in names)]
    lines = [["all", table["clips"], *(_rate(table[name]) for name in names)]]
    counts = {m: sum(row["expected"]["motion"] == m for row in result["rows"]) for m in MOTIONS}
    for motion, rates in table["by_motion"].items():
        lines.append([motion, counts[motion], *(_rate(rates[name]) for name in names)])
    parts = [
        "# Held-out prompts, measured by the detector",
        _story(where),
        _grid(head, lines),
        "Strict shape: the right shape, and the object overlaps its ideal outline by more than"
        f" {STRICT_IOU} (intersection over union, mean over the frames).",
        _sound_text(table["sound"]),
    ]
    return "\n\n".join(parts) + "\n"


def _story(where: dict[str, Any]) -> str:
    settings, model, versions = where["settings"], where["model"], where["versions"]
    tracks = ", ".join(
        f"{t['name']} guidance {t['guidance_scale']:g} shift {t['shift']:g}"
        for t in settings["tracks"]
    )
    return (
        f"{where['prompts']} prompts, seeds {where['seeds'][0]} to {where['seeds'][1]}; model"
        f" {model['name']}, weights {model['weights'][:12]}; {settings['num_frames']} frames"
        f" {settings['width']}x{settings['height']} at {settings['fps']:g} fps,"
        f" {settings['num_inference_steps']} steps, {tracks}; {settings['device']},"
        f" {settings['dtype']}; commit {where['commit'] or 'unknown'}, {where['date']},"
        f" {', '.join(f'{name} {version}' for name, version in versions.items())}."
    )


def _sound_text(sound: dict[str, Any]) -> str:
    head = ["sound against contacts", "recall", "shuffled", "precision", "shuffled"]
    keys = ("recall", "shuffled_recall", "precision", "shuffled_precision")
    lines = [
        ["within one frame", *(_rate(sound[key]) for key in keys)],
        ["within half a frame", *(_rate(sound["half_a_frame"][key]) for key in keys)],
    ]
    false = _rate(sound["false_onsets_per_silent_clip"])
    return (
        f"{_grid(head, lines)}\n\n{sound['contacts']} contacts seen in {sound['clips']} generated"
        f" bounces, {sound['onsets']} onsets heard. Shuffled: the onsets of every other of these"
        f" clips. Onsets in a clip that should be silent: {false}."
    )


def _grid(head: Sequence[object], lines: Sequence[Sequence[object]]) -> str:
    rule = ["---", *("--:" for _ in head[1:])]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in (head, rule, *lines))


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def write(path: Path, text: str) -> None:
    """Write a text file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
