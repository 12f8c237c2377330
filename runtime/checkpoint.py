"""Opening a checkpoint: the embedded one, a folder in the published layout, or a hub id.

Only JSON and safetensors are read; no code from a checkpoint ever runs.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from .errors import KinemaError, UsageError
from .presets import PIPELINES, Presets

EMBEDDED = "embedded"
EMBEDDED_FOLDER = Path(__file__).parent / "assets" / "embedded"
INDEX = "model_index.json"
VOCABULARY = "vocabulary.json"
CONFIGS = {"scheduler": "scheduler_config.json", "tokenizer": "tokenizer_config.json"}
HUB_FILES = ("*.json", "*.safetensors", "*.model", "*.txt")
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
HUB_BLOB = re.compile(r"[0-9a-f]{64}")


class Component(NamedTuple):
    """One part of a checkpoint: the class that reads it, its folder, its config."""

    class_name: str
    folder: Path
    config: dict[str, Any]


@dataclass(frozen=True)
class Checkpoint:
    """An open checkpoint: a folder with a `model_index.json`. No weight has been read yet."""

    name: str
    path: Path
    index: dict[str, Any]

    @property
    def components(self) -> tuple[str, ...]:
        """Names of the parts that the index names: transformer, vae, text_encoder, ..."""
        return tuple(name for name, entry in self.index.items() if _is_component(entry))

    def component(self, name: str) -> Component:
        """One part. Raises KinemaError naming the folder or config that is missing or damaged."""
        if name not in self.components:
            has = ", ".join(self.components) or "none"
            raise KinemaError(f"checkpoint {self.name!r} has no {name}; it has {has}")
        folder = self.path / name
        if not folder.is_dir():
            raise KinemaError(f"checkpoint {self.name!r} lacks the folder {name}/ its index names")
        config = _read_json(folder / CONFIGS.get(name, "config.json"))
        return Component(self.index[name][1], folder, config)

    @cached_property
    def presets(self) -> Presets:
        """The checkpoint's own presets, else those of its pipeline class."""
        if "presets" in self._own:
            return Presets.from_dict(self._own["presets"], f"{INDEX} of {self.name!r}")
        pipeline = self.index.get("_class_name")
        if pipeline not in PIPELINES:
            known = ", ".join(PIPELINES)
            raise KinemaError(f"checkpoint {self.name!r} is a {pipeline}; what opens is {known}")
        return PIPELINES[pipeline]

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
        for file in sorted(self.path.rglob("*.safetensors")):
            digest.update(f"{file.relative_to(self.path).as_posix()} {_sha256(file)}\n".encode())
        return digest.hexdigest()

    @property
    def _own(self) -> dict[str, Any]:
        own = self.index.get("kinema")
        return own if isinstance(own, dict) else {}


def open_checkpoint(source: str | Path | Checkpoint | None = None) -> Checkpoint:
    """Opens a checkpoint by name.

    `source`: None or "embedded" for the one that ships with kinema, a folder that holds a
    `model_index.json`, or a hub id such as "org/name" (fetched once; HF_HUB_OFFLINE is honoured).
    Raises UsageError for a name that is none of these, KinemaError for one that cannot be read.
    """
    if isinstance(source, Checkpoint):
        return source
    if source is None or source == EMBEDDED:
        return _open_folder(EMBEDDED_FOLDER, EMBEDDED)
    folder = Path(source).expanduser()
    if folder.is_dir():
        return _open_folder(folder, folder.resolve().name)
    if folder.exists() or not HUB_ID.fullmatch(str(source)):
        raise UsageError(f"model {str(source)!r} is not {_what_opens()}")
    return _open_folder(_fetch(str(source)), str(source))


def known_models() -> list[dict[str, Any]]:
    """What can be opened: {"source", "what"} each."""
    return [
        {"source": EMBEDDED, "what": "the small model that ships with kinema; the default"},
        {"source": "FOLDER", "what": f"a checkpoint on disk: a folder with a {INDEX}"},
        {"source": "ORG/NAME", "what": "a checkpoint on the hub, fetched once"},
    ]


def describe_embedded() -> dict[str, Any]:
    """What the embedded model makes and understands: {"presets", "words", "examples"}."""
    checkpoint = open_checkpoint(EMBEDDED)
    vocabulary = checkpoint.vocabulary or {}
    return {
        "presets": asdict(checkpoint.presets),
        "words": vocabulary.get("words", {}),
        "examples": vocabulary.get("examples", []),
    }


def _what_opens() -> str:
    return f"{EMBEDDED!r}, a folder with a {INDEX}, or a hub id such as 'org/name'"


def _open_folder(path: Path, name: str) -> Checkpoint:
    file = path / INDEX
    if not file.is_file():
        if name == EMBEDDED:
            raise KinemaError(f"the embedded model is not installed: {file} is missing")
        raise UsageError(f"model {name!r} holds no {INDEX}; what opens is {_what_opens()}")
    return Checkpoint(name, path, _read_json(file))


def _fetch(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, allow_patterns=list(HUB_FILES)))
    except Exception as error:  # the hub client raises many kinds, none of which a user can act on
        reason = str(error).strip().split("\n")[0]
        offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
        raise KinemaError(f"cannot fetch {hub_id!r} from the hub{offline}: {reason}") from error


def _is_component(entry: Any) -> bool:
    return isinstance(entry, list) and [type(part) for part in entry] == [str, str]


def _read_json(file: Path) -> dict[str, Any]:
    where = "/".join(file.parts[-3:])
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise KinemaError(f"missing file {where}") from None
    except (OSError, ValueError) as error:
        raise KinemaError(f"cannot read {where}: {error}") from None
    if not isinstance(value, dict):
        raise KinemaError(f"cannot read {where}: a JSON object is expected")
    return value


def _sha256(file: Path) -> str:
    # The hub's cache names a large file by its SHA-256.
    if file.is_symlink() and HUB_BLOB.fullmatch(blob := file.resolve().name):
        return blob
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
