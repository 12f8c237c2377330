"""Files: what is written is what is read back, whole or not at all."""

from __future__ import annotations

import colorsys
import json
import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from kinema.runtime.errors import KinemaError, UsageError
from kinema.runtime.media.mp4 import check_target, count_samples, fit_samples, write_mp4
from kinema.runtime.media.video import Video, read_info

REPORT = {"request": {"prompt": 'a "red" bäll\n\t\x00 \U0001f534'}, "seconds": {"decode": 0.25}}
PRIMARIES = [(230, 30, 30), (230, 230, 30), (40, 200, 40), (30, 80, 230), (40, 40, 52)]


def gradient(num_frames: int = 9, height: int = 64, width: int = 64) -> np.ndarray:
    """Smooth moving colours: no chroma detail that yuv420p cannot carry."""
    f, y, x = np.mgrid[:num_frames, :height, :width].astype(np.float64)
    waves = [np.sin(x / 20 + f / 9), np.cos(y / 25), np.sin((x + y) / 30)]
    return np.round(127 + 100 * np.stack(waves, axis=-1)).astype(np.uint8)


def tone(num_samples: int, sample_rate: int, channels: int = 1) -> np.ndarray:
    wave = 0.5 * np.sin(2 * np.pi * 440 * np.arange(num_samples) / sample_rate)
    return np.repeat(wave[:, None], channels, axis=1).astype(np.float32)


def decode_frames(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])


def decode_audio(path: Path) -> np.ndarray:
    """Samples (num_samples, channels), with the silence that fills the last AAC frame."""
    with av.open(str(path)) as container:
        return np.concatenate([f.to_ndarray() for f in container.decode(audio=0)], axis=1).T


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return 10 * np.log10(255**2 / np.mean((a.astype(np.float64) - b) ** 2))


@pytest.mark.parametrize(
    ("num_frames", "fps", "sample_rate", "channels"),
    [(33, 8, 16_000, 1), (1, 24, 48_000, 2), (17, 16, 44_100, 1), (5, 24_000 / 1001, 48_000, 2)],
)
def test_length_of_picture_and_sound_are_exact(
    tmp_path: Path, num_frames: int, fps: float, sample_rate: int, channels: int
):
    num_samples = count_samples(num_frames, sample_rate, fps)
    audio = tone(num_samples + 13, sample_rate, channels)
    path = Video(gradient(num_frames), fps, audio, sample_rate).save(tmp_path / "a.mp4")
    media = read_info(path)["media"]
    assert (media["num_frames"], media["num_samples"]) == (num_frames, num_samples)
    assert media["fps"] == pytest.approx(fps, rel=1e-6)
    assert media["seconds"] == pytest.approx(num_frames / fps, abs=1e-6)
    assert (media["sample_rate"], media["channels"]) == (sample_rate, channels)
    assert (media["video_codec"], media["audio_codec"]) == ("h264", "aac")
    assert len(decode_frames(path)) == num_frames
    assert 0 <= len(decode_audio(path)) - num_samples < 1024


def test_sound_stays_in_time(tmp_path: Path):
    clicks = np.zeros((66_000, 1), np.float32)
    times = [8_000, 31_234, 65_000]
    for time in times:
        clicks[time : time + 40] = 0.9
    path = Video(gradient(33), 8, clicks, 16_000).save(tmp_path / "a.mp4")
    heard = decode_audio(path)[:66_000, 0]
    for time in times:
        window = np.abs(heard[time - 500 : time + 500])
        energy_centre = np.average(np.arange(time - 500, time + 500), weights=window**2)
        assert abs(energy_centre - (time + 20)) < 8  # half a millisecond


def test_sound_keeps_its_level(tmp_path: Path):
    path = Video(gradient(33), 8, tone(66_000, 16_000, 2), 16_000).save(tmp_path / "a.mp4")
    heard = decode_audio(path)[2_000:64_000]
    assert np.abs(heard - tone(66_000, 16_000, 2)[2_000:64_000]).max() < 0.02


@pytest.mark.parametrize("height", [64, 720])
def test_picture_survives_encoding(tmp_path: Path, height: int):
    frames = gradient(5, height, 96)
    shown = decode_frames(Video(frames, 8).save(tmp_path / "a.mp4"))
    assert shown.shape == frames.shape
    # Limited-range 8-bit yuv alone costs about 48 dB on a gradient.
    assert psnr(shown, frames) > 40


@pytest.mark.parametrize("height", [64, 720])
def test_saturated_colours_keep_their_hue(tmp_path: Path, height: int):
    width = 32 * len(PRIMARIES)
    frames = np.zeros((3, height, width, 3), np.uint8)
    for i, colour in enumerate(PRIMARIES):
        frames[:, :, 32 * i : 32 * (i + 1)] = colour
    shown = decode_frames(Video(frames, 8).save(tmp_path / "a.mp4"))
    for i, colour in enumerate(PRIMARIES):
        got = shown[:, 8:-8, 32 * i + 8 : 32 * i + 24].reshape(-1, 3).mean(axis=0)
        assert np.abs(got - colour).max() <= 3
        hues = [colorsys.rgb_to_hsv(*rgb)[0] * 360 for rgb in (got, colour)]
        assert abs(hues[0] - hues[1]) < 2 or max(colour) < 60


def test_colour_is_tagged_so_that_no_reader_has_to_guess(tmp_path: Path):
    for height, matrix in ((64, 6), (720, 1)):
        path = Video(gradient(1, height), 8).save(tmp_path / "a.mp4")
        with av.open(str(path)) as container:
            codec = container.streams.video[0].codec_context
            assert (codec.pix_fmt, codec.colorspace, codec.color_range) == ("yuv420p", matrix, 1)
            assert (codec.color_primaries, codec.color_trc) == (1, 1)


def test_the_index_comes_first(tmp_path: Path):
    content = Video(gradient(), 8, tone(9, 16_000), 16_000).save(tmp_path / "a.mp4").read_bytes()
    assert 0 < content.find(b"moov") < content.find(b"mdat")


def test_the_same_video_makes_the_same_file(tmp_path: Path):
    video = Video(gradient(), 8, tone(18_000, 16_000), 16_000, report=REPORT)
    paths = [video.save(tmp_path / f"{i}.mp4") for i in range(6)]
    assert len({path.read_bytes() for path in paths}) == 1


def test_frames_may_come_one_by_one(tmp_path: Path):
    frames = gradient()
    streamed = write_mp4(tmp_path / "a.mp4", (frame for frame in frames), 8)
    at_once = Video(frames, 8).save(tmp_path / "b.mp4")
    assert streamed.read_bytes() == at_once.read_bytes()


def test_the_report_is_read_back(tmp_path: Path):
    found = read_info(Video(gradient(), 8, report=REPORT).save(tmp_path / "a.mp4"))
    assert {name: found[name] for name in REPORT} == REPORT
    assert found["kinema"]
    assert found["media"]["audio_codec"] is None


def test_a_long_prompt_fits_the_report(tmp_path: Path):
    report = {"request": {"prompt": "é" * 32_000}}
    assert (
        read_info(Video(gradient(1), 8, report=report).save(tmp_path / "a.mp4"))["request"]
        == (report["request"])
    )


def test_info_says_what_is_wrong_with_a_file(tmp_path: Path):
    path = tmp_path / "a.mp4"
    with pytest.raises(UsageError, match=r"no such file.*a\.mp4"):
        read_info(path)
    path.write_text("not a video")
    with pytest.raises(KinemaError, match=r"a\.mp4.*no video"):
        read_info(path)
    with av.open(str(path), "w", format="mp4") as container:
        container.metadata["comment"] = json.dumps({"by": "something else"})
        stream = container.add_stream("libx264", rate=8)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(gradient(1)[0], format="rgb24")))
        container.mux(stream.encode())
    with pytest.raises(KinemaError, match="says nothing about itself"):
        read_info(path)


def test_half_a_file_is_no_video(tmp_path: Path):
    path = Video(gradient(), 8).save(tmp_path / "a.mp4")
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(KinemaError, match="no video"):
        read_info(path)


@pytest.mark.parametrize("failure", [KeyboardInterrupt, RuntimeError, OSError])
def test_a_failure_while_writing_leaves_what_was_there(
    tmp_path: Path, failure: type[BaseException]
):
    path = tmp_path / "a.mp4"
    path.write_text("the file before")

    def frames():
        yield from gradient(3)
        raise failure("now")

    expected = KinemaError if failure is OSError else failure
    with pytest.raises(expected, match="now"):
        write_mp4(path, frames(), 8)
    assert os.listdir(tmp_path) == ["a.mp4"]
    assert path.read_text() == "the file before"


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path):
    resource = pytest.importorskip("resource")
    import signal

    noise = np.random.default_rng(0).integers(0, 256, (33, 64, 64, 3), dtype=np.uint8)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, limits[1]))
        with pytest.raises(KinemaError, match=r"cannot write .*a\.mp4.*: file too large"):
            Video(noise, 8).save(tmp_path / "a.mp4")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert os.listdir(tmp_path) == []


def test_a_target_is_checked_before_any_work(tmp_path: Path):
    for name, word in {
        "a.gif": r"\.mp4",
        "a": r"\.mp4",
        "nowhere/a.mp4": "nowhere.*does not exist",
        f"{'n' * 300}.mp4": "cannot be written: file name too long",
    }.items():
        with pytest.raises(UsageError, match=word):
            check_target(tmp_path / name)
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(UsageError, match="is a folder"):
        check_target(tmp_path / "folder.mp4")
    (tmp_path / "b.mp4").touch()
    with pytest.raises(UsageError, match="exists"):
        check_target(tmp_path / "b.mp4", overwrite=False)
    assert check_target(tmp_path / "b.MP4") == tmp_path / "b.MP4"
    assert sorted(os.listdir(tmp_path)) == ["b.mp4", "folder.mp4"]


def test_what_the_codecs_cannot_hold_is_refused(tmp_path: Path):
    path = tmp_path / "a.mp4"
    for video, word in [
        (Video(gradient(2, 63, 64), 8), "64x63"),
        (Video(gradient(2), 8, tone(99, 9), 9), "sample_rate is 9"),
        (Video(gradient(2), 8, tone(99, 16_000, 3), 16_000), r"\(99, 3\)"),
        (Video(gradient(2) / 255, 8), r"float64 \(64, 64, 3\)"),
        (Video(gradient(2)[..., 0], 8), r"uint8 \(64, 64\)"),
        (Video(gradient(0), 8), "no frames"),
        (Video(None, 8), "latents"),
    ]:
        with pytest.raises(UsageError, match=word):
            video.save(path)
    assert os.listdir(tmp_path) == []


def test_a_video_says_what_it_is():
    assert str(Video(gradient(9), 8)) == "9 frames 64x64, 1.125 s, silent"
    assert repr(Video(None, 8)) == "<Video: latents only>"


def test_samples_are_cut_or_padded_with_silence():
    audio = np.ones((5, 2), np.float32)
    assert fit_samples(audio, 3).shape == (3, 2)
    padded = fit_samples(audio, 8)
    assert (padded[:5] == 1).all() and (padded[5:] == 0).all()


def test_count_samples_rounds_once():
    assert count_samples(33, 16_000, 8) == 66_000
    assert count_samples(1, 44_100, 24) == 1838  # 1837.5 rounds to even
    assert count_samples(1001, 48_000, Fraction(24_000, 1001)) == 2_004_002
