"""Schedules: laws of their sigmas, lists as they stand, and what is refused."""

from __future__ import annotations

import pytest
import torch

from kinema.runtime.errors import UsageError
from kinema.runtime.sampling import schedule
from kinema.runtime.sampling.scheduler_formats import FORMATS
from kinema.runtime.sampling.sigmas import Level, Schedule, level

EULER = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
UNIPC = {"_class_name": "UniPCMultistepScheduler"}
FLOW_UNIPC = {**UNIPC, "prediction_type": "flow_prediction", "use_flow_sigmas": True}
DPM = {"_class_name": "DPMSolverMultistepScheduler"}
VE_EULER = {"_class_name": "EulerDiscreteScheduler"}
DDIM = {"_class_name": "DDIMScheduler", "clip_sample": False}
LCM = {"_class_name": "LCMScheduler"}
COGVIDEOX = {"_class_name": "CogVideoXDDIMScheduler", "prediction_type": "v_prediction"}
ALL = [{"_class_name": name} for name in FORMATS if name != "DDIMScheduler"] + [DDIM]
EACH = pytest.mark.parametrize("config", ALL, ids=[config["_class_name"] for config in ALL])


@EACH
@pytest.mark.parametrize("num_steps", [1, 2, 17, 50])
def test_sigmas_fall_to_the_end(config, num_steps):
    table = schedule.from_config(config, num_steps)
    predictions = 2 * num_steps - 1 if "Heun" in config["_class_name"] else num_steps
    assert len(table) == predictions and len(table.sigmas) == predictions + 1
    assert table.sigmas.dtype == torch.float32
    assert (table.sigmas.diff() <= 0).all() and (table.timesteps.diff() <= 0).all()
    assert len(table.starts) == len(table.ends) == predictions


@EACH
def test_levels_say_what_latents_are(config):
    """Flow: signal and noise share 1; variance preserved: their squares do; added: signal is 1."""
    table = schedule.from_config(config, 10)
    for at in (*table.starts, *table.ends):
        total = {"flow": at.alpha + at.sigma, "vp": at.alpha**2 + at.sigma**2, "ve": at.alpha}
        assert total[table.noise] == pytest.approx(1, abs=1e-6)
    assert (table.input_scales is not None) == (table.noise == "ve") == (table.initial_scale > 1)


def test_pure_noise_is_an_infinite_sigma():
    table = schedule.from_config(
        {**COGVIDEOX, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}, 10
    )
    assert table.sigmas[0] == torch.inf and table.starts[0] == Level(0.0, 1.0)
    assert table.starts[0].log_snr == -torch.inf and table.ends[-1].log_snr == torch.inf
    assert level("flow", 1.0) == Level(0.0, 1.0)


@pytest.mark.parametrize("config", [EULER, FLOW_UNIPC], ids=["euler", "unipc"])
def test_shifted_tables(config):
    """A shift on top of a shift is one shift by the product; the last sigma stays zero."""
    table = schedule.from_config(config, 12)
    assert table.shifted(1.0) is table
    sigmas = table.sigmas.double()
    shifted = table.shifted(4.0)
    wanted = (4 * sigmas / (1 + 3 * sigmas)).float()
    torch.testing.assert_close(shifted.sigmas, wanted, rtol=1e-6, atol=0)
    twice = table.shifted(2.0).shifted(2.0)
    torch.testing.assert_close(twice.sigmas, shifted.sigmas, rtol=1e-6, atol=0)
    assert shifted.sigmas[-1] == 0 and shifted.timesteps.dtype == table.timesteps.dtype


def test_doubled_and_shifted_in_either_order():
    table = schedule.from_config(EULER, 5)
    one, other = table.doubled().shifted(2.0), table.shifted(2.0).doubled()
    assert torch.equal(one.sigmas, other.sigmas) and torch.equal(one.timesteps, other.timesteps)
    assert torch.equal(schedule.from_config(EULER, 5, solver="heun").sigmas, table.doubled().sigmas)


def test_sigmas_as_they_stand():
    """What distilled models were trained on: no shift, and timesteps of one's own if need be."""
    table = schedule.from_sigmas([1.0, 0.75, 0.5, 0.25, 0.0])
    assert table.sigmas.tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert table.timesteps.tolist() == [1000, 750, 500, 250]
    assert schedule.from_sigmas([0.5], num_train_timesteps=500).timesteps.tolist() == [250]
    told = schedule.from_sigmas([1.0, 0.5], timesteps=[999, 400])
    assert told.timesteps.tolist() == [999, 400] and told.sigmas.tolist() == [1.0, 0.5, 0.0]


def test_a_longer_clip_is_noisier():
    config = {**EULER, "use_dynamic_shifting": True}
    few = schedule.from_config(config, 8, sequence_length=256)
    many = schedule.from_config(config, 8, sequence_length=4096)
    assert (many.sigmas[1:-1] > few.sigmas[1:-1]).all()


LISTS = [
    (EULER, {"sigmas": []}, "sigmas is empty"),
    (EULER, {"sigmas": [0.0]}, "sigmas is empty"),
    (EULER, {"sigmas": [0.5, 0.7]}, "after 0.5 comes 0.7"),
    (EULER, {"sigmas": [0.5, 0.5]}, "after 0.5 comes 0.5"),
    (EULER, {"sigmas": [1.2, 0.5]}, "sigmas has 1.2; .* at most 1"),
    (EULER, {"sigmas": [1.0, -0.5]}, "sigmas has -0.5"),
    (EULER, {"sigmas": [float("nan")]}, "sigmas has nan"),
    (EULER, {"timesteps": [1001, 10]}, "timesteps has 1001; .* at most 1000"),
    (EULER, {"num_steps": 3, "sigmas": [0.5, 0.2]}, "2 values; 3 steps"),
    (EULER, {"sigmas": [0.5, 0.2], "timesteps": [500]}, "1 values; 2 steps"),
    (EULER, {"num_steps": 0}, "num_inference_steps=0 must be at least 1"),
    (EULER, {"num_steps": -3}, "num_inference_steps=-3"),
    (EULER, {}, "num_inference_steps=None"),
    (FLOW_UNIPC, {"timesteps": [999]}, "takes no list of timesteps .* a list of sigmas works"),
    (UNIPC, {"sigmas": [1.0]}, "takes no list of sigmas .* a number of steps works"),
    ({**DPM}, {"sigmas": [1.0]}, "a list of timesteps works"),
    (DDIM, {"timesteps": [999]}, "a number of steps works"),
    ({**EULER, "use_karras_sigmas": True}, {"sigmas": [1.0]}, "a number of steps works"),
    (VE_EULER, {"sigmas": [3.0], "timesteps": [9]}, "not both"),
    (VE_EULER, {"timesteps": [1000]}, "at most 999"),
    (LCM, {"num_steps": 51}, "nearest 50"),
    (DDIM, {"num_steps": 1001}, "nearest 1000"),
    ({**EULER, "shift_terminal": 0.1}, {"num_steps": 1}, "needs 2 steps"),
    ({**EULER, "use_dynamic_shifting": True}, {"num_steps": 4}, "give sequence_length"),
]


@pytest.mark.parametrize(("config", "wanted", "message"), LISTS)
def test_steps_that_cannot_be_are_refused(config, wanted, message):
    with pytest.raises(UsageError, match=message) as refusal:
        schedule.from_config(config, **wanted)
    assert "\n" not in str(refusal.value)


CONFIGS = [
    ({"_class_name": "PNDMScheduler"}, ", ".join(FORMATS)),
    ({}, "None is not known"),
    ({**EULER, "shfit": 3}, "no option shfit; known: base_image_seq_len"),
    ({**EULER, "use_beta_sigmas": True}, "use_beta_sigmas=True is not supported; False works"),
    ({"_class_name": "FlowMatchLCMScheduler", "invert_sigmas": True}, "False works"),
    ({**EULER, "time_shift_type": "cubic"}, "'exponential' or 'linear' works"),
    ({**EULER, "use_karras_sigmas": True, "use_exponential_sigmas": True}, "one works"),
    ({**UNIPC, "prediction_type": "velocity"}, "'epsilon', 'sample', 'v_prediction' or"),
    ({**UNIPC, "prediction_type": "flow_prediction"}, "epsilon, sample or v_prediction works"),
    ({**FLOW_UNIPC, "prediction_type": "epsilon"}, "flow_prediction works"),
    ({**FLOW_UNIPC, "lower_order_final": False}, "lower_order_final=False"),
    ({**FLOW_UNIPC, "solver_order": 4}, "solver_order=4 .* 1, 2 or 3 works"),
    ({**FLOW_UNIPC, "use_exponential_sigmas": True}, "use_exponential_sigmas=True"),
    ({**UNIPC, "use_dynamic_shifting": True}, "plain flow sigmas"),
    ({**UNIPC, "beta_schedule": "squaredcos_cap_v2"}, "'linear' or 'scaled_linear' works"),
    ({**DPM, "algorithm_type": "dpmsolver"}, "'dpmsolver\\+\\+' or 'sde-dpmsolver\\+\\+' works"),
    ({**DPM, "solver_order": 3}, "1 or 2 works"),
    ({"_class_name": "DDIMScheduler"}, "clip_sample=True is not supported; False works"),
]


@pytest.mark.parametrize(("config", "message"), CONFIGS)
def test_what_is_not_supported_is_refused(config, message):
    with pytest.raises(UsageError, match=message) as refusal:
        schedule.from_config(config, 10)
    assert "\n" not in str(refusal.value)


def test_an_option_left_null_is_off():
    config = {**EULER, "use_karras_sigmas": None, "use_beta_sigmas": None, "shift_terminal": None}
    table = schedule.from_config(config, 6)
    assert torch.equal(table.sigmas, schedule.from_config(EULER, 6).sigmas)


def test_tables_that_are_none_are_refused():
    sigmas = torch.tensor([0.9, 0.5, 0.0])
    with pytest.raises(UsageError, match="3 sigmas, 3 timesteps"):
        Schedule(sigmas, sigmas)
    with pytest.raises(UsageError, match="without steps"):
        Schedule(sigmas[:1], sigmas[:0])
    with pytest.raises(UsageError, match=r"after 0.5 in step 2 comes 0.7"):
        Schedule(torch.tensor([0.9, 0.5, 0.7]), sigmas[:2])
    with pytest.raises(UsageError, match="known: flow, vp, ve"):
        Schedule(sigmas, sigmas[:2], noise="edm")
    with pytest.raises(UsageError, match="needs flow sigmas"):
        schedule.from_config(DDIM, 5).shifted(2.0)
    with pytest.raises(UsageError, match="takes one look"):
        schedule.from_config({**DDIM, "timestep_spacing": "linspace"}, 7).doubled()
    with pytest.raises(UsageError, match=r"after 0\.2 comes 0\.4"):
        schedule.from_sigmas([0.2, 0.4])
