"""Graphs of a forward: fixed memory, sizes kept and dropped, and what eager gives, to the bit.

A capture is pretended: what replays it runs the forward anew into the same output.
"""

import pytest
import torch
from torch import nn

from kinema.runtime.errors import UsageError
from kinema.runtime.execution import cuda_graph, executor
from kinema.runtime.execution.cuda_graph import Graphed
from kinema.runtime.models.wan.config import WanConfig
from kinema.runtime.models.wan.transformer import WanTransformer

CONFIG = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 2,
    "out_channels": 2,
    "text_dim": 8,
    "freq_dim": 8,
    "ffn_dim": 16,
    "num_layers": 2,
}
SHAPE = (1, 2, 3, 4, 4)


class Pretended:
    """A capture that counts, and runs the forward again where a graph would be replayed."""

    def __init__(self):
        self.captures = self.replays = 0

    def __call__(self, forward):
        self.captures += 1
        output = forward()

        def replay():
            self.replays += 1
            with torch.inference_mode(output.is_inference()), torch.no_grad():
                output.copy_(forward())  # a graph asks for no mode

        return replay, output


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return WanTransformer(WanConfig(**CONFIG)).eval().requires_grad_(False)


@pytest.fixture
def graphed(model, monkeypatch):
    found = Graphed(model.forward, Pretended())
    yield found
    vars(model).pop("forward", None)


def bound(model, tokens=3, shape=SHAPE, seed=0, steps=3):
    noise = torch.Generator().manual_seed(seed)
    text = torch.randn(2, tokens, 8, generator=noise)
    pads = torch.tensor([512 - tokens, 511])
    return model.bind(shape, torch.linspace(900, 100, steps), text, pads)


def latents(seed=0, shape=SHAPE):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_steps_of_several_requests_are_those_of_eager(model, graphed):
    """Whatever came before in the same memory, and outputs stay as they were given."""
    requests = [bound(model, seed=seed) for seed in range(2)]
    asked = [(request, latents(step), step) for step in range(3) for request in requests]
    wanted = [request(x, step) for request, x, step in asked]
    model.forward = graphed
    found = [request(x, step) for request, x, step in asked]
    assert all(map(torch.equal, found, wanted))
    assert (graphed.capture.captures, graphed.capture.replays) == (1, len(asked))


def test_text_is_copied_once_a_request_and_latents_every_time(model, graphed, monkeypatch):
    model.forward = graphed
    request, other = bound(model), bound(model, seed=1)
    x = latents()
    request(x, 0)
    (bucket,) = graphed.buckets.values()
    where = [buffer.data_ptr() for buffer in bucket.buffers if isinstance(buffer, torch.Tensor)]
    copied = []
    fill = bucket._fill

    def watched(leaves):
        before = list(bucket.held)
        fill(leaves)
        pairs = enumerate(zip(before, bucket.held, strict=True))
        copied.append([index for index, (old, new) in pairs if old is not new or index < 3])

    monkeypatch.setattr(bucket, "_fill", watched)
    wanted = model.__class__.forward(
        model, x + 1, request.modulation.at(0), request.text, request.rope
    )
    x += 1  # the same object, other values
    assert torch.equal(request(x, 0), wanted)
    request(x, 1), other(x, 0)
    # Latents and the two parts of modulation; then all that another request brings.
    assert copied[0] == copied[1] == [0, 1, 2]
    texts = 2 * CONFIG["num_layers"] + 1
    assert len(copied[2]) >= 3 + texts
    now = [buffer.data_ptr() for buffer in bucket.buffers if isinstance(buffer, torch.Tensor)]
    assert now == where


def test_sizes_have_graphs_of_their_own_and_the_oldest_is_dropped(model, graphed):
    wide = (1, 2, 3, 4, 8)
    sizes = [bound(model), bound(model, shape=wide), bound(model, tokens=20)]
    inputs = [latents(), latents(shape=wide), latents()]
    wanted = [request(x, 0) for request, x in zip(sizes, inputs, strict=True)]
    graphed.most = 2
    model.forward = graphed
    for index, captures in ((0, 1), (1, 2), (0, 2), (2, 3), (0, 3), (1, 4)):
        assert torch.equal(sizes[index](inputs[index], 0), wanted[index])
        assert graphed.capture.captures == captures and len(graphed.buckets) <= 2
    graphed.forget()
    assert not graphed.buckets
    assert torch.equal(sizes[0](inputs[0], 0), wanted[0]) and graphed.capture.captures == 5


@pytest.mark.parametrize("first", [True, False])
def test_in_inference_mode_and_without(model, graphed, first):
    x, request = latents(), bound(model)
    wanted = request(x, 0)
    model.forward = graphed
    for mode in (first, not first):
        with torch.inference_mode(mode):
            assert torch.equal(request(x.clone(), 0), wanted)
    assert graphed.capture.captures == 1


def test_memory_that_lies_in_itself_is_laid_out_anew():
    whole = torch.arange(12.0).view(3, 4)
    graphed = Graphed(lambda x, y, z: x + y + z, Pretended())
    args = whole[:, :2], torch.ones(1, 1).expand(3, 2), whole.t()[:2].t()
    assert torch.equal(graphed(*args), args[0] + args[1] + args[2])
    (bucket,) = graphed.buckets.values()
    strides = [buffer.stride() for buffer in bucket.buffers]
    assert strides == [args[0].stride(), (2, 1), args[2].stride()]


def test_numbers_are_part_of_a_size():
    graphed = Graphed(lambda x, y, scale: x + scale * y, Pretended())
    x, y = torch.ones(2), torch.ones(2)
    assert graphed(x, y, 2.0).tolist() == [3, 3] and graphed(x, y, 3.0).tolist() == [4, 4]
    assert graphed.capture.captures == 2


def test_where_there_can_be_none_it_says_why():
    with pytest.raises(
        UsageError, match=r"graph cannot run here: CUDA graphs need a GPU, not a cpu"
    ):
        executor.choose("graph", torch.device("cpu"))
    cuda = torch.device("cuda")
    with pytest.raises(UsageError, match=r"graph cannot run here: .* offload 'model' moves them"):
        executor.choose("graph", cuda, "model")
    assert executor.choose("graph", cuda, "none") == "graph"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_captured_step_is_the_eager_one():
    config = WanConfig(**{**CONFIG, "attention_head_dim": 32})
    model = WanTransformer(config).eval().requires_grad_(False).cuda()
    request, x = bound(model), latents().cuda()
    wanted = [request(x, step) for step in range(3)]
    cuda_graph.apply(model)
    assert isinstance(model, nn.Module)
    found = [request(x, step) for step in range(3)]
    assert all(map(torch.equal, found, wanted))
