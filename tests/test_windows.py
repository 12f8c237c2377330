"""Windows of a picture: put together, they are the whole."""

import pytest
import torch

from kinema.runtime.vaes.windows import Windows


@pytest.mark.parametrize(("length", "core", "reach"), [(1, 4, 3), (7, 2, 0), (13, 4, 5), (8, 8, 2)])
def test_windows_cover_everything_once(length, core, reach):
    x = torch.arange(length * 3.0).view(1, length, 3)
    same = Windows((core, 2), reach).run(x, lambda part, _: part)
    assert torch.equal(same, x)
    twice = Windows((core, 2), reach, up=2).run(
        x, lambda part, _: part.repeat_interleave(2, 1).repeat_interleave(2, 2)
    )
    assert torch.equal(twice, x.repeat_interleave(2, 1).repeat_interleave(2, 2))
