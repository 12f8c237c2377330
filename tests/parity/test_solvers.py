"""Sigma tables bit-equal to the reference schedulers', solvers equal along whole trajectories."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch

from kinema.runtime.errors import UsageError
from kinema.runtime.requests.solver_names import NAMES
from kinema.runtime.sampling import schedule, solvers
from kinema.runtime.sampling.predictions import scale_input
from kinema.runtime.sampling.scheduler_formats import FORMATS
from kinema.runtime.sampling.sigmas import level

diffusers = pytest.importorskip("diffusers")

TOLERANCE = 1e-5  # of the latents' RMS, after any step; but see `Tolerance`

EULER = "FlowMatchEulerDiscreteScheduler"
HEUN = "FlowMatchHeunDiscreteScheduler"
FLOW_LCM = "FlowMatchLCMScheduler"
UNIPC = "UniPCMultistepScheduler"
DPM = "DPMSolverMultistepScheduler"
VE_EULER = "EulerDiscreteScheduler"
ANCESTRAL = "EulerAncestralDiscreteScheduler"
LCM = "LCMScheduler"
DDIM = "DDIMScheduler"
COG_DDIM = "CogVideoXDDIMScheduler"
COG_DPM = "CogVideoXDPMScheduler"

FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
LATENT = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
V = {"prediction_type": "v_prediction"}
ZERO_SNR = {**V, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
KARRAS = {"use_karras_sigmas": True}
EXPONENTIAL = {"use_exponential_sigmas": True}
SPACINGS = [
    {"timestep_spacing": spacing, "steps_offset": offset}
    for spacing, offset in [("linspace", 0), ("leading", 1), ("trailing", 0)]
]
# As published: Stable Video Diffusion, CogVideoX-2b and 5b.
SVD = {
    **LATENT,
    **V,
    **KARRAS,
    "sigma_max": 700.0,
    "sigma_min": 0.002,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "timestep_type": "continuous",
}
COG_2B = {**ZERO_SNR, "clip_sample": False, "snr_shift_scale": 3.0}
COG_5B = {**COG_2B, "snr_shift_scale": 1.0}

CASES = [
    *[(EULER, {"shift": shift}) for shift in (1.0, 2.3, 3.0, 5.0)],
    (EULER, {"shift": 3.0, **KARRAS}),
    (EULER, {"shift": 3.0, **EXPONENTIAL}),
    (EULER, {"shift": 5.0, "shift_terminal": 0.1}),  # 2 steps at least
    (EULER, {"shift": 5.0, "stochastic_sampling": True}),
    (EULER, {"num_train_timesteps": 500}),
    *[(HEUN, {"shift": shift}) for shift in (1.0, 3.0)],
    *[(FLOW_LCM, {"shift": 5.0, **curve}) for curve in ({}, KARRAS, EXPONENTIAL)],
    *[
        (UNIPC, {**FLOW, "flow_shift": shift, "solver_order": order, "solver_type": kind})
        for shift in (1.0, 3.0, 5.0)
        for order in (1, 2, 3)
        for kind in ("bh1", "bh2")
    ],
    (UNIPC, {**FLOW, "flow_shift": 3.0, "disable_corrector": [0, 1]}),
    (UNIPC, {**FLOW, "flow_shift": 3.0, "num_train_timesteps": 500}),
    (UNIPC, {**FLOW, "flow_shift": 3.0, "final_sigmas_type": "sigma_min"}),
    (UNIPC, {**FLOW, "flow_shift": 3.0, "shift_terminal": 0.05}),
    (UNIPC, {**FLOW, **KARRAS}),
    *[(UNIPC, {**LATENT, **spacing}) for spacing in SPACINGS],
    (UNIPC, {**LATENT, "solver_order": 3, **V}),
    (UNIPC, {"beta_schedule": "linear", "prediction_type": "sample"}),
    (UNIPC, ZERO_SNR),
    (UNIPC, {**LATENT, **KARRAS, "sigma_min": 0.05, "sigma_max": 12.0}),
    (UNIPC, {**LATENT, **EXPONENTIAL, "final_sigmas_type": "sigma_min"}),
    *[(DPM, {**FLOW, "flow_shift": shift}) for shift in (1.0, 3.0)],
    (DPM, {**FLOW, "flow_shift": 3.0, "solver_order": 1}),
    (DPM, {**FLOW, "flow_shift": 3.0, "solver_type": "heun"}),
    (DPM, {**FLOW, "flow_shift": 3.0, "algorithm_type": "sde-dpmsolver++"}),
    *[(DPM, {**LATENT, **spacing}) for spacing in SPACINGS],
    (DPM, {**LATENT, **V, "solver_type": "heun"}),
    (DPM, {**LATENT, **V, "algorithm_type": "sde-dpmsolver++"}),
    (DPM, {**LATENT, **V, "algorithm_type": "sde-dpmsolver++", "solver_type": "heun"}),
    (DPM, {**LATENT, "final_sigmas_type": "sigma_min"}),
    (DPM, {**LATENT, "final_sigmas_type": "sigma_min", "euler_at_final": True}),
    (DPM, {**LATENT, "final_sigmas_type": "sigma_min", "lower_order_final": False}),
    (DPM, {**LATENT, **KARRAS}),
    (DPM, {**LATENT, **EXPONENTIAL}),
    (DPM, ZERO_SNR),
    (VE_EULER, SVD),
    *[(VE_EULER, {**LATENT, **spacing}) for spacing in SPACINGS],
    (VE_EULER, {**LATENT, **V, **KARRAS}),
    (VE_EULER, {**LATENT, **EXPONENTIAL, "final_sigmas_type": "sigma_min"}),
    (VE_EULER, {"prediction_type": "sample"}),
    *[(ANCESTRAL, {**LATENT, **spacing}) for spacing in SPACINGS],
    (ANCESTRAL, {**LATENT, **V}),
    (LCM, {}),
    (LCM, {**V, "original_inference_steps": 100, "timestep_scaling": 5.0}),
    *[(DDIM, {**LATENT, "clip_sample": False, **spacing}) for spacing in SPACINGS],
    (DDIM, {**LATENT, **ZERO_SNR, "clip_sample": False, "set_alpha_to_one": False}),
    *[(name, options) for name in (COG_DDIM, COG_DPM) for options in (COG_2B, COG_5B)],
    (COG_DDIM, {"beta_schedule": "linear", "timestep_spacing": "linspace"}),
]
STEPS = [1, 2, 3, 7, 20, 50]


def each(steps):
    """Every case with every number of steps that it can take."""
    cases = [
        pytest.param(name, options, count, id=f"{name}-{index}-{count}")
        for index, (name, options) in enumerate(CASES)
        for count in steps
        if count > 1 or "shift_terminal" not in options
    ]
    return pytest.mark.parametrize(("name", "options", "num_steps"), cases)


def open_both(name, options):
    """The reference scheduler and its config as a scheduler_config.json holds it."""
    reference = getattr(diffusers, name)(**options)
    return reference, {"_class_name": name, **reference.config}


def test_flow_sigmas_on_a_curve_from_pure_noise():
    """The reference's table alone: its own steps fail at timesteps that occur twice."""
    reference, config = open_both(UNIPC, {**FLOW, **KARRAS, "rescale_betas_zero_snr": True})
    reference.set_timesteps(7)
    table = schedule.from_config(config, 7)
    assert torch.equal(table.sigmas, reference.sigmas)
    assert torch.equal(table.timesteps, reference.timesteps)


@pytest.mark.parametrize("options", [{"shift": 3.0}, {"shift": 3.0, **KARRAS}])
@pytest.mark.parametrize("num_steps", [1, 2, 7])
def test_an_inverted_flow(options, num_steps):
    """The model is told how clean latents are; the reference's sigmas are 1 minus ours."""
    reference, config = open_both(EULER, {**options, "invert_sigmas": True})
    reference.set_timesteps(num_steps)
    table = schedule.from_config(config, num_steps)
    assert torch.equal(table.timesteps, reference.timesteps)
    assert torch.equal(1 - table.sigmas, reference.sigmas)
    wanted = reference_run(reference, start(), None)
    found = our_run(table, solvers.from_config(config)(table, torch.Generator()), start())
    assert_equal(found, wanted, table, start())


@pytest.mark.parametrize("solver", ["euler", "heun", "dpm++2m", "unipc"])
def test_an_inverted_flow_has_every_solver(solver):
    """Told one minus sigma, and asked for clean minus noise, a model is stepped alike."""
    plain = schedule.from_config({"_class_name": EULER, "shift": 3.0}, 7, solver=solver)
    config = {"_class_name": EULER, "shift": 3.0, "invert_sigmas": True}
    table = schedule.from_config(config, 7, solver=solver)
    steps = [solvers.from_config(config, solver)(one, torch.Generator()) for one in (plain, table)]
    x, y, past, history = start(), start(), (), ()
    for step in range(len(table)):
        assert abs(table.timesteps[step] + plain.timesteps[step] - 1000) < 1e-3
        x, past = steps[0](x, model(x, plain.timesteps[step]), step, past)
        y, history = steps[1](y, -model(y, 1000 - table.timesteps[step]), step, history)
        assert (x - y).abs().max() < TOLERANCE * x.square().mean().sqrt()


def test_every_class_has_a_case():
    assert {name for name, _ in CASES} == set(FORMATS)


@each(STEPS)
def test_tables_are_bit_equal(name, options, num_steps):
    reference, config = open_both(name, options)
    reference.set_timesteps(num_steps)
    table = schedule.from_config(config, num_steps)
    assert torch.equal(table.timesteps, reference.timesteps)
    assert table.timesteps.dtype == reference.timesteps.dtype
    assert table.initial_scale == getattr(reference, "init_noise_sigma", 1.0)
    if name in (LCM, DDIM, COG_DDIM, COG_DPM):  # they keep shares of signal instead of sigmas
        shares = reference.alphas_cumprod[reference.timesteps]
        assert torch.equal(table.sigmas[:-1], (((1 - shares) / shares) ** 0.5).float())
    else:
        assert torch.equal(table.sigmas, reference.sigmas)


def model(latents, timestep):
    """A denoiser that bends the path and mixes the columns."""
    return torch.tanh(2 * latents.roll(1, dims=-1) - latents) + timestep / 1000


def start(scale=1.0):
    return scale * torch.randn(2, 4, 3, 4, 5, generator=torch.manual_seed(0))


def reference_run(reference, latents, generator):
    """The loop of the reference's pipelines: latents after every step."""
    takes_generator = "generator" in inspect.signature(reference.step).parameters
    extra = {"generator": generator} if takes_generator else {}
    trajectory, times, clean = [], reference.timesteps, None
    for i, timestep in enumerate(times):
        shown = latents
        if hasattr(reference, "scale_model_input"):
            shown = reference.scale_model_input(latents, timestep)
        prediction = model(shown, timestep)
        if isinstance(reference, diffusers.CogVideoXDPMScheduler):
            before = times[i - 1] if i > 0 else None
            latents, clean = reference.step(
                prediction, clean, timestep, before, latents, **extra, return_dict=False
            )
        else:
            latents = reference.step(prediction, timestep, latents, **extra, return_dict=False)[0]
        trajectory.append(latents)
    return trajectory


def our_run(table, solve, latents):
    trajectory, history = [], ()
    predict = scale_input(lambda shown, step: model(shown, table.timesteps[step]), table)
    for step in range(len(table)):
        latents, history = solve(latents, predict(latents, step), step, history)
        trajectory.append(latents)
    return trajectory


class Tolerance:
    """1e-5, or what fp32 leaves of the reference's own steps where that is more.

    A step that takes latents of deviation 700 to some of 1 rounds those of 700; Heun's second slope
    is a difference of latents divided by their sigma.
    """

    def __init__(self, table):
        self.sigmas, self.heun, self.lost = table.sigmas, table.noise == "flow", 0.0

    def after(self, step, before, latents):
        grown = before.square().mean().sqrt() / latents.square().mean().sqrt()
        if self.sigmas[step] == self.sigmas[step + 1]:  # an odd step of Heun's
            grown = grown + self.sigmas[step - 1] / self.sigmas[step]
        self.lost = max(self.lost, 8 * torch.finfo(torch.float32).eps * grown.item())
        return max(TOLERANCE, self.lost)


def assert_equal(found, wanted, table, start):
    tolerance = Tolerance(table)
    for step, (ours, theirs) in enumerate(zip(found, wanted, strict=True)):
        error = (ours - theirs).abs().max() / theirs.square().mean().sqrt()
        before = wanted[step - 1] if step else start
        assert error < tolerance.after(step, before, theirs), f"{error:.1e} after step {step}"


@each(STEPS[:-1])
def test_trajectories_are_equal(name, options, num_steps):
    reference, config = open_both(name, options)
    reference.set_timesteps(num_steps)
    table = schedule.from_config(config, num_steps)
    solve = solvers.from_config(config)(table, torch.Generator().manual_seed(7))
    noise = start(table.initial_scale)
    wanted = reference_run(reference, noise, torch.Generator().manual_seed(7))
    found = our_run(table, solve, noise)
    if options.get("solver_type") == "bh1":
        # The reference's last step is 0 * inf there; ours is the limit.
        assert wanted.pop().isnan().all() and found.pop().isfinite().all()
    assert_equal(found, wanted, table, noise)


@each([1, 2, 3, 7])
def test_what_is_more_than_the_tolerance_is_not_ours(name, options, num_steps, monkeypatch):
    """Our fp32 is within it of the same steps in double precision, wherever."""
    _, config = open_both(name, options)
    table = schedule.from_config(config, num_steps)
    noise = start(table.initial_scale)

    def draw(latents, weight, state):
        drawn = torch.randn(latents.shape, generator=torch.Generator().manual_seed(7))
        return drawn.to(latents.dtype), state

    monkeypatch.setattr(solvers, "_draw", draw)
    solve = solvers.from_config(config)(table, torch.Generator())
    single, double = our_run(table, solve, noise), our_run(table, solve, noise.double())
    for ours, exact in zip(single, double, strict=True):
        assert exact.dtype == torch.float64
        assert (ours - exact).abs().max() < TOLERANCE * exact.square().mean().sqrt()


def test_two_predictions_a_step():
    """Heun's predictions are counted one by one; its steps are every other one."""
    table = schedule.from_config({"_class_name": HEUN, "shift": 3.0}, 4)
    assert len(table) == 7
    plain = schedule.from_config({"_class_name": EULER, "shift": 3.0}, 4)
    assert torch.equal(table.sigmas[::2][:4], plain.sigmas[:4])
    assert torch.equal(plain.doubled().sigmas, table.sigmas)
    assert torch.equal(plain.doubled().timesteps, table.timesteps)


# ---- lists, and sigmas that depend on the resolution ---------------------------------------------

LTX = {  # as published
    "base_image_seq_len": 1024,
    "base_shift": 0.95,
    "max_image_seq_len": 4096,
    "max_shift": 2.05,
    "shift_terminal": 0.1,
    "use_dynamic_shifting": True,
}


@pytest.mark.parametrize("length", [64, 1024, 2000, 20000])
@pytest.mark.parametrize("kind", ["exponential", "linear"])
@pytest.mark.parametrize("name", [EULER, FLOW_LCM])
def test_sigmas_of_a_resolution(name, kind, length):
    reference, config = open_both(name, {**LTX, "time_shift_type": kind})
    slope = (2.05 - 0.95) / (4096 - 1024)
    mu = length * slope + (0.95 - slope * 1024)
    for sigmas in (None, np.linspace(1.0, 1 / 12, 12).tolist()):
        reference.set_timesteps(12, sigmas=sigmas, mu=mu)
        table = schedule.from_config(config, 12, sigmas=sigmas, sequence_length=length)
        assert torch.equal(table.sigmas, reference.sigmas)
        assert torch.equal(table.timesteps, reference.timesteps)


@pytest.mark.parametrize("name", [UNIPC, DPM])
def test_multistep_sigmas_of_a_resolution(name):
    reference, config = open_both(name, {**FLOW, "use_dynamic_shifting": True})
    slope = (1.15 - 0.5) / (4096 - 256)
    reference.set_timesteps(9, mu=3000 * slope + (0.5 - slope * 256))
    table = schedule.from_config(config, 9, sequence_length=3000)
    assert torch.equal(table.sigmas, reference.sigmas)
    assert torch.equal(table.timesteps, reference.timesteps)


SIGMAS = [1.0, 0.75, 0.5, 0.25]
LISTS = [
    *[(name, {"shift": 5.0}, {"sigmas": SIGMAS}) for name in (EULER, FLOW_LCM)],
    *[(name, {"shift": 5.0}, {"timesteps": [1000, 750, 500, 250]}) for name in (EULER, FLOW_LCM)],
    (EULER, {"shift": 5.0}, {"sigmas": SIGMAS, "timesteps": [999, 757, 522, 100]}),
    (UNIPC, {**FLOW, "flow_shift": 5.0}, {"sigmas": SIGMAS}),
    (DPM, LATENT, {"timesteps": [999, 700, 400, 20]}),
    (VE_EULER, LATENT, {"timesteps": [999, 700, 400, 20]}),
    (LCM, {}, {"timesteps": [999, 759, 499, 259]}),
]


@pytest.mark.parametrize(("name", "options", "lists"), LISTS)
def test_lists(name, options, lists):
    reference, config = open_both(name, options)
    arrays = {kind: np.array(values) for kind, values in lists.items()}
    reference.set_timesteps(**{"num_inference_steps": None, **arrays})
    for count in (None, 4):
        table = schedule.from_config(config, count, **lists)
        assert torch.equal(table.timesteps, reference.timesteps)
        if name != LCM:
            assert torch.equal(table.sigmas, reference.sigmas)


def test_sigmas_of_noise_that_adds():
    """The reference wants the last 0 in the list; here it may be left out."""
    reference, config = open_both(VE_EULER, LATENT)
    reference.set_timesteps(sigmas=[12.0, 3.0, 0.5, 0.0])
    for sigmas in ([12.0, 3.0, 0.5, 0.0], [12.0, 3.0, 0.5]):
        table = schedule.from_config(config, sigmas=sigmas)
        assert torch.equal(table.sigmas, reference.sigmas)
        assert torch.equal(table.timesteps, reference.timesteps)


# ---- solvers by name -----------------------------------------------------------------------------


@pytest.mark.parametrize("num_steps", [2, 8])
def test_named_solvers_are_the_references(num_steps):
    """On the sigmas of one class, a named solver goes as the reference's of that name does."""
    theirs = {
        "euler": (EULER, {}),
        "heun": (HEUN, {}),
        "lcm": (FLOW_LCM, {}),
        "unipc": (UNIPC, FLOW),
        "unipc-1": (UNIPC, {**FLOW, "solver_order": 1}),
        "unipc-3": (UNIPC, {**FLOW, "solver_order": 3}),
        "dpm++2m": (DPM, FLOW),
        "dpm++2m-sde": (DPM, {**FLOW, "algorithm_type": "sde-dpmsolver++"}),
        "euler-ancestral": ("LTXEulerAncestralRFScheduler", {}),
    }
    assert set(theirs) == set(NAMES)
    config = {"_class_name": UNIPC, **FLOW, "flow_shift": 3.0}
    for solver, (name, options) in theirs.items():
        reference = getattr(diffusers, name)(**options)
        reference.set_timesteps(num_steps)
        table = schedule.from_config(config, num_steps, solver=solver)
        reference.sigmas, reference.timesteps = table.sigmas, table.timesteps.float()
        solve = solvers.from_config(config, solver)(table, torch.Generator().manual_seed(7))
        wanted = reference_run(reference, start(), torch.Generator().manual_seed(7))
        assert_equal(our_run(table, solve, start()), wanted, table, start())


@pytest.mark.parametrize("solver", NAMES)
@pytest.mark.parametrize(("name", "options"), [CASES[2], (VE_EULER, SVD), (COG_DDIM, COG_2B)])
def test_every_solver_on_every_kind_of_sigmas(name, options, solver):
    """With a perfect denoiser each lands on the clean latents, from whatever sigmas; or says no."""
    config = {"_class_name": name, **options}
    table = schedule.from_config(config, 5, solver=solver)
    build = solvers.from_config(config, solver)
    if solver == "heun" and table.noise == "vp":
        with pytest.raises(UsageError, match="euler or unipc works"):
            build(table)
        return
    solve, history = build(table, torch.Generator().manual_seed(3)), ()
    clean, latents = start(), torch.randn(2, 4, 3, 4, 5) * table.initial_scale
    for step, (at, sigma) in enumerate(zip(table.starts, table.sigmas, strict=False)):
        noise = (latents - at.alpha * clean) / at.sigma
        prediction = noise - clean
        if table.noise != "flow":
            norm = np.hypot(at.alpha, at.sigma)
            prediction = (at.alpha * noise - at.sigma * clean) / norm
        assert at == level(table.noise, sigma.item())
        latents, history = solve(latents, prediction, step, history)
    # v at sigma 0.002 gives what it has of clean latents after a division by sigma.
    torch.testing.assert_close(latents, clean, rtol=0, atol=1e-4)


# ---- laws ----------------------------------------------------------------------------------------


@each([8])
def test_a_request_can_be_resumed(name, options, num_steps):
    """A solver keeps nothing: with the history it gave, another one goes on as if never stopped,
    noise included. The other's own generator is not looked at."""
    _, config = open_both(name, options)
    table = schedule.from_config(config, num_steps)

    def run(switch_at):
        latents, history = start(table.initial_scale), ()
        solve = solvers.from_config(config)(table, torch.Generator().manual_seed(1))
        for step, timestep in enumerate(table.timesteps):
            if step == switch_at:
                solve = solvers.from_config(config)(table, torch.Generator().manual_seed(2))
                history = tuple(kept.clone() for kept in history)
            latents, history = solve(latents, model(latents, timestep), step, history)
        return latents

    assert torch.equal(run(switch_at=None), run(switch_at=5))


@pytest.mark.parametrize(
    ("name", "options"), [(UNIPC, {**FLOW, "solver_order": 3}), (DPM, FLOW), (EULER, {})]
)
def test_a_start_in_the_middle(name, options):
    """Denoising may begin at a later sigma, with no history: as the reference's set_begin_index."""
    reference, config = open_both(name, options)
    reference.set_timesteps(12)
    reference.set_begin_index(4)
    table, history = schedule.from_config(config, 12), ()
    solve = solvers.from_config(config)(table)
    wanted = found = start()
    for step in range(4, 12):
        timestep = table.timesteps[step]
        wanted = reference.step(model(wanted, timestep), timestep, wanted, return_dict=False)[0]
        found, history = solve(found, model(found, timestep), step, history)
        assert (found - wanted).abs().max() < TOLERANCE * wanted.square().mean().sqrt()


@pytest.mark.parametrize("num_steps", [4, 20])
@pytest.mark.parametrize(
    ("name", "options"),
    [case for case in CASES if case[0] == EULER or "use_flow_sigmas" in case[1]],
)
def test_a_perfect_denoiser_lands_on_the_clean_latents(name, options, num_steps):
    """Where every prediction points to the same clean latents, each solver of flow is exact."""
    _, config = open_both(name, options)
    table = schedule.from_config(config, num_steps)
    solve, history = solvers.from_config(config)(table, torch.Generator()), ()
    clean = torch.randn(1, 2, 2, 2, 2, generator=torch.manual_seed(1))
    latents = noise = torch.randn(1, 2, 2, 2, 2, generator=torch.manual_seed(2))
    for step, sigma in enumerate(table.sigmas[:-1]):
        latents, history = solve(latents, (latents - clean) / sigma, step, history)
    last = table.ends[-1]
    wanted = last.alpha * clean + last.sigma * noise
    torch.testing.assert_close(latents, wanted, rtol=0, atol=1e-5)
