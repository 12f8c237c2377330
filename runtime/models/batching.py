"""Steps of several sessions in one forward.

Each session steps in a thread of its own, up to the moment it asks its transformer. When all who
are still at it have asked, one thread answers for all, and each goes on with its own rows.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from typing import Any, Protocol, TypeVar

from torch import Tensor

Result = TypeVar("Result")


class Joinable(Protocol):
    """A transformer bound to a request, whose forward can be shared."""

    def alone(self, latents: Tensor, step: int) -> Tensor:
        """Its prediction for latents at a step."""
        ...

    def key(self, latents: Tensor) -> Hashable:
        """Equal for those that may share a forward."""
        ...

    def together(self, asked: Sequence[Question]) -> Sequence[Tensor]:
        """The predictions of all who asked, this one among them, each at a step of its own."""
        ...


class Question:
    """What one session asks, and its answer."""

    def __init__(self, bound: Joinable, latents: Tensor, step: int) -> None:
        self.bound: Any = bound  # those who share a forward know more of each other
        self.latents, self.step = latents, step
        self.answer: Tensor | None = None
        self.error: Exception | None = None

    @property
    def answered(self) -> bool:
        return self.answer is not None or self.error is not None


class Meeting:
    """Where `count` sessions ask; a session that leaves is not waited for."""

    def __init__(self, count: int) -> None:
        self.present, self.asked = count, []
        self.changed = threading.Condition()

    def ask(self, question: Question) -> Tensor:
        """Wait until everybody present has asked, and get the answer."""
        with self.changed:
            self.asked.append(question)
            self._answer_if_complete()
            self.changed.wait_for(lambda: question.answered)
        if question.error is not None:
            raise question.error
        assert question.answer is not None
        return question.answer

    def leave(self) -> None:
        """Ask nothing more."""
        with self.changed:
            self.present -= 1
            self._answer_if_complete()

    def _answer_if_complete(self) -> None:
        if not self.asked or len(self.asked) < self.present:
            return
        groups: dict[Hashable, list[Question]] = {}
        for question in self.asked:
            groups.setdefault(question.bound.key(question.latents), []).append(question)
        for group in groups.values():
            _answer(group)
        self.asked = []
        self.changed.notify_all()


_meeting: ContextVar[Meeting | None] = ContextVar("meeting", default=None)


def forward(bound: Joinable, latents: Tensor, step: int) -> Tensor:
    """A bound transformer's prediction: alone, or together with those it meets."""
    meeting = _meeting.get()
    if meeting is None:
        return bound.alone(latents, step)
    return meeting.ask(Question(bound, latents, step))


def run_together(works: Iterable[Callable[[], Result]]) -> list[Result | BaseException]:
    """Run each in a thread of its own; their forwards are shared. What each gave, or raised.

    One alone runs in this thread.
    """
    works = list(works)
    if len(works) == 1:
        return [_outcome(works[0])]
    meeting, results = Meeting(len(works)), dict[int, Result | BaseException]()

    def run(index: int) -> None:
        with _at(meeting):
            results[index] = _outcome(works[index])

    threads = [
        threading.Thread(target=copy_context().run, args=(run, index), daemon=True)
        for index in range(len(works))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [results[index] for index in range(len(works))]


def _outcome(work: Callable[[], Result]) -> Result | BaseException:
    try:
        return work()
    except BaseException as error:
        return error


@contextmanager
def _at(meeting: Meeting) -> Iterator[None]:
    _meeting.set(meeting)
    try:
        yield
    finally:
        meeting.leave()


def _answer(group: Sequence[Question]) -> None:
    first = group[0]
    try:
        if len(group) == 1:
            answers = [first.bound.alone(first.latents, first.step)]
        else:
            answers = first.bound.together(group)
    except Exception as error:
        for question in group:
            question.error = error
        return
    for question, answer in zip(group, answers, strict=True):
        question.answer = answer
