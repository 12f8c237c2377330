"""How a request runs: what was asked for by hand, and what is chosen where memory is short."""

import dataclasses
import json

import numpy as np
import pytest
import torch

import kinema
from kinema.runtime import engine as engines
from kinema.runtime.cli import run
from kinema.runtime.errors import UsageError
from kinema.runtime.execution import offload as modes
from kinema.runtime.execution.block_stream import BlockStream, tensors_of
from kinema.runtime.planning import cost, device
from kinema.runtime.planning.plan import resolve
from kinema.runtime.sessions import session as sessions

PROMPT, SHORT = "a red ball bounces", {"num_frames": 9, "num_inference_steps": 4}
REQUEST = kinema.Request(PROMPT, **SHORT)


@pytest.fixture(scope="module")
def wanted():
    return kinema.load(executor="eager").generate(REQUEST)


@pytest.fixture
def lent(monkeypatch):
    """The host stands in for a device: weights that are lent are copies, which are there."""
    there = {}

    def lend(x, device):
        copy = x.clone()
        there[copy.data_ptr()] = copy
        return copy

    def pretend(engine):
        return dataclasses.replace(real.fget(engine), device="cuda")

    real = engines.Engine.runner
    monkeypatch.setattr(modes, "lend", lend)
    monkeypatch.setattr(engines.Engine, "runner", property(pretend))
    return lambda module: any(x.data_ptr() in there for x in tensors_of(module))


def peak(engine, mode):
    """Bytes that the request needs with weights offloaded so, both branches in one batch."""
    plan = resolve(REQUEST, engine.checkpoint)
    runner = dataclasses.replace(engine.runner, setting=cost.Setting(offload=mode))
    counted = cost.count(plan, engine.checkpoint, runner, cost.guess_tokens(PROMPT))
    return counted.peak_memory_bytes


def choice(plan, what):
    return next((c.taken, c.reason) for c in plan.choices if c.what == what)


# ---- asked for -----------------------------------------------------------------------------------


def test_what_is_asked_for_is_taken_and_said_to_be(wanted):
    engine = kinema.load(executor="eager", two_passes=True, offload="none")
    session = engine.session(REQUEST)
    assert choice(session.plan, "guidance") == ("two passes", "asked for")
    assert choice(session.plan, "offload") == ("none", "asked for")
    # Two passes of one branch round as two branches in one do, to the order of their sums.
    assert (session.finish().latents - wanted.latents).abs().max() < 1e-3


def test_what_is_asked_for_is_not_changed(lent, monkeypatch):
    engine = kinema.load(executor="eager", offload="none")
    memory = peak(engine, "model")
    monkeypatch.setattr(device, "memory_bytes", lambda _: memory)
    with pytest.raises(UsageError, match="offload='model' would fit it"):
        engine.session(REQUEST)
    assert engine.offload.mode == "none" and not engine.offload_as("model")


@pytest.mark.parametrize("tile", [(32, 32), (64, 48)])
def test_a_tile_for_an_autoencoder_without_tiles_is_refused(tile):
    with pytest.raises(UsageError, match=r"tile is \d+x\d+, but an AutoencoderKinema works on who"):
        kinema.load(tile=tile)


def test_the_command_line_asks_so_too(capsys):
    assert run(["plan", PROMPT, "--two-passes", "--json", "--device", "cpu"]) == 0
    choices = json.loads(capsys.readouterr().out)["choices"]
    assert {"what": "guidance", "taken": "two passes", "reason": "asked for"} in choices
    assert run(["plan", PROMPT, "--tile", "48x64"]) == 2
    assert "tile is 48x64, but an" in capsys.readouterr().err
    assert run(["plan", PROMPT, "--tile", "48"]) == 2
    assert "--tile '48' is not WIDTHxHEIGHT" in capsys.readouterr().err


# ---- chosen --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["model", "block"])
def test_a_plan_chooses_an_offload_that_fits(lent, wanted, monkeypatch, mode):
    engine = kinema.load(executor="eager")
    engine.open_components()  # as a request before it, with more memory, has left them
    engine.use("transformer")
    memory = peak(engine, mode)
    monkeypatch.setattr(device, "memory_bytes", lambda _: memory)
    monkeypatch.setattr(engines, "fit", fit_without_passes(engines.fit))
    session = engine.session(REQUEST)
    taken, reason = choice(session.plan, "offload")
    assert taken == mode and "would need" in reason
    assert engine.offload.mode == "none"  # until the request begins
    video = session.finish()
    assert engine.offload.mode == video.report["offload"] == mode
    assert np.array_equal(video.frames, wanted.frames)
    assert lent(engine.vae) and not lent(engine.transformer)
    assert isinstance(engine.transformer.blocks, BlockStream) == (mode == "block")
    monkeypatch.setattr(device, "memory_bytes", lambda _: None)
    again = engine.session(REQUEST)
    assert choice(again.plan, "offload") == (mode, "a request before this one needed it")
    assert np.array_equal(again.finish().frames, wanted.frames)


def fit_without_passes(fit):
    """A fit that takes guidance as asked for: its two passes round in another order."""

    def fitted(plan, checkpoint, runner, *others):
        return fit(plan, checkpoint, dataclasses.replace(runner, asked={"guidance"}), *others)

    return fitted


def test_short_of_memory_weights_leave_the_device_too(lent, wanted, monkeypatch):
    """And a session that was bound before goes on with them."""
    engine = kinema.load(executor="eager", two_passes=True)
    other, session = engine.session(REQUEST), engine.session(REQUEST)
    next(other)
    calls, real = [], sessions.advance

    def short(*args):
        calls.append(args)
        if len(calls) in (2, 3):
            raise torch.OutOfMemoryError("no room")
        return real(*args)

    monkeypatch.setattr(sessions, "advance", short)
    video = session.finish()
    assert engine.offload.mode == session.plan.setting.offload == "block"
    assert video.report["warnings"] == [
        "out of memory in denoise: went on with offload model instead of none",
        "out of memory in denoise: went on with offload block instead of model",
    ]
    assert np.array_equal(other.finish().latents, video.latents)
    assert (video.latents - wanted.latents).abs().max() < 1e-3
    assert not lent(engine.transformer)


def test_nothing_moves_while_another_session_is_at_work(lent):
    engine = kinema.load(executor="eager")
    with engine.working():
        with engine.working():
            assert not engine.offload_as("model")
            assert engine.offload_as("none")
        assert engine.offload_as("model") and engine.offload.mode == "model"
        assert engine.offload_as("none") and engine.offload.mode == "model"


def test_a_cpu_keeps_its_weights(monkeypatch):
    engine = kinema.load(device="cpu", executor="eager")
    assert choice(engine.session(REQUEST).plan, "offload")[0] == "none"
    monkeypatch.setattr(device, "memory_bytes", lambda _: 1000)
    with pytest.raises(UsageError, match="the weights are"):
        engine.session(REQUEST)
