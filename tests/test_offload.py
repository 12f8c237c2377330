"""Weights that come and go: the same results bit for bit, and never more of them than is said."""

import pytest
import torch
from torch import nn

from kinema.runtime.errors import KinemaError, UsageError
from kinema.runtime.execution import offload
from kinema.runtime.execution.block_stream import BlockStream, Slot, tensors_of
from kinema.runtime.execution.offload import Offload, place
from kinema.runtime.models.wan.config import WanConfig
from kinema.runtime.models.wan.transformer import WanTransformer

CPU = torch.device("cpu")


class Block(nn.Module):
    def __init__(self, dim, hidden, dtype):
        super().__init__()
        self.grow, self.shrink = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.scale = nn.Parameter(torch.randn(1, dim, dtype=dtype))
        self.register_buffer("offset", torch.randn(()))
        self.keys = nn.Linear(dim, dim)

    def forward(self, x, key):
        return x + self.shrink(self.grow(x).tanh()) * self.scale.float() + key + self.offset


class Model(nn.Module):
    """Visits its blocks as a transformer does: for what is constant, then in every step."""

    def __init__(self, depth=5, dtype=torch.bfloat16):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(6, 7)
        self.blocks = nn.ModuleList(Block(7, 5 + 3 * (i % 2), dtype) for i in range(depth))

    def block_lists(self):
        return [self.blocks]

    def forward(self, x):
        keys = [block.keys(x.new_ones(7)) for block in self.blocks]
        x = self.first(x)
        for block, key in zip(self.blocks, keys, strict=True):
            x = block(x, key)
        return x


@pytest.fixture
def poisoned(monkeypatch):
    """A slot that is given up holds NaN, and one that is not waited for too."""
    fill, wait = Slot.fill, Slot.wait

    def filled_when_waited_for(slot, home):
        slot.room.fill_(255)
        slot.due = home

    def waited(slot):
        if (home := slot.__dict__.pop("due", None)) is not None:
            fill(slot, home)
        wait(slot)

    monkeypatch.setattr(Slot, "fill", filled_when_waited_for)
    monkeypatch.setattr(Slot, "wait", waited)
    monkeypatch.setattr(Slot, "vacate", lambda slot: slot.room.fill_(255))


@pytest.mark.parametrize("depth", [1, 2, 5])
@pytest.mark.parametrize("mode", offload.MODES)
def test_results_are_the_same_bit_for_bit(poisoned, mode, depth):
    x = torch.randn(3, 6)
    with torch.inference_mode():
        wanted = Model(depth)(x)
        placed = place(Model(depth), CPU, mode)
        for _ in range(2):
            with placed as model:
                assert torch.equal(model(x), wanted)
                assert torch.equal(model(x), wanted)


def test_weights_read_in_inference_mode_can_be_lent():
    """The engine opens components while a request is under way."""
    with torch.inference_mode():
        model = Model().requires_grad_(False)
        x = torch.randn(3, 6)
        wanted = model(x)
        for mode in ("model", "block"):
            with place(model, CPU, mode) as lent:
                assert torch.equal(lent(x), wanted)


def test_at_most_two_blocks_are_on_the_device(poisoned):
    model, counts = Model(7), []
    placed = place(model, CPU, "block")
    stream = model.blocks

    def on_device(block):
        rooms = [(s.room.data_ptr(), s.room.data_ptr() + s.room.nbytes) for s in stream.slots]
        return [any(a <= x.data_ptr() < b for a, b in rooms) for x in tensors_of(block)]

    def count(block, _):
        assert all(on_device(block))
        counts.append(sum(any(on_device(other)) for other in stream.children()))

    for block in stream.children():
        block.register_forward_pre_hook(count)
    with placed:
        model(torch.randn(3, 6))
    assert counts == [2, 2, 2, 2, 2, 2, 1]
    assert not stream.slots and not stream.resident


def test_slots_are_as_large_as_the_largest_block():
    model = Model(6)
    with place(model, CPU, "block"):
        for _ in model.blocks:
            sizes = [slot.room.nbytes for slot in model.blocks.slots]
    assert sizes == [max(home.nbytes for home in model.blocks.homes)] * 2


@pytest.mark.parametrize("mode", ["model", "block"])
def test_the_host_holds_the_weights_once(mode):
    """Outside the context every weight is where it was, and nothing else is alive."""
    model = Model()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    placed = place(model, CPU, mode)
    with placed:
        model(torch.randn(3, 6))
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], x) for name, x in before.items())
    for stream in (m for m in model.modules() if isinstance(m, BlockStream)):
        ranges = [(home.data_ptr(), home.data_ptr() + home.nbytes) for home in stream.homes]
        for x in tensors_of(stream):
            assert any(a <= x.data_ptr() < b for a, b in ranges)


@pytest.fixture
def lent(monkeypatch):
    """Addresses of what was lent: copies, as if the device had memory of its own."""
    kept = []

    def lend(x, device):
        kept.append(x.clone())
        return kept[-1]

    monkeypatch.setattr(offload, "lend", lend)
    return lambda: {x.data_ptr() for x in kept}


def addresses(module):
    return {x.data_ptr() for x in tensors_of(module)}


def test_a_model_is_lent_while_it_is_used_and_no_longer(lent):
    model = Model()
    at_home = addresses(model)
    with pytest.raises(KeyError), place(model, CPU, "model") as inside:
        assert addresses(inside) == lent()
        raise KeyError
    assert addresses(model) == at_home


@pytest.mark.parametrize("mode", ["model", "block"])
def test_what_is_changed_at_home_is_lent_as_it_is_then(poisoned, mode):
    """A LoRA writes into weights, puts others in their place, and adds some, in inference mode."""
    model, x, offload = Model(), torch.randn(3, 6), Offload(CPU, mode)
    placed = offload.place(model)
    placed.use()(x)
    offload.leave()
    changed = Model()
    for each in (model, changed):
        with torch.inference_mode():
            first, second, third = list(each.blocks.children())[:3]
            first.grow.weight.mul_(2)
            second.grow.weight.data = second.grow.weight.data * 3
            third.shrink = Added(third.shrink)
    with torch.inference_mode():
        wanted = changed(x)
    assert torch.equal(placed.use()(x), wanted)
    assert torch.equal(placed.use()(x), wanted)


class Added(nn.Module):
    def __init__(self, base):
        super().__init__()
        self.base = base
        self.register_buffer("up", torch.full((7, base.in_features), 0.25))

    def forward(self, x):
        return self.base(x) + x @ self.up.T


@pytest.mark.parametrize("mode", ["model", "block"])
def test_modules_take_turns(lent, mode):
    """Each stays until another is used, so that a step does not move what the last one used."""
    offload = Offload(CPU, mode)
    first, second = (offload.place(nn.Linear(2, 3)) for _ in range(2))
    at_home = first.use(), second.use()
    counts = []
    for placed in (first, first, first, second, first):
        module = placed.use()
        assert addresses(module) <= lent()
        assert [addresses(other) <= lent() for other in at_home].count(True) == 1
        counts.append(len(lent()))
    assert counts == [6, 6, 6, 8, 10]
    offload.leave()
    assert all(addresses(module).isdisjoint(lent()) for module in at_home)
    first.leave()


@pytest.mark.parametrize("inference", [False, True])
def test_modules_go_on_under_a_leaner_mode(lent, inference):
    """They keep what they compute, and what was lent is home again."""
    x, modes = torch.randn(3, 6), Offload(CPU)
    with torch.inference_mode(inference):
        model, other = Model().requires_grad_(False), Model(2).requires_grad_(False)
    wanted, placed = model(x), [modes.place(model), modes.place(other)]
    placed[0].use()
    assert not addresses(model) & lent()
    for mode in ("model", "block"):
        modes.adopt(mode)
        assert modes.lent is None and modes.home == CPU
        assert not (addresses(model) | addresses(other)) & lent()
        with torch.inference_mode():
            assert torch.equal(placed[0].use()(x), wanted)
        assert addresses(model) & lent() and not addresses(other) & lent()
        placed[1].use()
        assert not addresses(model) & lent() and addresses(other) & lent()
    modes.adopt("model")
    assert modes.mode == "block" and isinstance(model.blocks, BlockStream)


def test_nothing_moves_where_nothing_is_offloaded(lent):
    offload = Offload(CPU)
    first, second = (offload.place(nn.Linear(2, 3)) for _ in range(2))
    assert first.use() is first.use() is not second.use()
    offload.leave()
    assert not lent()


def test_a_context_may_be_entered_twice(lent):
    model = Model()
    at_home, placed = addresses(model), place(model, CPU, "model")
    with placed:
        with placed:
            assert addresses(model) == lent()
        assert addresses(model) == lent()
    assert addresses(model) == at_home
    assert len(lent()) == len(at_home)


def test_everything_but_the_blocks_is_lent(lent):
    model = Model()
    with place(model, CPU, "block"):
        assert addresses(model.first) == lent()


def test_what_does_not_fit_is_given_back(monkeypatch):
    """The device is full when half of the weights are there: all of them are at home after."""
    model, lent = Model(), []

    def lend(x, device):
        if len(lent) == 4:
            raise torch.OutOfMemoryError
        lent.append(x.clone())
        return lent[-1]

    at_home, placed = addresses(model), place(model, CPU, "model")
    monkeypatch.setattr(offload, "lend", lend)
    with pytest.raises(torch.OutOfMemoryError), placed:
        pass
    assert addresses(model) == at_home


def test_a_step_that_fails_leaves_nothing_behind(poisoned):
    model, x = Model(), torch.randn(3, 6)
    wanted = Model()(x)
    placed = place(model, CPU, "block")
    with placed, pytest.raises(ZeroDivisionError):
        for i, _ in enumerate(model.blocks):
            1 / (2 - i)
    assert not model.blocks.resident
    with placed:
        assert torch.equal(model(x), wanted)


def test_an_iteration_left_halfway_does_not_disturb_the_next(poisoned):
    model, x = Model(), torch.randn(3, 6)
    wanted = Model()(x)
    with place(model, CPU, "block"):
        left = iter(model.blocks)
        next(left)
        begun = iter(model.blocks)
        block = next(begun)
        left.close()
        assert block.grow.weight.isfinite().all()
        begun.close()
        assert torch.equal(model(x), wanted)


def test_a_module_without_blocks_is_lent(lent):
    module = nn.Linear(2, 3)
    with place(module, CPU, "block"):
        assert addresses(module) == lent()
    assert addresses(module).isdisjoint(lent())


class Nested(nn.Module):
    """Two lists of blocks that it tells of, one of them further down, and one that it does not."""

    def __init__(self):
        super().__init__()
        self.inner = Model()
        self.others, self.untold = (nn.ModuleList([nn.Linear(2, 2)]) for _ in range(2))

    def block_lists(self):
        return [self.others, *self.inner.block_lists()]


def test_the_lists_that_a_module_tells_of_stream(lent):
    model = Nested()
    with place(model, CPU, "block"):
        assert isinstance(model.inner.blocks, BlockStream)
        assert isinstance(model.others, BlockStream)
        assert addresses(model.untold) <= lent()


def test_a_list_without_blocks_is_empty():
    assert list(BlockStream(nn.ModuleList(), CPU)) == []


def test_blocks_of_a_transformer_stream(poisoned):
    """Through what is constant in a request, and through its steps."""
    config = WanConfig(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=10,
        freq_dim=8, ffn_dim=20, num_layers=3,
    )  # fmt: skip
    torch.manual_seed(0)
    model = WanTransformer(config).eval()
    latents, timesteps = torch.randn(1, 4, 2, 4, 6), torch.tensor([900.0, 300.0])
    text = torch.randn(2, 5, 10), torch.tensor([507, 509])
    with torch.inference_mode():
        predict = model.bind(latents.shape, timesteps, *text)
        wanted = [predict(latents, step) for step in range(2)]
        with place(model, CPU, "block"):
            assert isinstance(model.blocks, BlockStream)
            predict = model.bind(latents.shape, timesteps, *text)
            found = [predict(latents, step) for step in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert model.blocks.turn == 3


def test_blocks_of_a_text_encoder_stream():
    from transformers import UMT5Config, UMT5EncoderModel

    torch.manual_seed(0)
    config = UMT5Config(vocab_size=11, d_model=8, d_kv=4, d_ff=12, num_layers=4, num_heads=2)
    model = UMT5EncoderModel(config).eval()
    tokens = torch.tensor([[3, 4, 5, 1]])
    with torch.inference_mode():
        wanted = model(tokens).last_hidden_state
        with place(model, CPU, "block", ("encoder.block", "decoder.block")):
            assert isinstance(model.encoder.block, BlockStream)
            assert torch.equal(model(tokens).last_hidden_state, wanted)


def test_unknown_mode_and_blocks_elsewhere_are_one_line():
    with pytest.raises(UsageError, match="offload is 'disk'; it must be one of none, model, block"):
        Offload(CPU, "disk")
    with pytest.raises(KinemaError, match="are on meta; the host is expected"):
        BlockStream(nn.ModuleList([nn.Linear(2, 2, device="meta")]), CPU)
