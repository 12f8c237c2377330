"""Scenes: the object stays inside the picture, moves far enough, touches the floor on time."""

import numpy as np
import pytest

from kinema.world.scene import (
    BACKGROUNDS,
    CAMERAS,
    COLORS,
    HORIZON,
    MARGIN,
    MOTIONS,
    NUM_FRAMES,
    SHAPES,
    SIZE,
    sample_scene,
)


def scenes(motion: str, count: int = 60):
    rng = np.random.default_rng(MOTIONS.index(motion))
    return [sample_scene(rng, motion=motion) for _ in range(count)]


@pytest.mark.parametrize("motion", MOTIONS)
def test_object_never_leaves_the_picture(motion):
    for scene in scenes(motion):
        centres = scene.centres()
        assert centres.shape == (NUM_FRAMES, 2) and centres.dtype == np.float32
        assert centres.min() >= scene.radius + MARGIN - 1e-3
        assert centres.max() <= SIZE - 1 - scene.radius - MARGIN + 1e-3


@pytest.mark.parametrize(
    ("motion", "axis", "sign"), [("left", 0, -1), ("right", 0, 1), ("up", 1, -1), ("down", 1, 1)]
)
def test_moves_are_straight_steady_and_at_least_a_quarter_long(motion, axis, sign):
    for scene in scenes(motion):
        along, across = scene.centres()[:, axis], scene.centres()[:, 1 - axis]
        assert sign * (along[-1] - along[0]) >= SIZE / 4
        assert np.ptp(across) == 0
        # float32 centres of up to 64 pixels, two roundings in a second difference
        assert np.abs(np.diff(along, 2)).max() < 4 * 64 * np.finfo(np.float32).eps


def test_still_is_still_and_silent():
    for scene in scenes("still"):
        assert np.ptp(scene.centres(), axis=0).max() == 0
        assert scene.contacts().size == 0


def test_bounces_touch_one_floor_at_their_contacts():
    for scene in scenes("bounce"):
        contacts = scene.contacts()
        assert len(contacts) >= 2 and contacts[0] >= 1 and contacts[-1] <= NUM_FRAMES - 1
        assert np.allclose(np.diff(contacts), scene.period, atol=1e-4)
        y = scene.centres()[:, 1]
        assert y.max() <= scene.start[1] + 1e-3 and y.max() + 0.9 * scene.radius > HORIZON
        fastest = 4 * scene.height / scene.period  # px per frame, at the floor
        for time in contacts:
            near = np.abs(np.arange(NUM_FRAMES) - time) <= 0.5
            assert (scene.start[1] - y[near] <= 0.5 * fastest + 1e-3).all()
        assert np.abs(np.diff(y)).max() <= 10


def test_contacts_and_centres_of_a_shorter_clip_are_the_first_of_the_longer():
    for motion in MOTIONS:
        for scene in scenes(motion, 5):
            assert np.array_equal(scene.centres(17), scene.centres(33)[:17])
            assert np.array_equal(scene.contacts(17), scene.contacts(33)[scene.contacts(33) <= 16])


@pytest.mark.parametrize("name", ["shape", "color", "motion", "background", "camera"])
def test_what_the_world_has_not_is_refused(name):
    with pytest.raises(ValueError, match=r"no 'tilted' among \w+"):
        sample_scene(np.random.default_rng(0), **{name: "tilted"})


def test_what_is_given_stays_and_the_seed_decides_the_rest():
    rng = np.random.default_rng(3)
    for shape, color, motion, background, camera in zip(
        SHAPES * 2,
        COLORS,
        MOTIONS,
        (*BACKGROUNDS, "snow"),
        (*CAMERAS, "static", "zoom in"),
        strict=True,
    ):
        given = dict(shape=shape, color=color, motion=motion, background=background, camera=camera)
        scene = sample_scene(rng, **given)
        assert {name: getattr(scene, name) for name in given} == given
    assert sample_scene(np.random.default_rng(7)) == sample_scene(np.random.default_rng(7))
    drawn = [sample_scene(rng) for _ in range(200)]
    for name, values in (("shape", SHAPES), ("color", COLORS), ("motion", MOTIONS)):
        assert {getattr(scene, name) for scene in drawn} == set(values)
