"""A whole request with weights offloaded: the same video, one component at a time on the device."""

import numpy as np
import pytest
import torch

import kinema
from kinema.runtime.errors import UsageError
from kinema.runtime.execution import offload as modes
from kinema.runtime.execution.block_stream import BlockStream, tensors_of
from kinema.runtime.execution.offload import Offload

REQUEST = {"prompt": "a red ball bounces", "num_frames": 9, "num_inference_steps": 3}


@pytest.fixture(scope="module")
def wanted():
    return kinema.load(executor="eager").generate(kinema.Request(**REQUEST))


@pytest.mark.parametrize("mode", ["model", "block"])
def test_a_video_is_the_same_bit_for_bit(monkeypatch, wanted, mode):
    """The host stands in for the device; what is lent is a copy, which counts as being there."""
    there = {}

    def lend(x, device):
        copy = x.clone()
        there[copy.data_ptr()] = copy
        return copy

    monkeypatch.setattr(modes, "lend", lend)
    engine = kinema.load(executor="eager")
    engine.offload = Offload("cpu", mode)
    use, used = engine.use, []

    def only_one(name):
        module = use(name)
        used.append(name)
        others = [other for key, other in vars(engine).items() if key in ("transformer", "vae")]
        lent = [m for m in others if any(x.data_ptr() in there for x in tensors_of(m))]
        assert lent == [module]
        return module

    engine.use = only_one
    video = engine.generate(kinema.Request(**REQUEST))
    assert np.array_equal(video.frames, wanted.frames)
    assert torch.equal(video.latents, wanted.latents)
    assert used[:4] == ["transformer"] * 4 and set(used[4:]) == {"vae"}
    streamed = isinstance(engine.transformer.blocks, BlockStream)
    assert streamed == (mode == "block")
    if streamed:
        assert engine.transformer.blocks.turn == 1 + 3


def test_requests_may_take_turns(monkeypatch, wanted):
    monkeypatch.setattr(modes, "lend", lambda x, device: x.clone())
    engine = kinema.load(executor="eager")
    engine.offload = Offload("cpu", "block")
    sessions = [engine.session(kinema.Request(**REQUEST)).work() for _ in range(2)]
    first, second = sessions
    for _ in range(5):  # the first decodes while the second denoises
        next(first)
    for _ in second:
        next(first, None)
    engine.offload.leave()
    assert engine.generate(kinema.Request(**REQUEST)).frames.tobytes() == wanted.frames.tobytes()


def test_a_cpu_has_nowhere_to_offload_to():
    with pytest.raises(UsageError, match="on a CPU they are one: 'none' works"):
        kinema.load(device="cpu", offload="block")
