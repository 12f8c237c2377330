"""Names of published tensors, and those that the repositories of a model's authors give them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache

from .shards import Entry


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
        """Entries by published name; what has none keeps its own."""
        prefix = self.prefix(entries)
        if prefix is None:
            return dict(entries)
        rules = {original: published for published, original in self.names.items()}
        renamed = {}
        for name, entry in entries.items():
            found = match(rules, name.removeprefix(prefix))
            renamed[rules[found[0]].format(found[1]) + found[2] if found else name] = entry
        return renamed
