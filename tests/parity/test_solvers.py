"""Sigma tables bit-equal to the reference schedulers', solvers equal along whole trajectories."""

from __future__ import annotations

import pytest
import torch

from kinema.runtime import schedule, solvers
from kinema.runtime.errors import UsageError

diffusers = pytest.importorskip("diffusers")

EULER = "FlowMatchEulerDiscreteScheduler"
UNIPC = "UniPCMultistepScheduler"
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
CONFIGS = [
    *[(EULER, {"shift": shift}) for shift in (1.0, 2.3, 3.0, 5.0)],
    *[
        (UNIPC, {**FLOW, "flow_shift": shift, "solver_order": order, "solver_type": kind})
        for shift in (1.0, 3.0, 5.0)
        for order in (1, 2, 3)
        for kind in ("bh1", "bh2")
    ],
    (UNIPC, {**FLOW, "flow_shift": 3.0, "disable_corrector": [0, 1]}),
    (UNIPC, {**FLOW, "flow_shift": 3.0, "num_train_timesteps": 500}),
]


def open_both(name, options):
    """The reference scheduler and its config as a scheduler_config.json holds it."""
    reference = getattr(diffusers, name)(**options)
    return reference, {"_class_name": name, **reference.config}


@pytest.mark.parametrize("num_steps", [1, 2, 3, 16, 50])
@pytest.mark.parametrize(("name", "options"), CONFIGS)
def test_tables_are_bit_equal(name, options, num_steps):
    reference, config = open_both(name, options)
    reference.set_timesteps(num_steps)
    table = schedule.from_config(config, num_steps)
    assert torch.equal(table.sigmas, reference.sigmas)
    assert torch.equal(table.timesteps, reference.timesteps)
    assert table.timesteps.dtype == reference.timesteps.dtype


def flow(latents, sigma):
    """A denoiser that bends the path and mixes the columns."""
    return torch.tanh(2 * latents.roll(1, dims=-1) - latents) + sigma


@pytest.mark.parametrize("num_steps", [1, 2, 3, 20])
@pytest.mark.parametrize(("name", "options"), CONFIGS)
def test_trajectories_are_equal(name, options, num_steps):
    reference, config = open_both(name, options)
    reference.set_timesteps(num_steps)
    solve = solvers.from_config(config)(reference.sigmas)
    wanted = found = torch.randn(2, 4, 3, 4, 5, generator=torch.manual_seed(0))
    history = ()
    for step, timestep in enumerate(reference.timesteps):
        sigma = reference.sigmas[step]
        wanted = reference.step(flow(wanted, sigma), timestep, wanted, return_dict=False)[0]
        found, history = solve(found, flow(found, sigma), step, history)
        if options.get("solver_type") == "bh1" and step == num_steps - 1:
            # The reference's last step is 0 * inf there; ours is the limit.
            assert wanted.isnan().all() and found.isfinite().all()
            return
        assert (found - wanted).abs().max() < 1e-5 * wanted.square().mean().sqrt()


@pytest.mark.parametrize(("name", "options"), [CONFIGS[2], CONFIGS[8]])
def test_a_request_can_be_resumed(name, options):
    """A solver keeps nothing: with the history it gave, another one goes on as if never stopped."""
    _, config = open_both(name, options)
    sigmas = schedule.from_config(config, 8).sigmas

    def run(switch_at):
        latents, history = torch.randn(1, 2, 2, 2, 2, generator=torch.manual_seed(0)), ()
        solve = solvers.from_config(config)(sigmas)
        for step in range(8):
            if step == switch_at:
                solve = solvers.from_config(config)(sigmas)
            latents, history = solve(latents, flow(latents, sigmas[step]), step, history)
        return latents

    assert torch.equal(run(switch_at=None), run(switch_at=5))


@pytest.mark.parametrize("num_steps", [4, 20])
@pytest.mark.parametrize(("name", "options"), CONFIGS[2:9])
def test_a_perfect_denoiser_lands_on_the_clean_latents(name, options, num_steps):
    """Where every prediction points to the same clean latents, each solver is exact."""
    _, config = open_both(name, options)
    table = schedule.from_config(config, num_steps)
    solve, history = solvers.from_config(config)(table.sigmas), ()
    clean = torch.randn(1, 2, 2, 2, 2, generator=torch.manual_seed(1))
    latents = torch.randn(1, 2, 2, 2, 2, generator=torch.manual_seed(2))
    for step, sigma in enumerate(table.sigmas[:-1]):
        latents, history = solve(latents, (latents - clean) / sigma, step, history)
    torch.testing.assert_close(latents, clean, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("name", "options"), [CONFIGS[0], CONFIGS[8]])
def test_shifted_tables(name, options):
    """A shift on top of a shift is one shift by the product; the last sigma stays zero."""
    _, config = open_both(name, options)
    table = schedule.from_config(config, 12)
    assert table.shifted(1.0) is table
    sigmas = table.sigmas.double()
    shifted = table.shifted(4.0)
    torch.testing.assert_close(
        shifted.sigmas, (4 * sigmas / (1 + 3 * sigmas)).float(), rtol=1e-6, atol=0
    )
    twice = table.shifted(2.0).shifted(2.0)
    torch.testing.assert_close(twice.sigmas, shifted.sigmas, rtol=1e-6, atol=0)
    assert shifted.sigmas[-1] == 0 and shifted.timesteps.dtype == table.timesteps.dtype


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"_class_name": "DDIMScheduler"}, f"known: {EULER}, {UNIPC}"),
        ({}, "None is not known"),
        ({"_class_name": EULER, "use_karras_sigmas": True}, "use_karras_sigmas=True"),
        ({"_class_name": EULER, "use_dynamic_shifting": True}, "False works"),
        ({"_class_name": EULER, "shfit": 3}, "no option shfit"),
        ({"_class_name": UNIPC}, "prediction_type=None"),
        ({"_class_name": UNIPC, **FLOW, "prediction_type": "epsilon"}, "'flow_prediction' works"),
        ({"_class_name": UNIPC, **FLOW, "lower_order_final": False}, "lower_order_final=False"),
    ],
)
def test_what_is_not_supported_is_refused(config, message):
    with pytest.raises(UsageError, match=message):
        schedule.from_config(config, 10)


def test_numbers_out_of_range_are_refused():
    with pytest.raises(UsageError, match="num_inference_steps=0"):
        schedule.from_config({"_class_name": EULER}, 0)
    sigmas = torch.tensor([0.9, 0.5, 0.0])
    with pytest.raises(UsageError, match="order 4"):
        solvers.unipc(sigmas, order=4)
    with pytest.raises(UsageError, match="bh1, bh2"):
        solvers.unipc(sigmas, solver_type="heun")
    with pytest.raises(UsageError, match="3 sigmas, 3 timesteps"):
        schedule.Schedule(sigmas, sigmas)
