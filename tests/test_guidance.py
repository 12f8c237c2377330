"""Guidance: what it computes, how many branches each step runs, and what is refused."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import pytest
import torch

from kinema.runtime.errors import UsageError
from kinema.runtime.sampling import schedule
from kinema.runtime.sampling.experts import scales_of_experts
from kinema.runtime.sampling.guidance import (
    Branches,
    Guidance,
    branches_needed,
    count_branches,
    guide,
    is_guided,
)

EULER = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
HEUN = {"_class_name": "FlowMatchHeunDiscreteScheduler", "shift": 3.0}


class Track(NamedTuple):
    start: int
    stop: int
    guidance_scale: float | tuple[float, ...]

    @property
    def rows(self):
        return slice(self.start, self.stop)


def draw(seed=0, batch=2, rows=4):
    return torch.randn(batch, 3, 2, rows, 5, generator=torch.Generator().manual_seed(seed))


def positive(latents, step):
    return torch.tanh(latents.roll(1, dims=-1)) + 0.1 * step


def negative(latents, step):
    return torch.sin(3 * latents) - 0.2 * step


def counted(calls):
    """Branches of each kind, that write down when they ran."""

    def count(name, predict):
        return lambda latents, step: calls.append((step, name)) or predict(latents, step)

    def both(latents, step):
        return torch.cat([positive(latents, step), negative(latents, step)])

    return Branches(count("both", both), count("positive", positive), count("negative", negative))


def run(tracks, guidance=None, steps=10, **without):
    calls = []
    predict = guide(counted(calls)._replace(**without), tracks, guidance)
    found = [predict(draw(), step) for step in range(steps)]
    return found, calls


def test_two_passes_are_the_batch():
    """With a denoiser that takes no notice of the batch, to the bit."""
    tracks = [Track(0, 3, 4.0), Track(3, 4, 1.0)]
    batched, calls = run(tracks, positive=None, negative=None)
    assert {name for _, name in calls} == {"both"}
    in_turn, calls = run(tracks, both=None)
    assert [name for _, name in calls] == ["positive", "negative"] * 10
    assert all(torch.equal(one, other) for one, other in zip(batched, in_turn, strict=True))


def test_a_scale_of_one_runs_one_branch():
    """Altogether, and at single steps."""
    found, calls = run([Track(0, 4, 1.0)])
    assert calls == [(step, "positive") for step in range(10)]
    scales = (5.0, 1.0, 3.0, *(1.0,) * 7)
    found, calls = run([Track(0, 4, scales)])
    names = ["both", "positive", "both", *["positive"] * 7]
    assert calls == list(enumerate(names))
    for step, prediction in enumerate(found):
        wanted, unwanted = positive(draw(), step), negative(draw(), step)
        torch.testing.assert_close(prediction, unwanted + scales[step] * (wanted - unwanted))


def test_without_a_denoiser_of_one_both_run():
    found, calls = run([Track(0, 4, (2.0, 1.0))], steps=2, positive=None)
    assert calls == [(0, "both"), (1, "both")]
    assert torch.equal(found[1], positive(draw(), 1))


def test_a_bare_denoiser_is_of_both_branches():
    branches = counted([])
    track = Track(0, 4, 3.0)
    bare, whole = guide(branches.both, [track]), guide(branches, [track])
    assert torch.equal(bare(draw(), 2), whole(draw(), 2))
    assert guide(positive, [Track(0, 4, 1.0)]) is positive


@pytest.mark.parametrize(
    ("interval", "guided"),
    [
        ((0.0, 1.0), range(10)),
        ((0.0, 0.5), range(5)),
        ((0.25, 0.75), range(2, 7)),
        ((0.99, 1.0), range(9, 10)),
        ((0.5, 0.54), range(0)),
    ],
)
def test_an_interval(interval, guided):
    guidance = Guidance(interval=interval)
    scales = guidance.scales(4.0, schedule.from_config(EULER, 10))
    assert scales == tuple(4.0 if step in guided else 1.0 for step in range(10))
    _, calls = run([Track(0, 4, scales)], guidance)
    assert [step for step, name in calls if name == "both"] == list(guided)


def test_scales_by_step():
    """A list may have one for each step or for each prediction; Heun's second looks at a sigma have
    the scale of the first."""
    by_step = Guidance().scales([5, 4, 3, 2], schedule.from_config(EULER, 4))
    assert by_step == (5.0, 4.0, 3.0, 2.0)
    heun = schedule.from_config(HEUN, 4)
    assert heun.steps == (0, 1, 1, 2, 2, 3, 3)
    assert Guidance().scales([5, 4, 3, 2], heun) == (5.0, 4.0, 4.0, 3.0, 3.0, 2.0, 2.0)
    assert Guidance().scales([5, 4, 3, 2, 1, 6, 7], heun) == (5.0, 4.0, 3.0, 2.0, 1.0, 6.0, 7.0)
    assert Guidance(interval=(0.5, 1.0)).scales(2.0, heun) == (1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 2.0)


def test_two_experts():
    table = schedule.from_config(EULER, 8)
    scales = scales_of_experts(table, 0.875, 4.0, 3.0)
    high = (table.timesteps >= 875).sum().item()
    assert 0 < high < 8 and scales == (4.0,) * high + (3.0,) * (8 - high)
    assert Guidance(interval=(0.0, 0.75)).scales(scales, table)[-2:] == (1.0, 1.0)


def test_rescale_brings_the_deviation_back():
    """All of the way: each sample's deviation is that of the prompt's branch, by track."""
    tracks = [Track(0, 3, 9.0), Track(3, 4, 2.0)]
    found, _ = run(tracks, Guidance(rescale=1.0), steps=1)
    for track in tracks:
        guided, wanted = found[0][..., track.rows, :], positive(draw(), 0)[..., track.rows, :]
        torch.testing.assert_close(guided.flatten(1).std(1), wanted.flatten(1).std(1))


def test_rescale_of_what_has_no_deviation():
    def flat(latents, step):
        return torch.full_like(latents, 2.0)

    predict = guide(Branches(None, flat, flat), [Track(0, 4, 5.0)], Guidance(rescale=0.7))
    assert torch.equal(predict(draw(), 0), torch.full_like(draw(), 2.0))


def test_zero_star_projects():
    """What guidance adds is at right angles to the negative branch, whatever that one's length."""
    one, _ = run([Track(0, 4, 2.0)], Guidance(zero_star=True), steps=1)
    added = one[0] - positive(draw(), 0)
    dots = (added * negative(draw(), 0)).flatten(1).sum(1)
    lengths = added.flatten(1).norm(dim=1) * negative(draw(), 0).flatten(1).norm(dim=1)
    assert (dots.abs() < 1e-5 * lengths).all()

    longer = Branches(None, positive, lambda latents, step: 7 * negative(latents, step))
    other = guide(longer, [Track(0, 4, 2.0)], Guidance(zero_star=True))(draw(), 0)
    torch.testing.assert_close(one[0], other)


def test_zero_init_runs_nothing():
    guidance = Guidance(zero_star=True, zero_init_steps=2)
    found, calls = run([Track(0, 4, 3.0)], guidance)
    assert [step for step, _ in calls] == list(range(2, 10))
    assert not found[0].any() and not found[1].any() and found[2].any()
    _, calls = run([Track(0, 4, 1.0)], guidance)
    assert calls == [(step, "positive") for step in range(2, 10)]


def test_branches_are_counted_as_they_run():
    """What a plan is told of the cost of a step is what happens."""
    tracks = [Track(0, 3, (1.0, 3.0, 1.0, 1.0)), Track(3, 4, (1.0, 1.0, 2.0, 1.0))]
    guidance = Guidance(zero_init_steps=1)
    _, calls = run(tracks, guidance, steps=4, both=None)
    ran = Counter(step for step, _ in calls)
    assert [count_branches(tracks, guidance, step) for step in range(4)] == [0, 2, 2, 1]
    assert [ran[step] for step in range(4)] == [0, 2, 2, 1]
    assert is_guided(tracks) and not is_guided([Track(0, 4, (1.0, 1.0, 0.5))])


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize(
    "scales", [(1.0,) * 4, (3.0,) * 4, (1.0, 3.0, 3.0, 1.0), (0.5, 3.0, 3.0, 3.0)]
)
@pytest.mark.parametrize("zero_init_steps", [0, 1])
def test_what_is_bound_is_what_is_used(scales, zero_init_steps, batched):
    """A request runs with the branches it is said to need, and uses each."""
    tracks, guidance = [Track(0, 4, scales)], Guidance(zero_init_steps=zero_init_steps)
    needed = branches_needed(tracks, guidance, 4, batched)
    others = {name: None for name in Branches._fields if name not in needed}
    _, calls = run(tracks, guidance, steps=4, **others)
    assert {name for _, name in calls} == set(needed)


@pytest.mark.parametrize("interval", [(-0.1, 1.0), (0.0, 1.1), (0.5, 0.5), (0.8, 0.2)])
def test_intervals_that_are_none_are_refused(interval):
    with pytest.raises(UsageError, match="from 0 to 1 work"):
        Guidance(interval=interval)


def test_what_cannot_be_is_refused():
    table = schedule.from_config(EULER, 4)
    with pytest.raises(UsageError, match=r"rescale is 1.5; it must be from 0 to 1"):
        Guidance(rescale=1.5)
    with pytest.raises(UsageError, match="zero_init_steps is -1"):
        Guidance(zero_init_steps=-1)
    with pytest.raises(UsageError, match="zero_init_steps is 4 of 4 steps; fewer work"):
        Guidance(zero_init_steps=4).scales(3.0, table)
    with pytest.raises(UsageError, match="guidance has 3 scales; there are 4 steps"):
        Guidance().scales([1, 2, 3], table)
    with pytest.raises(UsageError, match="guidance has the scale nan"):
        Guidance().scales([1, 2, 3, float("nan")], table)
    with pytest.raises(UsageError, match="one of each"):
        guide(Branches(positive=positive), [Track(0, 4, 3.0)])
