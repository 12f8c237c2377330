"""Who signed: trusted, strange, expired, failing, many at once."""

import threading
import time
from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest

from kinema import Provenance, verify
from kinema.runtime.errors import KinemaError, UsageError
from kinema.runtime.provenance import keys, manifest

from .conftest import clip, report, studio


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
