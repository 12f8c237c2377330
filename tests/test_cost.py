"""Costs are counted from sizes alone; here they are held against what the modules themselves do."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from math import prod

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils.flop_counter import FlopCounterMode

from kinema import kernels
from kinema.benchmarks.plan import allocated, open_bytes, peak_of
from kinema.runtime.checkpoints.checkpoint import EMBEDDED_FOLDER, open_checkpoint
from kinema.runtime.engine import load
from kinema.runtime.errors import KinemaError, UsageError
from kinema.runtime.execution import pack
from kinema.runtime.ledger import COUNT_FLOPS, Ledger, Shapes, Work
from kinema.runtime.models.wan.config import WanConfig
from kinema.runtime.models.wan.sizes import Wan, WanVace
from kinema.runtime.models.wan.transformer import WanTransformer
from kinema.runtime.models.wan.vace import WanVaceConfig, WanVaceTransformer
from kinema.runtime.planning import cost, fit, weight_sizes
from kinema.runtime.planning.cost import Runner, Setting
from kinema.runtime.planning.plan import resolve
from kinema.runtime.requests.request import Request
from kinema.runtime.vaes.decode import to_uint8
from kinema.runtime.vaes.wan_sizes import WanVae

WEIGHTS = "diffusion_pytorch_model.safetensors"
PROMPT = "a red ball bounces on the grass"
CONFIG = {
    "num_attention_heads": 3,
    "attention_head_dim": 64,
    "text_dim": 64,
    "ffn_dim": 512,
    "num_layers": 3,
    "in_channels": 16,
    "out_channels": 16,
}


# ---- the transformer -----------------------------------------------------------------------------


def transformer(dtype=torch.float32, packed=False):
    torch.manual_seed(0)
    config = WanConfig(**CONFIG)
    ops = kernels.bind("cpu", dtype, config.attention_head_dim)
    model = WanTransformer(config, ops).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if not Wan.KEEP_FP32 & set(name.split(".")):
            parameter.data = parameter.data.to(dtype)
    if packed:
        pack.pack_linears(model.blocks)
    return model


def bound(model, shapes):
    text = torch.zeros(shapes.rows, shapes.text_tokens, CONFIG["text_dim"])
    pads = torch.full((shapes.rows,), 512 - shapes.text_tokens)
    return model.bind((1, *shapes.latents), torch.linspace(1000, 1, shapes.steps), text, pads)


def bound_step(sizes):
    """Counts a step, what is bound being held."""
    held = sizes.bind()
    return lambda: sizes.step() if held is not None else None


@pytest.mark.parametrize("rows", [1, 2])
def test_flops_of_a_step_are_those_that_torch_counts(rows):
    shapes = Shapes((16, 3, 12, 16), 4, rows, 9)
    model, latents = transformer(), torch.zeros(1, 16, 3, 12, 16)
    with torch.inference_mode():
        predict = bound(model, shapes)
        with FlopCounterMode(display=False) as counter:
            predict(latents, 0)
    ledger = Ledger()
    step = bound_step(Wan(ledger, CONFIG, shapes, 4))
    ledger.take()
    step()
    # (It has no formula for the attention kernel of a CPU.)
    counted = {one: n for one, n in ledger.work.items() if one.kind not in ("attention", "lookup")}
    assert flops(counted) == counter.get_total_flops()
    tokens, width, blocks = 3 * 6 * 8, 3 * 64, 3
    queries = tokens * (1 + (blocks - 1) * rows), tokens * blocks * rows  # the first are shared
    attention = 4 * width * (queries[0] * tokens + queries[1] * 16)
    assert flops(ledger.work) - flops(counted) == attention


@pytest.fixture
def one_thread():
    """A CPU's attention holds about a megabyte for each, which only a small model notices."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    "shapes",
    [
        Shapes((16, 3, 12, 16), 4, 2, 9),
        Shapes((16, 1, 32, 32), 30, 1, 40),
    ],
)
def test_memory_of_a_step_is_what_the_allocator_hands_out(dtype, packed, shapes, one_thread):
    if packed and not pack.can_pack():
        pytest.skip("this build of PyTorch cannot pack")
    model, latents = transformer(dtype, packed), torch.zeros(1, *shapes.latents)
    with torch.inference_mode():
        predict = bound(model, shapes)
        predict(latents, 0)
        measured = allocated(lambda: predict(latents, 0))
    ledger = Ledger(packed=packed)
    step = bound_step(Wan(ledger, CONFIG, shapes, dtype.itemsize))
    ledger.take()
    held = ledger.live
    step()
    assert ledger.live == held
    # A plan promises 15 percent.
    assert (ledger.peak - held) / measured == pytest.approx(1, abs=0.12)


def test_a_step_with_blocks_of_control():
    config = {**CONFIG, "vace_layers": (0, 2), "vace_in_channels": 96}
    model = WanVaceTransformer(WanVaceConfig(**config)).eval()
    shapes = Shapes((16, 3, 12, 16), 4, 2, 9)
    control, latents = torch.zeros(1, 96, 3, 12, 16), torch.zeros(1, 16, 3, 12, 16)
    with torch.inference_mode():
        text, pads = torch.zeros(2, 9, 64), torch.tensor([503, 503])
        predict = model.bind((1, *shapes.latents), torch.ones(4), text, pads, control=control)
        predict(latents, 0)
        measured = allocated(lambda: predict(latents, 0))
        with FlopCounterMode(display=False) as counter:
            predict(latents, 0)
    ledger = Ledger()
    step = bound_step(WanVace(ledger, config, shapes, 4))
    ledger.take()
    held = ledger.live
    step()
    counted = {one: n for one, n in ledger.work.items() if one.kind not in ("attention", "lookup")}
    assert flops(counted) == counter.get_total_flops()
    assert (ledger.peak - held) / measured == pytest.approx(1, abs=0.08)


def test_memory_that_stays_bound_is_what_the_allocator_keeps():
    shapes = Shapes((16, 3, 12, 16), 20, 2, 9)
    model, kept = transformer(), []
    with torch.inference_mode():
        bound(model, shapes)
        top = allocated(lambda: kept.append(bound(model, shapes)))
    ledger = Ledger()
    step = bound_step(Wan(ledger, CONFIG, shapes, 4))
    assert step and ledger.peak / top == pytest.approx(1, abs=0.15)


# ---- autoencoders --------------------------------------------------------------------------------

NARROW = {"base_dim": 16}
NARROW_22 = {
    "base_dim": 16,
    "decoder_base_dim": 16,
    "z_dim": 48,
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_spatial": 16,
    "latents_mean": [0.0] * 48,
    "latents_std": [1.0] * 48,
}


@pytest.mark.parametrize("tile", [None, (64, 64)])
@pytest.mark.parametrize(
    ("config", "shape"), [(NARROW, (16, 3, 12, 10)), (NARROW_22, (48, 3, 6, 6))]
)
def test_decoding_with_wans_autoencoders(config, shape, tile):
    diffusers = pytest.importorskip("diffusers")
    from kinema.runtime.vaes.wan import WanVAE

    vae = WanVAE(diffusers.AutoencoderKLWan(**config).eval().requires_grad_(False))
    latents, tiled = torch.zeros(1, *shape), {} if tile is None else {"tile": tile}

    def decode():
        return [to_uint8(pixels[0]) for pixels in vae.decode_chunks(latents, **tiled)]

    with torch.inference_mode():
        decode()
        measured = allocated(decode)
        with FlopCounterMode(display=False) as counter:
            decode()
    ledger = Ledger()
    WanVae(ledger, dict(vae.config)).decode(shape, tile)
    assert ledger.peak / measured == pytest.approx(1, abs=0.1)
    assert flops(ledger.work) / counter.get_total_flops() == pytest.approx(1, abs=0.01)


def flops(work):
    return sum(one.flops * times for one, times in work.items())


# ---- a request -----------------------------------------------------------------------------------


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


def test_what_a_run_needs_beyond_the_weights_has_none_of_them(big_checkpoint):
    plan = big_plan(big_checkpoint)
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


def test_two_passes_hold_less_and_do_the_shared_part_twice(big_checkpoint):
    plan = big_plan(big_checkpoint)
    batched = cost.count(plan, big_checkpoint, GPU, 8)
    passes = cost.count(
        plan, big_checkpoint, replace(GPU, setting=Setting(guidance="two passes")), 8
    )
    one, two = (next(s for s in c.stages if s.name == "denoise") for c in (batched, passes))
    assert two.flops > one.flops
    assert two.peak_bytes < one.peak_bytes


def test_an_unknown_class_is_told(big_checkpoint):
    index = {**big_checkpoint.index, "vae": ["diffusers", "AutoencoderKLCogVideoX"]}
    with pytest.raises(KinemaError, match=r"AutoencoderKLCogVideoX, which is not known; known: Auto"):
        cost.count(big_plan(big_checkpoint), replace(big_checkpoint, index=index), Runner(), 8)


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


# ---- fitting -------------------------------------------------------------------------------------


@pytest.fixture
def big_checkpoint(tmp_path):
    """A checkpoint with the config of Wan2.1-1.3B and hardly any weights."""
    configs = {
        "transformer": {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30},
        "vae": {"base_dim": 96},
        "text_encoder": {"d_model": 4096, "num_heads": 64, "d_kv": 64, "d_ff": 10240}
        | {"num_layers": 24},
    }
    for name, config in configs.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        tensors = {f"blocks.{i}.weight": torch.zeros(256, 64) for i in range(8)}
        save_file(tensors | {"head": torch.zeros(8)}, folder / "model.safetensors")
    index = {
        "_class_name": "WanPipeline",
        "transformer": ["diffusers", "WanTransformer3DModel"],
        "vae": ["diffusers", "AutoencoderKLWan"],
        "text_encoder": ["transformers", "UMT5EncoderModel"],
    }
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    return open_checkpoint(tmp_path)


def big_plan(checkpoint, frames=81, height=480, width=832):
    request = Request(PROMPT, num_frames=frames, height=height, width=width)
    return resolve(request, checkpoint, "cuda", "bfloat16")


GPU = Runner("cuda", "eager", fused=True)


def test_with_room_the_fastest_setting_is_taken(big_checkpoint):
    found = fit.fit(big_plan(big_checkpoint), big_checkpoint, GPU, 16, memory=10**12)
    assert found.runner.setting == Setting()
    assert {choice.what for choice in found.choices} == {"guidance", "tile", "offload"}
    assert all(choice.reason for choice in found.choices)


def test_decoding_that_does_not_fit_is_tiled(big_checkpoint):
    plan = big_plan(big_checkpoint)
    whole = cost.count(plan, big_checkpoint, GPU, 16)
    assert whole.worst.name == "decode"
    found = fit.fit(plan, big_checkpoint, GPU, 16, memory=whole.peak_memory_bytes - 1)
    assert found.runner.setting.tile is not None
    assert found.cost.peak_memory_bytes < whole.peak_memory_bytes
    (tile,) = [choice for choice in found.choices if choice.what == "tile"]
    assert tile.taken == "512x512" and tile.reason.startswith("decoding would need")


def test_every_leaner_setting_is_tried_before_a_refusal(big_checkpoint):
    plan, seen, setting = big_plan(big_checkpoint), [], Setting()
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


def test_weights_leave_the_device_where_they_are_offloaded(big_checkpoint):
    plan = big_plan(big_checkpoint)
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


def test_a_refusal_names_a_request_that_fits_and_is_the_longest(big_checkpoint):
    def settle(frames, height, width):
        return big_plan(big_checkpoint, frames, height, width)

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


def test_what_was_asked_for_stays_and_a_tile_is_started_from(big_checkpoint):
    plan, tile = big_plan(big_checkpoint), Setting(tile=(320, 416))
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


def test_offload_is_told_where_it_would_help_and_cannot_be_chosen(big_checkpoint):
    plan = big_plan(big_checkpoint, 1, 64, 64)
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
            lambda *sizes: big_plan(big_checkpoint, *sizes),
        )


def test_a_solver_that_predicts_twice_a_step_costs_so(big_checkpoint):
    def denoising(solver):
        request = Request(PROMPT, num_inference_steps=10, solver=solver)
        plan = resolve(request, big_checkpoint, "cuda", "bfloat16")
        stages = cost.count(plan, big_checkpoint, GPU, 16).stages
        return next(stage.flops for stage in stages if stage.name == "denoise")

    assert denoising("heun") * 10 == denoising("euler") * 19


def test_where_no_length_fits_a_smaller_size_is_named(big_checkpoint):
    def settle(frames, height, width):
        return big_plan(big_checkpoint, frames, height, width)

    plan, memory = settle(481, 1280, 2048), 10**9
    near = fit.nearest(plan, big_checkpoint, GPU, 16, memory, settle)
    assert (near.height, near.width) < (plan.height, plan.width)
    found = cost.count(near, big_checkpoint, GPU, 16).peak_memory_bytes
    assert 0.25 * memory < found <= memory


def test_where_the_weights_alone_do_not_fit_that_is_told(big_checkpoint):
    plan = big_plan(big_checkpoint)
    with pytest.raises(UsageError, match=r"no shorter or smaller video would fit: the weights are"):
        fit.fit(
            plan, big_checkpoint, GPU, 16, 1000, lambda *sizes: big_plan(big_checkpoint, *sizes)
        )


# ---- the ledger ----------------------------------------------------------------------------------


def test_a_size_is_held_as_long_as_it_is_named():
    ledger = Ledger()
    first = ledger.new(10, item=4)
    second = ledger.each(first)
    assert (ledger.live, ledger.peak) == (80, 80)
    del first
    assert (ledger.live, ledger.peak) == (40, 80)
    del second
    assert ledger.live == 0


def test_repeated_work_counts_so_often_and_holds_memory_once():
    ledger = Ledger()
    x = ledger.new(2, 3, item=4)
    with ledger.repeat(2), ledger.repeat(5):
        ledger.linear(x, 4)
    assert ledger.work[Work("product", 4, 48, 48)] == 10
    assert ledger.peak == x.bytes + 2 * 4 * 4


def test_every_kind_of_work_that_counts_flops_says_so():
    ledger = Ledger()
    for kind in COUNT_FLOPS:
        ledger.spend(kind, 4, 7)
    ledger.spend("elementwise", 4, 7)
    assert flops(ledger.work) == 7 * len(COUNT_FLOPS)


def test_weights_are_counted_as_they_are_held():
    sizes = weight_sizes.weight_bytes(open_checkpoint(), "bfloat16")
    module = transformer_of_embedded(torch.bfloat16)
    assert sizes["transformer"] == sum(x.nbytes for x in module.parameters())


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("blocks.3.attn1.to_q.weight", "blocks.3."),
        ("vace_blocks.0.proj_in.bias", "vace_blocks.0."),
        ("encoder.block.11.layer.0.SelfAttention.q.weight", "encoder.block.11."),
        ("vision_model.encoder.layers.7.mlp.fc1.weight", "vision_model.encoder.layers.7."),
        ("patch_embedding.weight", None),
        ("decoder.up_blocks.0.resnets.1.conv1.weight", None),
    ],
)
def test_blocks_are_told_by_their_names(name, block):
    found = weight_sizes.BLOCK.match(name)
    assert (found and found.group()) == block


def transformer_of_embedded(dtype):
    from kinema.runtime import opening

    checkpoint = open_checkpoint(EMBEDDED_FOLDER)
    return opening.open_component(checkpoint, "transformer", torch.device("cpu"), dtype)


def test_sizes_agree_on_elements():
    ledger = Ledger()
    x = ledger.new(2, 3, 5, item=2)
    assert (x.count, x.bytes) == (prod((2, 3, 5)), 60)
