"""Who signs: identities that can are opened, those that cannot are refused before any work."""

import stat
import subprocess
import sys
import threading
from datetime import timedelta
from functools import cache

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

import kinema
from kinema.runtime.errors import KinemaError, UsageError
from kinema.runtime.provenance import certificates, keys

PEM = serialization.Encoding.PEM
YEAR = timedelta(days=365)


def private_pem(key) -> bytes:
    form = serialization.PrivateFormat.PKCS8
    return key.private_bytes(PEM, form, serialization.NoEncryption())


@cache
def authority():
    key = ec.generate_private_key(ec.SECP256R1())
    return key, certificates.issue("Studio authority", key, key, None)


def written(folder, key=None, lasts=YEAR, leaf=None, others=None):
    """A key and a chain in files, as a studio has them."""
    folder.mkdir(exist_ok=True)
    by, root = authority()
    key = key or ec.generate_private_key(ec.SECP256R1())
    leaf = leaf or certificates.issue("Studio", key, by, root, lasts)
    chain = [leaf, *([root] if others is None else others)]
    (folder / "key.pem").write_bytes(private_pem(key))
    (folder / "chain.pem").write_bytes(b"".join(c.public_bytes(PEM) for c in chain))
    return folder / "key.pem", folder / "chain.pem"


def test_the_development_identity_is_made_once_and_only_its_user_reads_it(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    first, again = keys.development(), keys.development()
    assert first.chain == again.chain and first.development
    assert first.name == "kinema development" and first.algorithm == "es256"
    folder = tmp_path / "kinema" / "keys"
    assert sorted(file.name for file in folder.iterdir()) == ["chain.pem", "key.pem", "root.pem"]
    assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {0o600}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    keys.make_development(anew=True)
    assert keys.development().chain != first.chain
    kept = [file for file in folder.parent.iterdir() if file != folder]
    assert len(kept) == 1 and (kept[0] / "chain.pem").read_text() == first.chain


def test_threads_and_processes_that_come_first_together_get_one_identity(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    code = "from kinema.runtime.provenance import keys; print(keys.development().chain, end='')"
    others = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    found, start = [], threading.Barrier(4)

    def ask():
        start.wait()
        found.append(keys.development().chain)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    told = [other.communicate()[0] for other in others]
    assert len({*found, *told}) == 1 and len(found) == 4
    assert [file.name for file in (tmp_path / "kinema").iterdir()] == ["keys"]


@pytest.mark.parametrize("curve", [ec.SECP256R1, ec.SECP384R1, ec.SECP521R1])
def test_keys_of_ones_own_come_from_files_or_the_environment(tmp_path, monkeypatch, curve):
    key, chain = written(tmp_path, ec.generate_private_key(curve()))
    identity = keys.opened(key, chain)
    assert identity.name == "Studio" and not identity.development
    monkeypatch.setenv(keys.KEY_VARIABLE, str(key))
    monkeypatch.setenv(keys.CHAIN_VARIABLE, str(chain))
    assert keys.opened().chain == identity.chain
    called = keys.from_callback(identity.sign, chain)
    assert called.algorithm == identity.algorithm and called.key is None
    monkeypatch.delenv(keys.CHAIN_VARIABLE)
    with pytest.raises(UsageError, match="belong together"):
        keys.opened()


def test_what_cannot_sign_is_refused_in_one_line(tmp_path):
    key, chain = written(tmp_path / "good")
    other, _ = written(tmp_path / "other")
    stranger = ec.generate_private_key(ec.SECP256R1())
    strangers = certificates.issue("Stranger", stranger, stranger, None)
    by, root = authority()
    gone = certificates.issue("Studio", stranger, by, root, -YEAR)
    text = tmp_path / "text.pem"
    text.write_text("no key")
    cases = [
        (key, tmp_path / "none.pem", "no such file"),
        (text, chain, "cannot be read"),
        (key, text, "no chain of certificates"),
        (other, chain, "not that of the leaf"),
        (*written(tmp_path / "gone", stranger, leaf=gone), "expired on"),
        (*written(tmp_path / "order", others=[strangers]), "did not issue 'Studio'"),
        (*written(tmp_path / "root", by, leaf=root, others=[]), "may not sign content"),
    ]
    for case_key, case_chain, reason in cases:
        with pytest.raises(UsageError, match=reason) as refused:
            keys.from_files(case_key, case_chain)
        assert "\n" not in str(refused.value)


def test_a_key_of_another_kind_is_refused(tmp_path):
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    with pytest.raises(UsageError, match="P-256, P-384 or P-521"):
        keys.from_files(*written(tmp_path, key))


def test_a_callback_that_does_not_sign_is_refused(tmp_path):
    _, chain = written(tmp_path)
    another = keys.from_files(*written(tmp_path / "other"))

    def broken(data: bytes) -> bytes:
        raise ConnectionError("the HSM is away")

    for sign, reason in [
        (broken, "the HSM is away"),
        (lambda data: b"short", "returned 5 bytes; r and s are 64"),
        (another.sign, "does not sign with the key of the leaf"),
    ]:
        with pytest.raises(UsageError, match=reason):
            keys.from_callback(sign, chain)


def test_without_the_library_nothing_is_written_unsigned_unasked(monkeypatch):
    monkeypatch.setitem(sys.modules, "c2pa", None)
    with pytest.raises(KinemaError, match=r"pip install c2pa-python; .*--no-manifest"):
        kinema.Provenance().ready()
    assert kinema.Provenance(manifest=False).ready().identity is None


def test_an_expired_key_is_refused_before_work_starts(tmp_path):
    """Also where it expired since it was opened."""
    good = keys.from_files(*written(tmp_path))
    expired = written(tmp_path / "gone", lasts=-YEAR)[1].read_text()
    identity = keys.replace(good, chain=expired)
    engine, worked = kinema.load(), []
    with pytest.raises(UsageError, match="expired on"):
        engine.generate(
            "a red ball bounces",
            worked.append,
            tmp_path / "a.mp4",
            provenance=kinema.Provenance(identity=identity),
        )
    assert worked == [] and "transformer" not in vars(engine)
    assert not (tmp_path / "a.mp4").exists()
