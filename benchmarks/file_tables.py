"""Tables of what is no row: files of results with parts of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def marks(results: dict[str, Any]) -> str:
    """Channel bits of the picture's mark that are read after each attack, by clip."""
    clips = {name: row for name, row in results["rows"].items() if "attacks" in row}
    kinds = list(dict.fromkeys(name.rpartition(" ")[0] for name in clips))
    lines = [f"| after | {' | '.join(kinds)} | mean | payloads |", "|---" * (len(kinds) + 3) + "|"]
    for attack in next(iter(clips.values()))["attacks"]:
        of_kind = {
            kind: [
                row["attacks"][attack]
                for name, row in clips.items()
                if name.rpartition(" ")[0] == kind
            ]
            for kind in kinds
        }
        every = [answer for answers in of_kind.values() for answer in answers]
        means = [_mean_bits(answers) for answers in (*of_kind.values(), every)]
        whole = f"{sum(answer['read'] for answer in every)} of {len(every)}"
        lines.append(f"| {attack} | {' | '.join(means)} | {whole} |")
    quality = min(row["psnr_db"] for row in clips.values())
    return "\n".join(lines) + (
        f"\n\nPer cent of 96 channel bits; {len(clips)} clips, 1280x720, four seconds, marked at"
        f" {quality:.1f} dB or better; {_where_told(results['provenance'])}."
    )


def _mean_bits(answers: list[dict[str, Any]]) -> str:
    return f"{100 * sum(answer['bits'] for answer in answers) / len(answers):.1f}"


def shown(results: dict[str, Any]) -> str:
    """What the embedded model makes of frames it is shown."""
    head = ("motion", "colour", "shape", "background", "pixels_off", "psnr_db")
    lines = [
        "| shown | motion | colour | shape | background | pixels off the true path | PSNR |",
        "|---" * 7 + "|",
    ]
    for name, row in results["rows"].items():
        rates = [f"{row[column]:.2f}" for column in head[:4]]
        lines.append(
            f"| {name} | {' | '.join(rates)} | {row['pixels_off']:.1f} | {row['psnr_db']:.1f} dB |"
        )
    return "\n".join(lines) + (
        f"\n\n{results['clips']} true clips; path and PSNR of the frames that were made;"
        f" {_where_told(results['provenance'])}."
    )


def evaluate(results: dict[str, Any]) -> str:
    """Rates of the embedded model on held-out prompts, in one row; and its sound."""
    table, sound = results["table"], results["table"]["sound"]
    names = ("color", "background", "motion", "shape", "all_four", "strict_shape")
    rates = [f"{100 * table[name]:.1f} %" for name in names]
    head = ["prompts", *(name.replace("_", " ") for name in names), "contacts heard", "shuffled"]
    heard = [f"{100 * sound[name]:.1f} %" for name in ("recall", "shuffled_recall")]
    rows = [head, ["---"] * len(head), [str(table["clips"]), *rates, *heard]]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _where_told(provenance: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {value}" for name, value in provenance["versions"].items())
    return f"{provenance['device']}, {provenance['threads']} threads, {versions}"


OF_FILES: dict[str, Callable[[dict[str, Any]], str]] = {
    "evaluate": evaluate,
    "marks": marks,
    "shown": shown,
}
