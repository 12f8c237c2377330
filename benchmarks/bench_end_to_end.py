"""Times of a whole video of the embedded model, and of its file; see `end_to_end`."""

from __future__ import annotations

import pytest

import kinema

STEPS = 5


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def engine(request):
    with kinema.load(device="cpu", dtype=request.param) as engine:
        yield engine


@pytest.mark.benchmark(group="end to end")
def test_video(benchmark, engine):
    video = benchmark(engine.generate, "a red ball bounces", num_inference_steps=STEPS)
    assert len(video.frames) == engine.plan("a red ball bounces").num_frames


@pytest.mark.benchmark(group="end to end")
def test_file(benchmark, engine, tmp_path):
    def write():
        session = engine.session("a red ball bounces", num_inference_steps=STEPS)
        session.record(tmp_path / "video.mp4")

    benchmark(write)
    assert (tmp_path / "video.mp4").stat().st_size > 0
