"""What is marked, with which payload, and what is not."""

import numpy as np
import pytest

import kinema
from kinema import Provenance, verify
from kinema.runtime.errors import UsageError
from kinema.runtime.provenance.marking import Marking, marking
from kinema.runtime.provenance.payload import payload_of

from .conftest import PROMPT, clip, report


def test_marks_are_in_the_file_alone(tmp_path):
    video = clip()
    frames, audio = video.frames.copy(), video.audio.copy()
    video.save(tmp_path / "a.mp4", provenance=Provenance(visible=True))
    assert np.array_equal(video.frames, frames) and np.array_equal(video.audio, audio)
    plain = video.save(tmp_path / "b.mp4", provenance=Provenance(manifest=False, invisible=False))
    assert (verify(plain).state, verify(plain).exit_code) == ("nothing", 3)


def test_a_mark_follows_from_request_and_weights_alone(tmp_path):
    other = {**report(), "executor": "graph", "plan": {}, "backends": {}, "seconds": {"x": 1}}
    again, changed = report(), report(seed=8)
    lora = {**report(), "loras": [{"sha256": "cd" * 32, "weight": 0.5}]}
    size = (96, 128)
    payloads = [marking(None, told, size, 8).payload for told in (report(), other, again)]
    assert len(set(payloads)) == 1
    different = [marking(None, told, size, 8).payload for told in (changed, lora)]
    assert len({*payloads, *different}) == 3


def test_a_mark_of_ones_own_key_is_read_with_it_alone(tmp_path):
    own = Provenance(manifest=False, mark_key=b"a key of the studio's own")
    file = clip(33).save(tmp_path / "a.mp4", provenance=own)
    assert verify(file).state == "nothing"
    assert verify(file, mark_key=b"a key of the studio's own").state == "marked"


def test_what_no_model_made_is_not_marked_as_if_one_had(tmp_path):
    file = clip(told={"request": {"prompt": PROMPT}}).save(tmp_path / "a.mp4")
    assert verify(file).state == "nothing"
    assert marking(Provenance(False, False, False), report(), (96, 128), 8) is None


def test_pictures_too_small_for_a_mark_are_signed_without(tmp_path):
    file = clip(height=16, width=16).save(tmp_path / "a.mp4")
    found = verify(file)
    assert found.state == "valid" and found.picture_mark is None
    made = Marking(Provenance(manifest=False), report(), (16, 16), 8)
    assert not made.has_picture_mark


@pytest.mark.parametrize("kind", ["png", "webp", "jpeg"])
def test_pictures_are_signed_as_well(tmp_path, kind):
    from PIL import Image

    file = tmp_path / "sheet.part"  # its first bytes say what it is
    marks, video = marking(None, report(), (96, 128), 8), clip()
    Image.fromarray(marks.frame(video.frames[0], 0)).save(file, kind, quality=90)
    marks.sign(file, report(), f"sheet.{kind}")
    found = verify(file)
    assert found.state == "valid" and found.generation["model"]["name"] == "tiny"
    data = bytearray(file.read_bytes())
    data[-40] ^= 1
    file.write_bytes(data)
    assert verify(file).state == "invalid"


def test_options_that_have_no_effect_are_refused():
    for options in (
        {"manifest": False, "tell_prompt": True},
        {"invisible": False, "mark_key": b"k"},
    ):
        with pytest.raises(UsageError, match="without"):
            Provenance(**options)


def test_an_engine_marks_and_signs_what_it_writes(tmp_path):
    engine = kinema.load()
    request = kinema.Request("a red ball bounces", num_frames=9, num_inference_steps=2)
    video = engine.generate(request, path=tmp_path / "a.mp4")
    found = verify(tmp_path / "a.mp4")
    assert found.state == "valid"
    expected = f"{payload_of(request.as_dict(), engine.checkpoint.weight_hash()):08x}"
    assert found.picture_mark["payload"] == found.generation["mark"] == expected
    assert found.generation["settings"]["num_inference_steps"] == 2
    again = verify(video.save(tmp_path / "b.mp4"))
    assert again.generation == found.generation and again.picture_mark == found.picture_mark
