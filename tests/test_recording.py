"""A file made while its frames come: the same bytes, whole or not at all."""

import json
import threading
import time

import numpy as np
import pytest

from kinema.runtime.errors import KinemaError, UsageError
from kinema.runtime.media.mp4 import Encoder, write_mp4
from kinema.runtime.media.recording import WAITING, Recording
from kinema.runtime.media.video import read_info

REPORT = {"request": {"prompt": "a red ball"}}


def clip(num_frames=21, height=32, width=48):
    f, y, x = np.mgrid[:num_frames, :height, :width].astype(np.float64)
    waves = [np.sin(x / 20 + f / 9), np.cos(y / 25), np.sin((x + y) / 30)]
    return np.round(127 + 100 * np.stack(waves, axis=-1)).astype(np.uint8)


def chunks(frames):
    return np.split(frames, range(1, len(frames), 4))


@pytest.mark.parametrize("sample_rate", [None, 16_000])
def test_the_file_is_the_one_written_at_the_end(tmp_path, sample_rate):
    frames = clip()
    audio = None if sample_rate is None else np.full((50_000, 1), 0.25, np.float32)
    with Recording(tmp_path / "live.mp4", 8, sample_rate) as recording:
        for chunk in chunks(frames):
            recording.add(chunk)
        path = recording.finish(audio, REPORT)
    after = write_mp4(tmp_path / "after.mp4", frames, 8, audio, sample_rate, REPORT)
    assert path.read_bytes() == after.read_bytes()
    info = read_info(path)
    assert info["request"] == REPORT["request"] and info["media"]["num_frames"] == 21
    assert sorted(file.name for file in tmp_path.iterdir()) == ["after.mp4", "live.mp4"]


def test_frames_are_encoded_while_the_next_are_made(tmp_path, monkeypatch):
    """The maker is never more than a few chunks ahead, and encoding is not in its thread."""
    threads, add = set(), Encoder.add
    done = []

    def slow(self, frame):
        threads.add(threading.current_thread())
        time.sleep(0.005)
        add(self, frame)
        done.append(1)

    monkeypatch.setattr(Encoder, "add", slow)
    with Recording(tmp_path / "live.mp4", 8) as recording:
        for i, chunk in enumerate(chunks(clip(41))):
            recording.add(chunk)
            assert 1 + 4 * i - len(done) <= 4 * (WAITING + 2)
        assert 0 < len(done) < 41
        recording.finish(None, REPORT)
    assert len(done) == 41
    assert len(threads) == 1 and threading.current_thread() not in threads


def test_left_unfinished_there_is_no_file(tmp_path):
    with pytest.raises(ZeroDivisionError), Recording(tmp_path / "live.mp4", 8) as recording:
        recording.add(clip(5))
        1 / 0  # noqa: B018
    with Recording(tmp_path / "live.mp4", 8) as recording:
        recording.add(clip(5))
    with Recording(tmp_path / "live.mp4", 8):
        pass
    assert list(tmp_path.iterdir()) == []
    assert not [thread for thread in threading.enumerate() if thread.name == "kinema-encode"]


def test_a_file_that_was_there_stays_until_the_new_one_is_whole(tmp_path):
    path = write_mp4(tmp_path / "live.mp4", clip(5), 8, report=REPORT)
    before = path.read_bytes()
    with Recording(path, 8) as recording:
        recording.add(clip(9))
    assert path.read_bytes() == before
    with pytest.raises(UsageError, match="exists"):
        Recording(path, 8, overwrite=False)


def test_what_the_encoder_refuses_reaches_the_maker(tmp_path):
    with (
        pytest.raises(UsageError, match="even sides"),
        Recording(tmp_path / "live.mp4", 8) as recording,
    ):
        for _ in range(1000):
            recording.add(clip(2, 31, 48))
        recording.finish(None, REPORT)
    with (
        pytest.raises(UsageError, match="no frames"),
        Recording(tmp_path / "live.mp4", 8) as recording,
    ):
        recording.finish(None, REPORT)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_line_and_no_file(tmp_path, monkeypatch):
    def full(self, audio, report):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Encoder, "finish", full)
    with (
        pytest.raises(KinemaError, match=r"cannot write .*no space left"),
        Recording(tmp_path / "live.mp4", 8) as recording,
    ):
        recording.add(clip(5))
        recording.finish(None, REPORT)
    assert list(tmp_path.iterdir()) == []


def test_an_engine_writes_while_it_decodes(tmp_path):
    """The same video as without a file, and the file holds it."""
    import kinema

    engine = kinema.load()
    request = kinema.Request("a red ball bounces", num_frames=9, num_inference_steps=2)
    unsigned = kinema.Provenance(manifest=False)  # a signature is never twice the same
    video = engine.generate(request, path=tmp_path / "ball.mp4", provenance=unsigned)
    assert np.array_equal(video.frames, engine.generate(request).frames)
    info = read_info(tmp_path / "ball.mp4")
    assert info["media"]["num_frames"] == 9
    assert info["plan"] == json.loads(json.dumps(video.report["plan"]))
    again = video.save(tmp_path / "again.mp4", provenance=unsigned)
    assert again.read_bytes() == (tmp_path / "ball.mp4").read_bytes()
    with pytest.raises(UsageError, match="no frames"):
        engine.generate("a red ball", path=tmp_path / "none.mp4", output="latents")
