"""Pictures of a scene: anti-aliased shapes over a muted, named background."""

from __future__ import annotations

import colorsys
import functools

import numpy as np

from .scene import COLORS, HORIZON, NUM_FRAMES, SATURATION, SIZE, VALUE, Scene

# Sky and ground of each background; every one has saturation below 0.5 or value below 0.25.
_TONES = {
    "grass": ((176, 192, 204), (112, 142, 98)),
    "sand": ((206, 196, 182), (196, 174, 134)),
    "night": ((18, 20, 40), (30, 30, 34)),
    "brick": ((146, 112, 104), (112, 106, 104)),
    "snow": ((150, 160, 172), (232, 236, 240)),
}
_PAN = 24.0  # pixels a pan moves the background over NUM_FRAMES frames
_ZOOM = 1.35  # scale reached by a zoom


@functools.cache
def background_texture(name: str) -> np.ndarray:
    """The background as (SIZE, 2 * SIZE, 3) float32 in 0..255, periodic along x."""
    sky, ground = (np.array(tone, np.float32) for tone in _TONES[name])
    y, x = np.mgrid[0:SIZE, 0 : 2 * SIZE].astype(np.float32)
    wave = 2 * np.pi * x / SIZE
    line = HORIZON + {"sand": 2.5 * np.sin(wave), "snow": 1.5 * np.sin(wave + 1.0)}.get(
        name, 0.0 * x
    )
    below = np.clip(y - line + 0.5, 0, 1)[..., None]
    picture = sky * (1 - below) + ground * below
    if name == "grass":  # mown stripes
        picture += 7.0 * np.sign(np.sin(2 * wave))[..., None] * below
    elif name == "night":  # stars on a loose lattice
        for i in range(12):
            row, column = (5 + 11 * i) % 36, (5 + 37 * i) % SIZE
            for dx in (0, 1):
                picture[row : row + 2, column + dx :: SIZE] = 190.0
    elif name == "brick":
        row = np.floor(y / 8)
        mortar = (np.mod(y, 8) < 1) | (np.mod(x + 8 * np.mod(row, 2), 16) < 1)
        picture += 22.0 * mortar[..., None] * (1 - below)
    elif name == "sand":  # ripples
        picture += 6.0 * np.sin(2 * np.pi * y / 6 + 2 * np.sin(wave))[..., None] * below
    return np.clip(picture, 0, 255).astype(np.float32)


def color_rgb(name: str) -> np.ndarray:
    """RGB of a named object colour, float32 in 0..255."""
    rgb = colorsys.hsv_to_rgb(COLORS[name] / 360.0, SATURATION, VALUE)
    return (255.0 * np.array(rgb)).astype(np.float32)


def coverage(shape: str, dx: np.ndarray, dy: np.ndarray, radius: np.ndarray | float) -> np.ndarray:
    """Share of each pixel the shape covers, 0..1, from offsets to its centre in pixels."""
    if shape == "ball":
        inside = radius - np.sqrt(dx * dx + dy * dy)
    elif shape == "square":
        inside = 0.9 * radius - np.maximum(np.abs(dx), np.abs(dy))
    else:  # apex up, as wide as high
        inside = np.minimum(radius - dy, (dy + radius - 2 * np.abs(dx)) / 5**0.5)
    return np.clip(inside + 0.5, 0, 1)


def masks(scene: Scene, num_frames: int = NUM_FRAMES) -> np.ndarray:
    """Coverage of the object, (num_frames, SIZE, SIZE) float32 in 0..1."""
    dx, dy, radius = _offsets(scene, num_frames)
    return coverage(scene.shape, dx, dy, radius)


def render(scene: Scene, num_frames: int = NUM_FRAMES) -> np.ndarray:
    """The clip, uint8 (num_frames, SIZE, SIZE, 3)."""
    dx, dy, radius = _offsets(scene, num_frames)
    alpha = coverage(scene.shape, dx, dy, radius)[..., None]
    light = 0.94 - 0.06 * np.clip((dx + dy) / (1.5 * radius), -1, 1)  # from the upper left
    picture = _background(scene, num_frames)
    picture = picture + alpha * (light[..., None] * color_rgb(scene.color) - picture)
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def _offsets(scene: Scene, num_frames: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    grid = np.arange(SIZE, dtype=np.float32)
    centres = scene.centres(num_frames)
    scale = _zoom(scene, num_frames)
    middle = (SIZE - 1) / 2
    centres = middle + (centres - middle) * np.minimum(scale, 1.0)[:, None]
    dx = grid[None, None, :] - centres[:, 0, None, None]
    dy = grid[None, :, None] - centres[:, 1, None, None]
    dx, dy = np.broadcast_arrays(dx, dy)
    return dx, dy, (scene.radius * scale)[:, None, None].astype(np.float32)


def _zoom(scene: Scene, num_frames: int) -> np.ndarray:
    if scene.camera != "zoom in":
        return np.ones(num_frames, np.float32)
    share = np.arange(num_frames, dtype=np.float32) / (NUM_FRAMES - 1)
    return (1.0 / _ZOOM + (1.0 - 1.0 / _ZOOM) * share).astype(np.float32)


def _background(scene: Scene, num_frames: int) -> np.ndarray:
    texture = background_texture(scene.background)
    if scene.camera == "static":
        return texture[None, :, :SIZE]
    time = np.arange(num_frames, dtype=np.float32) / (NUM_FRAMES - 1)
    grid = np.arange(SIZE, dtype=np.float32)
    shift = {"pan left": -_PAN, "pan right": _PAN}.get(scene.camera, 0.0) * time
    scale = _zoom(scene, num_frames)
    middle = (SIZE - 1) / 2
    x = (grid - middle) / scale[:, None] * scale[-1] + middle + shift[:, None]
    y = (grid - middle) / scale[:, None] * scale[-1] + middle
    return _sample(texture, x, np.clip(y, 0, SIZE - 1))


def _sample(texture: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Bilinear samples (frames, rows, columns, 3) at y (frames, rows), x (frames, columns)."""
    x0, y0 = np.floor(x).astype(int), np.floor(y).astype(int)
    fx, fy = (x - x0)[:, None, :, None], (y - y0)[:, :, None, None]
    y1 = np.minimum(y0 + 1, SIZE - 1)
    x0, x1 = x0 % (2 * SIZE), (x0 + 1) % (2 * SIZE)
    rows0, rows1 = y0[:, :, None], y1[:, :, None]
    x0, x1 = x0[:, None, :], x1[:, None, :]
    top = texture[rows0, x0] * (1 - fx) + texture[rows0, x1] * fx
    bottom = texture[rows1, x0] * (1 - fx) + texture[rows1, x1] * fx
    return top * (1 - fy) + bottom * fy
