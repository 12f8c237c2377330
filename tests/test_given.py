"""What the transformer is shown besides the noise reaches it, and nothing else changes."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from kinema.runtime.conditioning.control import _clip, fold_mask, on_canvas
from kinema.runtime.conditioning.given import Given
from kinema.runtime.conditioning.shown import MAKERS, MOST, bearing_frame
from kinema.runtime.planning.cost import Setting
from kinema.runtime.requests.conditions import Condition, place

SHAPE = (4, 3, 6, 8)  # channels, frames, rows, columns


@pytest.fixture
def given():
    mask = torch.zeros(SHAPE, dtype=torch.bool)
    mask[1:, :, 4:] = True
    return Given(mask, torch.full(SHAPE, 7.0), after=torch.full((4, 1, 6, 8), 9.0))


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
    extended = given.timesteps(timesteps, 3)
    assert extended.shape[:2] == (5, 4)
    assert (extended[:, 3] == 0).all()
    clip = timesteps if timesteps.dim() == 4 else timesteps[:, None, None, None]
    assert torch.equal(extended[:, :3], clip.expand(-1, 3, -1, -1))


def test_first_frames_hold_to_the_end():
    first = torch.full((1, 4, 1, 6, 8), 5.0)
    given, latents = Given(first=first), torch.randn(2, *SHAPE)
    seen = []
    given.show(lambda shown, step: seen.append(shown) or shown)(latents, 0)
    for held in (seen[0], given.finish(latents)):
        assert (held[:, :, 0] == 5).all() and torch.equal(held[:, :, 1:], latents[:, :, 1:])
    timesteps = given.timesteps(torch.tensor([900, 500]), 3)
    assert timesteps.squeeze().tolist() == [[0, 900, 900], [0, 500, 500]]


def test_channels_beside_are_seen_and_not_predicted():
    given, latents = Given(beside=torch.full((1, 5, *SHAPE[1:]), 3.0)), torch.randn(2, *SHAPE)
    prediction = given.show(lambda seen, step: seen[:, :4] + seen[:, 4:].mean())(latents, 0)
    assert torch.equal(prediction, latents + 3)
    assert given.shape(latents.shape) == (2, 9, *SHAPE[1:])
    timesteps = torch.tensor([900, 500])
    assert given.timesteps(timesteps, 3) is timesteps and given.finish(latents) is latents


PLAN = SimpleNamespace(num_frames=9, height=16, width=32)


def test_a_picture_is_the_same_from_a_file_an_array_and_memory(tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    image, path = Image.fromarray(array), tmp_path / "picture.png"
    image.save(path)
    shown = [Condition(media) for media in (image, array, torch.from_numpy(array), path, str(path))]
    first, *others = (torch.cat([p for p, _ in _clip(place([c], 9), PLAN)], 2) for c in shown)
    assert first.shape == (1, 3, 9, 16, 32) and first[:, :, 0].std() > 0.1
    assert all(torch.equal(first, other) for other in others)


def test_a_clip_fills_its_frames_and_the_rest_is_made_anew():
    white, black = (np.full((16, 32, 3), value, np.uint8) for value in (255, 0))
    placed = place(
        [Condition(frames=[white, white, white], frame=2, mask=0.25), Condition(black, frame=-1)], 9
    )
    chunks = list(_clip(placed, PLAN))
    assert [pixels.shape for pixels, _ in chunks] == [(1, 3, n, 16, 32) for n in (1, 4, 4)]
    pixels, masks = (torch.cat(parts, dim=2)[0, 0, :, 0, 0] for parts in zip(*chunks, strict=True))
    assert pixels.tolist() == [0, 0, 1, 1, 1, 0, 0, 0, -1]
    assert masks.tolist() == [1, 1, 0.25, 0.25, 0.25, 1, 1, 1, 0]


def test_a_mask_folds_into_channels():
    """Each latent's pixels become channels, rows first; of its frames the middle one counts."""
    masks = torch.arange(5 * 16 * 32.0).view(5, 16, 32)
    folded = fold_mask(masks, (2, 2, 4))
    assert folded.shape == (64, 2, 2, 4)
    assert folded[8 * 3 + 5, 0, 1, 2] == masks[1, 8 + 3, 16 + 5]
    assert folded[0, 1, 0, 0] == masks[3, 0, 0]


@pytest.mark.parametrize("size", [(32, 16), (10, 30), (64, 64)])
def test_a_reference_lies_whole_in_the_middle_of_white(size):
    canvas = on_canvas(Image.new("RGB", size, (0, 0, 0)), PLAN)[0, 0]
    assert canvas.shape == (16, 32) and set(canvas.unique().tolist()) <= {-1.0, 1.0}
    black = (canvas < 0).nonzero()
    (top, left), (bottom, right) = black.amin(0).tolist(), black.amax(0).tolist()
    assert bottom - top == 15 or right - left == 31
    assert abs(top - (15 - bottom)) <= 1 and abs(left - (31 - right)) <= 1


@pytest.mark.parametrize(("rows", "columns"), [(10, 8), (2, 16), (16, 2)])
def test_no_two_bearings_are_alike(rows, columns):
    frame = bearing_frame(16, rows, columns)
    assert frame.shape == (16, 1, rows, columns)
    patches = frame.view(16, rows // 2, 2, columns // 2, 2).permute(1, 3, 0, 2, 4).flatten(2)
    assert len(patches.flatten(0, 1).unique(dim=0)) == (rows // 2) * (columns // 2)
    assert max(rows // 2, columns // 2) <= MOST


class RecordingVAE(torch.nn.Linear):
    """Encodes to zeros, and keeps which tile it was asked for."""

    config = SimpleNamespace(latents_mean=None)

    def __init__(self):
        super().__init__(1, 1)
        self.tiles = []

    def encode(self, pixels, tile=None):
        return self.encode_chunks(pixels.split(1, dim=2), tile)

    def encode_chunks(self, chunks, tile=None):
        self.tiles.append(tile)
        return torch.zeros(1, 4, len(list(chunks)), 2, 4)


@pytest.mark.parametrize(("kind", "encoded"), [("first", 1), ("beside", 1), ("control", 3)])
@pytest.mark.parametrize("tile", [None, (8, 16)])
def test_what_is_shown_is_encoded_in_the_tiles_of_the_plan(kind, encoded, tile):
    vae = RecordingVAE()
    transformer = SimpleNamespace(config=SimpleNamespace(image_dim=None))
    engine = SimpleNamespace(use=lambda _: vae, device="cpu", transformer=transformer)
    shown = [Condition(np.zeros((16, 32, 3), np.uint8), frame=0)]
    if kind == "control":
        shown.append(Condition(np.zeros((16, 32, 3), np.uint8), frame=None))
    request = SimpleNamespace(shown=shown, adjust=False)
    plan = SimpleNamespace(**vars(PLAN), setting=Setting(tile=tile))
    assert MAKERS[kind](engine, request, plan) is not None
    assert vae.tiles == [tile] * encoded
