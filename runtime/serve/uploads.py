"""Pictures and clips from strangers: measured before they are decoded, and written anew."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import KinemaError, UsageError
from ..files import reason_of, whole_or_nothing

if TYPE_CHECKING:
    import av
    import numpy as np
    from av.container import InputContainer
    from PIL import Image

    from .limits import Limits

PICTURES = ("JPEG", "PNG", "WEBP")
MAX_SIDE = 16_384
SIGNATURE = slice(4, 8)  # where MP4 and QuickTime files say "ftyp"
CODECS = ("h264", "hevc", "av1", "vp9")
DECODERS = (*CODECS, "libdav1d", "aac", "mp3", "opus", "flac", "alac")
MIN_SIDE, MAX_FPS, SAMPLE_RATE = 16, 120, 48_000
# FFmpeg's own locks, in force while it looks at a file for the first time, which decodes already.
LOCKS = {
    "protocol_whitelist": "file",
    "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2",
    "codec_whitelist": ",".join(DECODERS),
}


@dataclass(frozen=True)
class Clip:
    """What a stored clip measures."""

    num_frames: int
    width: int
    height: int
    fps: float
    seconds: float


def store_picture(source: Path, into: Path, limits: Limits) -> tuple[int, int]:
    """Write a picture as PNG, upright, on white where it is clear; its width and height.

    Raises `UsageError`, and `KinemaError` for a disk that is full.
    """
    from PIL import Image, ImageOps

    if (size := source.stat().st_size) > limits.max_image_bytes:
        raise UsageError(f"the picture has {size:,} bytes; {limits.max_image_bytes:,} at most")
    try:
        with Image.open(source, formats=PICTURES) as image:
            _check_picture(image, limits)
            upright = _opaque(ImageOps.exif_transpose(image))
    except UsageError:
        raise
    except Exception as error:  # decoders raise what they like
        raise _unreadable("picture", source, error) from None
    with whole_or_nothing(into) as unfinished:
        upright.save(unfinished, "PNG", compress_level=1)
    return upright.size


def _check_picture(image: Image.Image, limits: Limits) -> None:
    """Nothing is decoded yet but the header."""
    size = f"{image.width}x{image.height}"
    if image.width * image.height > limits.max_pixels:
        raise UsageError(f"the picture is {size}; {limits.max_pixels:,} pixels at most")
    if max(image.size) > MAX_SIDE:
        raise UsageError(f"the picture is {size}; {MAX_SIDE:,} pixels a side at most")
    if getattr(image, "is_animated", False) and image.format != "MPO":  # a photograph and its depth
        count = getattr(image, "n_frames", 0)
        raise UsageError(f"the picture has {count} frames; one that stands still works")


def _opaque(image: Image.Image) -> Image.Image:
    from PIL import Image

    if image.mode.startswith("I"):  # 16 bits of grey, which `convert` would clip
        image = image.convert("I").point(lambda value: value / 256).convert("L")
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def store_clip(source: Path, into: Path, limits: Limits) -> Clip:
    """Write a clip as the MP4 that is written here, upright, with its sound.

    Raises `UsageError`, and `KinemaError` for a disk that is full.
    """
    from ..media.mp4 import write_mp4

    try:
        with _opened(source, limits) as container:
            fps = _check_clip(container, limits)
            frames = _Frames(source, container, fps, limits)
            write_mp4(into, frames, fps, *_sound(source, limits))
    except KinemaError:
        raise
    except Exception as error:  # decoders raise what they like
        raise _unreadable("clip", source, error) from None
    return Clip(frames.count, *frames.size, fps, frames.count / fps)


def _opened(source: Path, limits: Limits) -> InputContainer:
    import av

    if (size := source.stat().st_size) > limits.max_body_bytes:
        raise UsageError(f"the clip has {size:,} bytes; {limits.max_body_bytes:,} at most")
    with source.open("rb") as file:
        if file.read(8)[SIGNATURE] != b"ftyp":
            raise UsageError("the clip is no MP4, the one format that is read")
    options = {**LOCKS, "max_pixels": str(limits.max_pixels)}
    return av.open(str(source), format="mp4", options=options)


def _check_clip(container: InputContainer, limits: Limits) -> float:
    """Frames a second, of a clip whose headers say that it may be decoded."""
    if not container.streams.video:
        raise UsageError("the clip has no picture")
    stream = container.streams.video[0]
    codec = stream.codec_context
    name = "none that is known" if codec is None else codec.codec.canonical_name
    if codec is None or name not in CODECS:
        raise UsageError(f"the clip is coded as {name}; {', '.join(CODECS)} work")
    _check_frame(codec.width, codec.height, limits)
    seconds = float(container.duration or 0) / 1_000_000
    if seconds > limits.max_clip_seconds:
        raise UsageError(f"the clip lasts {seconds:g} seconds; {limits.max_clip_seconds:g} at most")
    fps = float(stream.average_rate or 0)
    if not 1 <= fps <= MAX_FPS:
        raise UsageError(f"the clip has {fps:g} frames a second; 1 to {MAX_FPS} work")
    # Bounds what is decoded even where the header of the container lies.
    codec.options = {"max_pixels": str(limits.max_pixels)}
    return fps


def _check_frame(width: int, height: int, limits: Limits) -> None:
    size = f"{width}x{height}"
    if width * height > limits.max_pixels:
        raise UsageError(f"the clip is {size}; {limits.max_pixels:,} pixels a frame at most")
    if min(width, height) < MIN_SIDE or max(width, height) > MAX_SIDE:
        raise UsageError(f"the clip is {size}; sides from {MIN_SIDE} to {MAX_SIDE:,} work")


class _Frames:
    """The frames of a clip, upright and even-sided, until a limit is passed."""

    def __init__(self, source: Path, container: Any, fps: float, limits: Limits) -> None:
        self.source, self.container, self.fps, self.limits = source, container, fps, limits
        self.count, self.size = 0, (0, 0)

    def __iter__(self) -> Iterator[np.ndarray]:
        coded = None
        for frame in self._decoded():
            _check_frame(frame.width, frame.height, self.limits)
            if coded not in (None, (frame.width, frame.height)):
                raise UsageError("the clip changes its size on the way")
            coded = frame.width, frame.height
            self._count(frame)
            picture = _upright(frame)
            self.size = picture.shape[1], picture.shape[0]
            yield picture

    def _decoded(self) -> Iterator[av.VideoFrame]:
        try:
            yield from self.container.decode(video=0)
        except OSError as error:  # whoever writes the frames would take it for a full disk
            raise _unreadable("clip", self.source, error) from None

    def _count(self, frame: av.VideoFrame) -> None:
        self.count += 1
        most = self.limits.max_clip_pixels
        if self.count * frame.width * frame.height > most:
            raise UsageError(f"the clip has over {most:,} pixels in all")
        if self.count > self.limits.max_clip_seconds * self.fps + 1:
            raise UsageError(f"the clip lasts over {self.limits.max_clip_seconds:g} seconds")


def _upright(frame: av.VideoFrame) -> np.ndarray:
    """A frame uint8 (height, width, 3), turned as a phone says that it was held."""
    import numpy as np

    quarters = round(getattr(frame, "rotation", 0) / 90) % 4
    picture = np.rot90(frame.to_ndarray(format="rgb24"), quarters)
    height, width = (side // 2 * 2 for side in picture.shape[:2])
    return picture[:height, :width]


def _sound(source: Path, limits: Limits) -> tuple[np.ndarray | None, int | None]:
    """Samples (n, channels) and their rate, mono or stereo; None where there is no sound."""
    import av
    import numpy as np

    most, parts, count = int(limits.max_clip_seconds * SAMPLE_RATE), [], 0
    with _opened(source, limits) as container:
        if not container.streams.audio or container.streams.audio[0].codec_context is None:
            return None, None
        layout = "mono" if container.streams.audio[0].codec_context.channels == 1 else "stereo"
        resampler = av.AudioResampler("fltp", layout, SAMPLE_RATE)
        for frame in itertools.chain(container.decode(audio=0), [None]):
            for part in resampler.resample(frame):
                parts.append(part.to_ndarray())
                count += part.samples
            if count > most:
                break
    return (np.concatenate(parts, axis=1)[:, :most].T, SAMPLE_RATE) if parts else (None, None)


def _unreadable(what: str, source: Path, error: Exception) -> UsageError:
    """A refusal that does not tell where the server keeps its files."""
    reason = reason_of(error).replace(str(source), "the file")
    return UsageError(f"the {what} cannot be read: {reason[:200]}")
