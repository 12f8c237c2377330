"""Pictures and clips of strangers."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import replace

import av
import numpy as np
import pytest

pytest.importorskip("fastapi", reason="needs kinema[serve]")

from PIL import Image

from kinema.runtime.errors import UsageError
from kinema.runtime.serve.limits import Limits
from kinema.runtime.serve.uploads import store_clip, store_picture

LIMITS = Limits()
GRADIENT = np.dstack(np.mgrid[0:48, 0:64].astype(np.uint8).repeat(2, 0)[[0, 2, 3]] * 4)


def saved(path, image=None, **options):
    (image or Image.fromarray(GRADIENT)).save(path, **options)
    return path


def refused(store, source, into, why, **limits):
    with pytest.raises(UsageError, match=why) as error:
        store(source, into, replace(LIMITS, **limits))
    assert not into.exists() and str(into.parent) not in str(error.value)
    assert "\n" not in str(error.value)


# ---- pictures ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_picture_is_told_by_its_content_and_written_anew(tmp_path, kind):
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95}}.get(kind, {})
    source = saved(tmp_path / "a.bin", format=kind, **options)
    into = tmp_path / "b.png"
    assert store_picture(source, into, LIMITS) == (64, 48)
    with Image.open(into) as image:
        assert (image.format, image.mode, image.size) == ("PNG", "RGB", (64, 48))
        difference = np.abs(np.asarray(image).astype(int) - GRADIENT)
    assert difference.mean() < (4 if kind == "JPEG" else 1e-9)


def test_what_a_picture_says_of_itself_is_not_kept(tmp_path):
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a secret place"
    source = saved(tmp_path / "a", format="JPEG", exif=exif, quality=95)
    assert store_picture(source, tmp_path / "b.png", LIMITS) == (48, 64)  # upright
    assert b"secret" not in (tmp_path / "b.png").read_bytes()
    upright = np.asarray(Image.open(tmp_path / "b.png")).astype(int)
    assert np.abs(upright - np.rot90(GRADIENT, -1)).mean() < 4


def test_clear_pictures_lie_on_white_and_deep_grey_keeps_its_shades(tmp_path):
    clear = Image.new("RGBA", (20, 10), (255, 0, 0, 0))
    store_picture(saved(tmp_path / "a", clear, format="PNG"), tmp_path / "b.png", LIMITS)
    assert Image.open(tmp_path / "b.png").getpixel((3, 3)) == (255, 255, 255)
    deep = Image.fromarray(np.full((10, 20), 0x8040, np.uint16))
    store_picture(saved(tmp_path / "c", deep, format="PNG"), tmp_path / "d.png", LIMITS)
    assert Image.open(tmp_path / "d.png").getpixel((3, 3)) == (0x80,) * 3


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "PPM", "ICO"])
def test_other_formats_are_refused(tmp_path, kind):
    refused(store_picture, saved(tmp_path / "a.png", format=kind), tmp_path / "b.png", "read")


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_pictures_that_move_are_refused(tmp_path, kind):
    more = [Image.fromarray(255 - GRADIENT)]
    source = saved(tmp_path / "a", format=kind, save_all=True, append_images=more)
    refused(store_picture, source, tmp_path / "b.png", "2 frames")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_pictures_that_are_cut_off_or_damaged_are_refused(tmp_path, kind):
    whole = saved(tmp_path / "a", format=kind).read_bytes()
    for part in (b"", whole[:10], whole[: len(whole) // 2], b"<svg xmlns='x'/>", b"%PDF-1.4"):
        source = tmp_path / "a"
        source.write_bytes(part)
        refused(store_picture, source, tmp_path / "b.png", "cannot be read")


def png_of(width, height):
    """A PNG of few bytes that says how large it is, and whose rows are all there."""

    def chunk(name, data):
        end = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + end

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    rows = zlib.compress(bytes(height * (1 + (width + 7) // 8)), 9)
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore:Image size:PIL.Image.DecompressionBombWarning")
def test_a_bomb_is_refused_by_its_header(tmp_path, monkeypatch):
    def decode(*_):
        raise AssertionError("it was decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decode)
    source = tmp_path / "a"
    for width, height, why in ((10_000, 10_000, "40,000,000 pixels"), (20_000, 10, "a side")):
        source.write_bytes(png_of(width, height))
        assert source.stat().st_size < 20_000
        refused(store_picture, source, tmp_path / "b.png", why)


def test_a_text_of_a_png_that_swells_is_refused(tmp_path):
    source, image = tmp_path / "a", io.BytesIO()
    Image.fromarray(GRADIENT).save(image, "PNG")
    data = b"Comment\0\0" + zlib.compress(bytes(64 << 20), 9)
    chunk = struct.pack(">I", len(data)) + b"zTXt" + data
    chunk += struct.pack(">I", zlib.crc32(b"zTXt" + data))
    whole = image.getvalue()
    source.write_bytes(whole[:33] + chunk + whole[33:])
    refused(store_picture, source, tmp_path / "b.png", "cannot be read")


def test_a_picture_of_too_many_bytes_is_refused(tmp_path):
    source = saved(tmp_path / "a", format="PNG")
    refused(store_picture, source, tmp_path / "b.png", "bytes; 100 at most", max_image_bytes=100)


# ---- clips ---------------------------------------------------------------------------------------


def filmed(path, codec="libx264", kind="mp4", frames=12, size=(64, 48), rate=12, sound=False):
    """A grey clip that grows lighter."""
    with av.open(str(path), "w", format=kind) as container:
        picture = container.add_stream(codec, rate=rate)
        picture.width, picture.height = size
        picture.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        track = container.add_stream("aac", rate=44_100, layout="mono") if sound else None
        for index in range(frames):
            pixels = np.full((size[1], size[0], 3), 20 * index % 255, np.uint8)
            container.mux(picture.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(picture.encode())
        if track is not None:
            samples = np.sin(np.arange(44_100 * frames // rate) / 20).astype(np.float32)[None]
            heard = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
            heard.sample_rate = 44_100
            container.mux([*track.encode(heard), *track.encode()])
    return path


@pytest.mark.parametrize("codec", ["libx264", "libx265", "libsvtav1", "libvpx-vp9"])
def test_a_clip_is_written_anew(tmp_path, codec):
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no {codec}")
    into = tmp_path / "b.mp4"
    clip = store_clip(filmed(tmp_path / "a.bin", codec, size=(66, 64)), into, LIMITS)
    assert (clip.num_frames, clip.width, clip.height, clip.fps, clip.seconds) == (12, 66, 64, 12, 1)
    with av.open(str(into)) as container:
        assert container.streams.video[0].codec_context.name == "h264"
        light = [frame.to_ndarray(format="rgb24").mean() for frame in container.decode(video=0)]
    assert np.abs(np.array(light) - 20 * np.arange(12)).max() < 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.bin", "b.mp4"]


def test_a_clip_keeps_its_sound(tmp_path):
    store_clip(filmed(tmp_path / "a", sound=True), tmp_path / "b.mp4", LIMITS)
    with av.open(str(tmp_path / "b.mp4")) as container:
        assert container.streams.audio[0].rate == 48_000
        heard = np.concatenate([f.to_ndarray() for f in container.decode(audio=0)], axis=1)
    assert 0.6 < np.sqrt((heard[:, 4800:43_200] ** 2).mean()) < 0.8  # of a sine: 0.71


@pytest.mark.parametrize(
    ("codec", "kind", "why"),
    [
        ("mpeg4", "mp4", "none that is known|mpeg4"),
        ("mjpeg", "mp4", "none that is known|mjpeg"),
        ("libx264", "matroska", "no MP4"),
        ("mpeg4", "avi", "no MP4"),
        ("libx264", "flv", "no MP4"),
        ("libx264", "mpegts", "no MP4"),
    ],
)
def test_other_containers_and_codecs_are_refused(tmp_path, codec, kind, why):
    refused(store_clip, filmed(tmp_path / "a.mp4", codec, kind), tmp_path / "b.mp4", why)


def test_playlists_and_other_texts_are_no_clips(tmp_path):
    source = tmp_path / "a.mp4"
    for text in ("#EXTM3U\nfile:///etc/passwd\n", "ffconcat version 1.0\nfile '/etc/passwd'\n", ""):
        source.write_text(text)
        refused(store_clip, source, tmp_path / "b.mp4", "no MP4")


@pytest.mark.parametrize(
    ("limits", "why"),
    [
        ({"max_body_bytes": 100}, "bytes; 100 at most"),
        ({"max_pixels": 64 * 48 - 1}, "pixels a frame|cannot be read"),
        ({"max_clip_pixels": 64 * 48 * 11}, "pixels in all"),
        ({"max_clip_seconds": 0.9}, "lasts 1 seconds"),
    ],
)
def test_clips_beyond_a_limit_are_refused(tmp_path, limits, why):
    refused(store_clip, filmed(tmp_path / "a"), tmp_path / "b.mp4", why, **limits)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_clip_that_lies_about_its_length_is_refused(tmp_path):
    source = filmed(tmp_path / "a", frames=48, rate=12)
    data = bytearray(source.read_bytes())
    for name in (b"mvhd", b"tkhd", b"mdhd"):  # durations, at 16 or 20 bytes after their names
        at = data.index(name) + (24 if name == b"tkhd" else 20)
        data[at : at + 4] = struct.pack(">I", 1)
    source.write_bytes(data)
    why = "lasts over 2|frames a second"
    refused(store_clip, source, tmp_path / "b.mp4", why, max_clip_seconds=2.0)


def test_a_clip_that_is_cut_off_or_damaged_ends_in_a_refusal_or_in_a_clip(tmp_path):
    whole = filmed(tmp_path / "a", frames=8).read_bytes()
    generator = np.random.default_rng(7)
    source, into, refusals = tmp_path / "a", tmp_path / "b.mp4", 0
    for trial in range(60):
        data = bytearray(whole[: generator.integers(8, len(whole))] if trial % 2 else whole)
        for _ in range(trial % 7):
            data[generator.integers(8, len(data))] = generator.integers(0, 256)
        source.write_bytes(data)
        try:
            assert store_clip(source, into, LIMITS).num_frames > 0
        except UsageError:
            refusals += 1
            assert not into.exists()
        into.unlink(missing_ok=True)
    assert refusals >= 20


def test_frames_and_rates_out_of_range_are_refused(tmp_path):
    source = filmed(tmp_path / "a", size=(8, 64))
    refused(store_clip, source, tmp_path / "b.mp4", "sides from 16")
    source = filmed(tmp_path / "c", rate=240, frames=24)
    refused(store_clip, source, tmp_path / "b.mp4", "1 to 120")


def test_sound_alone_is_no_clip(tmp_path):
    with av.open(str(tmp_path / "a"), "w", format="mp4") as container:
        track = container.add_stream("aac", rate=44_100, layout="mono")
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 44_100), np.float32), "fltp", "mono")
        samples.sample_rate = 44_100
        container.mux([*track.encode(samples), *track.encode()])
    refused(store_clip, tmp_path / "a", tmp_path / "b.mp4", "no picture")
