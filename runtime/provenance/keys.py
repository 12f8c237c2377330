"""Who signs: a development identity that is made on first use, or keys of one's own.

An identity is a chain of certificates, leaf first, and what signs for the leaf: a key in a file,
or a function that asks whoever holds it (an HSM, a service). It is checked when it is opened,
before any work: it can be read, is within its dates, one certificate vouches for the next, and the
key is the leaf's.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from ..errors import KinemaError, UsageError
from ..files import reason_of
from .certificates import (
    CURVES,
    chain_of,
    check_dates,
    checked_chain,
    issue,
    name_of,
    public_key_of,
)

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

KEY_VARIABLE, CHAIN_VARIABLE = "KINEMA_SIGN_KEY", "KINEMA_SIGN_CHAIN"
CHAIN, KEY, ROOT = "chain.pem", "key.pem", "root.pem"
DEVELOPMENT = "kinema development"


@dataclass(frozen=True)
class Identity:
    """Who signs. `sign` gets bytes and returns a signature: r and s, one after the other."""

    name: str
    algorithm: str
    chain: str = field(repr=False)  # PEM, leaf first
    sign: Callable[[bytes], bytes] = field(repr=False)
    expires: datetime
    key: str | None = field(default=None, repr=False)  # PEM; None where only `sign` has it
    development: bool = False

    def check(self) -> None:
        """Raises UsageError for one whose dates have passed since it was opened."""
        for certificate in chain_of(self.chain.encode(), self.name):
            check_dates(certificate, self.name)


# ---- keys of one's own ---------------------------------------------------------------------------


def from_files(key: str | Path, chain: str | Path) -> Identity:
    """The identity of a private key (PEM, no password) and its chain (PEM, leaf first).

    Raises UsageError for one that could not sign.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
        load_pem_private_key,
    )

    secret = _read(key, "sign key")
    try:
        private = load_pem_private_key(secret, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise UsageError(f"sign key {str(key)!r} cannot be read: {reason_of(error)}") from None
    text = _read(chain, "sign chain")
    leaf = checked_chain(text, str(chain))[0]
    if leaf.public_key() != private.public_key():
        raise UsageError(f"sign key {str(key)!r} is not that of the leaf in {str(chain)!r}")
    form = (Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return _identity(text, leaf, _signing(private), private.private_bytes(*form).decode())


def from_callback(sign: Callable[[bytes], bytes], chain: str | Path) -> Identity:
    """The identity of a key that stays where it is; it is asked for one signature, as a check.

    sign: bytes to an ECDSA signature over the chain's own hash (SHA-256 for P-256), r and s, each
    as long as the curve. chain: a PEM file, leaf first.
    """
    text = _read(chain, "sign chain")
    leaf = checked_chain(text, str(chain))[0]
    _check_signature(leaf, sign, str(chain))
    return _identity(text, leaf, sign)


def opened(key: str | Path | None = None, chain: str | Path | None = None) -> Identity:
    """The identity of these files, else of those the environment names, else the development one.

    Raises UsageError for a key without a chain, and for one that could not sign.
    """
    key = key or os.environ.get(KEY_VARIABLE)
    chain = chain or os.environ.get(CHAIN_VARIABLE)
    if key is None and chain is None:
        return development()
    if not (key and chain):
        raise UsageError(
            "a key and its chain belong together: --sign-key and --sign-chain"
            f" ({KEY_VARIABLE} and {CHAIN_VARIABLE}), or neither"
        )
    return from_files(Path(key).expanduser(), Path(chain).expanduser())


# ---- the development identity --------------------------------------------------------------------


def keys_folder() -> Path:
    """The user's own: `$XDG_DATA_HOME/kinema/keys` or ~/.local/share/kinema/keys."""
    base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(base) / "kinema" / "keys"


def development() -> Identity:
    """The development identity, made if there is none yet; many may ask at once."""
    folder = keys_folder()
    if not folder.is_dir():
        make_development()
    try:
        return replace(from_files(folder / KEY, folder / CHAIN), development=True)
    except UsageError as error:
        raise UsageError(f"{error}; kinema keys init --force makes a new one") from None


def make_development(anew: bool = False) -> Path:
    """Make the development identity: a certificate authority, and a leaf that signs.

    The authority's own key is not kept, so nobody signs anything else in its name. An identity that
    was there stays; with `anew` it is kept beside, under the date. Whoever comes first makes it.
    Returns the folder.
    """
    folder = keys_folder()
    unfinished = folder.with_name(f".keys-{uuid4().hex}")
    try:
        unfinished.mkdir(parents=True, mode=0o700)
        for name, text in _new_identity().items():
            _write_private(unfinished / name, text)
        if anew and folder.exists():
            now = datetime.now(timezone.utc)
            os.rename(folder, folder.with_name(f"keys-{now:%Y%m%dT%H%M%S%f}"))
        try:
            os.rename(unfinished, folder)
        except OSError:
            if not folder.is_dir():  # else another made it meanwhile
                raise
    except OSError as error:
        raise KinemaError(
            f"cannot write keys to {str(folder)!r}: {reason_of(error)}; --no-manifest writes"
            " unsigned"
        ) from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _new_identity() -> dict[str, bytes]:
    """PEM by file name."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    authority, leaf = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    root = issue(f"{DEVELOPMENT} authority", authority, authority, None)
    signer = issue(DEVELOPMENT, leaf, authority, root)
    pem = serialization.Encoding.PEM
    form = serialization.PrivateFormat.PKCS8
    key = leaf.private_bytes(pem, form, serialization.NoEncryption())
    ends = root.public_bytes(pem)
    return {KEY: key, CHAIN: signer.public_bytes(pem) + ends, ROOT: ends}


def _write_private(file: Path, text: bytes) -> None:
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(text)


# ---- signatures ----------------------------------------------------------------------------------


def _read(file: str | Path, what: str) -> bytes:
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise UsageError(f"{what} {str(file)!r} cannot be read: {reason_of(error)}") from None


def _check_signature(leaf: Certificate, sign: Callable[[bytes], bytes], where: str) -> None:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric import ec, utils

    (_, size), probe = CURVES[public_key_of(leaf).curve.name], b"kinema asks whether this key signs"
    try:
        signature = bytes(sign(probe))
    except Exception as error:
        raise UsageError(f"the callback for {where!r} does not sign: {reason_of(error)}") from None
    if len(signature) != 2 * size:
        raise UsageError(
            f"the callback for {where!r} returned {len(signature)} bytes; r and s are {2 * size}"
        )
    r, s = (int.from_bytes(half, "big") for half in (signature[:size], signature[size:]))
    try:
        encoded = utils.encode_dss_signature(r, s)
        public_key_of(leaf).verify(encoded, probe, ec.ECDSA(_hash(size)))
    except InvalidSignature:
        raise UsageError(
            f"the callback does not sign with the key of the leaf in {where!r}"
        ) from None


def _signing(private: Any) -> Callable[[bytes], bytes]:
    """What signs with an elliptic curve's private key."""
    from cryptography.hazmat.primitives.asymmetric import ec, utils

    def sign(data: bytes) -> bytes:
        size = CURVES[private.curve.name][1]
        r, s = utils.decode_dss_signature(private.sign(data, ec.ECDSA(_hash(size))))
        return r.to_bytes(size, "big") + s.to_bytes(size, "big")

    return sign


def _hash(size: int) -> Any:
    from cryptography.hazmat.primitives import hashes

    return {32: hashes.SHA256, 48: hashes.SHA384, 66: hashes.SHA512}[size]()


def _identity(
    text: bytes, leaf: Certificate, sign: Callable[[bytes], bytes], key: str | None = None
) -> Identity:
    algorithm = CURVES[public_key_of(leaf).curve.name][0]
    expires = min(c.not_valid_after_utc for c in chain_of(text, ""))
    return Identity(name_of(leaf), algorithm, text.decode(), sign, expires, key)
