"""What the routes hold on to: models, database, files, and who may do what."""

from __future__ import annotations

import fcntl
import os
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ..errors import KinemaError, UsageError
from ..files import reason_of
from . import characters, edits, files, moderation, videos
from .batching import Batching
from .errors import APIError
from .fetching import Fetcher
from .janitor import Janitor
from .keys import Keys
from .limits import Limiter
from .metrics import Metrics
from .orders import Order, parts_of
from .runs import Runs
from .settings import HOSTED, Settings
from .sources import neighbours
from .store import Store
from .tables import now
from .videos import FAILED, IN_PROGRESS, PENDING, Video
from .webhooks import Webhooks

if TYPE_CHECKING:
    from ..engine import Engine

POLLS = 20  # how often a client should ask for a video while it is made
POLL_MS = (200, 10_000)


class Server:
    """One data folder, served. `start` before the first request, `stop` after the last."""

    def __init__(self, engines: Mapping[str, Engine], settings: Settings) -> None:
        self.engines, self.settings = dict(engines), settings
        self.aliases = {**dict.fromkeys(HOSTED, next(iter(self.engines))), **settings.aliases}
        if unknown := sorted(set(self.aliases.values()) - set(self.engines)):
            known = ", ".join(self.engines)
            raise UsageError(f"alias of {unknown[0]!r}, which is no model; models are {known}")
        self._lock_file = _own(settings.data)
        try:
            keys = settings.key_file
            self.keys = Keys.none() if keys is None else Keys.from_file(keys)
            self.store = Store(settings.url)
            self.store.upgrade()
        except BaseException:
            os.close(self._lock_file)
            raise
        self.limiter = Limiter(settings.limits)
        self.fetcher = Fetcher(settings.limits, settings.allow_private)
        self.webhooks = Webhooks(self.store, settings.limits, settings.allow_private)
        self.metrics = Metrics(self)
        self.runs = Runs(self)
        self.batching = Batching(self)
        self.janitor = Janitor(self)
        self.ready = False
        self._accepting = threading.Lock()

    def start(self) -> None:
        """Take up what was left, and accept requests."""
        self.webhooks.start()
        self.runs.start()
        self.batching.start()
        self.janitor.start()
        self.ready = True

    def refuse(self) -> None:
        """Take no more work, and let streams of events end; `stop` is to follow."""
        self.ready = False

    def stop(self) -> None:
        """Refuse new work, save what is running, and leave."""
        self.refuse()
        self.batching.stop()
        self.runs.stop()
        self.janitor.stop()
        self.webhooks.stop()
        self.store.close()
        os.close(self._lock_file)

    # ---- models and folders ----------------------------------------------------------------------

    def resolve(self, model: str) -> str:
        """The name of the model that a client's name means. Raises `APIError` 400 for none."""
        name = self.aliases.get(model, model)
        if name not in self.engines:
            known = ", ".join([*self.engines, *self.aliases])
            message = f"there is no model {model[:80]!r}; known are {known}"
            raise APIError(400, message, param="model", code="model_not_found")
        return name

    def folder(self, id: str) -> Path:
        """Where a video's files are."""
        return self.settings.data / "videos" / id

    @contextmanager
    def new_folder(self, id: str) -> Iterator[Path]:
        """A folder for a video that is about to be accepted; gone again if it is not."""
        folder = self.folder(id)
        try:
            folder.mkdir(parents=True)
            yield folder
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    # ---- a video's life --------------------------------------------------------------------------

    def accept(
        self,
        owner: str,
        id: str,
        model: str,
        order: Order,
        *,
        seconds: str,
        source: Video | None,
        others: Mapping[str, Order] = MappingProxyType({}),
    ) -> Video:
        """Check an order against the model, and keep it; it is made from then on, whatever happens.

        `others` are kept with it, by their ids: orders that differ in what costs nothing.
        Raises `UsageError` for what the model cannot make, `APIError` where the queue is full.
        """
        self._moderate(owner, order, source)
        engine = self.engines[self.resolve(model)]
        expected = self._expected(engine, order, id)
        accepted = [
            Video(
                id=name,
                owner=owner,
                model=model,
                prompt=one.prompt,
                seconds=seconds,
                size=f"{one.width}x{one.height}",
                order=one.as_dict(),
                expected=expected,
                created_at=now(),
                remixed_from=None if source is None else source.id,
            )
            for name, one in {id: order, **others}.items()
        ]
        with self._accepting, self.store.session() as session:
            ahead = videos.work_ahead(session)
            self.limiter.queue(owner, videos.waiting(session, owner), ahead, len(accepted))
            session.add_all(accepted)
        self.runs.wake()
        return accepted[0]

    def check_room(self, coming: int = 0) -> None:
        """Raises `APIError` 507 where `coming` bytes more would fill the disk or the quota."""
        settings = self.settings
        left = shutil.disk_usage(settings.data).free
        if left - coming < settings.free_bytes:
            raise full(f"the disk has {left:,} bytes left; {settings.free_bytes:,} are kept free")
        if settings.quota_bytes is None:
            return
        with self.store.session() as session:
            taken = sum(kind.bytes_kept(session) for kind in (videos, files, characters))
        if taken + coming >= settings.quota_bytes:
            message = (
                f"videos, files and characters take {taken:,} of {settings.quota_bytes:,} bytes"
            )
            raise full(f"{message}; delete some")

    def cancel(self, owner: str, id: str) -> Video:
        """Stop a video before its next step. Raises `APIError` 409 for one that has ended."""
        with self.store.session() as session:
            videos.locked(session, id)
            video = videos.find(session, owner, id)
            if video.status not in PENDING:
                message = f"video {id} is {video.status}; only one that is not done can be stopped"
                raise APIError(409, message, code="already_ended")
            video.status = FAILED
            video.error = {"code": "cancelled", "message": "the video was cancelled"}
            self.webhooks.ended(session, owner, "video.failed", id)
        self.webhooks.wake()
        self.runs.cancel(id)
        return video

    def delete(self, owner: str, id: str) -> None:
        """Stop it if it is being made, and remove it."""
        with self.store.session() as session:
            session.delete(videos.find(session, owner, id))
        self.runs.cancel(id)
        if id not in self.runs.live:
            shutil.rmtree(self.folder(id), ignore_errors=True)

    def show(self, video: Video) -> tuple[dict[str, Any], dict[str, str]]:
        """A video as clients see it, and the headers that go with it."""
        shown = self.as_object(video)
        if video.status not in PENDING:
            return shown, {}
        left = self._seconds_left(video)
        wait = min(max(int(1000 * left / POLLS), POLL_MS[0]), POLL_MS[1])
        return shown, {"openai-poll-after-ms": str(wait)}

    def _moderate(self, owner: str, order: Order, source: Video | None) -> None:
        """What is worked on still shows what its own prompts asked for."""
        made_of = []
        if source is not None and order.kind != "create":
            with self.store.session() as session:
                made_of = [source, *videos.ancestors(session, owner, source)]
        moderation.check(order, self.settings.moderation, [video.order for video in made_of])

    def as_object(self, video: Video) -> dict[str, Any]:
        """A video as clients see it in a list: when to ask for it again is not told, or found."""
        live = self.runs.live.get(video.id)
        return videos.as_object(video, 0 if live is None else live.progress)

    def _seconds_left(self, video: Video) -> float:
        live = self.runs.live.get(video.id)
        if video.status == IN_PROGRESS and live is not None:
            return live.seconds_left * max(1, len(self.runs.live))  # they take turns
        with self.store.session() as session:
            return video.expected + videos.work_ahead(session, video.number)

    def _expected(self, engine: Engine, order: Order, id: str) -> float:
        """Seconds of work, as planned; refused here is what cannot run."""
        if order.kind == "edit":
            edits.check(engine)
        parts, presets = parts_of(order, engine.checkpoint), engine.checkpoint.presets
        before = None
        if parts[0].overlap:
            fps = order.fps or presets.fps
            before = neighbours(self.folder(id), order, parts[0].overlap, fps)
        plan = engine.plan(order.request(presets, parts[0], self.folder(id), before))
        return (plan.seconds or 0.0) * len(parts)


def full(message: str) -> APIError:
    """There is no room for more."""
    return APIError(507, message, code="insufficient_storage")


def _own(data: Path) -> int:
    """Lock the data folder for this process. Raises `UsageError` where another has it."""
    try:
        (data / "videos").mkdir(parents=True, exist_ok=True)
        handle = os.open(data / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise KinemaError(f"cannot use data folder {str(data)!r}: {reason_of(error)}") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise UsageError(f"data folder {str(data)!r} is served by another process") from None
    return handle
