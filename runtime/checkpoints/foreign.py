"""Parts of a checkpoint that transformers opens: local files only, safetensors, and complete."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..errors import KinemaError
from . import umt5_original, weights
from .checkpoint import Component
from .shards import Entry, read_entries

SAMPLE_BYTES = 4096
MISSHAPEN = "mismatched_keys"


def open_model(component: Component, known: tuple[str, ...], dtype: torch.dtype) -> nn.Module:
    """A module on the CPU in eval mode, in `dtype` but for what transformers keeps in float32.

    Raises `KinemaError` for a class that is not in `known`, a file that is missing or damaged, and
    weights that do not fit.
    """
    import transformers

    check_class(component, known)
    entries = read_entries(component.folder)  # what is missing or damaged is named here
    opened = getattr(transformers, component.class_name)
    with _quiet(), _in_one_line(component):
        model, found = opened.from_pretrained(
            **_source(component, opened, entries),
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # refused below, by name
            output_loading_info=True,
        )
    misshapen = (
        f"{name} {list(is_)}, not {list(wanted)}" for name, is_, wanted in found[MISSHAPEN]
    )
    complaints = [
        f"{label}: {', '.join(sorted(names)[:6])}"
        for label, names in (
            ("missing", found["missing_keys"]),
            ("not known", found["unexpected_keys"]),
            ("misshapen", list(misshapen)),
        )
        if names
    ]
    if complaints:
        raise KinemaError(f"weights in {where(component)} do not fit; {'; '.join(complaints)}")
    return model.requires_grad_(False).eval()


def _source(component: Component, opened: Any, entries: Mapping[str, Entry]) -> dict[str, Any]:
    """Where transformers finds weights: in the folder, or here, if its files are not as it has
    them."""
    published = umt5_original.ORIGINAL.published(entries)
    if published == entries:
        return {"pretrained_model_name_or_path": component.folder}
    config = opened.config_class.from_dict(component.config)
    return {
        "pretrained_model_name_or_path": None,
        "config": config,
        "state_dict": weights.views(published),
    }


def open_helper(component: Component, class_name: str, **options: Any) -> Any:
    """A tokenizer or an image processor, by the name of its class in transformers."""
    import transformers

    with _quiet(), _in_one_line(component):
        return getattr(transformers, class_name).from_pretrained(
            component.folder, local_files_only=True, **options
        )


def check_class(component: Component, known: tuple[str, ...]) -> None:
    """Raise `KinemaError` for a class that is not in `known`."""
    if component.class_name not in known:
        raise KinemaError(
            f"{where(component)} is a {component.class_name}, which is not known;"
            f" known: {', '.join(known)}"
        )


def fingerprint(component: Component) -> str:
    """SHA-256 over names, types and shapes of a component's tensors and a sample of each.

    It tells one set of weights from another without reading all of them. Raises `KinemaError` for
    files that are missing or damaged.
    """
    digest = hashlib.sha256(repr(sorted(component.config.items(), key=str)).encode())
    for entry in sorted(read_entries(component.folder).values(), key=lambda entry: entry.name):
        digest.update(f"{entry.name} {entry.dtype} {entry.shape}\n".encode())
        digest.update(_sample(entry))
    return digest.hexdigest()


def where(component: Component) -> str:
    """How a message names a component's folder."""
    return "/".join(component.folder.parts[-2:])


def _sample(entry: Entry) -> bytes:
    """Bytes from the middle of a tensor."""
    size = min(SAMPLE_BYTES, entry.end - entry.start)
    with entry.file.open("rb") as raw:
        raw.seek((entry.start + entry.end - size) // 2)
        return raw.read(size)


@contextmanager
def _in_one_line(component: Component) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise KinemaError(f"cannot open {where(component)}: {reason}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """transformers without progress bars and warnings; what they would say is checked here."""
    from transformers.utils import logging

    shown, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()
