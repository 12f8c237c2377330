"""Clips and sounds that are marked, and what is done to them before a mark is read back."""

from __future__ import annotations

import io
from collections.abc import Callable
from fractions import Fraction

import numpy as np

from ..runtime.provenance.sound_mark import RATE as WORLD_RATE
from ..runtime.provenance.sound_mark import resampled
from ..world import render, scene, sound

Frames = list[np.ndarray]
Sound = tuple[np.ndarray, int]  # samples float32 (n, channels), and their rate

FPS = 24
# Slopes of a random spectrum over frequency, how strong it is, and how fast it moves.
SURFACES = {
    "smooth": (2.0, 30, (2, 5)),
    "natural": (1.2, 45, (2, 5)),
    "rough": (0.8, 45, (2, 5)),
    "still": (1.2, 45, (0, 0)),
}


def clip(kind: str, num_frames: int, height: int, width: int, seed: int) -> Frames:
    """A clip of the procedural world, scaled up, or of a random surface that is panned over."""
    rng = np.random.default_rng(seed)
    if kind == "world":
        frames = render.render(scene.sample_scene(rng))
        return [
            _scaled(frames[i * len(frames) // num_frames], height, width) for i in range(num_frames)
        ]
    slope, strength, (down, across) = SURFACES[kind]
    common, *own = (_surface(rng, height, width, slope) for _ in range(4))
    base = 120 + strength * (common[..., None] + 0.3 * np.stack(own, axis=-1))
    moved = (np.roll(base, (down * i, across * i), (0, 1)) for i in range(num_frames))
    grain = (rng.standard_normal((height, width, 1), np.float32) for _ in range(num_frames))
    return [np.clip(m + g, 0, 255).astype(np.uint8) for m, g in zip(moved, grain, strict=True)]


def x264(frames: Frames, crf: int, height: int = 0, width: int = 0) -> Frames:
    """Frames after H.264, at another size if one is told."""
    import av

    height, width = height or frames[0].shape[0], width or frames[0].shape[1]
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": str(crf)})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture = picture.reformat(width=width, height=height, format="yuv420p")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    file.seek(0)
    with av.open(file, "r") as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def at_rate(frames: Frames, fps: int) -> Frames:
    """Frames shown at another rate: some are dropped."""
    return [frames[int(i * Fraction(FPS, fps))] for i in range(len(frames) * fps // FPS)]


def middle_half(frames: Frames) -> Frames:
    """From a quarter to three quarters."""
    return frames[len(frames) // 4 : 3 * len(frames) // 4]


def cropped(frames: Frames, part: float) -> Frames:
    """Without a part of each side, scaled back."""
    height, width = frames[0].shape[:2]
    top, left = round(part * height), round(part * width)
    return [_scaled(f[top : height - top, left : width - left], height, width) for f in frames]


def rotated(frames: Frames, degrees: float) -> Frames:
    """About the middle."""
    from PIL import Image

    turned = (Image.fromarray(f).rotate(degrees, Image.Resampling.BILINEAR) for f in frames)
    return [np.asarray(image) for image in turned]


PICTURE_ATTACKS: dict[str, Callable[[Frames], Frames]] = {
    "none": lambda f: f,
    "x264 crf 23": lambda f: x264(f, 23),
    "x264 crf 28": lambda f: x264(f, 28),
    "x264 crf 33": lambda f: x264(f, 33),
    "480p, crf 23": lambda f: x264(f, 23, 480, 854),
    "360p, crf 23": lambda f: x264(f, 23, 360, 640),
    "15 fps, crf 23": lambda f: x264(at_rate(f, 15), 23),
    "middle half, crf 23": lambda f: x264(middle_half(f), 23),
    "cropped by 5 %": lambda f: cropped(f, 0.05),
    "rotated by 2 degrees": lambda f: rotated(f, 2),
}


def noise_sound(seconds: float, rate: int, seed: int) -> Sound:
    """Pink noise that swells."""
    rng = np.random.default_rng(seed)
    num_samples = round(seconds * rate)
    hertz = np.fft.rfftfreq(num_samples, 1 / rate)
    spectrum = rng.standard_normal(len(hertz)) + 1j * rng.standard_normal(len(hertz))
    samples = np.fft.irfft(spectrum / np.sqrt(np.maximum(hertz, 1)), num_samples)
    samples *= 0.5 + 0.5 * np.abs(np.sin(5 * np.arange(num_samples) / rate))
    return _loud(samples), rate


def tone_sound(seconds: float, rate: int, seed: int) -> Sound:
    """Struck tones with overtones, and a little noise behind."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate)) / rate
    partials = sum(np.sin(2 * np.pi * 220 * k * time) / k for k in range(1, 17))
    return _loud(partials * np.exp(-4 * (time % 0.5)) + 0.01 * rng.standard_normal(len(time))), rate


def world_sound(seconds: float, rate: int, seed: int) -> Sound:
    """What the procedural world sounds like: ambience, and contacts now and then."""
    del seconds
    samples = sound.render_sound(scene.sample_scene(np.random.default_rng(seed)))
    return resampled(samples.reshape(-1), WORLD_RATE, rate).astype(np.float32)[:, None], rate


def aac(heard: Sound, bit_rate: int) -> Sound:
    """A sound after AAC."""
    import av

    samples, rate = heard
    file = io.BytesIO()
    layout = "mono" if samples.shape[1] == 1 else "stereo"
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=rate, layout=layout)
        stream.bit_rate = bit_rate
        planes = np.ascontiguousarray(samples.T, dtype=np.float32)
        frame = av.AudioFrame.from_ndarray(planes, format="fltp", layout=layout)
        frame.sample_rate, frame.pts = rate, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    file.seek(0)
    with av.open(file, "r") as container:
        parts = [frame.to_ndarray() for frame in container.decode(audio=0)]
    return np.concatenate(parts, axis=1).T, rate


def other_rate(heard: Sound, rate: int) -> Sound:
    """A sound at another rate."""
    samples, old = heard
    planes = [resampled(channel, old, rate) for channel in samples.T]
    return np.stack(planes, axis=1).astype(np.float32), rate


def trimmed(heard: Sound) -> Sound:
    """From a third, half as long."""
    samples, rate = heard
    start = len(samples) // 3
    return samples[start : start + len(samples) // 2], rate


SOUNDS = {"pink noise": noise_sound, "tones": tone_sound, "world": world_sound}
SOUND_ATTACKS: dict[str, Callable[[Sound], Sound]] = {
    "none": lambda s: s,
    "AAC 128 kbit/s": lambda s: aac(s, 128_000),
    "AAC 64 kbit/s": lambda s: aac(s, 64_000),
    "48 to 44.1 kHz, AAC 128": lambda s: aac(other_rate(s, 44_100), 128_000),
    "half, AAC 128": lambda s: aac(trimmed(s), 128_000),
    "2 % faster": lambda s: (other_rate(s, round(s[1] / 1.02))[0], s[1]),
}


def _surface(rng: np.random.Generator, height: int, width: int, slope: float) -> np.ndarray:
    """A random surface whose amplitude falls with frequency, of spread 1."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    drawn = rng.standard_normal(frequency.shape) + 1j * rng.standard_normal(frequency.shape)
    wide = frequency > 1.5 / width
    spectrum = np.where(wide, drawn / np.maximum(frequency, 1e-9) ** slope, 0)
    surface = np.fft.irfft2(spectrum, s=(height, width))
    return (surface / surface.std()).astype(np.float32)


def _scaled(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(frame))
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))


def _loud(samples: np.ndarray) -> np.ndarray:
    return (0.5 * samples / np.abs(samples).max()).astype(np.float32)[:, None]
