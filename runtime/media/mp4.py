"""Frames and samples into an MP4 that says how it was made.

H.264 (yuv420p) and AAC, the index in front, so a browser plays it while it loads. A file is
written beside its name and renamed once it is whole. Its `comment` tag holds the report as JSON.
What is written is marked and signed on the way (`provenance/`), what was handed in is not touched.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UsageError
from ..files import beside, reason_of, whole_or_nothing

if TYPE_CHECKING:
    import av.container

    from ..provenance.marking import Marking

SUFFIX = ".mp4"
AAC_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)
AUDIO_BITS_PER_CHANNEL = 128_000
# H.273 codes of the colour matrix. A reader that ignores the tag guesses by size, in this way too.
BT709, SMPTE170M = 1, 6
HD_HEIGHT = 720
# A 16-pixel block is a quarter of a small picture's side: its losses show, and bits are cheap.
SMALL_PIXELS, SMALL_CRF, CRF = 256 * 256, 12, 19
# Without this the same frames give different files: x264's macroblock tree reads past its rows.
X264_PARAMS = "mbtree=0"


def check_target(path: str | Path, overwrite: bool = True) -> Path:
    """The path, if a video can be written there. Raises UsageError that says why not."""
    path = Path(path).expanduser()
    if path.suffix.lower() != SUFFIX:
        raise UsageError(f"output {str(path)!r} must end in {SUFFIX}, the one format written")
    try:
        if path.is_dir():
            raise UsageError(f"output {str(path)!r} is a folder")
        if path.exists() and not overwrite:
            raise UsageError(f"output {str(path)!r} exists; --force (overwrite=True) replaces it")
        if not path.parent.is_dir():
            raise UsageError(f"output folder {str(path.parent)!r} does not exist")
        probe = beside(path)
        probe.open("xb").close()
        probe.unlink()
    except OSError as error:
        raise UsageError(f"output {str(path)!r} cannot be written: {reason_of(error)}") from None
    return path


def write_mp4(
    path: str | Path,
    frames: Iterable[np.ndarray],
    fps: float,
    audio: np.ndarray | None = None,
    sample_rate: int | None = None,
    report: dict[str, Any] | None = None,
    overwrite: bool = True,
    marking: Marking | None = None,
) -> Path:
    """Encodes frames as they come, uint8 (height, width, 3) each, with as much audio as they last.

    audio: float32 (num_samples, channels), 1 or 2 channels; cut or padded with silence.
    marking: what marks and signs the file; without it nothing does.
    """
    path = check_target(path, overwrite)
    with (
        whole_or_nothing(path) as unfinished,
        Encoder(unfinished, fps, sample_rate, marking, path.name) as encoder,
    ):
        for frame in frames:
            encoder.add(frame)
        encoder.finish(audio, report)
    return path


class Encoder:
    """A file being made: frames are encoded as they come; what is said of them comes last.

    `file` is written when `finish` is called; until then what was encoded is in memory. With a
    `marking` it is marked on the way and, when the context is left, signed under its `title`.
    """

    def __init__(
        self,
        file: Path,
        fps: float,
        sample_rate: int | None = None,
        marking: Marking | None = None,
        title: str | None = None,
    ) -> None:
        import av

        self.file, self.marking, self.title = file, marking, title or file.name
        self._report: dict[str, Any] | None = None
        self.fps, self.sample_rate, self.num_frames = _as_fraction(fps), sample_rate, 0
        timescale = str(_timescale(self.fps, sample_rate))
        options = {"movflags": "+faststart", "movie_timescale": timescale}
        file.touch()  # PyAV makes it with the first packet; who cannot write should hear it now
        self._container = av.open(str(file), "w", format="mp4", options=options)
        self._picture: av.VideoStream | None = None
        self._packets: list[av.Packet] = []

    def add(self, frame: np.ndarray) -> None:
        """Encode one frame, uint8 (height, width, 3)."""
        if self._picture is None:
            self._picture = _add_picture(self._container, frame, self.fps)
        if self.marking is not None:
            frame = self.marking.frame(frame, self.num_frames)
        self._packets += self._picture.encode(_to_yuv(frame, self._picture))
        self.num_frames += 1

    def finish(self, audio: np.ndarray | None, report: dict[str, Any] | None) -> None:
        """Write what was encoded, with as much audio as it lasts and a report."""
        from ... import __version__

        if self._picture is None:
            raise UsageError("there are no frames to write")
        container, picture = self._container, self._picture
        container.metadata["comment"] = json.dumps({"kinema": __version__, **(report or {})})
        sound = _add_sound(container, audio, self.sample_rate)
        for packet in [*self._packets, *picture.encode()]:
            container.mux(packet)
        if sound is not None:
            assert audio is not None and self.sample_rate is not None
            num_samples = count_samples(self.num_frames, self.sample_rate, self.fps)
            audio = fit_samples(audio, num_samples)
            if self.marking is not None:
                audio = self.marking.sound(audio, self.sample_rate)
            container.mux(sound.encode(_to_planar(audio, sound)))
            container.mux(sound.encode())
        self._report = report or {}

    def __enter__(self) -> Encoder:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._container.close()
        if kind is None and self._report is not None and self.marking is not None:
            self.marking.sign(self.file, self._report, self.title)


def count_samples(num_frames: int, sample_rate: int, fps: float | Fraction) -> int:
    """Audio samples that last exactly as long as the frames."""
    return round(num_frames * sample_rate / fps)


def fit_samples(audio: np.ndarray, num_samples: int) -> np.ndarray:
    """Audio (samples, channels) cut, or padded with silence, to num_samples."""
    missing = max(0, num_samples - len(audio))
    return np.pad(audio[:num_samples], ((0, missing), (0, 0)))


def _add_picture(
    container: av.container.OutputContainer, first: np.ndarray, fps: Fraction
) -> av.VideoStream:
    if first.dtype != np.uint8 or first.ndim != 3 or first.shape[2] != 3:
        raise UsageError(
            f"a frame is {first.dtype} {first.shape}; uint8 (height, width, 3) is expected"
        )
    height, width = first.shape[:2]
    if height % 2 or width % 2:
        raise UsageError(f"frames are {width}x{height}; H.264 as written here needs even sides")
    crf = SMALL_CRF if height * width <= SMALL_PIXELS else CRF
    stream = container.add_stream(
        "libx264", rate=fps, options={"crf": str(crf), "x264-params": X264_PARAMS}
    )
    stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
    codec = stream.codec_context
    codec.color_range = 1  # limited: black is 16, white 235
    codec.colorspace = BT709 if height >= HD_HEIGHT else SMPTE170M
    codec.color_primaries = codec.color_trc = BT709
    return stream


def _add_sound(
    container: av.container.OutputContainer, audio: np.ndarray | None, sample_rate: int | None
) -> av.AudioStream | None:
    if audio is None:
        return None
    if sample_rate not in AAC_RATES:
        raise UsageError(f"sample_rate is {sample_rate}; AAC has {', '.join(map(str, AAC_RATES))}")
    if audio.ndim != 2 or audio.shape[1] not in (1, 2):
        raise UsageError(f"audio has shape {audio.shape}; (num_samples, 1 or 2) is expected")
    channels = audio.shape[1]
    layout = "mono" if channels == 1 else "stereo"
    stream = container.add_stream("aac", rate=sample_rate, layout=layout)
    stream.bit_rate = AUDIO_BITS_PER_CHANNEL * channels
    return stream


def _to_yuv(frame: np.ndarray, stream: av.VideoStream) -> av.VideoFrame:
    import av
    from av.video.reformatter import ColorRange, Colorspace

    hd = stream.codec_context.colorspace == BT709
    return av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24").reformat(
        format="yuv420p",
        dst_colorspace=Colorspace.ITU709 if hd else Colorspace.ITU601,
        dst_color_range=ColorRange.MPEG,
    )


def _to_planar(audio: np.ndarray, stream: av.AudioStream) -> av.AudioFrame:
    import av

    samples = np.ascontiguousarray(np.clip(audio, -1, 1).T, dtype=np.float32)
    frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout=stream.layout.name)
    frame.sample_rate, frame.pts = stream.rate, 0
    return frame


def _as_fraction(fps: float) -> Fraction:
    return Fraction(fps).limit_denominator(1001)


def _timescale(fps: Fraction, sample_rate: int | None) -> int:
    """Units a second of the file's clock in which both frames and samples end exactly."""
    both = math.lcm(fps.numerator, sample_rate or 1)
    return both if both < 2**31 else 90_000
