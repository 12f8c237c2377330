"""Sessions that step together: one forward for all who ask, each with a step of its own."""

import pytest
import torch

import kinema
from kinema.runtime.models.batching import Meeting, forward, run_together
from kinema.runtime.models.wan import transformer as wan


class Doubling:
    """A bound transformer that notes who was answered together."""

    def __init__(self, log, key=0):
        self.log, self.own = log, key

    def key(self, latents):
        return self.own

    def alone(self, latents, step):
        self.log.append(1)
        return 2 * latents + step

    def together(self, asked):
        self.log.append(len(asked))
        return [2 * question.latents + question.step for question in asked]


def ask(bound, value, step):
    return lambda: forward(bound, torch.tensor(float(value)), step).item()


def test_all_who_ask_are_answered_at_once():
    log = []
    works = [ask(Doubling(log), value, step) for value, step in ((1, 10), (2, 20), (3, 30))]
    assert run_together(works) == [12, 24, 36] and log == [3]


def test_unlike_ones_are_answered_apart_and_one_alone_in_its_own_thread():
    log = []
    works = [ask(Doubling(log, key), key, 0) for key in (1, 2, 2)]
    assert run_together(works) == [2, 4, 4] and sorted(log) == [1, 2]
    assert run_together(works[:1]) == [2]


def test_who_fails_or_asks_nothing_is_not_waited_for():
    log = []
    failed = run_together([ask(Doubling(log), 1, 0), lambda: 1 / 0, lambda: "idle"])
    assert failed[0] == 2 and isinstance(failed[1], ZeroDivisionError) and failed[2] == "idle"
    assert log == [1]


def test_an_error_of_the_forward_reaches_everybody():
    class Broken(Doubling):
        def together(self, asked):
            raise torch.OutOfMemoryError("no room")

    results = run_together([ask(Broken([]), 1, 0), ask(Broken([]), 2, 0)])
    assert all(isinstance(result, torch.OutOfMemoryError) for result in results)
    assert Meeting(1).asked == []


@pytest.fixture
def shared(monkeypatch):
    """How many were answered together, each time that several were."""
    counts, together = [], wan.Bound.together

    def count(bound, asked):
        counts.append(len(asked))
        return together(bound, asked)

    monkeypatch.setattr(wan.Bound, "together", count)
    return counts


def asked_for(num_frames=1):
    """Requests of one shape whose prompts and numbers of steps differ."""
    prompts = ("a red ball bounces on the grass", "a cone", "a ball")
    fields = {"num_frames": num_frames, "output": "latents"}
    return [
        kinema.Request(prompt, seed=seed, num_inference_steps=2 + seed, **fields)
        for seed, prompt in enumerate(prompts)
    ]


def submitted(engine, requests):
    """Latents of requests handed in at once."""
    jobs = [engine.submit(request) for request in requests]
    return [job.result(120).latents for job in jobs]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_requests_of_one_shape_share_forwards(dtype, shared):
    """The latents are those of each alone, within rounding."""
    requests = asked_for()
    with kinema.load(dtype=dtype, max_batch=3) as engine:
        alone = [engine.generate(request).latents for request in requests]
        found = submitted(engine, requests)
    assert max(shared) > 1
    # Sums in another order, through a few steps; in bfloat16 each rounds at 2^-9.
    limit = 1e-4 if dtype == "float32" else 0.05
    for one, other in zip(found, alone, strict=True):
        assert (one - other).square().mean().sqrt() < limit * other.square().mean().sqrt()


def test_by_default_company_changes_no_bit(shared):
    """Nor where more may share a forward, but are too large to gain by it."""
    for num_frames, max_batch in ((1, 1), (33, 3)):
        requests = asked_for(num_frames)
        with kinema.load(max_batch=max_batch) as engine:
            alone = [engine.generate(request).latents for request in requests]
            assert all(map(torch.equal, submitted(engine, requests), alone))
    assert not shared


def test_what_is_too_large_to_share_can_be_told_otherwise(shared):
    with kinema.load(max_batch=3) as engine:
        engine.scheduler.shared_on_cpu = 2 * 720
        submitted(engine, asked_for(num_frames=33))
    assert max(shared) > 1
