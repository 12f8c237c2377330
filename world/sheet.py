"""Pictures of results: a contact sheet of clips, and a bounce with its sound under its frames."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_PAPER, _INK = (255, 255, 255), (24, 24, 28)
_SEEN, _HEARD = (255, 255, 255), (90, 230, 255)
_GAP = 4  # pixels between frames
_TEXT = 16  # height of a line's letters
_LINE = 26  # height of a line
# Perceptually even from dark to light, after matplotlib's "inferno".
_HEAT = ((0, 0, 4), (66, 10, 104), (147, 38, 103), (221, 81, 58), (252, 165, 10), (252, 255, 164))


def contact_sheet(
    prompts: Sequence[str], clips: Sequence[np.ndarray], count: int = 9, zoom: int = 2
) -> Image.Image:
    """One row a clip: its prompt over `count` frames spread evenly from the first to the last.

    clips: uint8 (num_frames, height, width, 3) each, all of one size.
    """
    side_y, side_x = (zoom * side for side in clips[0].shape[1:3])
    width = count * (side_x + _GAP) + _GAP
    row = _LINE + side_y + 2 * _GAP
    sheet = Image.new("RGB", (width, len(clips) * row + _GAP), _PAPER)
    for i, (prompt, frames) in enumerate(zip(prompts, clips, strict=True)):
        _write(sheet, (_GAP, i * row + _GAP), prompt)
        for j, index in enumerate(np.linspace(0, len(frames) - 1, count).round().astype(int)):
            picture = Image.fromarray(frames[index]).resize(
                (side_x, side_y), Image.Resampling.NEAREST
            )
            sheet.paste(picture, (_GAP + j * (side_x + _GAP), i * row + _LINE + _GAP))
    return sheet


def bounce_figure(
    prompt: str,
    frames: np.ndarray,
    audio: np.ndarray,
    sample_rate: int,
    fps: float,
    contacts: np.ndarray,
    onsets: np.ndarray,
    crop: int = 28,
    zoom: int = 2,
) -> Image.Image:
    """Every frame, cut to the object's columns, over the spectrogram of the same moment.

    contacts (seen) and onsets (heard) are times in frames; both are marked.
    """
    step, left, height = crop * zoom, 72, 220
    strip = _strip(frames, crop)
    strip = strip.resize((strip.width * zoom, strip.height * zoom), Image.Resampling.NEAREST)
    spectrum = _spectrogram(audio, sample_rate, fps, len(frames), step, height)
    top = _LINE + strip.height
    figure = Image.new("RGB", (left + strip.width + 16, top + height + 2 * _LINE), _PAPER)
    figure.paste(strip, (left, _LINE))
    figure.paste(spectrum, (left, top))
    draw = ImageDraw.Draw(figure)
    for times, color, span in ((contacts, _SEEN, (0, 14)), (onsets, _HEARD, (14, 28))):
        for time in times:
            x = left + round(float(time) * step)
            draw.line([(x, top + span[0]), (x, top + span[1])], color, 3)
    _write(figure, (left, 2), prompt)
    for hertz in (125, 500, 2000, 8000):
        y = top + round(height * (1 - np.log2(hertz / 62.5) / 7))
        _write(figure, (left - 6, min(max(y, top + 8), top + height - 8)), f"{hertz} Hz", "rm")
    for second in range(int(len(frames) / fps) + 1):
        x = left + round(second * fps * step)
        _write(figure, (x, top + height + 4), f"{second} s", "ma")
    _legend(figure, left, top + height + _LINE)
    return figure


def _legend(figure: Image.Image, x: int, y: int) -> None:
    draw = ImageDraw.Draw(figure)
    for color, text in (
        (_SEEN, "contact seen in the picture"),
        (_HEARD, "onset heard in the sound"),
    ):
        draw.rectangle([x, y + 3, x + 16, y + 19], (66, 10, 104))
        draw.line([(x + 8, y + 3), (x + 8, y + 19)], color, 3)
        _write(figure, (x + 24, y), text)
        x += 300


def _write(image: Image.Image, at: tuple[float, float], text: str, anchor: str = "la") -> None:
    ImageDraw.Draw(image).text(at, text, _INK, ImageFont.load_default(_TEXT), anchor=anchor)


def _strip(frames: np.ndarray, crop: int) -> Image.Image:
    """The frames side by side, each cut to `crop` columns around what is most colourful."""
    chroma = np.ptp(frames.astype(np.float32), axis=-1)
    mass = np.square(chroma).sum((0, 1))
    middle = int((mass * np.arange(mass.size)).sum() / max(mass.sum(), 1e-6))
    first = min(max(middle - crop // 2, 0), frames.shape[2] - crop)
    return Image.fromarray(np.concatenate(list(frames[:, :, first : first + crop]), axis=1))


def _spectrogram(
    audio: np.ndarray, sample_rate: int, fps: float, num_frames: int, step: int, height: int
) -> Image.Image:
    """Log magnitude from -80 to -20 dB, `step` columns a frame, seven octaves from 62.5 Hz up."""
    mono = audio.mean(1) if audio.ndim == 2 else audio
    size = 2 * round(0.016 * sample_rate)
    window = np.hanning(size + 1)[:-1]
    centres = (np.arange(num_frames * step) + 0.5) / step * sample_rate / fps
    padded = np.pad(mono, (size // 2, size))
    at = np.minimum(centres.astype(int), len(mono))[:, None] + np.arange(size)
    magnitude = np.abs(np.fft.rfft(padded[at] * window, 8 * size, axis=1)) * 2 / window.sum()
    hertz = 62.5 * 2 ** (7 * (1 - (np.arange(height) + 0.5) / height))
    bins = np.minimum((hertz * 8 * size / sample_rate).round().astype(int), magnitude.shape[1] - 1)
    level = np.clip((20 * np.log10(magnitude[:, bins] + 1e-6) + 80) / 60, 0, 1).T
    anchors = np.linspace(0, 1, len(_HEAT))
    heat = [np.interp(level, anchors, channel) for channel in np.array(_HEAT).T]
    return Image.fromarray(np.stack(heat, -1).round().astype(np.uint8))
