"""`kinema serve`: the Videos API on this machine."""

from __future__ import annotations

import ipaddress
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import KinemaError, UsageError
from ..files import reason_of
from ..serve.limits import Limits
from .app import Debug, app
from .console import say
from .extras import needing
from .groups import grouped
from .marks import Marks

if TYPE_CHECKING:
    from ..provenance.marking import Provenance
    from ..serve.settings import Settings

HOST, PORT, DATA = "127.0.0.1", 8000, "kinema-data"
STOP_SECONDS = 10  # that answers under way may still take after SIGTERM
MB = 1_000_000


@dataclass(frozen=True)
class Serving:
    """What a server keeps, for how long, and how much of whom it takes."""

    data: Annotated[str, typer.Option(metavar="DIR", help="Where videos are kept.")] = DATA
    database_url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="postgresql://...; SQLite in --data if not given."),
    ] = None
    api_key_file: Annotated[
        str | None, typer.Option(metavar="FILE", help="Who may ask: a key a line.")
    ] = None
    at_once: Annotated[
        int, typer.Option(metavar="N", min=1, help="Videos that are made at a time.")
    ] = 4
    keep: Annotated[
        float | None,
        typer.Option(
            metavar="HOURS", help="Delete videos this long after their end; kept if not given."
        ),
    ] = None
    quota: Annotated[
        float | None, typer.Option(metavar="GB", help="What videos and files may take on the disk.")
    ] = None
    save_every: Annotated[
        float,
        typer.Option(
            metavar="SECONDS", min=0, help="Save what runs so often: what a kill may cost."
        ),
    ] = 5.0
    requests_per_minute: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Of each key; any number if not given.")
    ] = Limits.requests_per_minute
    max_queued: Annotated[
        int, typer.Option(metavar="N", min=0, help="Videos of one key that wait; more get 429.")
    ] = Limits.max_queued
    max_running: Annotated[
        int, typer.Option(metavar="N", min=1, help="Videos of one key that are made at a time.")
    ] = Limits.max_running
    max_body: Annotated[
        float, typer.Option(metavar="MB", min=0.001, help="Of a request; more gets 413.")
    ] = round(Limits.max_body_bytes / MB)
    max_starts: Annotated[
        int,
        typer.Option(metavar="N", min=1, help="Crashes of the server after which a video fails."),
    ] = 3
    moderation: Annotated[
        str,
        typer.Option(metavar="LEVEL", help="Prompts refused by a word list: off, minors, strict."),
    ] = "minors"
    allow_private: Annotated[
        bool,
        typer.Option("--allow-private", help="Fetch from, and call, private addresses too."),
    ] = False

    def settings(self, aliases: dict[str, str], provenance: Provenance) -> Settings:
        """The same for the server. Raises `UsageError` for a package that serving lacks."""
        with needing("serve", "serving"):
            from ..serve.settings import Settings
        return Settings(
            data=Path(self.data).expanduser(),
            database_url=self.database_url,
            key_file=None if self.api_key_file is None else Path(self.api_key_file).expanduser(),
            aliases=aliases,
            at_once=self.at_once,
            save_seconds=self.save_every,
            keep_seconds=None if self.keep is None else int(self.keep * 3600),
            quota_bytes=None if self.quota is None else int(self.quota * 1e9),
            max_starts=self.max_starts,
            moderation=self.moderation,
            provenance=provenance,
            allow_private=self.allow_private,
            limits=Limits(
                requests_per_minute=self.requests_per_minute,
                max_queued=self.max_queued,
                max_running=self.max_running,
                max_body_bytes=round(self.max_body * MB),
            ),
        )


@app.command()
@grouped
def serve(
    *,
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=SOURCE", help="A model; may be repeated. The first is sora-2, too."
        ),
    ] = None,
    alias: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=MODEL", help="Another name of a model; may be repeated."),
    ] = None,
    host: Annotated[
        str,
        typer.Option(
            metavar="HOST", help="Where it listens; any but this machine's own needs keys."
        ),
    ] = HOST,
    port: Annotated[
        int, typer.Option(metavar="N", min=0, max=65535, help="Its port; 0 takes a free one.")
    ] = PORT,
    serving: Serving,
    marks: Marks,
    no_visible_mark: Annotated[
        bool, typer.Option("--no-visible-mark", help='Leave the mark "AI generated" out.')
    ] = False,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16, ...")] = None,
    debug: Debug = False,
) -> None:
    """Serve the Videos API on this machine.

    The official client works with base_url=http://HOST:PORT/v1.
    """
    if serving.api_key_file is None and not _is_own(host):
        raise UsageError(
            f"--host {host} can be reached from elsewhere: --api-key-file is needed, or {HOST}"
        )
    sources, aliases = (
        _pairs("--model", model, "NAME=SOURCE"),
        _pairs("--alias", alias, "NAME=MODEL"),
    )
    settings = serving.settings(aliases, marks.provenance(not no_visible_mark))
    _run(sources, settings, host, port, device, dtype)


def _run(sources, settings, host: str, port: int, device: str | None, dtype: str | None) -> None:
    with needing("serve", "serving"):
        from ..serve.app import create_app
        from ..serve.listening import listen
        from ..serve.logs import log_to_stderr
    import kinema

    with _bind(host, port) as bound:  # a port that is taken is told before models are opened
        engines = {
            name: kinema.load(source, device=device, dtype=dtype)
            for name, source in (sources or {"embedded": None}).items()
        }
        log_to_stderr()
        application = create_app(engines, settings)
        place = f"[{host}]" if ":" in host else host
        say(f"serving {', '.join(engines)} on http://{place}:{bound.getsockname()[1]}/v1")
        with suppress(KeyboardInterrupt):  # uvicorn has shut down by then, and says it again
            listen(application, bound, STOP_SECONDS)


def _bind(host: str, port: int) -> socket.socket:
    """A socket that does not listen yet. Raises `KinemaError` for a port that is taken."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        family, kind, protocol, _, address = found
        # asyncio sends at once, with TCP_NODELAY, only where the socket says that it is of TCP;
        # else an answer's second packet waits 40 ms for the first to be acknowledged.
        bound = socket.socket(family, kind, protocol)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
        except OSError:
            bound.close()
            raise
    except OSError as error:
        raise KinemaError(f"cannot listen on {host}:{port}: {reason_of(error)}") from None
    return bound


def _pairs(option: str, values: list[str] | None, form: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for value in values or ():
        name, sign, rest = value.partition("=")
        if not (name and sign and rest):
            raise UsageError(f"{option} is {value!r}; {form} is expected")
        if name in pairs:
            raise UsageError(f"{option} names {name!r} twice")
        pairs[name] = rest
    return pairs


def _is_own(host: str) -> bool:
    """Whether only this machine can reach it."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
