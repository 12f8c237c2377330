"""What files say of where they come from: whole, changed, stripped."""

import os
import random
import re
import struct
import subprocess
import sys
import textwrap

import pytest

import kinema
from kinema import verify
from kinema.runtime.errors import UsageError
from kinema.runtime.provenance import keys, manifest
from kinema.runtime.provenance.payload import payload_of

from .conftest import remuxed, report


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
        os.truncate(tmp_path / name, 4 << 30)  # more than 32 bits count
    code = textwrap.dedent(MEMORY)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    hole, tail, kibibytes = done.stdout.split()
    assert (hole, tail) == ("nothing", "invalid")
    assert int(kibibytes) < 1 << 20  # a quarter of the file
