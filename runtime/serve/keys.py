"""Who may ask: API keys, of which only hashes are kept.

A key of `new_key` has 256 random bits, so a plain hash of it tells nothing; no salt, no stretching.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import stat
from pathlib import Path

from ..errors import UsageError
from ..files import beside, reason_of

LOCAL = "local"  # who asks where no keys are needed
HASH = re.compile(r"sha256:([0-9a-f]{64})")
SHORTEST = 16  # characters of a key
PREFIX = "kinema-"
NAME = re.compile(r"[A-Za-z0-9_.@-]{1,80}")


class Keys:
    """The hashes of the keys that are let in."""

    def __init__(self, hashes: tuple[str, ...] | None) -> None:
        self._hashes = hashes

    @classmethod
    def none(cls) -> Keys:
        """Everybody may ask, as one owner."""
        return cls(None)

    @classmethod
    def from_file(cls, path: Path) -> Keys:
        """A key a line, or its hash as `sha256:...`; either after `NAME: `; # comments."""
        try:
            mode, lines = path.stat().st_mode, path.read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = reason_of(error)
            raise UsageError(f"key file {str(path)!r} cannot be read: {reason}") from None
        if os.name == "posix" and mode & 0o007:
            raise UsageError(f"key file {str(path)!r} is open to everybody: chmod 600 {path}")
        told = [line.split("#")[0].strip() for line in lines]
        hashes = tuple(_hash_of(line, path) for line in told if line)
        if not hashes:
            raise UsageError(f"key file {str(path)!r} holds no key; a line each is expected")
        return cls(hashes)

    @property
    def required(self) -> bool:
        """Whether one must have a key."""
        return self._hashes is not None

    def owner_of(self, token: str | None) -> str | None:
        """Who a key belongs to, the same at every start; None for a key that is not known."""
        if self._hashes is None:
            return LOCAL
        asked = _hashed(token or "")
        known = [hmac.compare_digest(asked, hash) for hash in self._hashes]  # all of them, always
        return f"key_{asked[:16]}" if any(known) else None


def _hash_of(line: str, path: Path) -> str:
    key = line.split(":", 1)[1].strip() if ": " in line else line
    if match := HASH.fullmatch(key):
        return match[1]
    if len(key) < SHORTEST:
        raise UsageError(f"a key in {str(path)!r} has {len(key)} characters; {SHORTEST} at least")
    return _hashed(key)


def new_key(path: Path, name: str) -> str:
    """Make a key and add its hash to a file, which is made for its owner alone; returns the key.

    It is not kept, so it is told now or never. Raises `UsageError` for a name that cannot be, or
    that the file has.
    """
    if not NAME.fullmatch(name):
        raise UsageError(f"key name {name[:80]!r} must be 1 to 80 of A-Z a-z 0-9 _ . @ -")
    key = PREFIX + secrets.token_urlsafe(32)
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(handle, "r+") as file:
            told = file.read()
            if name in map(_name_of, told.splitlines()):
                raise UsageError(
                    f"key file {str(path)!r} has a key named {name!r}; remove it first"
                )
            begin = "\n" if told and not told.endswith("\n") else ""
            file.write(f"{begin}{name}: sha256:{_hashed(key)}\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = reason_of(error)
        raise UsageError(f"key file {str(path)!r} cannot be written: {reason}") from None
    return key


def list_keys(path: Path) -> list[tuple[str, str]]:
    """The name of each key of a file, "" for none, and the owner that its videos belong to."""
    Keys.from_file(path)  # raises what a server would
    lines = [line for line in path.read_text().splitlines() if line.split("#")[0].strip()]
    hashes = [_hash_of(line.split("#")[0].strip(), path) for line in lines]
    return [(_name_of(line), f"key_{hash[:16]}") for line, hash in zip(lines, hashes, strict=True)]


def remove_key(path: Path, name: str) -> None:
    """Take a key out of a file. Raises `UsageError` where no key has the name."""
    names = [known for known, _ in list_keys(path)]
    if name not in names:
        known = ", ".join(filter(None, names)) or "none has one"
        raise UsageError(f"key file {str(path)!r} has no key named {name[:80]!r}; names: {known}")
    lines = path.read_text().splitlines(keepends=True)
    part = beside(path)
    try:
        handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w") as file:
            file.writelines(line for line in lines if _name_of(line) != name)
        os.chmod(part, stat.S_IMODE(path.stat().st_mode))
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        reason = reason_of(error)
        raise UsageError(f"key file {str(path)!r} cannot be written: {reason}") from None


def _name_of(line: str) -> str:
    """Of a line of the file; "" where it has none."""
    name, colon, _ = line.split("#")[0].partition(": ")
    return name.strip() if colon else ""


def _hashed(key: str) -> str:
    return hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()
