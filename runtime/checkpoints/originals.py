"""Names of published tensors, and those that the repositories of a model's authors give them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache

from .shards import Entry

FP8 = ("F8_E4M3", "F8_E5M2")
SCALES = ("scale_weight", "weight_scale")  # what follows a module's name, as tools write it
# Of no use to weights that are read into a wider type: scales of activations, and marks.
BESIDE_FP8 = ("scale_input", "input_scale", "comfy_quant")
MARK_FP8 = "scaled_fp8"


def match(rules: Iterable[str], name: str) -> tuple[str, str, str] | None:
    """The first rule that a name falls under, the number of its block, and what follows the rule's
    own part of the name."""
    for rule in rules:
        if found := _pattern(rule).fullmatch(name):
            return rule, found.groupdict().get("number") or "", found["tail"] or ""
    return None


@cache
def _pattern(rule: str) -> re.Pattern[str]:
    numbered = re.escape(rule).replace(r"\{\}", r"(?P<number>\d+)")
    return re.compile(rf"{numbered}(?P<tail>\..+)?")


@dataclass(frozen=True)
class Original:
    """The names that the repository of a model's authors gives to published tensors.

    `names` gives a published name (or a module's prefix; `{}` stands for a block's number) the
    original one. Files that hold one of `marks`, after one of `prefixes`, are named so.
    """

    names: Mapping[str, str]
    marks: frozenset[str]
    prefixes: tuple[str, ...] = ("",)

    def name(self, published: str) -> str | None:
        """The original name of a published tensor or module, if it has one."""
        if (found := match(self.names, published)) is None:
            return None
        rule, number, tail = found
        return self.names[rule].format(number) + tail

    def prefix(self, names: Iterable[str]) -> str | None:
        """What comes before the names of a file, or None where they are not original ones."""
        names = set(names)
        for prefix in self.prefixes:
            if any(prefix + mark in names for mark in self.marks):
                return prefix
        return None

    def published(self, entries: Mapping[str, Entry]) -> dict[str, Entry]:
        """Entries by published name, scales with what they belong to; what has no published name
        keeps its own."""
        prefix = self.prefix(entries)
        if prefix is None:
            return with_scales(entries)
        rules = {original: published for published, original in self.names.items()}
        renamed = {}
        for name, entry in entries.items():
            found = match(rules, name.removeprefix(prefix))
            renamed[rules[found[0]].format(found[1]) + found[2] if found else name] = entry
        return with_scales(renamed)


@dataclass(frozen=True)
class Originals:
    """Several forms of names; a file is of the first whose marks it holds."""

    forms: tuple[Original, ...]

    def published(self, entries: Mapping[str, Entry]) -> dict[str, Entry]:
        """Entries by published name; what has none keeps its own."""
        form = next((form for form in self.forms if form.prefix(entries) is not None), None)
        return dict(entries) if form is None else form.published(entries)


def with_scales(entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """Entries in which weights of 8-bit floats hold their scales, which are left out as such."""
    found = dict(entries)
    for name, entry in entries.items():
        module, _, kind = name.rpartition(".")
        if kind != "weight" or entry.dtype not in FP8:
            continue
        scales = [found.pop(f"{module}.{end}") for end in SCALES if f"{module}.{end}" in found]
        if scales:
            found[name] = replace(entry, scale=scales[0])
        for end in BESIDE_FP8:
            found.pop(f"{module}.{end}", None)
    if found.keys() != entries.keys():
        found = {name: entry for name, entry in found.items() if name.split(".")[-1] != MARK_FP8}
    return found
