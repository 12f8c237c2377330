"""LoRA files in every format, each against the reference with the same change merged by hand."""

from __future__ import annotations

import copy
import json

import pytest
import torch

from kinema.runtime.errors import KinemaError, UsageError
from kinema.runtime.lora import formats

from .conftest import (
    MODULE,
    PAIR,
    RANK,
    STYLES,
    TOLERANCE,
    bits,
    error,
    factors,
    keyed,
    merged,
    opened,
    outputs,
    same,
    scale_of,
    written,
)

diffusers = pytest.importorskip("diffusers")


@pytest.mark.parametrize("merge", [True, False], ids=["merged", "beside"])
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
@pytest.mark.parametrize("style", STYLES)
def test_every_format_is_the_reference_merged_by_hand(
    reference, folder, tmp_path, style, packed, merge
):
    made = factors(reference)
    path = written(tmp_path, keyed(made, style))
    scale = scale_of(style)
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
    found = formats.read(tmp_path)
    assert (found.name, [change.scale for change in found.changes]) == (tmp_path.name, [scale])
    told = json.dumps({f"transformer.{key}": value for key, value in config.items()})
    path = written(tmp_path, PAIR, "other.safetensors", lora_adapter_metadata=told)
    assert [change.scale for change in formats.read(path).changes] == [scale]


def test_one_file_for_two_transformers(folder, tmp_path):
    """As diffusers saves LoRAs of Wan 2.2: each transformer takes its own."""
    tensors = {
        f"{component}.{MODULE}.{key.rpartition(MODULE)[2][1:]}": (number + 1) * tensor
        for number, component in enumerate(("transformer", "transformer_2"))
        for key, tensor in PAIR.items()
    }
    both = formats.read(written(tmp_path, tensors))
    for number, component in enumerate(("transformer", "transformer_2")):
        (change,) = both.part(component).changes
        assert change.up[0, 0] == number + 1
    alone = formats.read(written(tmp_path, PAIR, "alone.safetensors"))
    assert alone.part("transformer_2") is alone


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
        formats.read(written(tmp_path, {**PAIR, key: torch.ones(48)}))


def test_what_is_no_lora(tmp_path):
    with pytest.raises(UsageError, match="no LoRA at"):
        formats.read(tmp_path / "nothing")
    with pytest.raises(UsageError, match="holds no safetensors file"):
        formats.read(tmp_path)
    with pytest.raises(UsageError, match=f"is no LoRA: it holds {MODULE}.weight"):
        formats.read(written(tmp_path, {f"{MODULE}.weight": torch.ones(4)}))
    torch.save(PAIR, tmp_path / "style.pt")
    with pytest.raises(KinemaError, match=r"style\.pt is a pickle"):
        formats.read(tmp_path / "style.pt")
    ill = {**PAIR, next(iter(PAIR)): torch.ones(5, 48)}
    with pytest.raises(KinemaError, match="factors do not fit"):
        formats.read(written(tmp_path, ill, "ill.safetensors"))
    path = written(tmp_path, PAIR, "cut.safetensors")
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(KinemaError, match="is cut off at byte"):
        formats.read(path)
