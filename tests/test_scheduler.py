"""Submitted requests take turns: order, fairness, cancelling, events, in both worlds."""

import asyncio
import threading
from types import SimpleNamespace

import numpy as np
import pytest

import kinema
from kinema.runtime.errors import KinemaError
from kinema.runtime.sessions.progress import Progress
from kinema.runtime.sessions.scheduler import StepScheduler


class PretendSession:
    """`parts` parts of work, each noted in a log; it may be told to fail or to wait."""

    def __init__(self, log, name, parts, memory=1, error=None, wait=None):
        self.log, self.name, self.parts = log, name, parts
        self.error, self.wait = error, wait
        self.plan = SimpleNamespace(peak_memory_bytes=memory, working_bytes=memory)
        self.cancelled, self.video = False, None

    def work(self):
        for index in range(self.parts):
            if self.wait is not None:
                assert self.wait.wait(30)
            if self.cancelled:
                raise kinema.Cancelled("the request was cancelled")
            if self.error is not None:
                raise self.error
            self.log.append(self.name)
            yield Progress("denoise", index + 1, self.parts)
        self.video = f"video of {self.name}"

    def cancel(self):
        self.cancelled = True


class PretendEngine:
    """Sessions by the name they are asked for; all wait until `go` is set."""

    def __init__(self):
        self.log, self.go = [], threading.Event()

    def session(self, request):
        return PretendSession(self.log, wait=self.go, **request)


@pytest.fixture
def pretend():
    engine = PretendEngine()
    engine.scheduler = StepScheduler(engine, max_batch=1)
    yield engine
    engine.go.set()
    engine.scheduler.close()


def run(pretend, *submitted):
    """Hand in (request, options), let the work begin when all are in, and give the log."""
    jobs = [pretend.scheduler.submit(request, **options) for request, options in submitted]
    pretend.go.set()
    results = [job.result(30) for job in jobs]
    assert results == [f"video of {request['name']}" for request, _ in submitted]
    return "".join(pretend.log)


def asked(name, parts, **more):
    return {"name": name, "parts": parts, **more}


def test_equals_take_turns_and_a_short_one_ends_first(pretend):
    log = run(pretend, (asked("l", 50), {}), (asked("s", 4), {}))
    assert log.rindex("s") < 54 - 20
    assert log.count("l") == 50 and log.count("s") == 4


def test_a_higher_priority_goes_first(pretend):
    first = (asked("z", 1), {"priority": 9})  # whatever is first let in begins at once
    log = run(pretend, first, (asked("a", 5), {}), (asked("b", 5), {"priority": 1}))
    assert log == "z" + "b" * 5 + "a" * 5


def test_the_earliest_deadline_goes_first(pretend):
    first = (asked("z", 1), {"priority": 9})
    log = run(
        pretend,
        first,
        (asked("a", 3), {}),
        (asked("b", 3), {"deadline": 100.0}),
        (asked("c", 3), {"deadline": 50.0}),
    )
    assert log == "zcccbbbaaa"


def test_one_whose_plan_does_not_fit_waits(pretend):
    pretend.scheduler.memory_limit = 10
    log = run(
        pretend,
        (asked("a", 3, memory=6), {}),
        (asked("b", 3, memory=6), {}),  # 12 with a: after it
        (asked("c", 3, memory=99), {}),  # never fits beside others, and is let in alone
    )
    assert log == "aaabbbccc"


def test_an_error_ends_its_own_job_alone(pretend):
    bad = pretend.scheduler.submit(asked("x", 3, error=MemoryError("no room")))
    good = pretend.scheduler.submit(asked("a", 3))
    pretend.go.set()
    assert good.result(30) == "video of a"
    with pytest.raises(MemoryError, match="no room"):
        bad.result(30)


def test_cancelling_one_that_works_and_one_that_waits(pretend):
    pretend.scheduler.memory_limit = 1
    working = pretend.scheduler.submit(asked("a", 3))
    waiting = pretend.scheduler.submit(asked("b", 3))
    assert waiting.cancel() and working.cancel()
    pretend.go.set()
    for job in (working, waiting):
        with pytest.raises(kinema.Cancelled):
            job.result(30)
        assert job.done() and job.cancelled() and not job.cancel()
    last = pretend.scheduler.submit(asked("c", 1))
    assert last.result(30) == "video of c" and pretend.log == ["c"]


def test_closing_cancels_and_refuses_more(pretend):
    job = pretend.scheduler.submit(asked("a", 10**9))  # ends before it is closed on no machine
    pretend.go.set()
    pretend.scheduler.close()
    with pytest.raises(kinema.Cancelled):
        job.result(0)
    with pytest.raises(KinemaError, match="the engine is closed"):
        pretend.scheduler.submit(asked("b", 1))


def test_events_tell_all_to_all(pretend):
    job = pretend.scheduler.submit(asked("a", 3))
    assert job.progress == Progress("queued", 0, 1)
    early = job.events()
    pretend.go.set()
    wanted = [Progress("denoise", i, 3) for i in (1, 2, 3)]
    assert list(early) == wanted
    job.result(30)
    assert list(job.events()) == wanted and job.progress == wanted[-1]


def test_the_same_with_asyncio(pretend):
    async def follow():
        job = pretend.scheduler.submit(asked("a", 3))
        pretend.go.set()
        events = [event.index async for event in job.events()]
        return events, await job

    assert asyncio.run(follow()) == ([1, 2, 3], "video of a")


def test_waiting_too_short_leaves_the_job_alone(pretend):
    job = pretend.scheduler.submit(asked("a", 1))
    with pytest.raises(TimeoutError, match=r"not ready after 0\.01 seconds"):
        job.result(timeout=0.01)
    pretend.go.set()
    assert job.result(30) == "video of a"


@pytest.mark.parametrize("deadline", [0, -1.0, float("nan"), float("inf")])
def test_a_deadline_that_cannot_be(pretend, deadline):
    with pytest.raises(kinema.UsageError, match="above 0 seconds"):
        pretend.scheduler.submit(asked("a", 1), deadline=deadline)


# ---- the embedded model --------------------------------------------------------------------------


def test_a_short_job_ends_while_a_long_one_runs():
    with kinema.load() as engine:
        wanted = engine.generate("a red ball bounces", num_inference_steps=4)
        long = engine.submit("a blue square moves left", num_inference_steps=50)
        short = engine.submit("a red ball bounces", num_inference_steps=4)
        found = short.result(120)
        assert not long.done()
        assert np.array_equal(found.frames, wanted.frames)  # whatever is between, the same bits
        assert np.array_equal(found.audio, wanted.audio)
    with pytest.raises(kinema.Cancelled):
        long.result(0)


def test_what_cannot_run_is_refused_when_handed_in():
    with kinema.load() as engine, pytest.raises(kinema.UsageError, match="num_frames is 34"):
        engine.submit("a red ball bounces", num_frames=34)
