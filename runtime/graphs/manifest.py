"""`kinema.json` beside exported graphs: what they are, of which weights, and how far off."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import KinemaError, UsageError
from ..hashes import file_hash

if TYPE_CHECKING:
    from ..checkpoints.checkpoint import Checkpoint

FILE = "kinema.json"
FORMAT = 1
DTYPES = ("float32", "float16", "bfloat16", "int64")


@dataclass(frozen=True)
class Port:
    """An input or output: its dtype, and its shape with names and expressions where it may vary."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))


@dataclass(frozen=True)
class GraphEntry:
    """One graph: its files with their hashes, what goes in and out, and how it was verified.

    `files` are relative to the manifest, the one to open first. `checks` are what was measured
    against PyTorch: one object a shape, with the largest and the mean error, relative to the mean
    of the wanted values; `tolerance` is what was allowed.
    """

    name: str
    files: Mapping[str, str]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    bytes: int
    nodes: int = 0
    operators: Mapping[str, int] = field(default_factory=dict)
    tolerance: float = 0.0
    checks: tuple[Mapping[str, Any], ...] = ()
    notes: tuple[str, ...] = ()
    built: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> GraphEntry:
        """From JSON; raises `TypeError` or `KeyError` for what is not one."""
        ports = {
            side: tuple(Port(**port) for port in values[side]) for side in ("inputs", "outputs")
        }
        return cls(**{**values, **ports})

    @property
    def file(self) -> str:
        """The one to open."""
        return next(iter(self.files))


@dataclass(frozen=True)
class Manifest:
    """What an export wrote. `to` is its format; `model` has name and weights."""

    to: str
    dtype: str
    model: Mapping[str, str]
    versions: Mapping[str, str]
    graphs: Mapping[str, GraphEntry]
    options: Mapping[str, Any] = field(default_factory=dict)
    format: int = FORMAT

    def as_json(self) -> str:
        return json.dumps(asdict(self), indent=1) + "\n"


@dataclass(frozen=True)
class Engines:
    """An opened folder of graphs."""

    folder: Path
    manifest: Manifest

    def path(self, name: str) -> Path:
        """The file of a graph that is to be opened."""
        return self.folder / self.manifest.graphs[name].file


def read(folder: str | Path, to: str | None, checkpoint: Checkpoint | None = None) -> Engines:
    """Open what was exported `to` a format (None: whichever it is), of a checkpoint's weights.

    Raises `UsageError` for a folder that holds something else, naming the export that would do;
    `KinemaError` for files that are missing or not what was written.
    """
    folder = Path(folder)
    manifest = _manifest(folder)
    name = checkpoint.name if checkpoint else "MODEL"
    again = f"kinema export {name} --to {to or 'onnx'} -o {folder}"
    if not manifest.graphs:
        raise UsageError(f"{folder} is for {manifest.to} and holds no graphs to run; {again}")
    if to not in (None, manifest.to):
        raise UsageError(f"{folder} holds graphs for {manifest.to}, not {to}; make them: {again}")
    if checkpoint is not None and manifest.model["weights"] != checkpoint.weight_hash():
        theirs, weights = manifest.model["name"], manifest.model["weights"][:12]
        raise UsageError(
            f"{folder} was exported from other weights ({theirs}, {weights}); make it anew: {again}"
        )
    for entry in manifest.graphs.values():
        for file, digest in entry.files.items():
            if not (folder / file).is_file():
                raise KinemaError(f"{folder / file} is missing; make it anew: {again}")
            if file_hash(folder / file) != digest:
                raise KinemaError(
                    f"{folder / file} is not what was exported: its hash is another; {again}"
                )
    return Engines(folder, manifest)


def _manifest(folder: Path) -> Manifest:
    try:
        values = json.loads((folder / FILE).read_text())
    except OSError as error:
        raise UsageError(
            f"{folder} has no {FILE}, so it is no finished export ({error.strerror});"
            f" make one: kinema export MODEL --to onnx -o {folder}"
        ) from None
    except ValueError:
        raise KinemaError(f"{folder / FILE} is not JSON; export again") from None
    try:
        if values.get("format") != FORMAT:
            raise UsageError(
                f"{folder / FILE} has format {values.get('format')!r}; this version reads {FORMAT}:"
                " export again"
            )
        graphs = {name: GraphEntry.from_dict(g) for name, g in values.pop("graphs").items()}
        known = {f.name for f in fields(Manifest)}
        manifest = Manifest(graphs=graphs, **{k: v for k, v in values.items() if k in known})
        _check(manifest)
        return manifest
    except (TypeError, KeyError, AttributeError) as error:
        raise KinemaError(f"{folder / FILE} is damaged ({error}); export again") from None


def _check(manifest: Manifest) -> None:
    """Raise `TypeError` or `KeyError` for what no export writes."""
    _ = manifest.model["name"], manifest.model["weights"]
    entries = manifest.graphs.values()
    ports = (port for entry in entries for port in (*entry.inputs, *entry.outputs))
    if manifest.graphs:
        for dtype in (manifest.dtype, *(port.dtype for port in ports)):
            if dtype not in DTYPES:
                raise TypeError(f"{dtype!r} is no dtype of graphs")
    for name, entry in manifest.graphs.items():
        _check_entry(name, entry)


def _check_entry(name: str, entry: GraphEntry) -> None:
    """Raise `TypeError` for an entry of another name, without files, or with some elsewhere."""
    if entry.name != name or not entry.files:
        raise TypeError(f"{name} is {entry.name}, of {len(entry.files)} files")
    for file in entry.files:
        if Path(file).is_absolute() or ".." in Path(file).parts:
            raise TypeError(f"{file!r} is not in the folder")
