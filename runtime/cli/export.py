"""`kinema export`: a checkpoint's components for other runtimes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..planning.fit import gb
from .app import Debug, Json, app
from .console import print_json, say, steps, table

if TYPE_CHECKING:
    from ..graphs.manifest import GraphEntry, Manifest


@app.command()
def export(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL", help="A folder or a hub id; the embedded model if not given."
        ),
    ] = None,
    to: Annotated[
        str, typer.Option(metavar="FORMAT", help="onnx, tensorrt, aoti or triton-server.")
    ] = "onnx",
    output: Annotated[
        str, typer.Option("-o", "--output", metavar="DIR", help="The folder to write.")
    ] = "engines",
    base: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE", help="With a transformer alone as MODEL: where all else comes from."
        ),
    ] = None,
    components: Annotated[
        str | None,
        typer.Option(metavar="A,B,...", help="Such as transformer,vae; all if not given."),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="fp32, fp16, bf16, fp8 or int8; fp32 if not given, fp16 for TensorRT."),
    ] = None,
    shapes: Annotated[
        list[str] | None,
        typer.Option(metavar="WxHxFRAMES", help="TensorRT: a size to build for; may be repeated."),
    ] = None,
    arch: Annotated[
        list[str] | None,
        typer.Option(metavar="sm_89", help="TensorRT: a GPU to build for; may be repeated."),
    ] = None,
    calibrate: Annotated[
        list[str] | None,
        typer.Option(metavar="PROMPT", help="fp8, int8: what scales are made with; repeat it."),
    ] = None,
    opset: Annotated[int | None, typer.Option(help="ONNX: 23, or 18 for older runtimes.")] = None,
    as_json: Json = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace an export that is there.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Write MODEL as graphs that other runtimes open.

    Each is checked against PyTorch.
    """
    import kinema

    with steps("exporting") as show:
        manifest = kinema.export(  # pyright: ignore[reportCallIssue]  # the function, not the package
            model,
            to,
            output,
            base=base,
            components=None if components is None else components.split(","),
            dtype=dtype,
            shapes=shapes or (),
            arch=arch or (),
            opset=opset,
            calibration=calibrate or (),
            overwrite=force,
            progress=lambda at: show(f"{at.graph}: {at.doing}", at.done, at.total),
        )
    if as_json:
        return print_json(_as_result(output, manifest))
    for notes in {entry.notes for entry in manifest.graphs.values()}:
        for note in notes:
            say(note)
    if manifest.graphs:
        print(table([_row(entry) for entry in manifest.graphs.values()]))
    dtype = manifest.options.get("quantize") or manifest.dtype
    number_format = "" if dtype == "auto" else f" in {dtype}"  # auto: the engine settles it
    print(f"{output}: {manifest.to} of {manifest.model['name']}{number_format}")


def _row(entry: GraphEntry) -> tuple[str, ...]:
    worst = max((check["relative_rms"] for check in entry.checks), default=None)
    off = "not compared" if worst is None else f"off by {worst:.1e} of its RMS"
    return (
        entry.name,
        f"{entry.nodes} nodes" if entry.nodes else "",
        gb(entry.bytes),
        off,
        f"({entry.tolerance:.0e} allowed)" if entry.checks else "",
    )


def _as_result(output: str, manifest: Manifest) -> dict[str, Any]:
    from dataclasses import asdict

    return {"path": output, **asdict(manifest)}
