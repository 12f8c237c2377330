"""Pictures: saturated objects of the named hue, muted backgrounds, outlines of the exact area."""

import dataclasses

import numpy as np
import pytest

from kinema.world.render import background_texture, color_rgb, coverage, masks, render
from kinema.world.scene import (
    BACKGROUNDS,
    CAMERAS,
    COLORS,
    MOTIONS,
    NUM_FRAMES,
    SHAPES,
    SIZE,
    sample_scene,
)

AREA = {"ball": np.pi, "square": 1.8**2, "triangle": 2.0}  # at radius 1


def saturation_value(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    high, low = pixels.max(-1) / 255.0, pixels.min(-1) / 255.0
    return (high - low) / np.maximum(high, 1e-9), high


def hue(pixels: np.ndarray) -> np.ndarray:
    red, green, blue = np.moveaxis(pixels.astype(float), -1, 0)
    return np.degrees(np.arctan2(3**0.5 * (green - blue), 2 * red - green - blue)) % 360


def scene_with(seed: int = 0, **given):
    return sample_scene(np.random.default_rng(seed), **given)


@pytest.mark.parametrize("color", COLORS)
def test_objects_are_saturated_and_of_their_hue(color):
    scene = scene_with(color=color, motion="right", background="grass")
    inside = render(scene)[masks(scene) == 1]
    saturation, value = saturation_value(inside)
    assert saturation.min() >= 0.7 and value.min() > 0.75
    # hue by arctan2 and HSV's piecewise hue differ by 1.2 degrees at most; rounding adds one
    assert np.abs((hue(inside) - COLORS[color] + 180) % 360 - 180).max() < 2.5
    assert color_rgb(color).dtype == np.float32


@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize("camera", CAMERAS)
def test_backgrounds_are_muted(background, camera):
    scene = scene_with(background=background, camera=camera, motion="still")
    outside = render(scene)[masks(scene) == 0]
    saturation, value = saturation_value(outside)
    assert ((saturation < 0.5) | (value < 0.25)).all()


def test_backgrounds_differ_from_each_other():
    textures = [background_texture(name) for name in BACKGROUNDS]
    for i, first in enumerate(textures):
        assert first.shape == (SIZE, 2 * SIZE, 3) and first.dtype == np.float32
        for second in textures[:i]:
            assert np.abs(first - second).mean() > 12


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_backgrounds_continue_over_their_seam(background):
    texture = background_texture(background)
    steps = np.abs(np.diff(texture, axis=1)).mean((0, 2))
    seam = np.abs(texture[:, 0] - texture[:, -1]).mean()
    assert seam <= steps.max() + 1e-3


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("radius", [9.0, 10.3, 12.5])
def test_coverage_has_the_ideal_area_and_centroid(shape, radius):
    grid = np.arange(64, dtype=np.float32)
    alpha = coverage(shape, grid[None] - 31.3, grid[:, None] - 30.8, radius)
    assert alpha.min() >= 0 and alpha.max() <= 1
    # the ramp is exact along straight edges; corners and the ends of rows cost a pixel or two
    assert alpha.sum() == pytest.approx(AREA[shape] * radius**2, abs=2.5)
    assert (alpha.sum(0) @ grid) / alpha.sum() == pytest.approx(31.3, abs=0.1)
    centroid = 30.8 + (radius / 3 if shape == "triangle" else 0)
    assert (alpha.sum(1) @ grid) / alpha.sum() == pytest.approx(centroid, abs=0.1)


@pytest.mark.parametrize("motion", MOTIONS)
@pytest.mark.parametrize("camera", CAMERAS)
def test_objects_stay_whole_inside_the_picture(motion, camera):
    for seed in range(4):
        scene = scene_with(seed, motion=motion, camera=camera)
        alpha = masks(scene)
        assert alpha.shape == (NUM_FRAMES, SIZE, SIZE)
        edge = [alpha[:, 0], alpha[:, -1], alpha[:, :, 0], alpha[:, :, -1]]
        assert max(part.max() for part in edge) == 0
        assert (alpha.sum((1, 2)) > 80).all()


def test_clips_are_bytes_and_shorter_ones_are_prefixes_where_the_camera_rests():
    scene = scene_with(motion="bounce")
    clip = render(scene)
    assert clip.shape == (NUM_FRAMES, SIZE, SIZE, 3) and clip.dtype == np.uint8
    assert np.array_equal(render(scene, 17), clip[:17])
    assert render(scene, 1).shape == (1, SIZE, SIZE, 3)


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_cameras_move_the_background_and_nothing_else_does(background):
    still = scene_with(5, background=background, motion="still")
    free = {}
    for camera in CAMERAS:
        scene = dataclasses.replace(still, camera=camera)
        covered = masks(scene).max(0) > 0
        free[camera] = np.where(covered[None, ..., None], 0, render(scene)).astype(int)
    assert np.ptp(free["static"], axis=0).max() == 0
    for camera in CAMERAS[1:]:
        assert np.abs(free[camera][0] - free[camera][-1]).mean() > 0.2, camera


def test_pans_carry_the_texture_across_the_picture():
    scene = scene_with(2, background="brick", motion="still", camera="pan right")
    rows = slice(2, 6)  # above the object, so that nothing hides the bricks
    clip = render(dataclasses.replace(scene, start=(31.5, 45.0)))[:, rows].astype(float)
    # 24 pixels in 32 frames: after four frames the texture lies exactly three pixels to the left
    assert np.abs(clip[4:, :, :-3] - clip[:-4, :, 3:]).max() <= 1


def test_zoom_ends_at_life_size():
    scene = scene_with(4, background="grass", motion="still", camera="zoom in")
    outside = masks(scene)[-1] == 0
    texture = np.rint(background_texture("grass")[:, :SIZE])
    assert np.abs(render(scene)[-1].astype(float) - texture)[outside].max() <= 1
    areas = masks(scene).sum((1, 2))
    assert (np.diff(areas) > 0).all()
