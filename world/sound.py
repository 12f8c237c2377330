"""Sound of a scene: a tone at every floor contact, over the quiet hum of the background.

The pitch of a contact tells the shape. The ambience repeats with every frame exactly, so whatever
else a spectrogram shows comes from the object.
"""

from __future__ import annotations

import functools

import numpy as np

from .scene import FPS, NUM_FRAMES, Scene

SAMPLE_RATE = 16_000
SAMPLES_PER_FRAME = SAMPLE_RATE // FPS

PITCH = {"ball": 440.0, "square": 280.0, "triangle": 840.0}  # Hz
_DECAY = 0.05  # seconds
_CLICK = 0.45  # peak amplitude
# Band of each background's ambience in Hz and its RMS amplitude.
_AMBIENCE = {
    "grass": (2000, 2600, 0.010),
    "sand": (200, 900, 0.014),
    "night": (3900, 4300, 0.010),
    "brick": (80, 260, 0.016),
    "snow": (900, 1500, 0.010),
}


@functools.cache
def ambience(background: str) -> np.ndarray:
    """One frame of a background's ambience, float32 (SAMPLES_PER_FRAME,); repeats seamlessly."""
    low, high, level = _AMBIENCE[background]
    frequencies = np.fft.rfftfreq(SAMPLES_PER_FRAME, 1 / SAMPLE_RATE)
    band = (frequencies >= low) & (frequencies <= high)
    phases = np.random.default_rng(len(background)).uniform(0, 2 * np.pi, frequencies.size)
    wave = np.fft.irfft(band * np.exp(1j * phases), SAMPLES_PER_FRAME)
    return (level * wave / np.sqrt(np.mean(wave**2))).astype(np.float32)


@functools.cache
def contact_tone(shape: str) -> np.ndarray:
    """The tone of one contact, float32, starting at the contact."""
    t = np.arange(int(0.3 * SAMPLE_RATE)) / SAMPLE_RATE
    f = PITCH[shape]
    tone = np.sin(2 * np.pi * f * t) + 0.4 * np.sin(2 * np.pi * 2.1 * f * t)
    attack = np.minimum(t / 0.002, 1.0)
    return (_CLICK * attack * tone * np.exp(-t / _DECAY)).astype(np.float32)


def render_sound(scene: Scene, num_frames: int = NUM_FRAMES) -> np.ndarray:
    """The clip's sound, float32 (num_frames * SAMPLES_PER_FRAME,) in -1..1."""
    wave = np.tile(ambience(scene.background), num_frames)
    tone = contact_tone(scene.shape)
    for time in scene.contacts(num_frames):
        first = round(float(time) * SAMPLES_PER_FRAME)
        part = tone[: wave.size - first]
        wave[first : first + part.size] += part
    return wave
