"""guided_step against its definition, the runtime's solvers, and the laws it keeps."""

from __future__ import annotations

import pytest
import torch

from kinema import kernels
from kinema.kernels import reference
from kinema.kernels.guided_step import run
from kinema.runtime.sampling import solvers
from kinema.runtime.sampling.sigmas import Schedule

SHAPE = (2, 3, 2, 5, 7)


def launch(latents, positive, negative, weights, history=(), guidance_scale=1.0, rescale=0.0,
           block=64):  # fmt: skip
    """The kernel's outputs, with the definition's defaults."""
    return run(latents, positive, negative, weights, list(history), guidance_scale, rescale, block)


@pytest.mark.parametrize("rescale", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("past", [0, 2, 4])
def test_parity(dtype, past, rescale, truth, assert_as_accurate) -> None:
    latents, history = torch.randn(SHAPE), list(torch.randn(past, *SHAPE))
    positive, negative = torch.randn(2, *SHAPE).add(1).to(dtype)
    weights = torch.randn(3, 2 + past)
    arguments = (latents, positive, negative, weights, history)
    options = {"guidance_scale": 5.0, "rescale": rescale}
    exact = truth(reference.guided_step, *arguments, **options)
    plain = reference.guided_step(*arguments, **options)
    for ours, theirs, true in zip(launch(*arguments, **options), plain, exact, strict=True):
        assert_as_accurate(ours, theirs, true)


@pytest.mark.parametrize("size", [1, 31, 1023])
def test_any_size(size) -> None:
    latents, positive, negative = torch.randn(3, 2, size)
    weights = torch.tensor([[1.0, -0.1]])
    arguments = (latents, positive, negative, weights)
    torch.testing.assert_close(
        launch(*arguments, guidance_scale=3.0, rescale=0.5)[0],
        reference.guided_step(*arguments, guidance_scale=3.0, rescale=0.5)[0],
    )


def test_rows_of_a_track() -> None:
    latents = torch.randn(2, 3, 2, 6, 7)
    positive, negative = torch.randn(4, 3, 2, 6, 7).chunk(2)
    arguments = [tensor[..., 4:6, :] for tensor in (latents, positive, negative)]
    weights = torch.randn(2, 3)
    history = [torch.randn(2, 3, 2, 7, 2).transpose(-1, -2)]
    options = {"guidance_scale": 4.0, "rescale": 0.3}
    ours = launch(*arguments, weights, history, **options)
    expected = reference.guided_step(*arguments, weights, history, **options)
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other)
        assert one.is_contiguous()


def test_takes_the_solvers_steps() -> None:
    latents, positive, negative = torch.randn(3, *SHAPE)
    guided = negative + 3 * (positive - negative)
    sigmas = torch.tensor([0.9, 0.6, 0.25, 0.0])
    table = Schedule(sigmas, 1000 * sigmas[:-1])
    euler = solvers.named("euler")(table)(latents, guided, 1, ())[0]
    weights = torch.tensor([[1.0, (sigmas[2] - sigmas[1]).item()]])
    (ours,) = launch(latents, positive, negative, weights, guidance_scale=3.0)
    torch.testing.assert_close(ours, euler)

    solve = solvers.named("unipc")(table)
    # A solver is linear, so it tells its weights when given unit vectors for tensors.
    unit_latents, unit_guided, *unit_past = torch.eye(4)
    taken, remembered = solve(unit_latents, unit_guided, 1, tuple(unit_past))
    weights = torch.stack([taken, *remembered[:2]])
    past = tuple(torch.randn(2, *SHAPE))
    expected, remembered = solve(latents, guided, 1, past)
    ours = launch(latents, positive, negative, weights, past, guidance_scale=3.0)
    for one, other in zip(ours, (expected, *remembered[:2]), strict=True):
        torch.testing.assert_close(one, other)


def test_guidance_of_one_is_conditional() -> None:
    latents, positive, negative = torch.randn(3, *SHAPE)
    weights = torch.tensor([[1.0, -0.1]])
    (alone,) = launch(latents, positive, None, weights)
    (guided,) = launch(latents, positive, negative, weights, guidance_scale=1.0)
    torch.testing.assert_close(guided, alone)
    (unmoved,) = launch(latents, positive, negative, torch.tensor([[1.0, 0.0]]))
    assert torch.equal(unmoved, latents)


def test_full_rescale_keeps_the_deviation() -> None:
    latents, positive, negative = torch.randn(3, *SHAPE)
    (guided,) = launch(
        latents, positive + 5, negative, torch.tensor([[0.0, 1.0]]), (), 7.0, rescale=1.0
    )
    torch.testing.assert_close(guided.flatten(1).std(1), positive.flatten(1).std(1))


@pytest.mark.parametrize("value", [0.0, 0.1, -37.3])
@pytest.mark.parametrize("step", [launch, reference.guided_step])
def test_a_constant_prediction_is_not_rescaled(value, step) -> None:
    """Also one that only guidance makes constant; its neighbour in the batch is rescaled."""
    latents, positive = torch.randn(2, 2, 3, 700)
    negative = torch.full_like(positive, value)
    negative[1] = positive[1] + 1
    weights = torch.tensor([[0.0, 1.0]])
    (guided,) = step(latents, positive, negative, weights, [], guidance_scale=0.0, rescale=1.0)
    assert torch.equal(guided[0], negative[0])
    torch.testing.assert_close(guided[1].std(), positive[1].std())
    (alone,) = step(latents, negative, negative, weights, [], guidance_scale=4.0, rescale=0.5)
    torch.testing.assert_close(alone[0], negative[0])


def test_no_latents() -> None:
    empty = torch.empty(0, 3, 4)
    assert launch(empty, empty, empty, torch.ones(1, 2))[0].shape == empty.shape


Z = torch.zeros(2, 3, 4)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((Z.half(), Z, Z, torch.ones(1, 2)), {}, "latents is torch.float16; torch.float32 work"),
        ((Z, Z[:1], Z, torch.ones(1, 2)), {}, r"positive has shape \(1, 3, 4\)"),
        ((Z, Z, Z, torch.ones(1, 3)), {}, r"weights has shape \(1, 3\); \(1, 2\) works"),
        ((Z, Z, Z, torch.ones(4, 2)), {}, r"weights have shape \(4, 2\); 1 to 3 rows work"),
        ((Z, Z, Z, torch.ones(1, 7), [Z] * 5), {}, "history has 5 tensors; up to 4 work"),
        (
            (Z, Z, Z, torch.ones(1, 2)),
            {"guidance_scale": float("nan")},
            "guidance_scale=nan is not",
        ),
        ((Z, Z, Z, torch.ones(1, 2)), {"rescale": 2.0}, r"rescale=2.0 is not in 0\.\.1"),
    ],
)
def test_refuses(arguments, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        kernels.guided_step(*arguments, **options)
