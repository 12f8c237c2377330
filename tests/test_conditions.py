"""Pictures and clips at their frames: what is refused, and what is read from where."""

from __future__ import annotations

import av
import numpy as np
import pytest
import torch
from PIL import Image

from kinema.runtime.errors import UsageError
from kinema.runtime.media import clips
from kinema.runtime.models.wan.presets import PIPELINES
from kinema.runtime.requests.conditions import Condition, place, references
from kinema.runtime.requests.taken import check

PICTURE = np.zeros((6, 8, 3), np.uint8)
CLIP = np.zeros((5, 6, 8, 3), np.uint8)
VACE = PIPELINES["WanVACEPipeline"]


def test_conditions_lie_where_they_are_put():
    middle, last, first = Condition(frames=CLIP, frame=3), Condition(PICTURE, frame=-1), PICTURE
    face = Condition(PICTURE, frame=None)
    placed = place([last, face, middle, Condition(first)], 9)
    assert [(item.start, item.stop) for item in placed] == [(0, 1), (3, 8), (8, 9)]
    assert placed[1].condition is middle
    (reference,) = references([middle, face])
    assert reference is PICTURE


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "one image or several frames"),
        ({"image": PICTURE, "frames": CLIP}, "one image or several frames"),
        ({"image": CLIP}, r"an image is an array \(5, 6, 8, 3\)"),
        ({"image": 3}, "an image is a int"),
        ({"image": np.zeros((3, 6, 8))}, r"an image is an array \(3, 6, 8\)"),
        ({"frames": PICTURE}, r"frames are an array \(6, 8, 3\)"),
        ({"frames": iter([PICTURE])}, "frames are a list_iterator"),
        ({"image": PICTURE, "frame": 1.5}, "frame is 1.5"),
        ({"image": PICTURE, "frame": None, "mask": PICTURE}, "no mask"),
        ({"image": PICTURE, "mask": 2}, "mask is 2"),
        ({"image": PICTURE, "mask": {}}, "a mask is a dict"),
        ({"image": PICTURE, "strength": -1}, "strength is -1"),
    ],
)
def test_a_condition_that_means_nothing_is_refused(fields, words):
    with pytest.raises(UsageError, match=words):
        Condition(**fields)


@pytest.mark.parametrize(
    ("conditions", "words"),
    [
        ([Condition(PICTURE), Condition(frames=CLIP)], "frame 0 has two conditions"),
        ([Condition(PICTURE, frame=8), Condition(PICTURE, frame=-1)], "frame 8 has two"),
        ([Condition(PICTURE, frame=9)], "at frame 9; frames are 0 to 8"),
        ([Condition(PICTURE, frame=-10)], "at frame -10"),
        ([Condition(frames=CLIP, frame=6)], "5 frames from frame 6 on; the video has 9: 3 fit"),
        ([Condition(frames=[])], "no frames"),
        ([Condition(frames=CLIP, mask=np.zeros((4, 6, 8)))], "5 frames and 4 masks"),
    ],
)
def test_conditions_that_cannot_be_met_are_refused(conditions, words):
    with pytest.raises(UsageError, match=words):
        check(conditions, VACE, 9, cut=False)


def test_two_strengths_are_refused():
    conditions = [Condition(PICTURE), Condition(PICTURE, frame=1, strength=0.5)]
    with pytest.raises(UsageError, match=r"one strength, not with 0\.5, 1"):
        check(conditions, VACE, 9, cut=False)


def test_clips_are_cut_when_asked():
    (placed,) = place([Condition(frames=CLIP, frame=6)], 9, cut=True)
    assert (placed.start, placed.stop) == (6, 9)


@pytest.mark.parametrize("field", ["mask", "strength", "frame"])
def test_a_model_that_takes_pictures_whole_says_so(field):
    presets = PIPELINES["WanImageToVideoPipeline"]
    odd = {"mask": {"mask": 0.5}, "strength": {"strength": 0.5}, "frame": {"frame": None}}
    with pytest.raises(UsageError, match=r"whole|no references"):
        check([Condition(PICTURE, **odd[field])], presets, 9, cut=False)


def test_a_video_file_is_read_frame_by_frame(tmp_path):
    path = tmp_path / "clip.mkv"
    frames = np.random.default_rng(0).integers(0, 256, (5, 16, 32, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=8)
        stream.width, stream.height, stream.pix_fmt = 32, 16, "bgr0"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    condition = Condition(frames=path, mask=1.0)
    assert condition.count() == 5 and list(condition.masks()) == [1.0] * 5
    assert np.array_equal(np.stack(list(condition.pictures())), frames)
    assert condition.as_dict()["frames"] == str(path)
    path.write_bytes(b"no video")
    with pytest.raises(UsageError, match=r"clip\.mkv.*cannot be read"):
        condition.count()


def test_the_size_of_a_picture_is_that_it_is_seen_at(tmp_path):
    picture = Image.new("RGB", (8, 6))
    for media in (picture, PICTURE, torch.zeros(6, 8, 3)):
        assert clips.picture_size(media) == (6, 8)
    exif = Image.Exif()
    exif[clips.ORIENTATION] = 6
    picture.save(tmp_path / "lying.jpg", exif=exif)
    picture.save(tmp_path / "plain.png")
    assert clips.picture_size(tmp_path / "lying.jpg") == (8, 6)
    assert clips.picture_size(str(tmp_path / "plain.png")) == (6, 8)
    with pytest.raises(UsageError, match=r"none\.png' cannot be read: no such file"):
        clips.picture_size(tmp_path / "none.png")


@pytest.mark.parametrize("mask", [np.eye(6, 8) > 0, np.eye(6, 8, dtype=np.uint8) * 255])
def test_masks_of_two_axes_become_pictures(mask):
    picture = clips.mask_picture(mask)
    assert picture.shape == (6, 8, 3) and picture.dtype == np.uint8
    assert np.array_equal(picture[..., 1] == 255, np.eye(6, 8) > 0)
