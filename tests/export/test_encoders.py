"""Encoders of transformers as graphs: any batch and length, the module's values in onnxruntime."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from torch.export import Dim

pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")
transformers = pytest.importorskip("transformers")

from kinema.export.encoders import ImageEncoderGraph, TextEncoderGraph  # noqa: E402

WORDS, SIDE = 50, 28


def text_encoder():
    config = transformers.UMT5Config(
        vocab_size=WORDS, d_model=24, d_kv=6, d_ff=32, num_layers=2, num_heads=4
    )
    return TextEncoderGraph(transformers.UMT5EncoderModel(config))


def text(batch, length):
    """Tokens, and a mask that leaves out the second half of every row but the first."""
    counts = (torch.arange(batch) == 0)[:, None] | (torch.arange(length) < (length + 1) // 2)
    return torch.randint(0, WORDS, (batch, length)), counts.long()


def image_encoder():
    config = transformers.CLIPVisionConfig(
        hidden_size=24, intermediate_size=32, num_hidden_layers=3, num_attention_heads=4,
        image_size=SIDE, patch_size=14,
    )  # fmt: skip
    return ImageEncoderGraph(transformers.CLIPVisionModel(config))


def pictures(batch):
    return (torch.randn(batch, 3, SIDE, SIDE),)


# Module, inputs of a size, which axes are free, and sizes: what is traced, and two unseen.
CASES = {
    "text": (text_encoder, text, (0, 1), [(2, 7), (3, 40), (1, 5)]),
    "image": (image_encoder, pictures, (0,), [(2,), (3,), (1,)]),
}


@pytest.fixture(scope="module", params=CASES)
def encoder(request):
    """One of the encoders, its program, traced once for all opsets, and inputs of every size."""
    create, inputs, axes, sizes = CASES[request.param]
    torch.manual_seed(0)
    module = create().eval()
    every = [inputs(*size) for size in sizes]
    free = tuple(dict.fromkeys(axes, Dim.DYNAMIC) for _ in every[0])
    with torch.no_grad():
        return module, torch.export.export(module, every[0], dynamic_shapes=free), every


@pytest.mark.parametrize("opset", [18, 23])
@torch.no_grad()
def test_graphs_are_the_encoders(encoder, opset):
    module, program, every = encoder
    exact_module = copy.deepcopy(module).double()
    session = exported(program, opset)
    for given in every:
        names = (port.name for port in session.get_inputs())
        feed = {name: x.numpy() for name, x in zip(names, given, strict=True)}
        found = torch.from_numpy(session.run(None, feed)[0]).double()
        (wanted,) = module(*given)
        (exact,) = exact_module(*(x.double() if x.is_floating_point() else x for x in given))
        # Both round differently and as often: one is as near to float64 as the other.
        ours, theirs = (found - exact).abs(), (wanted.double() - exact).abs()
        assert ours.max() <= 4 * theirs.max() + 1e-6
        assert ours.square().mean().sqrt() <= 2 * theirs.square().mean().sqrt() + 1e-7


def exported(program, opset):
    """A traced program in onnxruntime."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    written = torch.onnx.export(program, (), dynamo=True, opset_version=opset, verbose=False)
    return onnxruntime.InferenceSession(written.model_proto.SerializeToString())


def test_the_mask_is_heeded():
    """Tokens that do not count change nothing for those that do."""
    torch.manual_seed(0)
    module = text_encoder().eval()
    tokens, mask = text(2, 8)
    other = torch.where(mask.bool(), tokens, (tokens + 1) % WORDS)
    with torch.no_grad():
        (states,), (changed,) = module(tokens, mask), module(other, mask)
    torch.testing.assert_close(states[mask.bool()], changed[mask.bool()])
    assert not torch.equal(states[1, 4:], changed[1, 4:])
