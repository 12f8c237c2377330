"""How a request is fitted into memory, and what is said where it does not fit."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from kinema.runtime.errors import UsageError
from kinema.runtime.planning import cost, fit
from kinema.runtime.planning.cost import Runner, Setting
from kinema.runtime.planning.plan import resolve
from kinema.runtime.requests.request import Request

PROMPT = "a red ball bounces on the grass"
GPU = Runner("cuda", "eager", fused=True)


def test_with_room_the_fastest_setting_is_taken(big_checkpoint, big_plan):
    found = fit.fit(big_plan(), big_checkpoint, GPU, 16, memory=10**12)
    assert found.runner.setting == Setting()
    assert {choice.what for choice in found.choices} == {"guidance", "tile", "offload"}
    assert all(choice.reason for choice in found.choices)


def test_decoding_that_does_not_fit_is_tiled(big_checkpoint, big_plan):
    plan = big_plan()
    whole = cost.count(plan, big_checkpoint, GPU, 16)
    assert whole.worst.name == "decode"
    found = fit.fit(plan, big_checkpoint, GPU, 16, memory=whole.peak_memory_bytes - 1)
    assert found.runner.setting.tile is not None
    assert found.cost.peak_memory_bytes < whole.peak_memory_bytes
    (tile,) = [choice for choice in found.choices if choice.what == "tile"]
    assert tile.taken == "512x512" and tile.reason.startswith("decoding would need")


def test_every_leaner_setting_is_tried_before_a_refusal(big_checkpoint, big_plan):
    plan, seen, setting = big_plan(), [], Setting()
    for stage in ("decode", "decode", "denoise", "denoise", "denoise"):
        setting = fit.leaner(setting, stage, plan, big_checkpoint, "cuda")
        seen.append((setting.tile, setting.guidance, setting.offload))
    assert seen[:2] == [(t, "batched", "none") for t in ((512, 512), (256, 256))]
    assert [row[1:] for row in seen[2:]] == [
        ("two passes", "none"),
        ("two passes", "model"),
        ("two passes", "block"),
    ]
    assert fit.leaner(setting, "denoise", plan, big_checkpoint, "cuda") is None


def test_weights_leave_the_device_where_they_are_offloaded(big_checkpoint, big_plan):
    plan = big_plan()
    peaks = [
        next(
            stage.peak_bytes
            for stage in cost.count(
                plan, big_checkpoint, replace(GPU, setting=Setting(offload=mode)), 16
            ).stages
            if stage.name == "denoise"
        )
        for mode in ("none", "model", "block")
    ]
    block, head = 256 * 64 * 2, 8 * 2
    other = 8 * block + head  # the text encoder's; the autoencoder's are in float32
    assert peaks[0] - peaks[1] == other + 2 * other
    assert peaks[1] - peaks[2] == 6 * block


def test_a_refusal_names_a_request_that_fits_and_is_the_longest(big_checkpoint, big_plan):
    def settle(frames, height, width):
        return big_plan(frames, height, width)

    leanest = replace(GPU, setting=Setting("two passes", (256, 256), "block"))

    def peak(frames, height, width):
        plan = settle(frames, height, width)
        return cost.count(plan, big_checkpoint, leanest, 16).peak_memory_bytes

    memory = peak(401, 480, 832)
    with pytest.raises(UsageError) as told:
        fit.fit(settle(481, 480, 832), big_checkpoint, GPU, 16, memory, settle)
    assert str(told.value) == (
        f"481 frames at 832x480: needs {fit.gb(peak(481, 480, 832))}, {fit.gb(memory)} of memory"
        " are there; 401 frames at 832x480 would fit"
    )
    assert peak(405, 480, 832) > memory


def test_what_was_asked_for_stays_and_a_tile_is_started_from(big_checkpoint, big_plan):
    plan, tile = big_plan(), Setting(tile=(320, 416))
    asked = replace(GPU, setting=tile, asked=frozenset({"tile"}))
    found = fit.fit(plan, big_checkpoint, asked, 16, memory=10**12)
    assert found.runner.setting == tile
    (told,) = [choice for choice in found.choices if choice.what == "tile"]
    assert (told.taken, told.reason) == ("416x320", "asked for")
    setting = fit.leaner(tile, "decode", plan, big_checkpoint, "cuda", asked.asked)
    assert setting == replace(tile, offload="model")
    assert fit.leaner(tile, "decode", plan, big_checkpoint, "cuda").tile == (256, 256)


def test_a_tile_that_does_not_fit_the_autoencoder_is_refused(big_checkpoint):
    fit.check_tile((256, 512), big_checkpoint)
    with pytest.raises(UsageError, match=r"tile is 100x252; its sides .* of 8: nearest 96x256"):
        fit.check_tile((252, 100), big_checkpoint)
    with pytest.raises(UsageError, match=r"tile is 4x0; .*nearest 8x8"):
        fit.check_tile((0, 4), big_checkpoint)
    config = big_checkpoint.component("vae").folder / "config.json"
    config.write_text(json.dumps({"base_dim": 96, "attn_scales": [0.5]}))
    with pytest.raises(UsageError, match=r"attends to the whole frame .*; leave it out"):
        fit.check_tile((256, 512), big_checkpoint)


def test_offload_is_told_where_it_would_help_and_cannot_be_chosen(big_checkpoint, big_plan):
    plan = big_plan(1, 64, 64)
    leanest = replace(GPU, setting=Setting(offload="model"))
    memory = cost.count(plan, big_checkpoint, leanest, 16).peak_memory_bytes
    assert fit.fit(plan, big_checkpoint, GPU, 16, memory).runner.setting.offload == "model"
    with pytest.raises(UsageError, match=r"are there; offload='model' would fit it; 1 frame at"):
        fit.fit(
            plan,
            big_checkpoint,
            replace(GPU, asked=frozenset({"offload"})),
            16,
            memory,
            lambda *sizes: big_plan(*sizes),
        )


def test_a_solver_that_predicts_twice_a_step_costs_so(big_checkpoint):
    def denoising(solver):
        request = Request(PROMPT, num_inference_steps=10, solver=solver)
        plan = resolve(request, big_checkpoint, "cuda", "bfloat16")
        stages = cost.count(plan, big_checkpoint, GPU, 16).stages
        return next(stage.flops for stage in stages if stage.name == "denoise")

    assert denoising("heun") * 10 == denoising("euler") * 19


def test_where_no_length_fits_a_smaller_size_is_named(big_checkpoint, big_plan):
    def settle(frames, height, width):
        return big_plan(frames, height, width)

    plan, memory = settle(481, 1280, 2048), 10**9
    near = fit.nearest(plan, big_checkpoint, GPU, 16, memory, settle)
    assert (near.height, near.width) < (plan.height, plan.width)
    found = cost.count(near, big_checkpoint, GPU, 16).peak_memory_bytes
    assert 0.25 * memory < found <= memory


def test_where_the_weights_alone_do_not_fit_that_is_told(big_checkpoint, big_plan):
    plan = big_plan()
    with pytest.raises(UsageError, match=r"no shorter or smaller video would fit: the weights are"):
        fit.fit(plan, big_checkpoint, GPU, 16, 1000, lambda *sizes: big_plan(*sizes))
