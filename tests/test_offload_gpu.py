"""Weights that come and go on a GPU: results to the bit, memory as promised."""

import pytest
import torch
from torch import nn

from kinema.runtime.execution.block_stream import tensors_of
from kinema.runtime.execution.offload import Offload

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


class Wide(nn.Module):
    """Blocks that are much larger than what flows through them."""

    def __init__(self, depth=8, dim=2048):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(dim, dim)
        self.blocks = nn.ModuleList(nn.Linear(dim, dim) for _ in range(depth))

    def block_lists(self):
        return [self.blocks]

    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x).tanh()
        return x


@torch.inference_mode()
def test_cuda_results_are_the_same_bit_for_bit():
    device, x = torch.device("cuda"), torch.randn(64, 2048, device="cuda")
    wanted = Wide().to(device)(x)
    for mode in ("model", "block"):
        placed = Offload(device, mode).place(Wide())
        for _ in range(3):  # copies of the next step race with this one, if anything does
            for _ in range(10):
                found = placed.use()(x)
            assert torch.equal(found, wanted)
            placed.leave()


@torch.inference_mode()
def test_cuda_holds_two_blocks_at_most():
    device, x = torch.device("cuda"), torch.randn(8, 2048, device="cuda")
    model = Wide()
    block = sum(x.nbytes for x in model.blocks[0].parameters())
    offload = Offload(device, "block")
    placed = offload.place(model)
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    placed.use()(x)
    held = torch.cuda.max_memory_allocated() - before
    assert 3 * block <= held < 3.5 * block  # two, and the first layer
    offload.leave()
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() - before < 0.1 * block


@torch.inference_mode()
def test_cuda_weights_come_home_for_a_leaner_mode():
    model, x = Wide(24, 256).cuda(), torch.randn(3, 256, device="cuda")
    wanted, modes = model(x), Offload("cuda")
    placed = modes.place(model)
    for mode in ("model", "block"):
        modes.adopt(mode)
        assert all(w.device.type == "cpu" for w in tensors_of(model))
        assert torch.equal(placed.use()(x), wanted)
