"""The targets of the kernels, computed from a run's rows; each None where nothing was measured."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from .models import MODELS
from .rows import Row
from .timing import PREDICTED_GBPS

MEMORY_BOUND = ("norm_modulate", "qk_norm_rope", "gate_residual", "norm_silu")
# Elementwise work of a whole Wan block, and how often each runs in it: two of its norms take the
# residual before them along, cross attention's query is half of a qk_norm_rope.
WAN_BLOCK = {
    ("norm_modulate", "modulate"): 1.0,
    ("qk_norm_rope", ""): 1.5,
    ("norm_modulate", "residual"): 2.0,
    ("gate_residual", ""): 1.0,
}
FUSED_FLOOR_UNITS = 20  # reads and writes of (tokens, d) in bf16 that a fused Wan block needs


def targets(rows: Sequence[Row]) -> dict[str, Any]:
    """What was found, by name and goal."""
    ours = [row for row in rows if row["kind"] == "ours" and "median_ms" in row]
    copies = [row for row in ours if row["op"] in MEMORY_BOUND and row["backend"] == "triton"]
    return {
        "memory-bound share of copy, worst (0.85)": _worst(
            row["share_of_ceiling"] for row in copies
        ),
        "dispatched attention over fastest, worst (1.0)": _worst(_dispatch_ratios(ours)),
        "dense Triton attention over fastest, 32k tokens, worst (0.75)": _worst(
            _triton_ratios(ours)
        ),
        "8-bit attention over fastest bf16, best (1.4)": _best(_eight_bit_ratios(ours)),
        "fp8 linear over bf16, 14B, worst (1.5)": _worst(_fp8_ratios(rows)),
        "elementwise time of a Wan block over its fused floor (1.3)": _block_ratios(ours),
    }


def _dense(ours: Sequence[Row]) -> dict[str, list[Row]]:
    """Exact backends of full attention, by model."""
    found: dict[str, list[Row]] = {}
    for row in ours:
        lossy = row["backend"] in ("triton-int8", "triton-fp8")
        if row["op"] == "attention" and row["variant"] != "cross" and not lossy:
            found.setdefault(row["model"], []).append(row)
    return found


def _dispatch_ratios(ours: Sequence[Row]) -> Iterator[float]:
    for rows in _dense(ours).values():
        fastest = min(row["median_ms"] for row in rows)
        yield from (fastest / row["median_ms"] for row in rows if row["automatic"])


def _triton_ratios(ours: Sequence[Row]) -> Iterator[float]:
    """Of the models with head dim 128 and 32k tokens."""
    for model, rows in _dense(ours).items():
        if model.startswith("Wan") and model.endswith("480p"):
            fastest = min(row["median_ms"] for row in rows)
            own = (row["median_ms"] for row in rows if row["backend"] == "triton")
            yield from (fastest / time for time in own)


def _eight_bit_ratios(ours: Sequence[Row]) -> Iterator[float]:
    for model, rows in _dense(ours).items():
        fastest = min(row["median_ms"] for row in rows)
        lossy = (r for r in ours if r["op"] == "quantized_attention" and r["model"] == model)
        yield from (fastest / row["median_ms"] for row in lossy)


def _fp8_ratios(rows: Sequence[Row]) -> Iterator[float]:
    large = [r for r in rows if "14B" in r["model"] and r["op"] == "quantized_linear"]
    large = [row for row in large if row["variant"] == "fp8" and "median_ms" in row]
    for model in sorted({row["model"] for row in large}):
        own = [r["median_ms"] for r in large if r["model"] == model and r["kind"] == "ours"]
        bf16 = [r["median_ms"] for r in large if r["model"] == model and r["backend"] == "bf16"]
        if own and bf16:
            yield bf16[0] / min(own)


def _block_ratios(ours: Sequence[Row]) -> dict[str, float]:
    found = {}
    for model in (model for model in MODELS if model.name.startswith("Wan")):
        taken = {
            (row["op"], row["variant"]): row["median_ms"]
            for row in ours
            if row["model"] == model.name and row["backend"] == "triton"
        }
        if all(part in taken for part in WAN_BLOCK):
            spent = sum(taken[part] * count for part, count in WAN_BLOCK.items())
            floor = FUSED_FLOOR_UNITS * 2 * model.tokens * model.dim / PREDICTED_GBPS / 1e6
            found[model.name] = round(spent / floor, 3)
    return found


def _worst(values: Iterable[float]) -> float | None:
    return round(min(values, default=0.0), 3) or None


def _best(values: Iterable[float]) -> float | None:
    return round(max(values, default=0.0), 3) or None
