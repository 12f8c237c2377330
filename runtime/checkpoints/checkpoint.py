"""Opening a checkpoint: the embedded one, a folder in the published layout, or a hub id.

Its transformer may also come from elsewhere: a file, folder or hub id of the original repositories,
which hold nothing else that opens, on top of a whole checkpoint (`base`). Only JSON and safetensors
are read; no code from a checkpoint ever runs.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from .. import registry
from ..errors import KinemaError, UsageError
from ..hashes import file_hash
from . import hub
from .presets import Presets
from .shards import PICKLED, how_to_convert, read_entries, where

EMBEDDED = "embedded"
EMBEDDED_FOLDER = Path(__file__).parent.parent / "assets" / "embedded"
INDEX = "model_index.json"
VOCABULARY = "vocabulary.json"
CONFIGS = {
    "scheduler": "scheduler_config.json",
    "tokenizer": "tokenizer_config.json",
    "image_processor": "preprocessor_config.json",
}
TRANSFORMERS = ("transformer", "transformer_2")
REQUIRED = ("scheduler", "text_encoder", "tokenizer", "transformer", "vae")
# Folders of the original repositories, and the component that each holds.
ORIGINAL_FOLDERS = {"high_noise_model": "transformer", "low_noise_model": "transformer_2"}
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


class Component(NamedTuple):
    """One part of a checkpoint: the class that reads it, its folder (or one file), its config."""

    class_name: str
    folder: Path
    config: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """An open checkpoint: a folder with a `model_index.json`. No weight has been read yet.

    `parts` are components that lie elsewhere, each in a folder or in one file.
    """

    name: str
    path: Path
    index: dict[str, Any]
    parts: Mapping[str, Path] = field(default_factory=dict)

    @property
    def components(self) -> tuple[str, ...]:
        """Names of the parts that the index names: transformer, vae, text_encoder, ..."""
        return tuple(name for name, entry in self.index.items() if _is_component(name, entry))

    def component(self, name: str) -> Component:
        """One part. Raises KinemaError naming the folder or config that is missing or damaged."""
        if name not in self.components:
            has = ", ".join(self.components) or "none"
            raise KinemaError(f"checkpoint {self.name!r} has no {name}; it has {has}")
        place = self.parts.get(name, self.path / name)
        folder = place.parent if place.is_file() else place
        if not folder.is_dir():
            raise KinemaError(f"checkpoint {self.name!r} lacks the folder {name}/ its index names")
        class_name, file = self.index[name][1], folder / CONFIGS.get(name, "config.json")
        known = registry.TRANSFORMERS.get(class_name)
        if known and known.original and any(folder.glob("*.safetensors")):
            config = _published_config(known.original, place, file)
        else:
            config = _read_json(file)
        return Component(class_name, place, config)

    def check(self) -> None:
        """Raises KinemaError for a pipeline class that is not known, a part that its model needs
        and this lacks, and one that its index names but its folder does not hold."""
        _ = self.presets
        for name in (*REQUIRED, *self.components):
            self.component(name)

    @cached_property
    def presets(self) -> Presets:
        """The checkpoint's own presets, else those of its pipeline class, as its configs vary them.

        Raises `KinemaError` for a class that is not known, and for a part that a variant lacks.
        """
        if "presets" in self._own:
            return Presets.from_dict(self._own["presets"], f"{INDEX} of {self.name!r}")
        pipeline = self.index.get("_class_name")
        if not isinstance(pipeline, str) or pipeline not in registry.PIPELINES:
            known, kind = ", ".join(registry.PIPELINES), _one_line(pipeline)
            raise KinemaError(f"checkpoint {self.name!r} is a {kind}; what opens is {known}")
        return registry.at(registry.PIPELINES[pipeline])(self)

    @cached_property
    def vocabulary(self) -> dict[str, Any] | None:
        """What the model was trained on: {"words": {category: [word]}, "examples": [prompt]}, if
        it says so."""
        file = self.path / VOCABULARY
        return _read_json(file) if file.is_file() else None

    def weight_hash(self) -> str:
        """SHA-256 over the names and contents of all safetensors files; computed once."""
        return self._weight_hash

    @cached_property
    def _weight_hash(self) -> str:
        digest = hashlib.sha256()
        for name, file in sorted(self._weight_files().items()):
            digest.update(f"{name} {file_hash(file)}\n".encode())
        return digest.hexdigest()

    def _weight_files(self) -> dict[str, Path]:
        """Every safetensors file by its name in the checkpoint."""
        found = {
            file.relative_to(self.path).as_posix(): file
            for file in self.path.rglob("*.safetensors")
            if file.relative_to(self.path).parts[0] not in self.parts
        }
        for name, place in self.parts.items():
            files = [place] if place.is_file() else place.glob("*.safetensors")
            found.update({f"{name}/{file.name}": file for file in files})
        return found

    @property
    def _own(self) -> dict[str, Any]:
        own = self.index.get("kinema")
        return own if isinstance(own, dict) else {}


def open_checkpoint(
    source: str | Path | Checkpoint | None = None, base: str | Path | Checkpoint | None = None
) -> Checkpoint:
    """Opens a checkpoint by name.

    `source`: None or "embedded" for the one that ships with kinema, a folder that holds a
    `model_index.json`, or a hub id such as "org/name" (fetched once; HF_HUB_OFFLINE is honoured).
    With `base`, a checkpoint of those: a transformer alone, as the original repositories have it (a
    safetensors file, a folder or a hub id), which takes the place of the base's.
    Raises UsageError for a name that is none of these, KinemaError for one that cannot be read.
    """
    if base is not None:
        return _open_on(source, open_checkpoint(base))
    if isinstance(source, Checkpoint):
        return source
    if source is None or source == EMBEDDED:
        return _open_folder(EMBEDDED_FOLDER, EMBEDDED)
    folder = _local(source)
    if folder is not None and folder.is_dir():
        return _open_folder(folder, folder.resolve().name)
    if folder is not None:
        raise UsageError(_not_whole(folder, str(source)))
    name = str(source)
    return _open_folder(hub.fetch(name, lambda found: _components_in(found, name)), name)


def known_models() -> list[dict[str, Any]]:
    """What can be opened here and now, the embedded model first: {"name", "what"} each, and of the
    embedded one {"presets", "words", "examples"}: what it makes and understands.

    Each name opens; the others are checkpoints that were fetched from the hub before.
    """
    checkpoint = open_checkpoint(EMBEDDED)
    vocabulary = checkpoint.vocabulary or {}
    embedded = {
        "name": EMBEDDED,
        "what": "the small model that ships with kinema; the default",
        "presets": asdict(checkpoint.presets),
        "words": vocabulary.get("words", {}),
        "examples": vocabulary.get("examples", []),
    }
    fetched = (
        {"name": name, "what": f"{kind}, fetched from the hub"}
        for name, kind in hub.fetched(INDEX)
        if kind in registry.PIPELINES
    )
    return [embedded, *fetched]


def _what_opens() -> str:
    return f"{EMBEDDED!r}, a folder with a {INDEX}, or a hub id such as 'org/name'"


def _local(source: str | Path) -> Path | None:
    """A path that exists, or None for a hub id; UsageError for what is neither."""
    path = Path(source).expanduser()
    if path.exists():
        return path
    if not HUB_ID.fullmatch(str(source)):
        raise UsageError(f"model {str(source)!r} is not {_what_opens()}")
    return None


def _open_folder(path: Path, name: str) -> Checkpoint:
    file = path / INDEX
    if file.is_file():
        return Checkpoint(name, path, _read_json(file))
    if name == EMBEDDED:
        raise KinemaError(f"the embedded model is not installed: {file} is missing")
    raise UsageError(_not_whole(path, name))


def _components_in(folder: Path, name: str) -> tuple[str, ...]:
    """The components of a checkpoint that is being fetched, known before its weights are."""
    if not (folder / INDEX).is_file():
        raise UsageError(_not_whole(folder, name))
    return _open_folder(folder, name).components


def _not_whole(path: Path, name: str) -> str:
    """Why a path without a model_index.json does not open, and how it would."""
    if _transformers_in(path) or (path / "config.json").is_file():
        return (
            f"model {name!r} is one part of a model, without a {INDEX}; a transformer opens on top"
            " of a checkpoint that has its text encoder and VAE: base='org/name' or a folder"
        )
    if path.suffix in PICKLED and path.is_file():
        return how_to_convert(path)
    return f"model {name!r} holds no {INDEX}; what opens is {_what_opens()}"


# ---- a transformer from elsewhere ----------------------------------------------------------------


def _open_on(source: str | Path | Checkpoint | None, base: Checkpoint) -> Checkpoint:
    """`base` with the transformers of `source`."""
    if source is None or isinstance(source, Checkpoint) or source == EMBEDDED:
        raise UsageError("base is for a transformer alone: a safetensors file, folder or hub id")
    path = _local(source) or hub.fetch(str(source), lambda _: ("", *ORIGINAL_FOLDERS))
    parts = _transformers_in(path)
    if not parts:
        holds = f"is whole: it has a {INDEX}" if (path / INDEX).is_file() else _not_whole(path, "")
        raise UsageError(f"model {str(source)!r} cannot be put on a base: {holds}")
    wanted = {name for name in TRANSFORMERS if name in base.components}
    if set(parts) != wanted:
        raise UsageError(
            f"model {str(source)!r} holds {', '.join(parts)};"
            f" base {base.name!r} needs {', '.join(sorted(wanted))}"
        )
    return replace(base, name=str(source), parts=parts)


def _transformers_in(path: Path) -> dict[str, Path]:
    """Transformers of an original file or folder: component to where it lies."""
    if path.is_file():
        return {"transformer": path} if path.suffix == ".safetensors" else {}
    if (path / INDEX).is_file():
        return {}
    pair = {name: path / folder for folder, name in ORIGINAL_FOLDERS.items()}
    if all(any(folder.glob("*.safetensors")) for folder in pair.values()):
        return pair
    return {"transformer": path} if any(path.glob("*.safetensors")) else {}


# ---- what an index says --------------------------------------------------------------------------


def _published_config(names: str, weights: Path, file: Path) -> dict[str, Any]:
    """A config.json as published, whatever form it has; one that is missing is told by the weights.

    `names`: the module of what the original repository calls things.
    """
    original = registry.at(names)
    given = _read_json(file) if file.is_file() else {}
    if original.is_published(given):
        return given
    return original.config(given, original.ORIGINAL.published(read_entries(weights)))


def _one_line(value: Any, limit: int = 80) -> str:
    """What an index says, fit for a line."""
    text = " ".join(str(value).split())
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def _is_component(name: str, entry: Any) -> bool:
    is_pair = isinstance(entry, list) and [type(part) for part in entry] == [str, str]
    return is_pair and name.isidentifier()  # it names a folder


def _read_json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise KinemaError(f"missing file {where(file)}") from None
    except (OSError, ValueError) as error:
        raise KinemaError(f"cannot read {where(file)}: {error}") from None
    if not isinstance(value, dict):
        raise KinemaError(f"cannot read {where(file)}: a JSON object is expected")
    return value
