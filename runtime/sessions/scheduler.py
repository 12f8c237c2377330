"""The lean loop that lets sessions take turns, a step at a time.

Whose turn it is: the highest priority; among those the earliest deadline; among those the session
that has had the least time. A new session starts level with the one that has had least, so short
ones pass long ones and nobody waits for ever.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from ..errors import Cancelled, KinemaError, UsageError
from ..models.batching import run_together
from ..sampling.guidance import is_guided
from .job import Job
from .progress import Progress
from .session import Session

if TYPE_CHECKING:
    from ..engine import Engine
    from ..requests.request import Request


# On a CPU a batch saves what each operation costs whatever its size, and loses the caches that one
# request fits into. Up to so many positions (frames x height x width, of every branch of guidance)
# requests gained by it: benchmarks/turns.py.
SHARED_ON_CPU = 720


@dataclass(eq=False)
class Turn:
    """A session among others."""

    job: Job
    session: Session
    priority: int
    deadline: float  # seconds of the clock that `time.monotonic` reads; inf for none
    number: int
    had: float = 0.0  # seconds of work, or level with others when it was let in
    work: Iterator[Progress] | None = field(default=None, repr=False)  # once it is let in

    @property
    def order(self) -> tuple[float, ...]:
        """The least goes first."""
        return (-self.priority, self.deadline, self.had, self.number)

    @property
    def memory(self) -> int:
        """Bytes it may need at once beyond the weights, which all share."""
        return self.session.plan.working_bytes

    @property
    def weights(self) -> int:
        """Bytes of weights that are on the device then."""
        return self.session.plan.peak_memory_bytes - self.memory


class StepScheduler:
    """Works on submitted requests, a part of one at a time, in a thread while there are any.

    A session is let in when its plan fits beside those at work in `memory_limit` bytes (None: any
    number of them); one alone is always let in. Up to `max_batch` sessions whose latents have one
    shape step together, in one forward; matrix products may round otherwise there than alone, so
    at 1 a request gives the same bits in any company. On a CPU they do so where that
    is faster: for latents of up to `shared_on_cpu` positions, both branches of guidance counted.
    """

    def __init__(self, engine: Engine, max_batch: int, memory_limit: int | None = None) -> None:
        self.engine, self.max_batch, self.memory_limit = engine, max_batch, memory_limit
        self.shared_on_cpu: float = SHARED_ON_CPU
        self._turns: dict[Job, Turn] = {}
        self._lock = threading.Lock()
        self._count, self._closing = 0, False
        self._thread: threading.Thread | None = None

    def submit(self, request: Request, priority: int = 0, deadline: float | None = None) -> Job:
        """Hand in a request; what cannot run raises `UsageError` here.

        priority: higher first. deadline: seconds from now by which it should be done; the earliest
        goes first, and none is dropped for being late.
        """
        if deadline is not None and not 0 < deadline < math.inf:
            raise UsageError(f"deadline is {deadline}; it must be above 0 seconds, from now")
        session = self.engine.session(request)
        job = Job(self._stop)
        due = math.inf if deadline is None else time.monotonic() + deadline
        with self._lock:
            if self._closing:
                raise KinemaError("the engine is closed; load another")
            self._count += 1
            self._turns[job] = Turn(job, session, priority, due, self._count)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="kinema", daemon=True)
                self._thread.start()
        return job

    @property
    def busy(self) -> bool:
        """Whether any request is not done."""
        with self._lock:
            return bool(self._turns)

    def close(self) -> None:
        """Cancel what is left and stop; waits for the step under way."""
        with self._lock:
            self._closing = True
            jobs, thread = list(self._turns), self._thread
        for job in jobs:
            job.cancel()
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    # ---- the loop --------------------------------------------------------------------------------

    def _run(self) -> None:
        while turns := self._next():
            started = time.perf_counter()
            parts = run_together([partial(_part_of, turn) for turn in turns])
            each = (time.perf_counter() - started) / len(turns)
            for turn, part in zip(turns, parts, strict=True):
                turn.had += each
                if isinstance(part, BaseException):
                    self._end(turn, part)
                elif part is None:
                    self._end(turn)
                else:
                    turn.job.tell(part)

    def _next(self) -> list[Turn]:
        """Whose turn it is. Empty when nothing is left: the thread ends, and holds nothing."""
        with self._lock:
            self._let_in()
            at_work = [turn for turn in self._turns.values() if turn.work is not None]
            if not at_work:
                self._thread = None
                return []
            first, *others = sorted(at_work, key=lambda turn: turn.order)
            key = self._batch_key(first.session)
            company = [turn for turn in others if key is not None and turn.session.batch_key == key]
            return [first, *company[: self.max_batch - 1]]

    def _batch_key(self, session: Session) -> tuple[int, ...] | None:
        """Equal for those who may step together now; None for one that is better alone."""
        key = session.batch_key if self.max_batch > 1 else None
        if key is None or self.engine.device.type != "cpu":
            return key
        branches = 2 if is_guided(session.plan.tracks) else 1
        return key if branches * math.prod(key[2:]) <= self.shared_on_cpu else None

    def _let_in(self) -> None:
        """Start those whose plans fit, in their order; the first that does not fit waits."""
        at_work = [turn for turn in self._turns.values() if turn.work is not None]
        least = min((turn.had for turn in at_work), default=0.0)
        waiting = [turn for turn in self._turns.values() if turn.work is None]
        for turn in sorted(waiting, key=lambda turn: turn.order):
            if at_work and not self._fits([*at_work, turn]):
                return
            turn.had, turn.work = least, turn.session.work()
            at_work.append(turn)

    def _fits(self, turns: list[Turn]) -> bool:
        limit = self.memory_limit
        if limit is None:
            return True
        return max(turn.weights for turn in turns) + sum(turn.memory for turn in turns) <= limit

    def _end(self, turn: Turn, error: BaseException | None = None) -> None:
        with self._lock:
            self._turns.pop(turn.job, None)
        if error is None:
            turn.job.end(turn.session.video)
        else:
            turn.session.cancel()  # gives back its memory
            turn.job.end(None, error)

    def _stop(self, job: Job) -> None:
        """Cancel: at once where it waits, before its next step where it is at work."""
        with self._lock:
            turn = self._turns.pop(job, None)
        if turn is not None:
            turn.session.cancel()
            job.end(None, Cancelled("the request was cancelled"))


def _part_of(turn: Turn) -> Progress | None:
    """Its next part, None at the end; a turn is taken once it is let in."""
    assert turn.work is not None
    return next(turn.work, None)
