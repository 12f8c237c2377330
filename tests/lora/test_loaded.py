"""Several LoRAs on one transformer or two: weights, names, and what is refused."""

from __future__ import annotations

import pytest
import torch

import kinema
from kinema.runtime.errors import Cancelled, UsageError
from kinema.runtime.lora.loaded import LoraSet

from .conftest import (
    ALPHA,
    MODULES,
    PAIR,
    RANK,
    TOLERANCE,
    bits,
    error,
    factors,
    keyed,
    merged,
    opened,
    outputs,
    same,
    written,
)


@pytest.mark.parametrize("merge", [True, False], ids=["merged", "beside"])
def test_several_at_once_with_weights(reference, folder, tmp_path, merge):
    one, two = factors(reference, 1), factors(reference, 2)
    model, loras = opened(folder)
    before = bits(model)
    loras.load(written(tmp_path, keyed(one, "peft"), "one.safetensors"), 0.5, merged=merge)
    loras.load(written(tmp_path, keyed(two, "kohya"), "two.safetensors"), 0.3, "second")

    def both(first, second):
        return merged(merged(reference, one, first), two, second * ALPHA / RANK)

    assert error(*outputs(both(0.5, 0.3), model)) < TOLERANCE
    loras.set_weights({"one": -0.25, "second": 0.1})
    assert error(*outputs(both(-0.25, 0.1), model)) < TOLERANCE
    assert (loras.reports["one"].weight, loras.reports["second"].weight) == (-0.25, 0.1)
    loras.unload("one")
    assert error(*outputs(both(0.0, 0.1), model)) < TOLERANCE
    loras.set_weights({"second": 0.0})
    assert same(bits(model), before)
    loras.unload("second")
    assert same(bits(model), before) and not loras.reports


@pytest.fixture
def experts(folder):
    """Two transformers of one model, and what loads LoRAs onto both."""
    models, loras = {}, {}
    for component in ("transformer", "transformer_2"):
        models[component], loras[component] = opened(folder)
        loras[component].component = component
    return models, LoraSet(loras, loras.__getitem__)


def test_each_of_two_experts_takes_its_own(reference, experts, tmp_path):
    models, loras = experts
    ours = {"transformer": factors(reference, 1), "transformer_2": factors(reference, 2)}
    tensors = {
        f"{component}.{key.removeprefix('transformer.')}": tensor
        for component, made in ours.items()
        for key, tensor in keyed(made, "diffusers").items()
    }
    report = loras.load(written(tmp_path, tensors), 0.5, "pair")
    assert set(report.matched) == set(tensors) and loras.reports == {"pair": report}
    for component, made in ours.items():
        found, wanted = outputs(merged(reference, made, 0.5), models[component])
        assert error(found, wanted) < TOLERANCE
    loras.set_weights({"pair": 0.25})
    wanted = merged(reference, ours["transformer_2"], 0.25)
    assert error(*outputs(wanted, models["transformer_2"])) < TOLERANCE
    loras.unload("pair")
    assert error(*outputs(reference, models["transformer_2"])) < TOLERANCE


def test_one_of_two_experts_is_chosen_by_name(reference, experts, tmp_path):
    models, loras = experts
    made = factors(reference)
    path = written(tmp_path, keyed(made, "original"))
    with pytest.raises(UsageError, match=r"which of two .*one of transformer, transformer_2, both"):
        loras.load(path)
    with pytest.raises(UsageError, match="component 'vae' is not known; known: transformer, tr"):
        loras.load(path, component="vae")
    loras.load(path, component="transformer_2")
    assert error(*outputs(reference, models["transformer"])) < TOLERANCE
    assert error(*outputs(merged(reference, made), models["transformer_2"])) < TOLERANCE
    # What does not go onto both goes onto neither.
    with pytest.raises(UsageError, match="is loaded already"):
        loras.load(path, component="both")
    assert error(*outputs(reference, models["transformer"])) < TOLERANCE
    loras.unload("style")
    report = loras.load(path, component="both")
    assert set(report.matched) == set(keyed(made, "original"))
    assert error(*outputs(merged(reference, made), models["transformer"])) < TOLERANCE


def test_names_are_taken_once_and_known(folder, tmp_path):
    _, loras = opened(folder)
    path = written(tmp_path, PAIR)
    loras.load(path)
    with pytest.raises(UsageError, match="'style' is loaded already"):
        loras.load(path)
    with pytest.raises(UsageError, match="weight nan is not a finite number"):
        loras.load(path, float("nan"), "other")
    loras.load(path, name="again")
    with pytest.raises(UsageError, match="weight inf is not a finite number"):
        loras.set_weights({"style": 1.0, "again": float("inf")})
    assert loras.reports["style"].weight == 1.0
    for change in (lambda: loras.unload("other"), lambda: loras.set_weights({"other": 1.0})):
        with pytest.raises(UsageError, match="no LoRA 'other' is loaded; loaded: style, again"):
            change()


def test_keys_that_match_nothing_are_refused_or_reported(reference, folder, tmp_path):
    made = factors(reference)
    strange = {
        "diffusion_model.blocks.0.cross_attn.k_img.lora_A.weight": torch.zeros(RANK, 48),
        "diffusion_model.blocks.0.cross_attn.k_img.lora_B.weight": torch.zeros(48, RANK),
        "diffusion_model.blocks.9.self_attn.q.alpha": torch.tensor(1.0),
    }
    path = written(tmp_path, {**keyed(made, "original"), **strange})
    model, loras = opened(folder)
    before = bits(model)
    with pytest.raises(UsageError, match=r"3 of \d+ keys match nothing: .*allow_unmatched") as told:
        loras.load(path)
    assert all(key in str(told.value) for key in strange)
    assert same(bits(model), before) and not loras.reports
    report = loras.load(path, allow_unmatched=True)
    assert set(report.unmatched) == set(strange)
    assert report.as_dict()["matched"] == 2 * len(MODULES)
    assert error(*outputs(merged(reference, made), model)) < TOLERANCE


@pytest.mark.parametrize(
    ("stem", "family"),
    [
        ("transformer.single_transformer_blocks.0.attn.to_q", "Flux or HunyuanVideo"),
        ("lora_unet_double_blocks_0_img_attn_qkv", "Flux or HunyuanVideo"),
        ("unet.down_blocks.0.attentions.0.proj_in", "Stable Diffusion"),
        ("transformer.transformer_blocks.0.attn1.to_q", "CogVideoX"),
        ("diffusion_model.transformer_blocks.0.attn2.to_q", "LTX-Video"),
        ("transformer.transformer_blocks.0.img_mlp.net.2", "Qwen-Image"),
        ("diffusion_model.blocks.77.self_attn.q", "Wan"),
        ("something.else", "an unknown model"),
    ],
)
def test_another_family_is_named(folder, tmp_path, stem, family):
    tensors = {
        f"{stem}.lora_A.weight": torch.zeros(2, 8),
        f"{stem}.lora_B.weight": torch.zeros(8, 2),
    }
    _, loras = opened(folder)
    with pytest.raises(UsageError, match=f"{family}: no key fits WanTransformer") as told:
        loras.load(written(tmp_path, tensors), allow_unmatched=True)
    assert stem in str(told.value) and "\n" not in str(told.value)


def test_another_size_is_named(folder, tmp_path):
    wide = {
        key: torch.ones([64 if size == 48 else size for size in t.shape]) for key, t in PAIR.items()
    }
    _, loras = opened(folder)
    path = written(tmp_path, wide)
    for options in ({}, {"allow_unmatched": True}):
        with pytest.raises(UsageError, match=r"another size: .*\[64, 64\].*is \[48, 48\] here"):
            loras.load(path, **options)


def test_one_key_of_another_size_may_be_left_out(folder, tmp_path):
    """As where a LoRA of a model without pictures meets one that is shown them."""
    strange = {"diffusion_model.patch_embedding.diff": torch.zeros(48, 36, 1, 2, 2)}
    _, loras = opened(folder)
    path = written(tmp_path, {**PAIR, **strange})
    with pytest.raises(UsageError, match=r"another size: .*\[48, 36, 1, 2, 2\]"):
        loras.load(path)
    report = loras.load(path, allow_unmatched=True)
    assert (set(report.matched), set(report.unmatched)) == (set(PAIR), set(strange))


def test_an_engine_takes_a_lora_off_again_between_requests(tmp_path):
    engine = kinema.load()
    model, before = engine.transformer, bits(engine.transformer)
    config = engine.checkpoint.component("transformer").config
    width = config["num_attention_heads"] * config["attention_head_dim"]
    key = "base_model.model.blocks.0.attn1.to_out.0"
    up, down = torch.ones(width, 4), torch.ones(4, width)
    path = written(tmp_path, {f"{key}.lora_A.weight": down, f"{key}.lora_B.weight": up})

    name = engine.load_lora(path).name
    assert not same(bits(model), before)
    job = engine.submit("a red ball")
    with pytest.raises(UsageError, match="cannot unload a LoRA while requests are worked on"):
        engine.unload_lora(name)
    job.cancel()
    with pytest.raises(Cancelled):
        job.result()
    engine.scheduler.close()
    engine.unload_lora(name)
    assert same(bits(model), before) and not engine.loras.reports
    with pytest.raises(UsageError, match="no LoRA 'style' is loaded"):
        engine.unload_lora(name)
