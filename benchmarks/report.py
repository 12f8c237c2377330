"""Tables of README and docs, made from the committed rows: `python -m kinema.benchmarks.report`."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

from .measure import RESULTS

ROOT = Path(__file__).parent.parent
PAGES = ("README.md", "docs/provenance.md")
MARK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def main(arguments: list[str] | None = None) -> None:
    """Rewrite every marked table of `PAGES`."""
    parser = argparse.ArgumentParser(prog="python -m kinema.benchmarks.report")
    parser.add_argument("--check", action="store_true", help="fail if a table is out of date")
    options = parser.parse_args(arguments)
    for page in PAGES:
        before = (ROOT / page).read_text()
        after = with_tables(before)
        if options.check and after != before:
            raise SystemExit(f"{page} is out of date: python -m kinema.benchmarks.report")
        (ROOT / page).write_text(after)


def with_tables(text: str) -> str:
    """The text with each marked table made anew from its rows; untouched where there are none."""

    def table(found: re.Match[str]) -> str:
        rows = RESULTS / f"{found[2]}.json"
        if not rows.is_file():
            return found[0]
        return f"{found[1]}{TABLES[found[2]](json.loads(rows.read_text()))}\n{found[3]}"

    return MARK.sub(table, text)


def end_to_end(results: dict[str, Any]) -> str:
    """Seconds of sampling beside diffusers, and of the whole command."""
    lines = [
        "| sampling | seconds | 20th to 80th percentile | kinema is faster by |",
        "|---|---|---|---|",
    ]
    for row in results["rows"]:
        for name, value in row["seconds"].items():
            ratio = f"{row['ratio'][name]:.2f}" if name in row["ratio"] else ""
            spread = f"{value['p20_s']:.3f} to {value['p80_s']:.3f}"
            lines.append(
                f"| {name}, {row['dtype']} | {value['median_s']:.3f} | {spread} | {ratio} |"
            )
    command = results["command"]
    spread = f"{command['p20_s']:.2f} to {command['p80_s']:.2f}"
    lines.append(f"| `kinema generate`, start to file | {command['median_s']:.2f} | {spread} | |")
    first = results["rows"][0]
    shape = "x".join(map(str, first["latent_shape"]))
    return "\n".join(lines) + (
        f"\n\nLatents {shape}, {first['steps']} steps, guidance {first['guidance_scale']:g},"
        f" text padded to {first['text_tokens']} tokens for the reference;"
        f" {_where(results['provenance'])}."
    )


def step_cpu(results: dict[str, Any]) -> str:
    """One guided step beside diffusers, on random weights."""
    lines = ["| a step | milliseconds | kinema is faster by |", "|---|---|---|"]
    for row in results["rows"]:
        for name, value in row["seconds"].items():
            ratio = f"{row['ratio'][name]:.2f}" if name in row["ratio"] else ""
            lines.append(f"| {name}, {row['dtype']} | {1e3 * value['median_s']:.0f} | {ratio} |")
    return "\n".join(lines) + (
        f"\n\n12 layers, 512 wide, 1,500 tokens, both branches of guidance;"
        f" {_where(results['provenance'])}."
    )


def executors(results: dict[str, Any]) -> str:
    """A step, and a decode, by everything that can run it."""
    lines = [
        "| by | milliseconds | 20th to 80th percentile | faster by | apart from kinema eager |",
        "|---|---|---|---|---|",
    ]
    for row in results["rows"]:
        title = "decode" if row["what"] == "decode" else f"a step of {row['what']}"
        lines.append(f"| **{title}, {row['dtype']}**, beside {row['base']} | | | | |")
        for name, value in row["seconds"].items():
            low, middle, high = (f"{1e3 * value[k]:.1f}" for k in ("p20_s", "median_s", "p80_s"))
            ratio = "{median:.2f} ({p20:.2f} to {p80:.2f})".format(**row["faster"][name])
            ratio = "" if name == row["base"] else ratio
            error = f"{error:.0e}" if (error := row["error_over_rms"][name]) else ""
            lines.append(f"| {name} | {middle} | {low} to {high} | {ratio} | {error} |")
    shapes = {row["what"]: "x".join(map(str, row["latent_shape"])) for row in results["rows"]}
    told = ", ".join(f"{what} {shape}" for what, shape in shapes.items())
    return "\n".join(lines) + (
        f"\n\nLatents: {told}; a step is both branches of guidance; apart: RMS of what differs over"
        f" the RMS, in the same dtype; {_where(results['provenance'])}."
    )


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
        f" {quality:.1f} dB or better; {_where(results['provenance'])}."
    )


def _mean_bits(answers: list[dict[str, Any]]) -> str:
    return f"{100 * sum(answer['bits'] for answer in answers) / len(answers):.1f}"


def evaluate(results: dict[str, Any]) -> str:
    """Rates of the embedded model on held-out prompts, in one row; and its sound."""
    table, sound = results["table"], results["table"]["sound"]
    names = ("color", "background", "motion", "shape", "all_four", "strict_shape")
    rates = [f"{100 * table[name]:.1f} %" for name in names]
    head = ["prompts", *(name.replace("_", " ") for name in names), "contacts heard", "shuffled"]
    heard = [f"{100 * sound[name]:.1f} %" for name in ("recall", "shuffled_recall")]
    rows = [head, ["---"] * len(head), [str(table["clips"]), *rates, *heard]]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _where(provenance: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {value}" for name, value in provenance["versions"].items())
    return f"{provenance['device']}, {provenance['threads']} threads, {versions}"


TABLES = {
    "end_to_end": end_to_end,
    "step_cpu": step_cpu,
    "executors": executors,
    "evaluate": evaluate,
    "marks": marks,
}

if __name__ == "__main__":
    main()
