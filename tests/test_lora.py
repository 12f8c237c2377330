"""LoRAs in every format against the reference with the same change merged by hand.

In fp32 the two differ by the order of sums alone: at most 1e-4 of the output's RMS is asked for.
"""

from __future__ import annotations

import copy
import json

import pytest
import torch
from safetensors.torch import save_file

import kinema
from kinema.runtime import opening
from kinema.runtime.checkpoints.checkpoint import open_checkpoint
from kinema.runtime.errors import Cancelled, KinemaError, UsageError
from kinema.runtime.execution import pack
from kinema.runtime.lora import changes as lora_apply
from kinema.runtime.lora import formats as lora_files
from kinema.runtime.lora import loaded as lora
from kinema.runtime.models.wan.original import ORIGINAL

diffusers = pytest.importorskip("diffusers")

TOLERANCE = 1e-4
RANK, ALPHA = 3, 6.0
TINY = {
    "num_attention_heads": 2,
    "attention_head_dim": 24,
    "text_dim": 40,
    "freq_dim": 64,
    "ffn_dim": 80,
    "num_layers": 2,
}
MODULES = [
    *(
        f"blocks.{number}.{name}"
        for number in (0, 1)
        for name in (
            *(f"{attention}.to_{part}" for attention in ("attn1", "attn2") for part in "qkv"),
            "attn1.to_out.0",
            "attn2.to_out.0",
            "ffn.net.0.proj",
            "ffn.net.2",
        )
    ),
    "condition_embedder.time_embedder.linear_1",
    "condition_embedder.time_proj",
    "condition_embedder.text_embedder.linear_2",
    "proj_out",
]


@pytest.fixture(scope="module")
def reference():
    torch.manual_seed(0)
    model = diffusers.WanTransformer3DModel(**TINY).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return model


@pytest.fixture(scope="module")
def folder(reference, tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint")
    reference.save_pretrained(path / "transformer")
    index = {"_class_name": "WanPipeline", "transformer": ["diffusers", "WanTransformer3DModel"]}
    (path / "model_index.json").write_text(json.dumps(index))
    return path


def opened(folder, dtype=torch.float32, packed=False):
    """The native transformer, and what loads LoRAs onto it."""
    checkpoint = open_checkpoint(folder)
    model = opening.open_component(checkpoint, "transformer", torch.device("cpu"), dtype)
    if packed:
        pack.pack_linears(model.blocks)
    return model, opening.open_loras(checkpoint, "transformer", model)


def factors(reference, seed=1, names=MODULES):
    """Module: (up, down), random, large enough to change the output by about its size."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for name in names:
        rows, columns = reference.get_submodule(name).weight.shape
        up, down = (
            torch.randn(*shape, generator=generator) for shape in ((rows, RANK), (RANK, columns))
        )
        made[name] = (0.2 * up, 0.2 * down)
    return made


def keyed(made, style):
    """The factors as a tool saves them, scaled by ALPHA / RANK where the style says so."""
    tensors = {}
    for name, (up, down) in made.items():
        original = ORIGINAL.name(name)
        stem, ends = {
            "peft": (f"base_model.model.{name}", ("lora_B.weight", "lora_A.weight")),
            "diffusers": (f"transformer.{name}", ("lora_B.weight", "lora_A.weight")),
            "original": (f"diffusion_model.{original}", ("lora_B.weight", "lora_A.weight")),
            "lightx2v": (f"diffusion_model.{original}", ("lora_up.weight", "lora_down.weight")),
            "kohya": (
                f"lora_unet_{original}".replace(".", "_"),
                ("lora_up.weight", "lora_down.weight"),
            ),
            "diffsynth": (
                f"pipe.dit.{original}",
                ("lora_B.default.weight", "lora_A.default.weight"),
            ),
            "bare": (original, ("lora_B.weight", "lora_A.weight")),
        }[style]
        stem = stem if style == "kohya" else f"{stem}"
        tensors[f"{stem}.{ends[0]}"], tensors[f"{stem}.{ends[1]}"] = up.clone(), down.clone()
        if style in ("kohya", "lightx2v"):
            tensors[f"{stem}.alpha"] = torch.tensor(ALPHA)
    return tensors


def written(tmp_path, tensors, name="style.safetensors", **metadata):
    save_file(
        {key: tensor.contiguous() for key, tensor in tensors.items()}, tmp_path / name, metadata
    )
    return tmp_path / name


@torch.no_grad()
def merged(reference, made, scale=1.0):
    """The reference with the change merged by hand."""
    model = copy.deepcopy(reference)
    for name, (up, down) in made.items():
        model.get_submodule(name).weight += scale * up @ down
    return model


@torch.no_grad()
def outputs(reference, native):
    """Predictions of both for the same latents and text."""
    generator = torch.manual_seed(2)
    latents = torch.randn(2, 16, 2, 6, 8, generator=generator)
    embeds = torch.zeros(2, 512, TINY["text_dim"])
    embeds[:, :9] = torch.randn(2, 9, TINY["text_dim"], generator=generator)
    timesteps = torch.tensor([900.0, 300.0])
    wanted = reference(latents, timesteps, embeds, return_dict=False)[0]
    weight = native.patch_embedding.weight
    found = native.denoise(
        latents.to(weight), timesteps, embeds[:, :9].to(weight), torch.tensor([503, 503])
    )
    return found.float(), wanted


def error(found, wanted):
    """Largest absolute difference in units of the wanted RMS."""
    return float((found - wanted).abs().max() / wanted.square().mean().sqrt())


def bits(model):
    """A copy of every weight, the packed ones as plain ones."""
    state = {name: weight.clone() for name, weight in model.state_dict().items()}
    for name, module in model.named_modules():
        if isinstance(module, pack.PackedLinear):
            state[name] = module.packed.to_dense()
    return state


def same(found, wanted):
    return found.keys() == wanted.keys() and all(
        torch.equal(found[name], wanted[name]) for name in found
    )


STYLES = ["peft", "diffusers", "original", "lightx2v", "kohya", "diffsynth", "bare"]


@pytest.mark.parametrize("merge", [True, False], ids=["merged", "beside"])
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
@pytest.mark.parametrize("style", STYLES)
def test_every_format_is_the_reference_merged_by_hand(
    reference, folder, tmp_path, style, packed, merge
):
    made = factors(reference)
    path = written(tmp_path, keyed(made, style))
    scale = ALPHA / RANK if style in ("kohya", "lightx2v") else 1.0
    model, loras = opened(folder, packed=packed)
    before = bits(model)
    report = loras.load(path, weight=0.7, merged=merge)
    assert set(report.matched) == set(keyed(made, style)) and not report.unmatched
    assert (report.name, report.ranks, report.merged) == ("style", (RANK,), merge)
    found, wanted = outputs(merged(reference, made, 0.7 * scale), model)
    assert error(found, wanted) < TOLERANCE
    assert error(*outputs(reference, model)) > 0.1  # it does something
    loras.unload("style")
    assert same(bits(model), before)
    assert error(*outputs(reference, model)) < TOLERANCE


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


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
def test_in_bfloat16_it_is_rounded_once_and_removed_without_a_trace(
    reference, folder, tmp_path, packed
):
    made = factors(reference)
    model, loras = opened(folder, torch.bfloat16, packed)
    before = bits(model)
    path = written(tmp_path, keyed(made, "original"))
    loras.load(path)
    changed, _ = opened_merged(reference, made, tmp_path)
    if packed:
        pack.pack_linears(changed.blocks)
    wanted = bits(changed)
    for name, weight in bits(model).items():
        # Sums of products taken in another order may round to the neighbouring bfloat16.
        torch.testing.assert_close(weight, wanted[name], rtol=2**-7, atol=1e-5)
    loras.unload("style")
    assert same(bits(model), before)


def opened_merged(reference, made, tmp_path):
    merged(reference, made).save_pretrained(tmp_path / "merged" / "transformer")
    index = {"_class_name": "WanPipeline", "transformer": ["diffusers", "WanTransformer3DModel"]}
    (tmp_path / "merged" / "model_index.json").write_text(json.dumps(index))
    return opened(tmp_path / "merged", torch.bfloat16)


def test_whole_changes_of_weights_biases_norms_and_modulation(reference, folder, tmp_path):
    """As distilled models are published: `.diff`, `.diff_b`, `.diff_m`."""
    wanted = copy.deepcopy(reference)
    tensors = {}
    for name, weight in wanted.named_parameters():
        delta = 0.05 * torch.randn(weight.shape, generator=torch.manual_seed(len(tensors)))
        with torch.no_grad():
            weight += 0.5 * delta
        original = ORIGINAL.name(name)
        for end, mark in ((".weight", ".diff"), (".bias", ".diff_b"), (".modulation", ".diff_m")):
            if original.endswith(end):
                tensors[f"diffusion_model.{original.removesuffix(end)}{mark}"] = delta
    assert len(tensors) == len(dict(reference.named_parameters()))
    model, loras = opened(folder)
    before = bits(model)
    report = loras.load(written(tmp_path, tensors), weight=0.5)
    assert len(report.matched) == len(tensors) and report.ranks == ()
    assert "full rank" in str(report)
    assert error(*outputs(wanted, model)) < TOLERANCE
    loras.unload("style")
    assert same(bits(model), before)


def test_a_kernel_has_factors_too(reference, folder, tmp_path):
    kernel = reference.patch_embedding.weight
    up, down = torch.randn(kernel.shape[0], RANK, 1, 1, 1), torch.randn(RANK, *kernel.shape[1:])
    path = written(
        tmp_path,
        {"patch_embedding.lora_B.weight": 0.2 * up, "patch_embedding.lora_A.weight": 0.2 * down},
    )
    wanted = copy.deepcopy(reference)
    with torch.no_grad():
        wanted.patch_embedding.weight += 0.04 * torch.einsum("or,rcfhw->ocfhw", up.flatten(1), down)
    model, loras = opened(folder)
    loras.load(path)
    assert error(*outputs(wanted, model)) < TOLERANCE


IMAGE = {"in_channels": 36, "image_dim": 20, "added_kv_proj_dim": 48, "pos_embed_seq_len": 514}


@pytest.mark.parametrize("style", ["diffusers", "original", "kohya"])
@pytest.mark.parametrize("variant", ["flf2v", "vace"])
def test_every_matrix_of_every_variant(tmp_path, variant, style):
    """Weights as published, after loading, against those with the product added by hand."""
    kind, options = diffusers.WanTransformer3DModel, {**TINY, **IMAGE}
    if variant == "vace":
        kind, options = diffusers.WanVACETransformer3DModel, {**TINY, "vace_layers": [0, 1]}
    model = kind(**options)
    model.save_pretrained(tmp_path / "transformer")
    index = {"_class_name": "WanPipeline", "transformer": ["diffusers", kind.__name__]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    names = [name for name, part in model.named_modules() if isinstance(part, torch.nn.Linear)]
    made = factors(model, names=names)
    native, loras = opened(tmp_path)
    before = bits(native)
    report = loras.load(written(tmp_path, keyed(made, style)))
    assert len(report.matched) == len(keyed(made, style)) and not report.unmatched
    wanted = merged(model, made, ALPHA / RANK if style == "kohya" else 1.0).state_dict()
    for name, weight in native.to_published().items():
        torch.testing.assert_close(weight, wanted[name], rtol=1e-5, atol=1e-6)
    loras.unload("style")
    assert same(bits(native), before)


# ---- alpha ---------------------------------------------------------------------------------------

MODULE = "blocks.0.attn1.to_q"
PAIR = {
    f"base_model.model.{MODULE}.lora_A.weight": torch.ones(4, 48),
    f"base_model.model.{MODULE}.lora_B.weight": torch.ones(48, 4),
}


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({}, 1.0),
        ({"r": 4, "lora_alpha": 8}, 2.0),
        ({"r": 4, "lora_alpha": 8, "use_rslora": True}, 4.0),
        ({"r": 4, "lora_alpha": 8, "alpha_pattern": {"attn1.to_q": 2}}, 0.5),
        ({"r": 4, "lora_alpha": 8, "alpha_pattern": {"to_k": 2}}, 2.0),
    ],
)
def test_the_scale_that_peft_says(tmp_path, config, scale):
    """Beside the file, or in the header as diffusers writes it."""
    written(tmp_path, PAIR, "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    found = lora_files.read(tmp_path)
    assert (found.name, [change.scale for change in found.changes]) == (tmp_path.name, [scale])
    told = json.dumps({f"transformer.{key}": value for key, value in config.items()})
    path = written(tmp_path, PAIR, "other.safetensors", lora_adapter_metadata=told)
    assert [change.scale for change in lora_files.read(path).changes] == [scale]


def test_one_file_for_two_transformers(folder, tmp_path):
    """As diffusers saves LoRAs of Wan 2.2: each transformer takes its own."""
    tensors = {
        f"{component}.{MODULE}.{key.rpartition(MODULE)[2][1:]}": (number + 1) * tensor
        for number, component in enumerate(("transformer", "transformer_2"))
        for key, tensor in PAIR.items()
    }
    both = lora_files.read(written(tmp_path, tensors))
    for number, component in enumerate(("transformer", "transformer_2")):
        (change,) = both.part(component).changes
        assert change.up[0, 0] == number + 1
    alone = lora_files.read(written(tmp_path, PAIR, "alone.safetensors"))
    assert alone.part("transformer_2") is alone


@pytest.fixture
def experts(folder):
    """Two transformers of one model, and what loads LoRAs onto both."""
    models, loras = {}, {}
    for component in ("transformer", "transformer_2"):
        models[component], loras[component] = opened(folder)
        loras[component].component = component
    return models, lora.LoraSet(loras, loras.__getitem__)


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


# ---- what is refused -----------------------------------------------------------------------------


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


@pytest.mark.parametrize(
    ("key", "word"),
    [
        (f"{MODULE}.dora_scale", "DoRA"),
        (f"{MODULE}.lora_magnitude_vector.weight", "DoRA"),
        (f"{MODULE}.lora_magnitude_vector", "DoRA"),
        (f"{MODULE}.hada_w1_a", "LoHa"),
        (f"{MODULE}.lokr_w1", "LoKr"),
    ],
)
def test_other_methods_are_named(tmp_path, key, word):
    with pytest.raises(UsageError, match=f"is a {word}"):
        lora_files.read(written(tmp_path, {**PAIR, key: torch.ones(48)}))


def test_what_is_no_lora(tmp_path):
    with pytest.raises(UsageError, match="no LoRA at"):
        lora_files.read(tmp_path / "nothing")
    with pytest.raises(UsageError, match="holds no safetensors file"):
        lora_files.read(tmp_path)
    with pytest.raises(UsageError, match=f"is no LoRA: it holds {MODULE}.weight"):
        lora_files.read(written(tmp_path, {f"{MODULE}.weight": torch.ones(4)}))
    torch.save(PAIR, tmp_path / "style.pt")
    with pytest.raises(KinemaError, match=r"style\.pt is a pickle"):
        lora_files.read(tmp_path / "style.pt")
    ill = {**PAIR, next(iter(PAIR)): torch.ones(5, 48)}
    with pytest.raises(KinemaError, match="factors do not fit"):
        lora_files.read(written(tmp_path, ill, "ill.safetensors"))
    path = written(tmp_path, PAIR, "cut.safetensors")
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(KinemaError, match="is cut off at byte"):
        lora_files.read(path)


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


def test_a_checkpoint_that_changed_is_not_mixed_with_what_was_opened(reference, tmp_path):
    path = tmp_path / "checkpoint"
    reference.save_pretrained(path / "transformer")
    index = {"_class_name": "WanPipeline", "transformer": ["diffusers", "WanTransformer3DModel"]}
    (path / "model_index.json").write_text(json.dumps(index))
    model, loras = opened(path)
    before = bits(model)
    file = path / "transformer" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes() + b"")
    with pytest.raises(KinemaError, match="has changed since it was opened"):
        loras.load(written(tmp_path, PAIR))
    assert same(bits(model), before) and not loras.reports


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
def test_a_transformer_that_was_opened_in_inference_mode(reference, folder, tmp_path, packed):
    """As an engine opens it, at the first step."""
    made = factors(reference)
    with torch.inference_mode():
        model, loras = opened(folder, packed=packed)
        before = bits(model)
    for merge in (True, False):
        loras.load(written(tmp_path, keyed(made, "peft")), merged=merge)
        assert error(*outputs(merged(reference, made), model)) < TOLERANCE
        loras.unload("style")
        assert same(bits(model), before)


def test_a_load_that_fails_halfway_leaves_no_trace(reference, folder, tmp_path, monkeypatch):
    model, loras = opened(folder)
    before = bits(model)
    count, read_tensor = iter(range(1000)), lora_apply.read_tensor

    def fails_once(entry):
        if next(count) == 20:
            raise MemoryError("no more")
        return read_tensor(entry)

    monkeypatch.setattr(lora_apply, "read_tensor", fails_once)
    with pytest.raises(MemoryError):
        loras.load(written(tmp_path, keyed(factors(reference), "peft")))
    assert same(bits(model), before) and not loras.reports
    loras.load(written(tmp_path, keyed(factors(reference), "peft")))
    assert not same(bits(model), before)


# ---- the reference's own loader ------------------------------------------------------------------


@pytest.mark.parametrize("style", ["diffusers", "original", "kohya"])
def test_as_diffusers_loads_it(reference, folder, tmp_path, style):
    """`load_lora_weights` and `set_adapters`, unmerged; it converts these formats itself."""
    pytest.importorskip("peft")
    made = {name: pair for name, pair in factors(reference).items() if name.startswith("blocks.")}
    path = written(tmp_path, keyed(made, style))
    model = copy.deepcopy(reference)
    pipe = diffusers.WanPipeline(
        tokenizer=None, text_encoder=None, vae=None, scheduler=None, transformer=model
    )
    pipe.load_lora_weights(str(path), adapter_name="style")
    pipe.set_adapters("style", 0.6)
    native, loras = opened(folder)
    loras.load(path, 0.6)
    assert error(*outputs(model, native)) < TOLERANCE
    assert error(*outputs(reference, native)) > 0.1


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
