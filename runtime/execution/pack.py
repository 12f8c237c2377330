"""Linear layers packed for the CPU: oneDNN's own weight layout, GELU within the product.

Applied from outside to a finished module that will only be used for inference, and eagerly:
torch.compile refuses weights packed before it. Results are those of the plain layers up to the
order of sums.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.layers import LinearGelu

EXPECTED_ROWS = 512  # what the layout is chosen for; any number of rows works


class PackedLinear(nn.Module):
    """A linear layer, and after it GELU in its tanh approximation if `gelu`."""

    def __init__(self, linear: nn.Linear, gelu: bool = False) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias, self.gelu = linear.bias, gelu
        # Not a parameter: its layout is opaque, nothing may save or cast it.
        self.packed = lay_out(linear.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x, self.gelu)

    def product(self, x: Tensor, gelu: bool = False) -> Tensor:
        """The linear layer of x (..., in_features) alone, or with GELU."""
        after = ("gelu", [], "tanh") if gelu else ("none", [], "")
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, *after)


def lay_out(weight: Tensor) -> Tensor:
    """A weight (out_features, in_features) in oneDNN's layout."""
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach(), EXPECTED_ROWS)


def can_pack() -> bool:
    """Whether this build of PyTorch has the operations, which are not public, and they work."""
    if not torch.backends.mkldnn.is_available():
        return False
    try:
        linear, x = nn.Linear(16, 16), torch.ones(2, 16)
        with torch.no_grad():
            found, wanted = PackedLinear(linear, True)(x), F.gelu(linear(x), approximate="tanh")
        return torch.allclose(found, wanted, atol=1e-4)
    except (AttributeError, RuntimeError):
        return False


def pack_linears(module: nn.Module) -> int:
    """Replace the linear layers inside a module, in place; returns how many were packed."""
    count = 0
    for name, child in list(module.named_children()):
        if isinstance(child, nn.Linear):
            setattr(module, name, PackedLinear(child, gelu=isinstance(child, LinearGelu)))
            count += 1
        else:
            count += pack_linears(child)
    return count
