"""What the transformer is shown besides the noise reaches it, and nothing else changes."""

import pytest
import torch

from kinema.runtime.given import MOST, Given, bearing_frame

SHAPE = (4, 3, 6, 8)  # channels, frames, rows, columns


@pytest.fixture
def given():
    mask = torch.zeros(SHAPE, dtype=torch.bool)
    mask[1:, :, 4:] = True
    return Given(mask, torch.full(SHAPE, 7.0), torch.full((4, 1, 6, 8), 9.0))


def test_the_transformer_sees_what_is_given(given):
    seen = []

    def predict(latents, step):
        seen.append((latents, step))
        return latents * 2

    latents = torch.randn(2, *SHAPE)
    prediction = given.show(predict)(latents, 5)
    ((shown, step),) = seen
    assert step == 5
    assert shown.shape == given.shape((2, *SHAPE)) == (2, 4, 4, 6, 8)
    assert (shown[:, :, 3] == 9).all()
    assert (shown[:, 1:, :3, 4:] == 7).all()
    assert torch.equal(shown[:, 0, :3], latents[:, 0])
    assert torch.equal(shown[:, :, :3, :4], latents[..., :4, :])
    assert torch.equal(prediction, shown[:, :, :3] * 2)


@pytest.mark.parametrize("shape", [(5,), (5, 1, 6, 1)])
def test_what_is_given_has_timestep_zero(given, shape):
    timesteps = torch.rand(shape) + 1
    extended = given.timesteps(timesteps)
    assert extended.shape[:2] == (5, 4)
    assert (extended[:, 3] == 0).all()
    clip = timesteps if timesteps.dim() == 4 else timesteps[:, None, None, None]
    assert torch.equal(extended[:, :3], clip.expand(-1, 3, -1, -1))


@pytest.mark.parametrize(("rows", "columns"), [(10, 8), (2, 16), (16, 2)])
def test_no_two_bearings_are_alike(rows, columns):
    frame = bearing_frame(16, rows, columns)
    assert frame.shape == (16, 1, rows, columns)
    patches = frame.view(16, rows // 2, 2, columns // 2, 2).permute(1, 3, 0, 2, 4).flatten(2)
    assert len(patches.flatten(0, 1).unique(dim=0)) == (rows // 2) * (columns // 2)
    assert max(rows // 2, columns // 2) <= MOST
