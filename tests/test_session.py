"""A request a step at a time: the same bits however it is stopped, saved and gone on with."""

import gc
import itertools
import json
import os
import signal
import struct
import subprocess
import sys
import threading
import weakref

import numpy as np
import pytest
import torch

import kinema
from kinema.runtime.errors import KinemaError
from kinema.runtime.sessions import leaner, pipeline
from kinema.runtime.sessions import session as sessions

PROMPT = "a red ball bounces on the grass"
STEPS = 5


@pytest.fixture(scope="module")
def engine():
    return kinema.load()


@pytest.fixture(scope="module")
def request_():
    return kinema.Request(PROMPT, seed=3, num_inference_steps=STEPS)


@pytest.fixture(scope="module")
def video(engine, request_):
    return engine.generate(request_)


def assert_same(found, wanted):
    assert torch.equal(found.latents, wanted.latents)
    assert np.array_equal(found.frames, wanted.frames)
    assert np.array_equal(found.audio, wanted.audio)


def test_steps_one_at_a_time(engine, request_, video):
    session = engine.session(request_)
    steps = list(session)
    assert [(step.index, step.total) for step in steps] == [(i, STEPS) for i in range(STEPS)]
    assert [step.sigma for step in steps] == sorted((s.sigma for s in steps), reverse=True)
    assert all(step.seconds > 0 for step in steps)
    assert steps[0].seconds_left > 0 and steps[-1].seconds_left == 0
    assert next(session, None) is None
    assert_same(session.finish(), video)


def test_sessions_take_turns_and_do_not_touch(engine, request_, video):
    other = engine.session("a blue square moves left", num_inference_steps=STEPS)
    session = engine.session(request_)
    for _ in itertools.zip_longest(session, other):
        pass
    assert_same(session.finish(), video)


@pytest.mark.parametrize("done", [0, 2, STEPS])
def test_saved_and_gone_on_with(engine, request_, video, tmp_path, done):
    session = engine.session(request_)
    for _ in range(done):
        next(session)
    session.save(tmp_path / "run.kinema")
    assert os.listdir(tmp_path) == ["run.kinema"]
    resumed = engine.resume(tmp_path / "run.kinema")
    assert (resumed.index, resumed.total, resumed.request) == (done, STEPS, request_)
    assert_same(resumed.finish(), video)
    assert_same(session.finish(), video)


def test_a_solver_with_a_past_is_saved_with_it(engine, request_, tmp_path, monkeypatch):
    config = {
        "_class_name": "UniPCMultistepScheduler",
        "prediction_type": "flow_prediction",
        "use_flow_sigmas": True,
        "flow_shift": 3.0,
    }
    monkeypatch.setitem(vars(engine), "scheduler_config", config)
    wanted = engine.generate(request_)
    session = engine.session(request_)
    next(session), next(session), next(session)
    resumed = engine.resume(session.save(tmp_path / "run.kinema"))
    assert_same(resumed.finish(), wanted)


def test_pausing_gives_back_and_changes_nothing(engine, request_, video):
    session = engine.session(request_)
    next(session)
    bound = weakref.ref(session.prepare().predict)
    session.pause()
    gc.collect()
    assert bound() is None
    assert_same(session.finish(), video)


def test_cancelling_stops_before_the_next_step_and_gives_back(engine, request_):
    session = engine.session(request_)
    step = next(session)
    kept = [weakref.ref(step.latents), weakref.ref(session.prepare().predict)]
    session.cancel()
    del step
    gc.collect()
    assert [found() for found in kept] == [None, None]
    for act in (lambda: next(session), session.finish, lambda: session.save("x.kinema")):
        with pytest.raises(kinema.Cancelled):
            act()
    assert session.cancelled and not os.path.exists("x.kinema")


def test_cancelling_from_another_thread_waits_for_no_step(engine, request_, monkeypatch):
    """A cancel during a step returns at once; the step ends, and its end gives back."""
    session, within, go_on = engine.session(request_), threading.Event(), threading.Event()
    predict = session.prepare().predict

    def slow(latents, step):
        within.set()
        assert go_on.wait(30)
        return predict(latents, step)

    session._bound = session._bound._replace(predict=slow)
    refused = threading.Event()

    def one_step():
        with pytest.raises(kinema.Cancelled):
            next(session)
        refused.set()

    thread = threading.Thread(target=one_step)
    thread.start()
    assert within.wait(30)
    session.cancel()
    assert session.latents is not None  # still in use by the step
    go_on.set()
    thread.join(30)
    assert refused.is_set()
    assert session.latents is None


def test_the_step_allocates_and_asks_for_nothing_it_could_have_kept(engine, request_):
    """Every step runs the same operations, and the host never waits for a number."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Count(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.names = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.names.append(str(func))
            return func(*args, **(kwargs or {}))

    session = engine.session(request_)
    next(session)
    counted = []
    for _ in range(2):
        with Count() as count:
            next(session)
        counted.append(count.names)
    assert counted[0] == counted[1]
    waits = {"aten._local_scalar_dense.default", "aten.is_nonzero.default", "aten.nonzero.default"}
    assert not waits & set(counted[0])
    assert not [name for name in counted[0] if "embedding" in name or "sin." in name]


# ---- out of memory -------------------------------------------------------------------------------


class ShortOfMemory:
    """A function that finds no memory on some of its calls."""

    def __init__(self, work, fails):
        self.work, self.fails, self.calls = work, fails, 0

    def __call__(self, *args, **kwargs):
        self.calls += 1
        if self.calls in self.fails:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return self.work(*args, **kwargs)


def test_short_of_memory_a_step_goes_on_in_two_passes(engine, request_, video, monkeypatch):
    short = ShortOfMemory(sessions.advance, fails={3})
    monkeypatch.setattr(sessions, "advance", short)
    session = engine.session(request_)
    found = session.finish()
    assert session.plan.setting.guidance == "two passes"
    assert found.report["warnings"][0] == (
        "out of memory in denoise: went on with guidance two passes instead of batched"
    )
    # Two passes of one branch round as two branches in one do, to the order of their sums.
    assert (found.latents - video.latents).abs().max() < 1e-3


def test_with_no_leaner_way_it_says_so_and_the_engine_lives(engine, request_, video, monkeypatch):
    short = ShortOfMemory(sessions.advance, fails={2, 3})
    monkeypatch.setattr(sessions, "advance", short)
    session = engine.session(request_)
    with pytest.raises(
        KinemaError, match=r"out of memory in denoise \(CUDA out of memory"
    ) as caught:
        session.finish()
    assert "\n" not in str(caught.value)
    assert session.latents is None
    assert_same(engine.generate(request_), video)


def test_short_of_memory_decoding_goes_on_where_it_was(engine, request_, video, monkeypatch):
    monkeypatch.setattr(leaner, "leaner", lambda setting, *_, **__: setting)
    real, failed = pipeline.picture, []

    def picture(*args):
        for index, chunk in enumerate(real(*args)):
            if index == 3 and not failed:
                failed.append(index)
                raise torch.OutOfMemoryError("no room")
            yield chunk

    monkeypatch.setattr(pipeline, "picture", picture)
    assert_same(engine.generate(request_), video)
    assert failed


# ---- files that do not fit -----------------------------------------------------------------------


@pytest.fixture
def file(engine, request_, tmp_path):
    session = engine.session(request_)
    next(session)
    return session.save(tmp_path / "run.kinema")


def rewrite(file, **changes):
    """The same file with other entries in its header."""
    raw = file.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    header["__metadata__"].update(changes)
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": "0" * 64}, "was made with weights 000000000000...; this engine has"),
        ({"dtype": "bfloat16"}, "was made with dtype bfloat16; this engine has float32"),
        ({"kinema": "9"}, "has session format 9; this version reads format 1"),
        ({"index": "99"}, "does not fit its request"),
        ({"request": "{"}, "is not a whole session file"),
    ],
)
def test_a_file_of_something_else_is_refused(engine, file, changes, message):
    rewrite(file, **changes)
    before = file.read_bytes()
    with pytest.raises(kinema.UsageError, match=message):
        engine.resume(file)
    assert file.read_bytes() == before


@pytest.mark.parametrize("keep", [0, 7, 200, -100])
def test_a_cut_file_is_refused(engine, file, keep):
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(kinema.UsageError, match="is not a whole session file") as caught:
        engine.resume(file)
    assert "\n" not in str(caught.value)


def test_no_file_and_no_room_say_so(engine, request_, tmp_path):
    with pytest.raises(kinema.UsageError, match=r"gone\.kinema"):
        engine.resume(tmp_path / "gone.kinema")
    session = engine.session(request_)
    with pytest.raises(kinema.UsageError, match=r"nowhere.* does not exist"):
        session.save(tmp_path / "nowhere" / "run.kinema")
    assert next(session).index == 0  # and it goes on


def test_killed_between_steps_a_run_goes_on_from_its_last_save(engine, request_, video, tmp_path):
    code = (
        "import kinema, os, signal\n"
        f"session = kinema.load().session({PROMPT!r}, seed=3, num_inference_steps={STEPS})\n"
        "for step in session:\n"
        "    session.save('run.kinema')\n"
        "    if step.index == 2: os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path)
    assert done.returncode == -signal.SIGKILL
    resumed = engine.resume(tmp_path / "run.kinema")
    assert resumed.index == 3
    assert_same(resumed.finish(), video)
