"""Original weights in 8-bit floats, with scales as ComfyUI's tools write them."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from kinema.runtime import opening
from kinema.runtime.checkpoints import foreign, umt5_original
from kinema.runtime.checkpoints.checkpoint import open_checkpoint
from kinema.runtime.errors import KinemaError
from kinema.runtime.models.wan import original as wan_original

from .conftest import as_original, component_of, original_text_encoder, transformer


def in_fp8(tensors, form, per_row=False):
    """Matrices of blocks in 8-bit floats, with scales as ComfyUI's tools write them."""
    found = {}
    for name, weight in tensors.items():
        if weight.dim() != 2 or "blocks." not in name:
            found[name] = weight
            continue
        most = weight.abs().amax(1) if per_row else weight.abs().amax()
        scale = (most / torch.finfo(torch.float8_e4m3fn).max).float()
        column = scale[:, None] if per_row else scale
        found[name] = (weight / column).to(torch.float8_e4m3fn)
        module = name.removesuffix(".weight")
        found[f"{module}.{form}"] = column.contiguous()
        found[f"{module}.scale_input"] = torch.ones(1)
    return found


def values_of_fp8(tensors, held):
    """The same matrices as those files hold them."""
    scales = {n: held.get(f"{n.removesuffix('.weight')}.scale_weight") for n in tensors}
    scales = {n: held.get(f"{n.removesuffix('.weight')}.weight_scale", scales[n]) for n in tensors}
    return {n: w if scales[n] is None else held[n].float() * scales[n] for n, w in tensors.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("form", "prefix", "per_row"),
    [("scale_weight", "model.diffusion_model.", False), ("weight_scale", "", True)],
)
def test_weights_in_8_bit_floats_are_read_by_their_scales(
    base, published, tmp_path, form, prefix, per_row, dtype
):
    original = as_original(published)
    held = in_fp8(original, form, per_row)
    assert any(weight.dtype == torch.float8_e4m3fn for weight in held.values())
    values = values_of_fp8(original, held)
    wanted = {name: values[wan_original.ORIGINAL.name(name)] for name in published}
    file = tmp_path / "wan_fp8_scaled.safetensors"
    marked = {**held, "scaled_fp8": torch.empty(2, dtype=torch.float8_e4m3fn)}
    save_file({f"{prefix}{name}": w for name, w in marked.items()}, file)
    model = opening.open_component(
        open_checkpoint(file, base=base), "transformer", torch.device("cpu"), dtype
    )
    found = model.to_published()
    assert found.keys() == wanted.keys()
    for name, weight in found.items():
        assert torch.equal(weight, wanted[name].to(weight.dtype)), name
    near = max((wanted[n] - w).abs().max() / w.abs().max() for n, w in published.items())
    assert near <= 2**-4  # half of the last of three bits of mantissa, at the largest value


def test_scales_of_another_shape_are_refused(base, published, tmp_path):
    held = in_fp8(as_original(published), "scale_weight")
    held["blocks.0.self_attn.q.scale_weight"] = torch.ones(2, 3)
    save_file(held, tmp_path / "a.safetensors")
    with pytest.raises(KinemaError, match=r"q\.scale_weight in .* \[2, 3\]; one .* of 48 rows"):
        transformer(open_checkpoint(tmp_path / "a.safetensors", base=base))


def test_a_text_encoder_in_8_bit_floats(tmp_path, text_encoder):
    original = original_text_encoder(text_encoder)
    held = in_fp8(original, "scale_weight")
    save_file(held, tmp_path / "t5_fp8.safetensors")
    opened = foreign.open_model(
        component_of(text_encoder, tmp_path), ("UMT5EncoderModel",), torch.float32
    )
    for name, wanted in values_of_fp8(original, held).items():
        ours = next(n for n in opened.state_dict() if umt5_original.ORIGINAL.name(n) == name)
        assert torch.equal(opened.state_dict()[ours], wanted.float())
