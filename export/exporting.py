"""`kinema.export`: a checkpoint's components as files that other runtimes open, each checked."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from ..runtime.checkpoints.checkpoint import TRANSFORMERS, Checkpoint, open_checkpoint
from ..runtime.errors import KinemaError, UsageError
from ..runtime.files import beside, reason_of
from ..runtime.graphs.manifest import FILE, GraphEntry, Manifest
from ..runtime.planning.fit import gb
from .options import SERVER, WRITERS, Options, as_options

if TYPE_CHECKING:
    from ..runtime.engine import Engine
    from .graphs import Graph

COMPONENTS = ("text_encoder", "image_encoder", *TRANSFORMERS, "vae")
ROOM = 1.05  # of a disk, over what the weights take


class Progress(NamedTuple):
    """What an export is at; `done` components of `total` are written."""

    graph: str
    doing: str
    done: int
    total: int


class Writer(Protocol):
    """Writes graphs in one format. `copies`: how often the weights are on disk at most."""

    copies: int

    def __init__(self, checkpoint: Checkpoint, options: Options) -> None: ...

    def write(
        self, graph: Graph, twin: Graph | None, folder: Path, told: Callable[[str], None]
    ) -> GraphEntry:
        """Write one graph to `folder/<its name>` and check it; `twin` is the same in fp32."""
        ...

    def versions(self) -> dict[str, str]:
        """Of all that had a part in it."""
        ...


def export(
    source: str | Path | Checkpoint | None = None,
    to: str = "onnx",
    output: str | Path = "engines",
    *,
    base: str | Path | Checkpoint | None = None,
    components: Sequence[str] | None = None,
    dtype: str | None = None,
    shapes: Sequence[str] = (),
    arch: Sequence[str] = (),
    opset: int | None = None,
    calibration: Sequence[str] = (),
    overwrite: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> Manifest:
    """Write a checkpoint's graphs to the folder `output`, with `kinema.json` beside them.

    source, base: as `kinema.load` takes them. to: "onnx", "tensorrt", "aoti" or "triton-server".
    components: by default all that the checkpoint has. dtype: "fp32", "fp16", "bf16", "fp8" or
    "int8". shapes: such as "832x480x81", the sizes a TensorRT engine is made for. arch: such as
    "sm_89", for TensorRT. opset: of ONNX; 23 if not given. calibration: prompts that the scales of
    8 bits are made with; the model's own examples if not given.

    Every graph is compared with PyTorch at three sizes before it counts. Raises `UsageError` for
    what cannot be exported, before any work; `KinemaError` where a check fails, a package is
    missing or the disk is full. Either way `output` is as it was.
    """
    options = as_options(
        to, dtype=dtype, shapes=shapes, arch=arch, opset=opset, calibration=calibration
    )
    checkpoint, target = open_checkpoint(source, base), Path(output).expanduser()
    if to == SERVER:
        given = _given(source=source, base=base, dtype=dtype and options.dtype)
        return _serve(checkpoint, target, given, components, overwrite)
    wanted = _components(checkpoint, components)
    writer = _writer(checkpoint, options)
    _check_target(target, overwrite)
    _check_disk(checkpoint, wanted, target, options, writer.copies)
    with _whole_folder(target, overwrite) as folder:
        manifest = Manifest(
            to=to,
            dtype=options.dtype,
            model={"name": checkpoint.name, "weights": checkpoint.weight_hash()},
            versions=writer.versions(),
            graphs=dict(_write(writer, checkpoint, options, wanted, folder, progress)),
            options=options.as_dict(),
        )
        (folder / FILE).write_text(manifest.as_json())
    return manifest


def _write(
    writer: Writer,
    checkpoint: Checkpoint,
    options: Options,
    components: Sequence[str],
    folder: Path,
    progress: Callable[[Progress], None] | None,
) -> Iterator[tuple[str, GraphEntry]]:
    from .graphs import graphs_of

    for done, component in enumerate(components):
        # An engine for each component: nothing else is open while it is written.
        graphs = graphs_of(_engine(checkpoint, options.dtype), component)
        twins: Iterable[Graph | None] = repeat(None)
        if options.dtype == "bfloat16":
            twins = graphs_of(_rounded(checkpoint, component), component)
        for graph, twin in zip(graphs, twins, strict=False):
            told = _telling(progress, graph.name, done, len(components))
            yield graph.name, writer.write(graph, twin, folder, told)


def _telling(
    progress: Callable[[Progress], None] | None, graph: str, done: int, total: int
) -> Callable[[str], None]:
    """What a writer tells of one graph, as `Progress`."""
    if progress is None:
        return lambda doing: None
    return lambda doing: progress(Progress(graph, doing, done, total))


def _engine(checkpoint: Checkpoint, dtype: str) -> Engine:
    from ..runtime.engine import load

    return load(checkpoint, "cpu", dtype, executor="eager")


def _rounded(checkpoint: Checkpoint, component: str) -> Engine:
    """In float32, with the weights that bfloat16 has."""
    import torch

    exact, rounded = _engine(checkpoint, "float32"), _engine(checkpoint, "bfloat16")
    for theirs, ours in zip(_weights(rounded, component), _weights(exact, component), strict=True):
        with torch.no_grad():
            ours.copy_(theirs)
    return exact


def _weights(engine: Engine, component: str) -> Iterator[Any]:
    found = getattr(engine, component)
    return (found if hasattr(found, "parameters") else found.open().use()).parameters()


def _writer(checkpoint: Checkpoint, options: Options) -> Writer:
    module, name = WRITERS[options.to].split(":")
    try:
        return getattr(import_module(f".{module}", __package__), name)(checkpoint, options)
    except ImportError as error:
        if (error.name or "kinema").startswith("kinema"):
            raise
        extra = "tensorrt" if options.to == "tensorrt" else "export"
        raise KinemaError(
            f"exporting to {options.to} needs {error.name}: pip install 'kinema[{extra}]'"
        ) from None


# ---- a server's model ----------------------------------------------------------------------------


def _serve(
    checkpoint: Checkpoint,
    target: Path,
    given: dict[str, str],
    components: Sequence[str] | None,
    overwrite: bool,
) -> Manifest:
    """A model repository; nothing is converted, so there are no graphs."""
    from .. import __version__
    from .triton_server import write

    if components is not None:
        raise UsageError(f"components are for graphs; {SERVER} serves the whole model")
    _check_target(target, overwrite)
    with _whole_folder(target, overwrite) as folder:
        write(folder, checkpoint.name, given)
        manifest = Manifest(
            to=SERVER,
            dtype=given.get("dtype", "auto"),
            model={"name": checkpoint.name, "weights": checkpoint.weight_hash()},
            versions={"kinema": __version__},
            graphs={},
        )
        (folder / FILE).write_text(manifest.as_json())
    return manifest


def _given(**values: Any) -> dict[str, str]:
    """What was given, as text: of an open checkpoint its name."""
    return {
        name: value.name if isinstance(value, Checkpoint) else str(value)
        for name, value in values.items()
        if value is not None
    }


# ---- before any work -----------------------------------------------------------------------------


def _components(checkpoint: Checkpoint, asked: Sequence[str] | None) -> list[str]:
    there = [name for name in COMPONENTS if name in checkpoint.components]
    if asked is None:
        return there
    if not asked:
        raise UsageError(f"no component is given to export; {', '.join(there)} work")
    if unknown := [name for name in asked if name not in there]:
        raise UsageError(
            f"{checkpoint.name!r} has no component {unknown[0]!r} to export; {', '.join(there)}"
        )
    return [name for name in there if name in asked]


def _check_target(target: Path, overwrite: bool) -> None:
    if target.exists() and not target.is_dir():
        raise UsageError(f"{target} is a file; give a folder to write to")
    if target.exists() and any(target.iterdir()):
        if not (target / FILE).is_file():
            raise UsageError(f"{target} holds other files; give a folder of its own")
        if not overwrite:
            raise UsageError(f"{target} holds an export already; --force replaces it")


def _check_disk(
    checkpoint: Checkpoint, components: Sequence[str], target: Path, options: Options, copies: int
) -> None:
    from ..runtime.planning.weight_sizes import weight_bytes

    weights = weight_bytes(checkpoint, options.dtype)
    needed = int(ROOM * copies * sum(weights[name] for name in components))
    place = next(folder for folder in target.absolute().parents if folder.is_dir())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise UsageError(
            f"{target} needs about {gb(needed)}, and {gb(free)} are free; fewer components, a"
            " smaller dtype or another disk would do"
        )


@contextmanager
def _whole_folder(target: Path, overwrite: bool) -> Iterator[Path]:
    """A folder beside `target`, renamed to it at the end, removed if the body fails.

    What a link leads to is replaced, not the link.
    """
    place = target.resolve()
    unfinished = beside(place)
    try:
        unfinished.mkdir(parents=True)
        yield unfinished
        _check_target(target, overwrite)  # again: others may have written there meanwhile
        _replace(place, unfinished)
    except OSError as error:
        raise KinemaError(f"cannot write {target}: {reason_of(error)}") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _replace(place: Path, folder: Path) -> None:
    if not place.exists():
        folder.rename(place)
        return
    old = beside(place)
    place.rename(old)
    try:
        folder.rename(place)
    except OSError:
        old.rename(place)
        raise
    shutil.rmtree(old, ignore_errors=True)
