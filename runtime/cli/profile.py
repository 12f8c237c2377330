"""`kinema profile`: where the time of one request went, beside what the device could do."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from ..errors import UsageError
from ..files import reason_of
from .app import Debug, app
from .arguments import parse_size
from .console import say
from .groups import grouped
from .options import Asked, Options

if TYPE_CHECKING:
    from ..requests.request import Request

Part = TypeVar("Part")


@app.command()
@grouped
def profile(
    options: Options,
    request: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="A JSON file with the fields of a request, instead of PROMPT."
        ),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option("-o", "--output", metavar="FILE", help="Keep the video: the MP4 to write."),
    ] = None,
    json_file: Annotated[
        str | None, typer.Option("--json", metavar="FILE", help="Write the report as JSON.")
    ] = None,
    html: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write it as a page that opens offline.")
    ] = None,
    trace: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write a trace that Perfetto opens, as JSON.")
    ] = None,
    at: Annotated[
        list[str] | None,
        typer.Option(metavar="WxH", help="Predict the time at this size; may be repeated."),
    ] = None,
    remeasure: Annotated[
        bool, typer.Option("--remeasure", help="Measure what the device can do anew.")
    ] = False,
    compare: Annotated[
        tuple[str, str] | None,
        typer.Option(metavar="A B", help="Compare two reports that --json wrote; takes no prompt."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing video.")] = False,
    debug: Debug = False,
) -> None:
    """Say where the time of one request goes.

    Stage by stage, and inside its steps by class of operation, beside what the device can do.
    """
    from ..profiling.report import check_target

    asked = options.read()
    for path, suffix in ((json_file, ".json"), (html, ".html"), (trace, ".json")):
        if path is not None:
            check_target(path, (suffix,))
    if compare is not None:
        return _compare(asked, request, compare, json_file, html, trace)
    wanted = _request(asked, request)
    if output is not None:
        from ..media.mp4 import check_target as check_video

        check_video(output, overwrite=force)
    from ..planning.plan import resolve
    from ..profiling.run import profile as run

    resolve(wanted, asked.checkpoint)  # what cannot run is refused before torch reads weights
    sizes = tuple(_size(text) for text in at or ()) or None
    found = run(wanted, asked.load, path=output, sizes=sizes, remeasure=remeasure, say=say)
    print(found)
    for path in filter(None, (json_file, html)):
        say(f"wrote {found.save(path)}")
    if trace is not None:
        say(f"wrote {found.save_trace(trace)}")


def _request(asked: Asked, file: str | None) -> Request:
    """The request of the options, or of a file, whose fields the options may not change."""
    if file is None:
        if asked.prompt is None:
            raise UsageError("nothing to profile: give a PROMPT, --request FILE, or --compare A B")
        return asked.request()
    if asked.prompt is not None:
        raise UsageError(f"--request {file} has its own prompt; leave {asked.prompt!r} out")
    from ..requests.request import Request

    fields = _fields(file)
    try:
        return Request(**fields)
    except TypeError:
        known = ", ".join(Request.__dataclass_fields__)
        raise UsageError(f"--request {file}: a request has these fields: {known}") from None


def _fields(file: str) -> dict[str, Any]:
    """The fields of a request as JSON has them."""
    from ..requests.conditions import Condition
    from ..requests.guidance_options import Guidance

    try:
        fields = json.loads(Path(file).expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--request {file}: {reason_of(error)}") from None
    except ValueError as error:
        raise UsageError(f"--request {file} is no JSON: {error}") from None
    if not isinstance(fields, dict) or "prompt" not in fields:
        raise UsageError(f'--request {file} must hold an object with a prompt: {{"prompt": "..."}}')
    if guidance := fields.get("guidance"):
        fields["guidance"] = _part(file, "guidance", Guidance, guidance)
    if conditions := fields.get("conditions"):
        many = conditions if isinstance(conditions, list) else [conditions]
        fields["conditions"] = [_part(file, "a condition", Condition, one) for one in many]
    return fields


def _part(file: str, what: str, kind: Callable[..., Part], fields: Any) -> Part:
    """A part of a request, from the fields that JSON has of it."""
    try:
        return kind(**fields)
    except TypeError:
        known = ", ".join(inspect.signature(kind).parameters)
        raise UsageError(
            f"--request {file}: {what} is an object of these fields: {known}"
        ) from None


def _size(text: str) -> tuple[int, int]:
    width, height = parse_size(text, "--at")
    assert width is not None and height is not None
    return height, width


def _compare(
    asked: Asked,
    request: str | None,
    files: tuple[str, str],
    json_file: str | None,
    html: str | None,
    trace: str | None,
) -> None:
    from ..profiling.compare import compare
    from ..profiling.report import read, write
    from ..profiling.told import told_of_two

    if asked.prompt is not None or request is not None:
        raise UsageError("--compare takes two reports and nothing to make; leave the prompt out")
    if trace is not None:
        raise UsageError("--compare has no trace to write; leave --trace out")
    before, after = map(read, files)
    found = compare(before, after)
    print(told_of_two(found))
    if json_file is not None:
        say(f"wrote {write(Path(json_file).expanduser(), json.dumps(found, indent=1))}")
    if html is not None:
        from ..profiling.page import page_of_two

        page = page_of_two(before, after, tuple(Path(file).name for file in files))
        say(f"wrote {write(Path(html).expanduser(), page)}")
