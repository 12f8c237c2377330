"""LoRAs on an opened transformer: several at once, with weights, removable without a trace."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from ..checkpoints.originals import Original
from ..errors import UsageError
from .changes import Changes, Term
from .formats import Change, Lora, read
from .report import LoraReport, joined, listed


@dataclass
class _Loaded:
    """A LoRA in use: what it does to each published weight."""

    weight: float
    merged: bool
    changes: dict[str, list[Change]]


class Loras:
    """The LoRAs of one transformer.

    `changes`: what writes them; `original`: other names of the weights; `component`: which of a
    model's transformers it is.
    """

    def __init__(
        self, changes: Changes, original: Original | None = None, component: str = "transformer"
    ) -> None:
        self.component = component
        self.reports: dict[str, LoraReport] = {}
        self._changes = changes
        self._names = _names(changes.slots, original)
        self._loaded: dict[str, _Loaded] = {}

    def load(
        self,
        lora: Lora | str | Path,
        weight: float = 1.0,
        name: str | None = None,
        *,
        merged: bool = True,
        allow_unmatched: bool = False,
    ) -> LoraReport:
        """Load a LoRA, read or to be read, with a weight, under a name (by default its file's).

        `merged`: into the weights; if not, linear layers of the blocks add theirs as they run
        (what is no product of factors, or lies outside them, is merged all the same). Raises
        `UsageError` for one of another family or size, and for keys that match nothing, or a weight
        of another shape, unless `allow_unmatched`.
        """
        lora = (lora if isinstance(lora, Lora) else read(lora)).part(self.component)
        name = lora.name if name is None else name
        if name in self._loaded:
            raise UsageError(_taken(name))
        changes, unmatched, misshapen = self._match(lora)
        if misshapen and not (changes and allow_unmatched):
            raise UsageError(self._other_size(lora, misshapen[0]))
        if not changes:
            raise UsageError(_misfit(lora, self._changes.module))
        unmatched += tuple(key for change in misshapen for key in change.keys)
        if unmatched and not allow_unmatched:
            raise UsageError(
                f"LoRA {lora.name!r}: {len(unmatched)} of {len(lora.keys)} keys match nothing:"
                f" {listed(unmatched)}; allow_unmatched=True loads the others"
            )
        self._changes.check_files()
        self._loaded[name] = _Loaded(_finite(weight), merged, changes)
        try:
            self._apply(changes)
        except BaseException:
            del self._loaded[name]
            self._apply(changes)
            raise
        matched = tuple(key for made in changes.values() for change in made for key in change.keys)
        every = (change.rank for made in changes.values() for change in made)
        ranks = {rank for rank in every if rank is not None}
        self.reports[name] = LoraReport(
            name, lora.sha256, float(weight), merged, tuple(sorted(ranks)), matched, unmatched
        )
        return self.reports[name]

    def unload(self, name: str) -> None:
        """Remove a LoRA; raises `UsageError` naming those loaded."""
        self._check_loaded([name])
        gone = self._loaded.pop(name)
        del self.reports[name]
        self._apply(gone.changes)

    def set_weights(self, weights: Mapping[str, float]) -> None:
        """Change the weights of some of the LoRAs, by name."""
        self._check_loaded(weights)
        weights = {name: _finite(weight) for name, weight in weights.items()}
        for name, weight in weights.items():
            self._loaded[name].weight = weight
            self.reports[name] = replace(self.reports[name], weight=weight)
            self._apply(self._loaded[name].changes)

    def _check_loaded(self, names: Iterable[str]) -> None:
        for name in names:
            if name not in self._loaded:
                raise UsageError(_not_loaded(name, self._loaded))
        self._changes.check_files()

    def _match(self, lora: Lora) -> tuple[dict[str, list[Change]], tuple[str, ...], list[Change]]:
        """Changes by published name; keys that match none; changes that match another shape."""
        changes: dict[str, list[Change]] = {}
        unmatched, misshapen = list(lora.unread), []
        for change in lora.changes:
            published = self._names.get((change.target, change.kind))
            if published is None:
                unmatched += change.keys
            elif change.shape != self._shape(change, published):
                misshapen.append(change)
            else:
                changes.setdefault(published, []).append(change)
        return changes, tuple(unmatched), misshapen

    def _shape(self, change: Change, published: str) -> tuple[int, ...]:
        """What a change of a published weight must be; factors are those of a matrix."""
        shape = self._changes.entries[published].shape
        return shape if change.rank is None or not shape else (shape[0], math.prod(shape[1:]))

    def _other_size(self, lora: Lora, change: Change) -> str:
        published = self._names[change.target, change.kind]
        return (
            f"LoRA {lora.name!r} is for a model of another size: {change.keys[0]} changes"
            f" {list(change.shape)}, {published} is {list(self._shape(change, published))} here"
        )

    def _apply(self, published: Iterable[str]) -> None:
        self._changes.apply(published, self._terms)

    def _terms(self, published: str) -> Iterator[Term]:
        """What all that is loaded does to one weight."""
        for loaded in self._loaded.values():
            if loaded.weight:
                for change in loaded.changes.get(published, ()):
                    yield Term(loaded.weight, loaded.merged, change)


class LoraSet:
    """The LoRAs of a model: on its transformer, or on both of a model of two experts.

    `open_loras(component)` is called when a component first gets one, which opens it.
    """

    def __init__(self, components: Iterable[str], open_loras: Callable[[str], Loras]) -> None:
        self.components, self._open_loras = tuple(components), open_loras
        self._on: dict[str, Loras] = {}

    @property
    def reports(self) -> dict[str, LoraReport]:
        """What is loaded, by name, in the order of loading."""
        names = dict.fromkeys(name for loras in self._on.values() for name in loras.reports)
        return {name: joined([on.reports[name] for on in self._with(name)]) for name in names}

    def load(
        self,
        path: str | Path | Lora,
        weight: float = 1.0,
        name: str | None = None,
        *,
        component: str | None = None,
        merged: bool = True,
        allow_unmatched: bool = False,
    ) -> LoraReport:
        """Load a LoRA; see `Loras.load`.

        `component`: where it goes in a model of two experts: "transformer" (high noise),
        "transformer_2" (low noise) or "both". It may be left out for a file that tells them apart.
        """
        lora = path if isinstance(path, Lora) else read(path)
        lora = lora if name is None else replace(lora, name=name)
        if lora.name in self.reports:
            raise UsageError(_taken(lora.name))
        reports: list[LoraReport] = []
        try:
            for part in self._components(lora, component):
                self._on[part] = self._on.get(part) or self._open_loras(part)
                reports.append(
                    self._on[part].load(
                        lora, weight, merged=merged, allow_unmatched=allow_unmatched
                    )
                )
        except BaseException:
            if reports:
                self.unload(lora.name)
            raise
        return joined(reports)

    def unload(self, name: str) -> None:
        """Remove a LoRA; raises `UsageError` naming those loaded."""
        for loras in self._with(name):
            loras.unload(name)

    def set_weights(self, weights: Mapping[str, float]) -> None:
        """Change the weights of some of the LoRAs, by name."""
        held = {name: self._with(name) for name in weights}
        for name, on in held.items():
            for loras in on:
                loras.set_weights({name: weights[name]})

    def _components(self, lora: Lora, component: str | None) -> tuple[str, ...]:
        choices = (*self.components, "both") if len(self.components) > 1 else self.components
        if component is not None and component not in choices:
            raise UsageError(f"component {component!r} is not known; known: {', '.join(choices)}")
        if component not in (None, "both"):
            return (component,)
        if component is None and len(self.components) > 1 and not lora.tells_components:
            raise UsageError(
                f"LoRA {lora.name!r} does not say which of two transformers it is for;"
                f" component= one of {', '.join(choices)}"
            )
        return self.components

    def _with(self, name: str) -> list[Loras]:
        on = [loras for loras in self._on.values() if name in loras.reports]
        if not on:
            raise UsageError(_not_loaded(name, self.reports))
        return on


def _names(slots: Iterable[str], original: Original | None) -> dict[tuple[str, str], str]:
    """(module or parameter, "weight" or "bias") under every name it may have: published name."""
    names: dict[tuple[str, str], str] = {}
    for published in slots:
        for name in (published, original.name(published) if original else None):
            if name is None:
                continue
            kind = "bias" if name.endswith(".bias") else "weight"
            target = name.removesuffix(f".{kind}")
            names[target, kind] = names[target.replace(".", "_"), kind] = published
    return names


def _finite(weight: float) -> float:
    if not math.isfinite(weight):
        raise UsageError(f"LoRA weight {weight} is not a finite number; 1 is the usual one")
    return float(weight)


def _taken(name: str) -> str:
    return f"LoRA {name!r} is loaded already; unload it or give another name"


def _not_loaded(name: str, loaded: Iterable[str]) -> str:
    return f"no LoRA {name!r} is loaded; loaded: {', '.join(loaded) or 'none'}"


def _misfit(lora: Lora, module: nn.Module) -> str:
    """Why no key of a LoRA matches."""
    kind, family = type(module).__name__, lora.looks_like()
    looks = f"looks like one for {family}" if family else "is for an unknown model"
    return f"LoRA {lora.name!r} {looks}: no key fits {kind}, not even {lora.keys[0]}"
