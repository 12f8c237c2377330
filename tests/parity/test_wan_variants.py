"""Transformers that are shown more than text, against diffusers' on the same weights.

fp32 as in `test_wan_transformer.py`; bfloat16 at most 1.5 times as far from fp32 as the reference.
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import pytest
import torch

from kinema.runtime.checkpoints.presets import TEXT_LENGTH
from kinema.runtime.errors import UsageError
from kinema.runtime.models.wan.config import WanConfig
from kinema.runtime.models.wan.sizes import Wan
from kinema.runtime.models.wan.transformer import WanTransformer
from kinema.runtime.models.wan.vace import WanVaceConfig, WanVaceTransformer

pytest.importorskip("diffusers")

from .checkpoints import IMAGE_DIM, SHOWN_PICTURES, TEXT_DIM, random_transformer

TOLERANCE = 1e-4
SHAPE = (1, 4, 3, 6, 10)
VACE = {"num_layers": 3, "vace_layers": [0, 2], "vace_in_channels": 7}


class Case(NamedTuple):
    """A configuration, and what of pictures and control it is shown."""

    config: dict[str, Any]
    pictures: int = 0
    control_scale: float | None = None
    beside: int = 0


CASES = {
    "i2v": Case({**SHOWN_PICTURES, "in_channels": 12}, pictures=1, beside=8),
    "i2v without norm2": Case({**SHOWN_PICTURES, "cross_attn_norm": False}, pictures=1),
    "flf2v": Case({**SHOWN_PICTURES, "pos_embed_seq_len": 10}, pictures=2),
    "vace": Case(VACE, control_scale=1.0),
    "vace, weaker": Case({**VACE, "vace_layers": [0, 1, 2]}, control_scale=0.3),
    "vace, one layer": Case({**VACE, "vace_layers": [0]}, control_scale=1.0),
}


@pytest.fixture(scope="module", params=CASES)
def case(request):
    """The case, and the reference and ours with the same weights, which bfloat16 holds."""
    case = CASES[request.param]
    vace = case.control_scale is not None
    model = "WanVACETransformer3DModel" if vace else "WanTransformer3DModel"
    reference = random_transformer(0, model, **case.config)
    with torch.no_grad():
        for weight in reference.parameters():
            weight.copy_(weight.bfloat16())
    config, ours = (WanVaceConfig, WanVaceTransformer) if vace else (WanConfig, WanTransformer)
    native = ours(config.from_dict(reference.config)).eval()
    native.load_state_dict(native.from_published(reference.state_dict()))
    return case, reference, native


def draw(case: Case, seed: int = 1) -> dict[str, torch.Tensor]:
    """What both are shown, that bfloat16 holds: two prompts, one picture or clip."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(*shape, generator=generator).bfloat16().float()

    text = torch.zeros(2, TEXT_LENGTH, TEXT_DIM)
    text[0, :7], text[1, :3] = randn(7, TEXT_DIM), randn(3, TEXT_DIM)
    parts = {"latents": randn(1, SHAPE[1] + case.beside, *SHAPE[2:]), "text": text}
    if case.pictures:
        parts["pictures"] = randn(case.pictures, 5, IMAGE_DIM)
    if case.control_scale is not None:
        parts["control"] = randn(1, VACE["vace_in_channels"], *SHAPE[2:])
    return parts


def run_reference(case: Case, model, parts, dtype=torch.float32):
    """The two branches one after the other, as the reference's pipelines run them."""
    parts = {name: part.to(dtype) for name, part in parts.items()}
    told = {}
    if case.pictures:
        told["encoder_hidden_states_image"] = parts["pictures"]
    if case.control_scale is not None:
        told["control_hidden_states"] = parts["control"]
        layers = len(case.config["vace_layers"])
        scale = torch.full((layers,), case.control_scale, dtype=dtype)
        told["control_hidden_states_scale"] = scale
    rows = [
        model(parts["latents"], torch.tensor([321.0]), parts["text"][i : i + 1], **told).sample
        for i in range(2)
    ]
    return torch.cat(rows).float()


def shown_to(case: Case, parts) -> dict[str, Any]:
    """What ours is bound to besides the text."""
    shown = {}
    if case.pictures:
        shown["image_embeds"] = parts["pictures"]
    if case.control_scale is not None:
        shown.update(control=parts["control"], control_scale=case.control_scale)
    return shown


def run(case: Case, model, parts):
    """Both branches at once, bound to a request of one step."""
    shown = shown_to(case, parts)
    latents, pads = parts["latents"], torch.tensor([TEXT_LENGTH - 7, TEXT_LENGTH - 3])
    timesteps = torch.tensor([321.0])
    predict = model.bind(latents.shape, timesteps, parts["text"][:, :7], pads, **shown)
    return predict(latents, 0)


@torch.no_grad()
def test_predictions_are_the_references(case):
    case, reference, native = case
    parts = draw(case)
    wanted, found = run_reference(case, reference, parts), run(case, native, parts)
    assert (found - wanted).abs().max() < TOLERANCE * wanted.square().mean().sqrt()


@torch.no_grad()
def test_bfloat16_is_no_worse_than_the_reference(case):
    case, reference, native = case
    theirs, ours = half(reference), half(native)
    errors = {"theirs": [], "ours": []}
    for seed in range(3):
        parts = draw(case, seed)
        exact = run_reference(case, reference, parts)
        errors["theirs"].append(run_reference(case, theirs, parts, torch.bfloat16) - exact)
        errors["ours"].append(run(case, ours, parts) - exact)
    theirs, ours = (torch.stack(errors[name]) for name in ("theirs", "ours"))
    assert ours.square().mean().sqrt() < 1.5 * theirs.square().mean().sqrt()
    assert ours.abs().max() < 1.5 * theirs.abs().max()


@torch.no_grad()
@pytest.mark.parametrize("case", ["flf2v", "vace, weaker"], indirect=True)
def test_the_step_is_one_graph(case):
    case, _, native = case
    parts = draw(case)
    pads = torch.tensor([TEXT_LENGTH - 7, TEXT_LENGTH - 3])
    arguments = (
        parts["latents"],
        native.modulation(torch.tensor([321.0])),
        native.text_context(parts["text"][:, :7], pads, **shown_to(case, parts)),
        native.rope(native.grid(parts["latents"].shape)),
    )
    wanted = run(case, native, parts)
    whole = torch.compile(native, fullgraph=True, backend="eager")
    exported = torch.export.export(native, arguments).module()
    # A compiler has no complex numbers: the same rotation rounds otherwise there.
    for graph in (whole, exported):
        assert (graph(*arguments) - wanted).abs().max() < 1e-5 * wanted.square().mean().sqrt()


def half(model):
    """A copy in bfloat16 but for what the reference keeps in float32."""
    model = copy.deepcopy(model)
    for name, weight in model.named_parameters():
        if not Wan.KEEP_FP32 & set(name.split(".")):
            weight.data = weight.data.bfloat16()
    return model


def test_weights_survive_the_round_trip(case):
    _, reference, native = case
    wanted, found = reference.state_dict(), native.to_published()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("layers", [[1, 2], [0, 3], [0, 2, 1], []])
def test_layers_of_control_that_do_not_fit_are_refused(layers):
    with pytest.raises(UsageError, match="must rise from 0 to 2"):
        WanVaceConfig.from_dict({**VACE, "vace_layers": layers})
