"""What a step allocates: nothing that it could have kept from the step before, and nothing stays.

Weights are float32 here, as a CPU has them; in other types a step casts those of its norms.
"""

import gc

import pytest
import torch
from torch.autograd.profiler import profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import kinema


class Fresh(TorchDispatchMode):
    """Notes each tensor that an operation gave in memory of its own: its name, and its values."""

    def __init__(self):
        super().__init__()
        self.made = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        known = {_memory(x) for x in tree_leaves((args, kwargs))}
        out = func(*args, **(kwargs or {}))
        if "empty" not in str(func):
            fresh = [x for x in tree_leaves(out) if _memory(x) not in known]
            self.made += [(str(func), x.clone()) for x in fresh]
        return out


def _memory(x):
    return x.untyped_storage().data_ptr() if isinstance(x, torch.Tensor) else None


def stepping(**fields):
    """A session in the midst of its steps."""
    engine = kinema.load(device="cpu", executor="eager")
    session = engine.session("a red ball bounces", num_frames=5, num_inference_steps=12, **fields)
    for _ in range(3):  # a solver of an order up to 3 has its past by then
        next(session)
    return session


@pytest.mark.parametrize("fields", [{}, {"guidance_scale": 1.0}, {"solver": "unipc"}], ids=str)
def test_nothing_is_computed_twice(fields):
    """No tensor that a step makes has the values that the step before gave it."""
    session, steps = stepping(**fields), []
    for _ in range(2):
        with Fresh() as fresh:
            next(session)
        steps.append(fresh.made)
    assert [name for name, _ in steps[0]] == [name for name, _ in steps[1]]
    pairs = zip(*steps, strict=True)
    again = [name for (name, x), (_, y) in pairs if torch.equal(x, y)]
    assert len(steps[0]) > 100 and again == []


@pytest.mark.parametrize("fields", [{}, {"solver": "unipc"}], ids=str)
def test_a_step_gives_back_as_much_as_it_takes(fields):
    """Of all that several steps allocate, nothing stays but what replaces the same of before.

    A profiler knows only blocks that were taken under one, so the steps before are profiled too.
    """
    session = stepping(**fields)
    _changes_of_memory(session)
    changes = _changes_of_memory(session)
    assert sum(change for change in changes if change > 0) > 100 * session.latents.nbytes
    assert sum(changes) == 0


def _changes_of_memory(session):
    """The bytes that each allocation took, or gave back, during four steps."""
    gc.collect()  # what sessions before this one held is not given back by it
    with profile(use_cpu=True, profile_memory=True) as profiler:
        for _ in range(4):
            next(session)
    events = profiler.kineto_results.events()
    return [event.nbytes() for event in events if event.name() == "[memory]"]
