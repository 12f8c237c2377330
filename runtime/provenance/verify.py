"""What a file says of where it comes from, and whether it can be believed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from ..files import reason_of
from . import manifest

if TYPE_CHECKING:
    import numpy as np

    from .code import Found

# What a file is found to be, and the exit code of `kinema verify`.
TRUSTED, VALID, INVALID, MARKED, NOTHING = "trusted", "valid", "invalid", "marked", "nothing"
EXIT_CODES = {TRUSTED: 0, VALID: 0, INVALID: 1, MARKED: 4, NOTHING: 3}

UNTRUSTED = "signingCredential.untrusted"
MOST_FRAMES, MOST_SECONDS, MOST_PIXELS = 240, 60, 4 * 3840 * 2160  # that are looked at for marks
MOST_ANCESTORS = 64
# What may be looked into. A playlist, say, would have FFmpeg read other files and call addresses.
FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,flv,mpegts,mpeg,ogg,gif,apng,image2,png_pipe,jpeg_pipe,"
    "webp_pipe,wav,flac,mp3,aac,aiff"
)
LOCKS = {"protocol_whitelist": "file", "format_whitelist": FORMATS, "max_pixels": str(MOST_PIXELS)}


@dataclass(frozen=True)
class Verification:
    """What is known of a file.

    state: "trusted" (signed, whole, and who signed is vouched for), "valid" (signed and whole),
    "invalid" (changed since, or signed wrongly), "marked" (no manifest, but an invisible mark), or
    "nothing". problems: why it is invalid. signed_by, when, software, generation: what the manifest
    says; of an invalid one they prove nothing. lineage: what it was made from, nearest first.
    picture_mark, sound_mark: payloads of 8 hexadecimal digits, and how sure they are.
    """

    path: str
    state: str
    problems: tuple[str, ...] = ()
    signed_by: str | None = None
    when: str | None = None
    software: str | None = None
    generation: Mapping[str, Any] = field(default_factory=dict)
    lineage: tuple[Mapping[str, Any], ...] = ()
    picture_mark: Mapping[str, Any] | None = None
    sound_mark: Mapping[str, Any] | None = None

    @property
    def exit_code(self) -> int:
        """Of `kinema verify`: 0 trusted or valid, 1 invalid, 3 nothing, 4 only a mark."""
        return EXIT_CODES[self.state]

    def as_dict(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        return asdict(self)


def verify(
    path: str | Path, trust: str | Path | None = None, mark_key: bytes | None = None
) -> Verification:
    """Read a file's manifest and marks, and check them; needs no network.

    trust: a PEM file of authorities whose word is taken; without it nobody's is, and a file that is
    whole is "valid". mark_key: of the invisible marks, where it is not the public one.
    Raises UsageError for a file that cannot be read.
    """
    path = Path(path).expanduser()
    anchors = None if trust is None else _anchors(Path(trust).expanduser())
    if not path.is_file():
        raise UsageError(f"no such file: {str(path)!r}")
    try:
        said = _said(path, anchors)
    except OSError as error:
        raise UsageError(f"{str(path)!r} cannot be read: {reason_of(error)}") from None
    marks: dict[str, Any] = {
        "picture_mark": _picture_mark(path, mark_key),
        "sound_mark": _sound_mark(path, mark_key),
    }
    state = said.pop("state", MARKED if any(marks.values()) else NOTHING)
    return Verification(str(path), state, **said, **marks)


# ---- the manifest --------------------------------------------------------------------------------


def _said(path: Path, anchors: str | None) -> dict[str, Any]:
    """What the manifest makes known, by the names of a Verification; {} without one."""
    try:
        found = manifest.read(path, anchors)
    except ValueError as error:
        return {"state": INVALID, "problems": (str(error),)}
    if found is None:
        return {}
    manifests = found["manifests"]
    active = manifests.get(found.get("active_manifest"), {})
    failures = _failures(found.get("validation_results"))
    sound = found.get("validation_state") in ("Valid", "Trusted") and not failures
    trusted = anchors is not None and found["validation_state"] == "Trusted"
    state = TRUSTED if sound and trusted else VALID if sound else INVALID
    problems = tuple(failures) or (() if sound else ("the manifest does not hold",))
    lineage = tuple(_lineage(manifests, active))
    return {"state": state, "problems": problems, **_claim(active), "lineage": lineage}


def _claim(claim: Mapping[str, Any]) -> dict[str, Any]:
    """Who signed a manifest, when, with which software, and what it says of the making."""
    data = {entry["label"]: entry.get("data", {}) for entry in claim.get("assertions", ())}
    actions = data.get("c2pa.actions.v2", {}).get("actions") or [{}]
    last, signature = actions[-1], claim.get("signature_info", {})
    agent = last.get("softwareAgent") or (claim.get("claim_generator_info") or [{}])[0]
    agent = agent if isinstance(agent, Mapping) else {"name": str(agent)}
    return {
        "signed_by": signature.get("issuer") or signature.get("common_name"),
        "when": signature.get("time") or last.get("when"),
        "software": " ".join(str(agent[k]) for k in ("name", "version") if k in agent) or None,
        "generation": data.get(manifest.GENERATION, {}),
    }


def _failures(results: Mapping[str, Any] | None) -> list[str]:
    """What validation holds against a manifest, but that nobody vouches for who signed."""
    found = ((results or {}).get("activeManifest") or {}).get("failure", ())
    own = [f"{entry['code']}: {entry.get('explanation', '')}".rstrip(": ") for entry in found]
    return list(dict.fromkeys(line for line in own if not line.startswith(UNTRUSTED)))


def _lineage(manifests: Mapping[str, Any], claim: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What a file was made from, what that was made from, and so on."""
    for _ in range(MOST_ANCESTORS):
        parents = [i for i in claim.get("ingredients", ()) if i["relationship"] == "parentOf"]
        if not parents:
            return
        parent = parents[0]
        claim = manifests.get(parent.get("active_manifest"), {})
        problems = _failures(parent.get("validation_results"))
        yield {"title": parent.get("title"), **_claim(claim), "problems": problems}


def _anchors(file: Path) -> str:
    from cryptography.x509 import load_pem_x509_certificates

    try:
        text = file.read_bytes()
        load_pem_x509_certificates(text)
    except OSError as error:
        raise UsageError(f"trust {str(file)!r} cannot be read: {reason_of(error)}") from None
    except ValueError:
        raise UsageError(f"trust {str(file)!r} holds no certificates in PEM") from None
    return text.decode()


# ---- the marks -----------------------------------------------------------------------------------


def _picture_mark(path: Path, key: bytes | None) -> dict[str, Any] | None:
    from . import picture_mark

    return _told(picture_mark.read(_frames(path), key or picture_mark.DEFAULT_KEY))


def _sound_mark(path: Path, key: bytes | None) -> dict[str, Any] | None:
    from . import picture_mark, sound_mark

    samples, rate = _samples(path)
    if samples is None or rate < sound_mark.LEAST_RATE:
        return None
    return _told(sound_mark.read(samples, rate, key or picture_mark.DEFAULT_KEY))


def _told(found: Found | None) -> dict[str, Any] | None:
    return None if found is None else {**asdict(found), "payload": f"{found.payload:08x}"}


def _frames(path: Path) -> Iterator[np.ndarray]:
    """The first frames of a file, uint8 (height, width, 3), all of one size, as far as they can be
    decoded."""
    import av.error

    size = None
    for index, frame in enumerate(_decoded(path, "video")):
        size = size or (frame.height, frame.width)
        too_large = frame.height * frame.width > MOST_PIXELS
        if index == MOST_FRAMES or too_large or (frame.height, frame.width) != size:
            return
        try:
            picture = frame.to_ndarray(format="rgb24")
        except (ValueError, av.error.FFmpegError):
            return
        yield picture


def _samples(path: Path) -> tuple[np.ndarray | None, int]:
    """The first minute of a file's sound, float32 (num_samples, channels), and its rate."""
    import numpy as np

    parts, rate, count = [], 0, 0
    for frame in _decoded(path, "audio"):
        rate = rate or frame.sample_rate
        if not frame.format.name.startswith("flt") or count > MOST_SECONDS * rate:
            break
        channels = len(frame.layout.channels)
        part = frame.to_ndarray()
        parts.append(part if frame.format.is_planar else part.reshape(-1, channels).T)
        count += frame.samples
    if len({len(part) for part in parts}) != 1:  # none, or more channels halfway
        return None, rate
    return np.ascontiguousarray(np.concatenate(parts, axis=1).T), rate


def _decoded(path: Path, kind: str) -> Iterator[Any]:
    """Frames of the first stream of a kind; it ends where nothing more can be decoded."""
    import av.error

    try:
        with av.open(str(path), options=LOCKS) as container:
            streams = getattr(container.streams, kind)
            if streams and streams[0].codec_context is not None:
                streams[0].codec_context.options = {"max_pixels": str(MOST_PIXELS)}
                yield from container.decode(streams[0])
    except (OSError, ValueError, IndexError, av.error.FFmpegError):
        return
