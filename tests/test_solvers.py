"""Solvers against a solution in closed form, their order of convergence, and what is refused.

Clean latents are drawn from a normal distribution N(MEAN, DEVIATION^2). Then those at a level
(alpha, sigma) are of N(alpha MEAN, spread^2), spread^2 = (alpha DEVIATION)^2 + sigma^2, the best
prediction of clean latents is known, and the probability flow keeps (x - alpha MEAN) / spread.
"""

from __future__ import annotations

import math
from itertools import count as count_from
from itertools import pairwise

import pytest
import torch

from kinema.runtime.errors import UsageError
from kinema.runtime.requests import solver_names
from kinema.runtime.requests.solver_names import NAMES, STOCHASTIC
from kinema.runtime.sampling import schedule, solvers
from kinema.runtime.sampling.sigmas import Schedule

MEAN, DEVIATION = 0.7, 0.6
ENDS = {"flow": (0.9, 0.1), "ve": (6.0, 0.3), "vp": (6.0, 0.3)}
NOISES = pytest.mark.parametrize("noise", ENDS)
COUNTS = (256, 512, 1024)
MARGIN = 0.1  # of what is left after `order_of` has taken out the slope's own trend


def spread(at):
    return math.hypot(at.alpha * DEVIATION, at.sigma)


def clean(latents, at, one=1.0):
    """The mean of clean latents, given those at a level."""
    gain = at.alpha * DEVIATION**2 / spread(at) ** 2
    return MEAN * one + gain * (latents - at.alpha * MEAN * one)


def exact(at):
    """Where the flow has brought a few latents."""
    return at.alpha * MEAN + spread(at) * torch.linspace(-2, 2, 5, dtype=torch.float64)


def sigmas_of(noise, count, more=0):
    """A smooth schedule of `count` steps between the same ends; `more` steps go on beyond."""
    first, last = ENDS[noise]
    places = torch.arange(count + more + 1, dtype=torch.float64) / count
    table = first * (last / first) ** places
    return Schedule(table, table[:-1], noise=noise)


def order_of(error):
    """The order as steps get infinitely short: the slope of the logarithm of the error, at two
    counts, lacks half as much at the second, and that is taken out."""
    errors = [error(count) for count in COUNTS]
    coarse, fine = (math.log2(a / b) for a, b in pairwise(errors))
    return 2 * fine - coarse


def distance(latents, at):
    return (latents - exact(at)).abs().max().item()


def run(solve, starts, latents, history=(), first=0):
    for step, at in enumerate(starts[first:], start=first):
        latents, history = solve(latents, clean(latents, at), step, history)
    return latents, history


@NOISES
@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("dpm++2m", 2)])
def test_order_of_convergence(name, order, noise):
    def error(count):
        table = sigmas_of(noise, count)
        solve = solvers.named(name, "sample")(table)
        latents, _ = run(solve, table.starts, exact(table.starts[0]))
        return distance(latents, table.ends[-1])

    assert order_of(error) == pytest.approx(order, abs=MARGIN)


@pytest.mark.parametrize("noise", ["flow", "ve"])
def test_order_of_convergence_of_heun(noise):
    """The last of its steps is of first order, and is not taken here."""

    def error(count):
        table = sigmas_of(noise, count, more=1).doubled()
        solve = solvers.named("heun", "sample")(table)
        latents, _ = run(solve, table.starts[:-1], exact(table.starts[0]))
        return distance(latents, table.starts[-1])

    assert order_of(error) == pytest.approx(2, abs=MARGIN)


@NOISES
@pytest.mark.parametrize("kind", ["bh1", "bh2"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_order_of_convergence_of_unipc(order, kind, noise):
    """The corrector makes it one more than the predictor's.

    First steps know less and last ones are of lower order: so it starts from a history that is
    exact, is given more steps than it takes, and its corrected latents are looked at.
    """

    def error(count):
        table = sigmas_of(noise, count, more=3)
        starts = table.starts[: count + 1]
        solve = solvers.named("unipc", "sample", order=order, solver_type=kind)(table)
        known = [clean(exact(at), at) for at in starts[:order]]
        history = (exact(starts[order - 1]), *reversed(known))
        _, history = run(solve, starts, exact(starts[order]), history, first=order)
        return distance(history[0], starts[-1])

    assert order_of(error) == pytest.approx(order + 1, abs=MARGIN)


@NOISES
@pytest.mark.parametrize(("name", "order"), [("euler-ancestral", 1), ("dpm++2m-sde", 2)])
def test_order_of_convergence_with_noise(name, order, noise, monkeypatch):
    """Of the distribution: each draw of noise is a direction of its own, so latents are the
    coefficients of their mean, of where they started, and of all that was drawn."""

    def deviation(count):
        table, drawn = sigmas_of(noise, count), count_from(2)

        def draw(latents, weight, state):
            return torch.eye(len(latents), dtype=latents.dtype)[next(drawn)], state

        monkeypatch.setattr(solvers, "_draw", draw)
        solve, history = solvers.named(name, "sample")(table, torch.Generator()), ()
        mean, started, *_ = torch.eye(count + 2, dtype=torch.float64)
        latents = table.starts[0].alpha * MEAN * mean + spread(table.starts[0]) * started
        for step, at in enumerate(table.starts):
            latents, history = solve(latents, clean(latents, at, mean), step, history)
        end = table.ends[-1]
        assert latents[0].item() == pytest.approx(end.alpha * MEAN, abs=1e-12)
        return abs(latents[1:].norm().item() - spread(end))

    assert order_of(deviation) == pytest.approx(order, abs=MARGIN)


@NOISES
def test_lcm_keeps_the_level(noise):
    """After each step latents are the clean ones it saw and as much fresh noise as is due."""
    table = sigmas_of(noise, 4)
    solve, history = solvers.named("lcm", "sample")(table, torch.Generator().manual_seed(5)), ()
    expected = torch.Generator().manual_seed(5)
    latents = torch.zeros(1, 2, 3, 4, 5, dtype=torch.float64)
    for step, end in enumerate(table.ends):
        seen = torch.full_like(latents, step)
        latents, history = solve(latents, seen, step, history)
        noise = torch.randn(latents.shape, generator=expected, dtype=latents.dtype)
        torch.testing.assert_close(latents, end.alpha * seen + end.sigma * noise)


@pytest.mark.parametrize("name", sorted(STOCHASTIC))
def test_noise_is_the_generators_alone(name):
    """Same state, same bits; the generator that was given stays where it was, and torch's own too;
    the state in the history is a small tensor of bytes, as a file can hold it."""
    table = schedule.from_sigmas([1.0, 0.6, 0.3])
    generator = torch.Generator().manual_seed(11)
    before, default = generator.get_state(), torch.get_rng_state()
    solve = solvers.named(name)(table, generator)
    latents = torch.ones(1, 2, 2, 2, 2)
    one, history = solve(latents, latents / 2, 0, ())
    other, _ = solve(latents, latents / 2, 0, ())
    assert torch.equal(one, other) and history[0].dtype == torch.uint8
    assert not torch.equal(history[0], before)
    assert torch.equal(generator.get_state(), before)
    assert torch.equal(torch.get_rng_state(), default)
    elsewhere = solvers.named(name)(table, torch.Generator().manual_seed(12))
    assert not torch.equal(elsewhere(latents, latents / 2, 0, ())[0], one)


def test_tracks_draw_noise_of_their_own():
    given = torch.Generator().manual_seed(4)
    torch.randn(10, generator=given)
    before = given.get_state()
    first, *others = drawn = solvers.generators(given, 3)
    assert torch.equal(first.get_state(), before) and torch.equal(given.get_state(), before)
    noises = [torch.randn(50, generator=generator) for generator in drawn]
    again = [torch.randn(50, generator=generator) for generator in solvers.generators(given, 3)]
    assert all(map(torch.equal, noises, again)) and len(others) == 2
    assert torch.stack(noises).corrcoef().triu(1).abs().max() < 0.6  # 4 deviations of 1 / sqrt(50)


@pytest.mark.parametrize("name", NAMES)
def test_what_comes_in_is_untouched(name):
    table = schedule.from_sigmas([1.0, 0.6, 0.3, 0.1])
    table = table.doubled() if name == "heun" else table
    solve, history = solvers.named(name)(table, torch.Generator()), ()
    latents = torch.randn(1, 2, 2, 2, 2)
    for step in range(len(table)):
        kept = [tensor.clone() for tensor in (latents, *history)]
        after, later = solve(latents, latents / 2, step, history)
        assert all(map(torch.equal, kept, (latents, *history)))
        latents, history = after, later


@pytest.mark.parametrize("kind", ["v_prediction", "epsilon", "sample", "flow_prediction"])
def test_predictions_of_any_kind_are_of_the_same_clean_latents(kind):
    noise = torch.randn(2, 3, 4, dtype=torch.float64)
    wanted = torch.randn(2, 3, 4, dtype=torch.float64)
    for name in ("flow",) if kind == "flow_prediction" else ("ve", "vp"):
        table = sigmas_of(name, 3)
        weights = solvers.clean_weights(table, kind)
        for at, (of_latents, of_prediction) in zip(table.starts, weights, strict=True):
            latents = at.alpha * wanted + at.sigma * noise
            norm = math.hypot(at.alpha, at.sigma)
            prediction = {
                "flow_prediction": noise - wanted,
                "v_prediction": (at.alpha * noise - at.sigma * wanted) / norm,
                "epsilon": noise,
                "sample": wanted,
            }[kind]
            torch.testing.assert_close(of_latents * latents + of_prediction * prediction, wanted)


def test_every_name_has_a_solver():
    assert tuple(solvers.NAMED) == NAMES
    config = {"_class_name": "FlowMatchEulerDiscreteScheduler"}
    for name in NAMES:
        table = schedule.from_config(config, 6, solver=name)
        assert len(table) == solver_names.count_predictions(name, 6)
    with pytest.raises(UsageError, match="'euler_a' is not known"):
        schedule.from_config(config, 6, solver="euler_a")


def test_what_is_not_known_is_refused():
    table = schedule.from_sigmas([0.9, 0.5])
    config = {"_class_name": "FlowMatchEulerDiscreteScheduler"}
    cogvideox = {
        "_class_name": "CogVideoXDDIMScheduler",
        "prediction_type": "epsilon",
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
    }
    refusals = [
        (lambda: solvers.named("ddpm"), ", ".join(NAMES).replace("+", r"\+")),
        (
            lambda: solvers.from_config(config, "euler_a"),
            "solver 'euler_a' is not known; known: eu",
        ),
        (lambda: solvers.named("unipc", order=4)(table), "order 4 is not supported; 1, 2 and 3"),
        (lambda: solvers.named("unipc", solver_type="bh3")(table), "known: bh1, bh2"),
        (lambda: solvers.named("dpm++2m", order=3)(table), "order 3 is not supported; 1 and 2"),
        (lambda: solvers.named("dpm++2m", solver_type="bh1")(table), "known: midpoint, heun"),
        (lambda: solvers.named("euler", "edm"), "known: flow_prediction, v_prediction"),
        (lambda: solvers.named("euler", "epsilon")(table), "flow_prediction does, and sample"),
        (lambda: solvers.named("heun")(table), "inner sigmas twice"),
        (lambda: solvers.named("lcm")(table), "give it a generator"),
        (lambda: solvers.named("euler")(sigmas_of("vp", 3)), "epsilon or v_prediction does"),
        (lambda: solvers.named("heun", "sample")(sigmas_of("vp", 3)), "euler or unipc works"),
        (
            lambda: solvers.from_config(cogvideox)(schedule.from_config(cogvideox, 5)),
            "v_prediction does",
        ),
    ]
    for attempt, message in refusals:
        with pytest.raises(UsageError, match=message) as refusal:
            attempt()
        assert "\n" not in str(refusal.value)
