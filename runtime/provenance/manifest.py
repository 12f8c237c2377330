"""C2PA manifests: what is claimed of a file, signed into it, and read out of it again.

A manifest holds a claim about everything else in the file, so it is written last, by c2pa's own
library; nothing here needs a network. What the claim says is taken from a video's report.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..errors import KinemaError
from ..files import reason_of
from ..hashes import file_hash
from .keys import Identity

GENERATION = "org.kinema.generation"
SOURCES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
GENERATED, COMPOSITE = "trainedAlgorithmicMedia", "compositeWithTrainedAlgorithmicMedia"
PARENT = "parent"  # of an edit, inside its own manifest

SIGNATURES = (  # of the formats that are signed: where, what, and the type
    (4, b"ftypqt", "video/quicktime"),
    (4, b"ftyp", "video/mp4"),
    (8, b"WEBP", "image/webp"),
    (0, b"\x89PNG", "image/png"),
    (0, b"\xff\xd8\xff", "image/jpeg"),
)
SUFFIXES = {
    ".mp4": "video/mp4",
    ".mov": "video/quicktime",
    ".webp": "image/webp",
    ".png": "image/png",
    ".jpg": "image/jpeg",
}
LOSSY = ("int8", "fp8", "fp4", "nf4", "sparse")  # in the names of what runs an operation
SETTINGS = (
    "num_frames",
    "height",
    "width",
    "fps",
    "num_inference_steps",
    "guidance_scale",
    "guidance_scale_2",
    "seed",
    "solver",
    "sigmas",
    "dtype",
)
SIGNING = {"version": 1, "builder": {"thumbnail": {"enabled": False}}}
READING = {"verify_trust": True, "remote_manifest_fetch": False, "ocsp_fetch": False}


def check_installed() -> None:
    """Raises KinemaError where the library that signs and reads is not there."""
    try:
        import c2pa  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        raise KinemaError(
            f"manifests need the package c2pa-python ({reason_of(error)}): pip install c2pa-python;"
            " files are written without by --no-manifest (Provenance(manifest=False))"
        ) from None


# ---- what is claimed -----------------------------------------------------------------------------


def claims(report: Mapping[str, Any], mark: int | None, tell_prompt: bool) -> dict[str, Any]:
    """What a manifest says of how a file was made; no path, and no prompt unless it is asked for.

    mark: the payload of its invisible marks.
    """
    request, plan = report.get("request", {}), report.get("plan", {})
    told: dict[str, Any] = {"model": report.get("model"), "loras": _loras(report)}
    for name in ("prompt", "negative_prompt"):
        if text := request.get(name):
            told[f"{name}_sha256"] = hashlib.sha256(text.encode()).hexdigest()
            told[name] = text if tell_prompt else None
    told["settings"] = _given({name: plan.get(name) for name in SETTINGS})
    told["executor"], told["backends"] = report.get("executor"), _backends(report)
    told["lossy"] = lossy(report)
    told["inputs"] = [
        {"name": file.name, "sha256": file_hash(file)} for file in inputs(request).values()
    ]
    told["mark"] = None if mark is None else f"{mark:08x}"
    return {**_given(told), "lossy": told["lossy"]}


def lossy(report: Mapping[str, Any]) -> list[str]:
    """What ran in fewer bits or with parts left out, and so made another video than it might."""
    found = [
        f"{op} {name}"
        for op, name in (report.get("backends") or {}).items()
        if op in ("quantized_linear", "quantized_attention") or any(at in name for at in LOSSY)
    ]
    engines = report.get("engines") or {}
    if any(at in str(engines.get("dtype")) for at in LOSSY):
        found.append(f"engines {engines['dtype']}")
    return [*found, *map(str, report.get("lossy", ()))]


def parent_of(request: Mapping[str, Any]) -> Path | None:
    """The clip that a video continues, mends or remakes, if it is a file.

    One that guides and is nowhere kept (a mask of 1) is an input, not a parent.
    """
    for condition in request.get("conditions") or ():
        if condition.get("mask", 0) != 1 and (file := _file(condition.get("frames"))):
            return file
    return None


def inputs(request: Mapping[str, Any]) -> dict[str, Path]:
    """The files a request names, but the parent: pictures, references, masks, clips that guide."""
    parent = parent_of(request)
    shown = [request.get("image"), request.get("last_image")]
    for condition in request.get("conditions") or ():
        shown += [condition.get(name) for name in ("image", "frames", "mask")]
    files = (_file(media) for media in shown)
    return {str(file): file for file in files if file is not None and file != parent}


def _file(media: Any) -> Path | None:
    """The file that a report's description of media names."""
    if not isinstance(media, str):
        return None
    path = Path(media).expanduser()
    try:
        return path if path.is_file() else None
    except OSError:  # a name that is too long for one
        return None


def _loras(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    names = ("name", "sha256", "weight")
    return [_given({name: lora.get(name) for name in names}) for lora in report.get("loras", ())]


def _backends(report: Mapping[str, Any]) -> dict[str, str]:
    """All but the plain ones."""
    backends = report.get("backends") or {}
    return {op: name for op, name in backends.items() if name != "torch"}


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value not in (None, [], {}, ())}


# ---- signing -------------------------------------------------------------------------------------


def sign(
    source: Path,
    target: Path,
    identity: Identity,
    told: Mapping[str, Any],
    title: str,
    parent: Path | None = None,
) -> None:
    """Write `source` to `target` with a manifest that says what is `told`, last of all changes.

    parent: the file it was made from, which goes in as an ingredient with its own manifest.
    Raises KinemaError for a file or key that cannot be signed with.
    """
    import c2pa

    kind = media_type(source)
    definition = _definition(told, title, kind, parent)
    try:
        builder = _builder(definition, parent)
        with source.open("rb") as unsigned, target.open("w+b") as signed:
            builder.sign(_signer(identity), kind, unsigned, signed)
    except c2pa.C2paError as error:
        reason = reason_of(error)
        raise KinemaError(f"{title!r} cannot be signed as {identity.name!r}: {reason}") from None


def media_type(path: Path) -> str | None:
    """Of a format that is signed, by its first bytes, else by its name; None for any other."""
    with path.open("rb") as stream:
        head = stream.read(12)
    for at, what, kind in SIGNATURES:
        if head[at:].startswith(what):
            return kind
    return SUFFIXES.get(path.suffix.lower())


def _definition(
    told: Mapping[str, Any], title: str, kind: str | None, parent: Path | None
) -> dict[str, Any]:
    from ... import __version__

    agent = {"name": "kinema", "version": __version__}
    done = {"when": f"{datetime.now(timezone.utc):%Y-%m-%dT%H:%M:%SZ}", "softwareAgent": agent}
    if parent is None:
        actions = [{"action": "c2pa.created", "digitalSourceType": SOURCES + GENERATED, **done}]
    else:
        actions = [
            {"action": "c2pa.opened", "parameters": {"ingredientIds": [PARENT]}, **done},
            {"action": "c2pa.edited", "digitalSourceType": SOURCES + COMPOSITE, **done},
        ]
    return {
        "claim_generator_info": [agent],
        "title": title,
        "format": kind,
        "assertions": [
            {"label": "c2pa.actions.v2", "data": {"actions": actions}},
            {"label": GENERATION, "data": dict(told)},
        ],
    }


def _builder(definition: Mapping[str, Any], parent: Path | None) -> Any:
    """What signs a definition, with its parent and the parent's own manifests.

    Where those cannot be read, or the format has none, the parent is named by its hash alone.
    """
    import c2pa

    context = c2pa.Context.from_dict(SIGNING)
    builder = c2pa.Builder(dict(definition), context=context)
    if parent is None:
        return builder
    kind = media_type(parent)
    told = {
        "title": parent.name,
        "relationship": "parentOf",
        "label": PARENT,
        "instance_id": f"sha256:{file_hash(parent)}",
    }
    if kind is not None:
        with suppress(c2pa.C2paError), parent.open("rb") as stream:
            builder.add_ingredient(told, kind, stream)
            return builder
    named = {**told, "format": kind or "application/octet-stream"}
    return c2pa.Builder({**definition, "ingredients": [named]}, context=context)


def _signer(identity: Identity) -> Any:
    import c2pa

    if identity.key is not None:
        algorithm, chain, key = identity.algorithm, identity.chain, identity.key
        info = c2pa.C2paSignerInfo(algorithm.encode(), chain.encode(), key.encode(), None)
        return c2pa.Signer.from_info(info)
    algorithm = c2pa.C2paSigningAlg[identity.algorithm.upper()]
    return c2pa.Signer.from_callback(identity.sign, algorithm, identity.chain, None)


# ---- reading -------------------------------------------------------------------------------------


def read(path: Path, anchors: str | None = None) -> dict[str, Any] | None:
    """The manifests of a file and what validation says of them; None where there are none.

    anchors: certificates in PEM whose word is trusted. Raises ValueError for what looks like a
    manifest and cannot be read.
    """
    check_installed()
    import c2pa

    settings: dict[str, Any] = {"version": 1, "verify": READING}
    if anchors is not None:
        settings["trust"] = {"trust_anchors": anchors}
    reason = "it is damaged"
    try:
        with path.open("rb") as stream:
            context = c2pa.Context.from_dict(settings)
            reader = c2pa.Reader.try_create(media_type(path), stream, context=context)
            if reader is not None:
                with reader:
                    return json.loads(reader.json())
    except c2pa.C2paError as error:
        reason = reason_of(error)
    if _looks_signed(path):
        raise ValueError(f"there is a manifest, which cannot be read: {reason}")
    return None


def _looks_signed(path: Path) -> bool:
    """Whether the beginning of a file, where manifests are, holds the names of a manifest's box."""
    with path.open("rb") as stream:
        head = stream.read(1 << 20)
    return b"jumb" in head and b"c2pa" in head
