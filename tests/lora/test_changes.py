"""Changes of weights of every kind and in every layout: applied, and removed to the bit."""

from __future__ import annotations

import copy
import os

import pytest
import torch

from kinema.runtime.errors import KinemaError
from kinema.runtime.execution import pack
from kinema.runtime.lora import changes
from kinema.runtime.models.wan.original import ORIGINAL

from .conftest import (
    PAIR,
    RANK,
    TINY,
    TOLERANCE,
    bits,
    error,
    factors,
    keyed,
    merged,
    opened,
    outputs,
    same,
    saved,
    scale_of,
    written,
)

diffusers = pytest.importorskip("diffusers")


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
def test_in_bfloat16_it_is_rounded_once_and_removed_without_a_trace(
    reference, folder, tmp_path, packed
):
    made = factors(reference)
    model, loras = opened(folder, torch.bfloat16, packed)
    before = bits(model)
    path = written(tmp_path, keyed(made, "original"))
    loras.load(path)
    changed, _ = opened(saved(merged(reference, made), tmp_path / "merged"), torch.bfloat16)
    if packed:
        pack.pack_linears(changed.blocks)
    wanted = bits(changed)
    for name, weight in bits(model).items():
        # Sums of products taken in another order may round to the neighbouring bfloat16.
        torch.testing.assert_close(weight, wanted[name], rtol=2**-7, atol=1e-5)
    loras.unload("style")
    assert same(bits(model), before)


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


# ---- variants ------------------------------------------------------------------------------------

IMAGE = {"in_channels": 36, "image_dim": 20, "added_kv_proj_dim": 48, "pos_embed_seq_len": 514}


@pytest.mark.parametrize("style", ["diffusers", "original", "kohya"])
@pytest.mark.parametrize("variant", ["flf2v", "vace"])
def test_every_matrix_of_every_variant(tmp_path, variant, style):
    """Weights as published, after loading, against those with the product added by hand."""
    model, made = of_variant(variant)
    native, loras = opened(saved(model, tmp_path))
    before = bits(native)
    report = loras.load(written(tmp_path, keyed(made, style)))
    assert len(report.matched) == len(keyed(made, style)) and not report.unmatched
    wanted = merged(model, made, scale_of(style)).state_dict()
    for name, weight in native.to_published().items():
        torch.testing.assert_close(weight, wanted[name], rtol=1e-5, atol=1e-6)
    loras.unload("style")
    assert same(bits(native), before)


def test_products_stand_beside_the_linear_layers_of_every_block(tmp_path):
    """Those alone are called as modules, in the blocks of control as in the others."""
    model, made = of_variant("vace")
    native, loras = opened(saved(model, tmp_path))
    inside = {id(part) for blocks in native.block_lists() for part in blocks.modules()}
    wanted = {
        name
        for name, part in native.named_modules()
        if isinstance(part, torch.nn.Linear) and id(part) in inside
    }
    loras.load(written(tmp_path, keyed(made, "diffusers")), merged=False)
    found = {name for name, part in native.named_modules() if isinstance(part, changes.Added)}
    assert found == wanted and {name.split(".")[0] for name in found} == {"blocks", "vace_blocks"}


def of_variant(variant):
    """A reference of a variant, and factors for every matrix."""
    kind, options = diffusers.WanTransformer3DModel, IMAGE
    if variant == "vace":
        kind, options = diffusers.WanVACETransformer3DModel, {"vace_layers": [0, 1]}
    model = kind(**TINY, **options)
    names = [name for name, part in model.named_modules() if isinstance(part, torch.nn.Linear)]
    return model, factors(model, names=names)


# ---- how it was opened ---------------------------------------------------------------------------


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
    count, read_tensor = iter(range(1000)), changes.read_tensor

    def fails_once(entry):
        if next(count) == 20:
            raise MemoryError("no more")
        return read_tensor(entry)

    monkeypatch.setattr(changes, "read_tensor", fails_once)
    with pytest.raises(MemoryError):
        loras.load(written(tmp_path, keyed(factors(reference), "peft")))
    assert same(bits(model), before) and not loras.reports
    loras.load(written(tmp_path, keyed(factors(reference), "peft")))
    assert not same(bits(model), before)


def test_a_checkpoint_that_changed_is_not_mixed_with_what_was_opened(reference, tmp_path):
    path = saved(reference, tmp_path / "checkpoint")
    model, loras = opened(path)
    before = bits(model)
    os.utime(path / "transformer" / "diffusion_pytorch_model.safetensors", (0, 0))
    with pytest.raises(KinemaError, match="has changed since it was opened"):
        loras.load(written(tmp_path, PAIR))
    assert same(bits(model), before) and not loras.reports
