"""Telling other servers that work is done: signed in the standard way, and again if need be.

What is to be told is written in the same transaction as the work's end, so a kill loses none. An
event may arrive twice; its id is the same then. https://www.standardwebhooks.com
"""

from __future__ import annotations

import json
import logging
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    ForeignKey,
    Index,
    String,
    Text,
    delete,
    func,
    select,
    update,
)
from sqlalchemy.orm import Mapped, Session, mapped_column

from ..errors import UsageError
from .addresses import check_url
from .calling import FAILURES, call
from .databases import log_failure
from .limits import Limits
from .signing import new_secret, signed
from .store import Store
from .tables import Base, new_id, now

log = logging.getLogger("kinema.serve")
EVENTS = (
    "video.completed",
    "video.failed",
    "batch.completed",
    "batch.failed",
    "batch.expired",
    "batch.cancelled",
)
FIRST_WAIT, GROWTH, TRIES = 5.0, 4.0, 9  # 5 s, 20 s, ... 22 h 45 min: a day and a quarter
GONE = 410  # an endpoint that does not want to be told of this again
AT_ONCE, WORKERS, LOOK_EVERY = 100, 8, 5.0
MAX_SECONDS = 10.0  # of one call, and so of waiting for it at the end
OVERLAP_SECONDS = 24 * 3600  # how long an old secret may sign beside a new one


class WebhookEndpoint(Base):
    """Where an owner wants to be told."""

    __tablename__ = "webhook_endpoints"
    __table_args__ = (Index("webhook_endpoints_by_owner", "owner"),)

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    owner: Mapped[str] = mapped_column(String(64))
    name: Mapped[str] = mapped_column(String(200))
    url: Mapped[str] = mapped_column(Text)
    event_types: Mapped[list[str]] = mapped_column(JSON)
    secret: Mapped[str] = mapped_column(String(100))
    created_at: Mapped[int] = mapped_column(BigInteger)
    updated_at: Mapped[int | None] = mapped_column(BigInteger)
    old_secret: Mapped[str | None] = mapped_column(String(100))
    old_until: Mapped[int | None] = mapped_column(BigInteger)

    def secrets(self, at: float) -> list[str]:
        """What signs at a time: the secret, and the one before it while that is still good."""
        old, until = self.old_secret, self.old_until or 0
        return [self.secret, old] if old is not None and at < until else [self.secret]

    def rotate(self, keep_old: bool) -> str:
        """A new secret, which is not shown again; the old one signs for a day more, or no more."""
        self.old_secret = self.secret if keep_old else None
        self.old_until = now() + OVERLAP_SECONDS if keep_old else None
        self.secret, self.updated_at = new_secret(), now()
        return self.secret

    def __repr__(self) -> str:
        return f"<WebhookEndpoint {self.id}>"


class WebhookDelivery(Base):
    """An event that an endpoint is to be told, until it was."""

    __tablename__ = "webhook_deliveries"
    __table_args__ = (Index("webhook_deliveries_by_due", "due_at"),)

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    endpoint_id: Mapped[str] = mapped_column(ForeignKey("webhook_endpoints.id", ondelete="CASCADE"))
    event: Mapped[dict[str, Any]] = mapped_column(JSON)
    tries: Mapped[int] = mapped_column(default=0)
    due_at: Mapped[int] = mapped_column(BigInteger)


class Webhooks:
    """Endpoints, and threads that tell them: several at once, each endpoint one event at a time."""

    def __init__(self, store: Store, fetcher_limits: Limits, allow_private: bool = False) -> None:
        self.store, self.allow_private = store, allow_private
        self.seconds = min(fetcher_limits.fetch_seconds, MAX_SECONDS)
        self._woken, self._stopping = threading.Event(), threading.Event()
        self._busy: set[str] = set()  # ids of endpoints that are being told
        self._workers = ThreadPoolExecutor(WORKERS, "kinema-webhook")
        self._thread = threading.Thread(target=self._run, name="kinema-webhooks", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Waits for calls under way; what was not told is told after the next start."""
        self._stopping.set()
        self.wake()
        if self._thread.is_alive():
            self._thread.join()
        self._workers.shutdown(cancel_futures=True)

    def wake(self) -> None:
        self._woken.set()

    def check(self, url: str, event_types: list[str]) -> None:
        """Raises `UsageError` for an endpoint that could never be told."""
        check_url(url, self.allow_private)
        if unknown := sorted(set(event_types) - set(EVENTS)):
            raise UsageError(f"event type {unknown[0][:80]!r} is not known: {', '.join(EVENTS)}")

    def add_endpoint(
        self, owner: str, name: str, url: str, event_types: list[str]
    ) -> tuple[WebhookEndpoint, str]:
        """A new endpoint and its secret, which is not shown again. Raises `UsageError`."""
        self.check(url, event_types)
        endpoint = WebhookEndpoint(
            id=new_id("we"),
            owner=owner,
            name=name,
            url=url,
            event_types=list(event_types),
            secret=new_secret(),
            created_at=now(),
        )
        with self.store.session() as session:
            session.add(endpoint)
        return endpoint, endpoint.secret

    def ended(self, session: Session, owner: str, type: str, id: str) -> None:
        """Note, within a transaction, that the owner's endpoints are to be told."""
        owned = select(WebhookEndpoint).where(WebhookEndpoint.owner == owner)
        for endpoint in session.scalars(owned).all():
            if type in endpoint.event_types:
                event = event_of(type, id)
                session.add(
                    WebhookDelivery(
                        id=event["id"], endpoint_id=endpoint.id, event=event, due_at=now()
                    )
                )

    def tell(self, endpoint: WebhookEndpoint, event: dict[str, Any]) -> int | None:
        """Tell an endpoint now, once; the status of its answer, None where there was none."""
        body, sent_at = json.dumps(event).encode(), time.time()
        headers = {"Content-Type": "application/json"}
        headers |= signed(endpoint.secrets(sent_at), event["id"], int(sent_at), body)
        try:
            target = check_url(endpoint.url, self.allow_private)
            with call(target, self.seconds, "POST", body, headers) as answer:
                return answer.status
        except (*FAILURES, UsageError) as error:
            log.info("webhook endpoint %s: %s", endpoint.id, type(error).__name__)
            return None

    # ---- threads ---------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._start_due()
            except Exception as error:
                log_failure(log, "telling webhooks", error)
            self._woken.wait(LOOK_EVERY)
            self._woken.clear()

    def _start_due(self) -> None:
        for delivery, endpoint in self._due():
            if not self._stopping.is_set():
                self._busy.add(endpoint.id)
                self._workers.submit(self._work, delivery, endpoint)

    def _due(self) -> list[tuple[WebhookDelivery, WebhookEndpoint]]:
        """The first event of each endpoint that has one, so that none waits for another's."""
        due, waits = WebhookDelivery.due_at <= now(), WebhookDelivery.endpoint_id
        endpoints = (
            select(waits)
            .where(due, waits.not_in(list(self._busy)))
            .group_by(waits)
            .order_by(func.min(WebhookDelivery.due_at))
            .limit(AT_ONCE)
        )
        first = select(WebhookDelivery).where(due).order_by(WebhookDelivery.due_at).limit(1)
        own = select(WebhookEndpoint)
        with self.store.session() as session:
            return [
                (
                    session.scalars(first.where(waits == id)).one(),
                    session.scalars(own.where(WebhookEndpoint.id == id)).one(),
                )
                for id in session.scalars(endpoints).all()
            ]

    def _work(self, delivery: WebhookDelivery, endpoint: WebhookEndpoint) -> None:
        try:
            self._note(delivery.id, self.tell(endpoint, delivery.event))
        except Exception as error:
            log_failure(log, f"telling webhook endpoint {endpoint.id}", error)
        finally:
            self._busy.discard(endpoint.id)
            self.wake()  # it may have more to be told

    def _note(self, id: str, status: int | None) -> None:
        """What was told is forgotten, what was not is due again later."""
        told = status is not None and 200 <= status < 300
        with self.store.session() as session:
            delivery = session.get(WebhookDelivery, id)
            if delivery is None:
                return
            tries, same = delivery.tries + 1, WebhookDelivery.id == id  # it may go meanwhile
            if told or status == GONE or tries >= TRIES:
                session.execute(delete(WebhookDelivery).where(same))
            else:
                later = {"tries": tries, "due_at": now() + round(wait_after(tries))}
                session.execute(update(WebhookDelivery).where(same).values(later))


def event_of(type: str, id: str) -> dict[str, Any]:
    """An event as it is told."""
    event = {"id": new_id("evt"), "object": "event", "created_at": now(), "type": type}
    return {**event, "data": {"id": id}}


def wait_after(tries: int) -> float:
    """Seconds until the next try: longer each time, and by chance, so that not all come at once."""
    return FIRST_WAIT * GROWTH ** (tries - 1) * random.uniform(0.75, 1.25)
