"""What a request costs, stage by stage, before any work."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
from safetensors.torch import load_file, save_file

from kinema.benchmarks.plan import open_bytes, peak_of
from kinema.runtime.checkpoints.checkpoint import open_checkpoint
from kinema.runtime.engine import load
from kinema.runtime.errors import KinemaError
from kinema.runtime.execution import pack
from kinema.runtime.planning import cost
from kinema.runtime.planning.cost import Runner, Setting
from kinema.runtime.planning.plan import resolve
from kinema.runtime.requests.request import Request

WEIGHTS = "diffusion_pytorch_model.safetensors"
PROMPT = "a red ball bounces on the grass"
GPU = Runner("cuda", "eager", fused=True)


def runner(**setting):
    executor = "packed" if pack.can_pack() else "eager"
    return Runner("cpu", executor, setting=Setting(**setting))


def embedded_plan(dtype="float32", **fields):
    return resolve(Request(PROMPT, **fields), open_checkpoint(), "cpu", dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_embedded_model_needs_what_its_plan_says(dtype):
    engine, request = load(None, "cpu", dtype), Request(PROMPT, num_inference_steps=3)
    plan = resolve(request, engine.checkpoint, "cpu", dtype)
    counted = cost.count(plan, engine.checkpoint, runner(), cost.guess_tokens(PROMPT))
    engine.session(request).finish()
    assert sum(counted.weight_bytes.values()) / open_bytes(engine) == pytest.approx(1, abs=0.02)
    assert counted.peak_memory_bytes / peak_of(engine, request) == pytest.approx(1, abs=0.15)


def test_what_a_run_needs_beyond_the_weights_has_none_of_them(big_checkpoint, big_plan):
    plan = big_plan()
    resident, offloaded = (
        cost.count(plan, big_checkpoint, replace(GPU, setting=Setting(offload=mode)), 16)
        for mode in ("none", "model")
    )
    assert resident.working_bytes == offloaded.working_bytes
    weights = sum(resident.weight_bytes.values())
    assert resident.working_bytes == resident.peak_memory_bytes - weights


def test_counting_imports_no_torch():
    code = "import sys, kinema.runtime.planning.fit; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_seconds_are_counted_by_stage_and_in_proportion_to_steps():
    class OneASecond:
        def seconds(self, work):
            return float(sum(work.values()))

    few, many = (
        cost.count(
            embedded_plan(num_inference_steps=steps), open_checkpoint(), runner(), text_tokens=8
        )
        for steps in (5, 15)
    )
    (once,), (thrice,) = (
        [stage for stage in found.stages if stage.name == "denoise"] for found in (few, many)
    )
    assert thrice.flops == 3 * once.flops
    assert many.seconds(OneASecond()) > few.seconds(OneASecond())


def test_two_passes_hold_less_and_do_the_shared_part_twice(big_checkpoint, big_plan):
    plan = big_plan()
    batched = cost.count(plan, big_checkpoint, GPU, 8)
    passes = cost.count(
        plan, big_checkpoint, replace(GPU, setting=Setting(guidance="two passes")), 8
    )
    one, two = (next(s for s in c.stages if s.name == "denoise") for c in (batched, passes))
    assert two.flops > one.flops
    assert two.peak_bytes < one.peak_bytes


def test_an_unknown_class_is_told(big_checkpoint, big_plan):
    index = {**big_checkpoint.index, "vae": ["diffusers", "AutoencoderKLCogVideoX"]}
    with pytest.raises(
        KinemaError, match=r"AutoencoderKLCogVideoX, which is not known; known: Auto"
    ):
        cost.count(big_plan(), replace(big_checkpoint, index=index), Runner(), 8)


def test_a_transformer_in_the_authors_own_files_costs_the_same(tmp_path):
    """Their config has other names, or is not there; shapes in the headers tell it."""
    from kinema.runtime.models.wan.original import ORIGINAL

    embedded = open_checkpoint()
    published = load_file(embedded.component("transformer").folder / WEIGHTS)
    file = tmp_path / "model.safetensors"
    save_file({ORIGINAL.name(name): tensor for name, tensor in published.items()}, file)
    checkpoint = open_checkpoint(file, base=embedded)
    wanted, found = (
        cost.count(resolve(Request(PROMPT), one, "cpu", "float32"), one, runner(), 8)
        for one in (embedded, checkpoint)
    )
    assert [stage.flops for stage in found.stages] == [stage.flops for stage in wanted.stages]
    assert found.weight_bytes == wanted.weight_bytes


def test_guessed_tokens_are_near_and_never_beyond_the_limit():
    assert 8 <= cost.guess_tokens(PROMPT) <= 15
    assert cost.guess_tokens("word " * 1000) == 512
