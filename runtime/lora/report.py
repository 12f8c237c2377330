"""What loading a LoRA did, for who loaded it and for a video's report."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any


@dataclass(frozen=True)
class LoraReport:
    """What loading a LoRA did: every key of its file is matched or unmatched."""

    name: str
    sha256: str
    weight: float
    merged: bool
    ranks: tuple[int, ...]
    matched: tuple[str, ...]
    unmatched: tuple[str, ...]

    def __str__(self) -> str:
        ranks = f"rank {', '.join(map(str, self.ranks))}" if self.ranks else "full rank"
        text = f"{self.name}: {len(self.matched)} keys matched, {ranks}, weight {self.weight:g}"
        return f"{text}; unmatched: {listed(self.unmatched)}" if self.unmatched else text

    def as_dict(self) -> dict[str, Any]:
        """For a video's report: without the names of keys that matched."""
        return {**asdict(self), "matched": len(self.matched)}


def joined(reports: list[LoraReport]) -> LoraReport:
    """One report of one LoRA on several transformers."""
    ranks, matched, unmatched = (
        tuple(dict.fromkeys(value for report in reports for value in getattr(report, field)))
        for field in ("ranks", "matched", "unmatched")
    )
    return replace(reports[0], ranks=ranks, matched=matched, unmatched=unmatched)


def listed(keys: tuple[str, ...], limit: int = 4) -> str:
    """The first few, and how many more there are."""
    first = ", ".join(keys[:limit])
    return first if len(keys) <= limit else f"{first} and {len(keys) - limit} more"
