"""What files say of where they come from: whole, changed, stripped, descended."""

import json
import os
import random
import re
import struct
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import av
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

import kinema
from kinema import Provenance, Video, verify
from kinema.runtime.cli import run
from kinema.runtime.errors import KinemaError, UsageError
from kinema.runtime.media.video import read_info
from kinema.runtime.provenance import certificates, keys, manifest
from kinema.runtime.provenance.marking import Marking, marking
from kinema.runtime.provenance.payload import payload_of

PROMPT = "a red ball bounces in secret"
MOST_ADDED = 6_000  # bytes


def report(**request):
    return {
        "request": {"prompt": PROMPT, "seed": 7, **request},
        "plan": {"num_frames": 33, "height": 96, "width": 128, "seed": 7, "dtype": "float32"},
        "model": {"name": "tiny", "weights": "ab" * 32},
        "executor": "eager",
        "backends": {"attention": "torch", "norm_modulate": "triton"},
        "loras": [],
    }


def clip(num_frames=17, height=96, width=128, told=None, sample_rate=16_000):
    f, y, x = np.mgrid[:num_frames, :height, :width].astype(np.float64)
    waves = [np.sin(x / 20 + f / 9), np.cos(y / 25), np.sin((x + y) / 30)]
    frames = np.round(127 + 90 * np.stack(waves, axis=-1)).astype(np.uint8)
    noise = np.random.default_rng(0).normal(0, 0.1, (num_frames * sample_rate // 8, 1))
    return Video(frames, 8, noise.astype(np.float32), sample_rate, report=told or report())


@pytest.fixture(scope="module")
def signed(tmp_path_factory):
    return clip(33).save(tmp_path_factory.mktemp("signed") / "a.mp4")


def boxes(data, start=0, end=None):
    """(offset, size, name) of the boxes in a part of a file."""
    while start < (end or len(data)):
        size, name = struct.unpack(">I4s", data[start : start + 8])
        yield start, size, name
        start += size


def contents_of_manifest(data):
    """Where the assertions, the claim and the signature are: all CBOR, less the zeros that fill up
    the signature's."""
    at, size = next(box[:2] for box in boxes(data) if box[2] == b"uuid")
    found = []
    for name in re.finditer(b"cbor", data[at : at + size]):
        start = at + name.end()
        length = int.from_bytes(data[start - 8 : start - 4], "big") - 8
        if length < size:  # else the name of a type
            found += range(start, start + length)
    zeros = data.index(b"cpadY", at, at + size)
    end = zeros + 7 + int.from_bytes(data[zeros + 5 : zeros + 7], "big")
    return [position for position in found if not zeros < position < end]


# ---- whole and changed ---------------------------------------------------------------------------


def test_a_file_is_signed_by_default_and_nobody_vouches_for_it(signed):
    found = verify(signed)
    assert (found.state, found.exit_code, found.problems) == ("valid", 0, ())
    assert found.signed_by == "kinema development"
    assert found.software == f"kinema {kinema.__version__}"
    assert found.generation["model"] == {"name": "tiny", "weights": "ab" * 32}
    assert found.generation["settings"]["seed"] == 7
    assert found.lineage == ()
    expected = f"{payload_of(report()['request'], 'ab' * 32):08x}"
    assert found.generation["mark"] == expected
    assert found.picture_mark["payload"] == expected
    assert found.sound_mark["payload"] == expected
    trusted = verify(signed, trust=keys.keys_folder() / keys.ROOT)
    assert (trusted.state, trusted.exit_code) == ("trusted", 0)


def test_any_flipped_byte_is_noticed(signed, tmp_path):
    """Of the movie header, the media data, and what the manifest holds; where boxes begin, too."""
    data, chance = signed.read_bytes(), random.Random(0)
    places = {name: range(at, at + size) for at, size, name in boxes(data)}
    positions = {
        "moov": chance.sample(places[b"moov"], 300),
        "mdat": [*places[b"mdat"][:16], *chance.sample(places[b"mdat"], 200)],
        "manifest": chance.sample(contents_of_manifest(data), 300),
    }
    target = tmp_path / "flipped.mp4"
    for part, sampled in positions.items():
        for position in sampled:
            flipped = bytearray(data)
            flipped[position] ^= 1 << position % 8
            target.write_bytes(flipped)
            try:
                found = manifest.read(target)
            except ValueError:
                continue
            assert found["validation_state"] == "Invalid", (part, position)
    assert verify(target).state == "invalid" and verify(target).problems


def test_a_file_cut_short_is_invalid(signed, tmp_path):
    data = signed.read_bytes()
    for length in (len(data) - 1, len(data) // 2, 3000):
        (tmp_path / "cut.mp4").write_bytes(data[:length])
        assert verify(tmp_path / "cut.mp4").exit_code == 1


def remuxed(source, target):
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        copies = {s.index: new.add_stream_from_template(s) for s in old.streams}
        for packet in old.demux():
            if packet.dts is not None:
                packet.stream = copies[packet.stream.index]
                new.mux(packet)
    return target


def test_a_remux_drops_the_manifest_and_leaves_the_marks(signed, tmp_path):
    found, before = verify(remuxed(signed, tmp_path / "b.mp4")), verify(signed)
    assert (found.state, found.exit_code) == ("marked", 4)
    assert found.picture_mark == before.picture_mark
    assert found.sound_mark["payload"] == before.sound_mark["payload"]
    assert found.generation == {} and found.signed_by is None


def test_what_is_no_video_says_nothing(tmp_path):
    (tmp_path / "a.txt").write_text("a red ball")
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "noise.mp4").write_bytes(random.Random(0).randbytes(100_000))
    for name in ("a.txt", "empty.mp4", "noise.mp4"):
        assert (verify(tmp_path / name).state, verify(tmp_path / name).exit_code) == ("nothing", 3)
    with pytest.raises(UsageError, match="no such file"):
        verify(tmp_path / "b.mp4")
    with pytest.raises(UsageError, match="no such file"):
        verify(tmp_path)


# The process's own high-water mark: what getrusage gives begins with that of whoever started it.
MEMORY = """
    from pathlib import Path
    from kinema import verify
    for name in ("hole.mp4", "tail.mp4"):
        print(verify(name).state)
    (peak,) = (line for line in Path("/proc/self/status").open() if line.startswith("VmHWM"))
    print(peak.split()[1])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="maximum resident size in KiB is Linux's")
def test_four_gigabytes_of_nothing_do_not_exhaust_memory(signed, tmp_path):
    for name, data in (("hole.mp4", b""), ("tail.mp4", signed.read_bytes())):
        (tmp_path / name).write_bytes(data)
        os.truncate(tmp_path / name, 4 << 30)
    code = textwrap.dedent(MEMORY)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    hole, tail, kibibytes = done.stdout.split()
    assert (hole, tail) == ("nothing", "invalid")
    assert int(kibibytes) < 1 << 20  # a quarter of the file


# ---- who signed ----------------------------------------------------------------------------------


def studio(folder, name="Studio", lasts=certificates.LASTS):
    """An identity of its own, and the file of its authority."""
    folder.mkdir()
    by, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    root = certificates.issue(f"{name} authority", by, by, None)
    leaf = certificates.issue(name, key, by, root, lasts)
    form = keys_form()
    (folder / "key.pem").write_bytes(key.private_bytes(*form))
    pem = form[0]
    (folder / "chain.pem").write_bytes(leaf.public_bytes(pem) + root.public_bytes(pem))
    (folder / "root.pem").write_bytes(root.public_bytes(pem))
    return folder


def keys_form():
    from cryptography.hazmat.primitives import serialization as s

    return s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption()


def test_only_the_authority_that_issued_the_leaf_is_trusted(tmp_path):
    own, other = studio(tmp_path / "own"), studio(tmp_path / "other")
    identity = keys.from_files(own / "key.pem", own / "chain.pem")
    file = clip().save(tmp_path / "a.mp4", provenance=Provenance(identity=identity))
    assert verify(file, trust=own / "root.pem").state == "trusted"
    assert verify(file, trust=other / "root.pem").state == "valid"
    assert verify(file, trust=other / "root.pem").signed_by == "Studio"
    with pytest.raises(UsageError, match="no certificates"):
        verify(file, trust=file)


def test_a_callback_signs_as_a_key_does(tmp_path):
    own, asked = studio(tmp_path / "own"), []
    identity = keys.from_files(own / "key.pem", own / "chain.pem")

    def sign(data):
        asked.append(len(data))
        return identity.sign(data)

    called = keys.from_callback(sign, own / "chain.pem")
    file = clip().save(tmp_path / "a.mp4", provenance=Provenance(identity=called))
    assert verify(file, trust=own / "root.pem").state == "trusted" and len(asked) == 2


@pytest.mark.parametrize("wrong", ["another's key", "a chain of strangers"])
def test_a_wrong_signature_does_not_hold(tmp_path, monkeypatch, wrong):
    """Made past all checks, as by someone who wants to deceive."""
    monkeypatch.setitem(manifest.SIGNING, "verify", {"verify_after_sign": False})
    own, other = studio(tmp_path / "own"), studio(tmp_path / "other")
    identity = keys.from_files(own / "key.pem", own / "chain.pem")
    leaf, stranger = identity.chain, (other / "root.pem").read_text()
    identity = {
        "another's key": replace(identity, key=(other / "key.pem").read_text()),
        "a chain of strangers": replace(
            identity, chain=leaf[: leaf.index("-----END") + 26] + stranger
        ),
    }[wrong]
    source = clip().save(tmp_path / "a.mp4", provenance=Provenance(manifest=False))
    target = tmp_path / "wrong.mp4"
    manifest.sign(source, target, identity, {"seed": 0}, "wrong.mp4")
    found = verify(target, trust=other / "root.pem")
    expected = ("valid", 0) if wrong == "a chain of strangers" else ("invalid", 1)
    assert (found.state, found.exit_code) == expected, found


def test_a_leaf_that_expired_signs_nothing_and_what_it_signed_no_longer_holds(tmp_path):
    """There is no time stamp that would say when it signed."""
    own = studio(tmp_path / "own", lasts=timedelta(seconds=3))
    identity = keys.from_files(own / "key.pem", own / "chain.pem")
    file = clip(5).save(tmp_path / "a.mp4", provenance=Provenance(identity=identity))
    assert verify(file).state == "valid"
    time.sleep(max(0, (identity.expires - datetime.now(timezone.utc)).total_seconds()) + 1.1)
    found = verify(file)
    assert found.state == "invalid" and found.problems, found
    told = manifest.claims(report(), None, False)
    with pytest.raises(KinemaError, match=r"cannot be signed as 'Studio': .*not valid"):
        manifest.sign(file, tmp_path / "b.mp4", identity, told, "b.mp4")


def test_a_key_that_fails_at_the_end_leaves_no_file(tmp_path):
    own = studio(tmp_path / "own")
    identity = keys.from_files(own / "key.pem", own / "chain.pem")
    failing = replace(identity, key=None, sign=lambda data: b"")
    with pytest.raises(KinemaError, match="cannot be signed as 'Studio'"):
        clip().save(tmp_path / "a.mp4", provenance=Provenance(identity=failing))
    assert [file.name for file in tmp_path.iterdir()] == ["own"]


def test_many_sign_at_once(tmp_path):
    def save(index):
        clip(5).save(tmp_path / f"{index}.mp4")

    threads = [threading.Thread(target=save, args=(index,)) for index in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [verify(tmp_path / f"{index}.mp4").state for index in range(6)] == ["valid"] * 6
    assert len(list(tmp_path.iterdir())) == 6


# ---- what is said --------------------------------------------------------------------------------


def test_the_prompt_is_signed_only_when_asked_for(tmp_path):
    picture = tmp_path / "secret-folder"
    picture.mkdir()
    (picture / "first.png").write_bytes(b"a picture")
    told = report(image=str(picture / "first.png"), negative_prompt="blur")
    file = clip(told=told).save(tmp_path / "a.mp4")
    written = json.dumps(manifest.read(file))
    assert PROMPT not in written and "blur" not in written and "secret-folder" not in written
    generation = verify(file).generation
    assert len(generation["prompt_sha256"]) == len(generation["negative_prompt_sha256"]) == 64
    assert [entry["name"] for entry in generation["inputs"]] == ["first.png"]
    file = clip(told=told).save(tmp_path / "b.mp4", provenance=Provenance(tell_prompt=True))
    assert verify(file).generation["prompt"] == PROMPT
    assert read_info(file)["request"]["prompt"] == PROMPT  # the user's own record


def test_lossy_modes_are_recorded():
    told = {
        **report(),
        "backends": {"attention": "triton-int8", "patchify": "triton"},
        "engines": {"dtype": "fp8"},
    }
    assert manifest.claims(report(), 1, False)["lossy"] == []
    assert manifest.claims(told, 1, False)["lossy"] == ["attention triton-int8", "engines fp8"]


def test_lineage_can_be_walked(tmp_path, signed):
    """An extension of an edit of a clip: each file names its parent, whose manifest it keeps."""
    edited = report(conditions=[{"frame": 0, "frames": str(signed), "mask": 0.0}])
    edit = clip(told=edited).save(tmp_path / "edit.mp4")
    extended = report(conditions=[{"frame": 0, "frames": str(edit)}])
    file = clip(told=extended).save(tmp_path / "extended.mp4")
    found = verify(file)
    assert found.state == "valid"
    assert [entry["title"] for entry in found.lineage] == ["edit.mp4", "a.mp4"]
    assert found.lineage[1]["generation"] == verify(signed).generation
    assert not any(entry["problems"] for entry in found.lineage)
    read = manifest.read(file)
    actions = [
        action["action"]
        for entry in read["manifests"][read["active_manifest"]]["assertions"]
        if entry["label"] == "c2pa.actions.v2"
        for action in entry["data"]["actions"]
    ]
    assert actions == ["c2pa.opened", "c2pa.edited"]


def test_what_a_source_was_is_said_as_it_is(tmp_path, signed):
    """One without a manifest has none, a changed one is told as changed, a guide is no parent."""
    plain = clip().save(tmp_path / "plain.mp4", provenance=Provenance(manifest=False))
    changed = tmp_path / "changed.mp4"
    data = bytearray(signed.read_bytes())
    data[-20] ^= 1
    changed.write_bytes(data)

    def made_from(source, mask=0.0):
        told = report(conditions=[{"frame": 0, "frames": str(source), "mask": mask}])
        return verify(clip(told=told).save(tmp_path / "made.mp4"))

    assert made_from(plain).lineage[0]["signed_by"] is None
    found = made_from(changed)
    assert found.state == "valid" and "mismatch" in found.lineage[0]["problems"][0]
    data[60] ^= 1  # the manifest itself: it cannot be read, and is not kept
    changed.write_bytes(data)
    assert verify(changed).state == "invalid"
    assert made_from(changed).lineage[0]["title"] == "changed.mp4"
    (tmp_path / "old.gif").write_bytes(b"GIF89a, which has no manifests")
    found = made_from(tmp_path / "old.gif")
    assert found.state == "valid" and found.lineage[0]["signed_by"] is None
    guided = made_from(signed, mask=1)
    assert guided.lineage == () and guided.generation["inputs"][0]["name"] == "a.mp4"


def test_a_manifest_is_small(tmp_path):
    without = clip().save(tmp_path / "b.mp4", provenance=Provenance(manifest=False))
    with_one = clip().save(tmp_path / "a.mp4")
    assert 0 < with_one.stat().st_size - without.stat().st_size <= MOST_ADDED


# ---- marks ---------------------------------------------------------------------------------------


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


# ---- the command line ----------------------------------------------------------------------------


def test_exit_codes_say_what_was_found(signed, tmp_path, capsys):
    data = bytearray(signed.read_bytes())
    data[-20] ^= 1
    (tmp_path / "changed.mp4").write_bytes(data)
    (tmp_path / "a.txt").write_text("a red ball")
    stripped = remuxed(signed, tmp_path / "b.mp4")
    for file, code, state in [
        (signed, 0, "valid"),
        (tmp_path / "changed.mp4", 1, "invalid"),
        (tmp_path / "a.txt", 3, "nothing"),
        (stripped, 4, "marked"),
    ]:
        assert run(["verify", str(file), "--json"]) == code
        told = json.loads(capsys.readouterr().out)
        assert (told["state"], told["exit_code"]) == (state, code)
        assert run(["verify", str(file)]) == code
        assert capsys.readouterr().out.startswith(f"{file}: ")
    root = str(keys.keys_folder() / keys.ROOT)
    assert run(["verify", str(signed), "--trust", root, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["state"] == "trusted"
    assert run(["verify", str(tmp_path / "none.mp4")]) == 2
    assert run(["verify", str(signed), "--mark-key", str(tmp_path / "none")]) == 2
    assert run(["info", str(signed), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["provenance"]["state"] == "valid"


def test_keys_are_made_and_shown(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert run(["keys", "init", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["development"] and Path(made["authority"]).is_file()
    assert run(["keys", "init"]) == 2
    assert "--force makes a new one" in capsys.readouterr().err
    before = Path(made["authority"]).read_bytes()
    assert run(["keys", "init", "--force"]) == 0
    assert Path(made["authority"]).read_bytes() != before
    own = studio(tmp_path / "own")
    files = ["--sign-key", str(own / "key.pem"), "--sign-chain", str(own / "chain.pem")]
    capsys.readouterr()
    assert run(["keys", "show", *files, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "Studio"


def test_flags_of_generate(tmp_path, capsys):
    small = ["a red ball bounces", "--num-frames", "9", "--steps", "1", "-o"]
    path = str(tmp_path / "a.mp4")
    assert run(["generate", *small, path, "--no-manifest", "--no-invisible-mark"]) == 0
    assert verify(path).state == "nothing"
    assert run(["generate", *small, path, "--force", "--no-manifest", "--visible-mark"]) == 0
    assert verify(path).state == "marked"
    assert run(["generate", *small, path, "--force", "--tell-prompt"]) == 0
    assert verify(path).generation["prompt"] == "a red ball bounces"
    capsys.readouterr()
    assert run(["generate", *small, path, "--force", "--sign-key", path]) == 2
    assert "belong together" in capsys.readouterr().err
