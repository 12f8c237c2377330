"""The models that are served, by all of their names, and what each of them makes."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Path

from ...checkpoints.checkpoint import INDEX
from ...errors import UsageError
from .. import answers as told
from .. import edits
from ..errors import APIError
from ..orders import overlap_of
from .common import ERRORS, Owner, Server, Serving, answers

if TYPE_CHECKING:
    from ...engine import Engine

router = APIRouter(prefix="/v1/models", responses=ERRORS)
ModelId = Annotated[str, Path(max_length=200)]


@router.get("", **answers(told.Models))
def list_models(server: Serving, owner: Owner) -> dict[str, Any]:
    """The models, and after them their other names."""
    names = dict.fromkeys([*server.engines, *server.aliases])
    return {"object": "list", "data": [_as_object(server, name) for name in names]}


@router.get("/{model:path}", **answers(told.Model))
def retrieve_model(server: Serving, owner: Owner, model: ModelId) -> dict[str, Any]:
    """One of them."""
    _check(server, model)
    return _as_object(server, model)


@router.delete("/{model:path}", response_model=None)
def delete_model(server: Serving, owner: Owner, model: ModelId) -> dict[str, Any]:
    """Refused: what is served is settled when the server starts."""
    _check(server, model)
    message = f"model {model!r} is served until the server stops; it cannot be deleted by request"
    raise APIError(403, message, param="model", code="not_allowed")


def _check(server: Server, name: str) -> None:
    if name not in server.engines and name not in server.aliases:
        message = f"there is no model {name[:80]!r}; /v1/models lists those that there are"
        raise APIError(404, message, param="model", code="model_not_found")


def _as_object(server: Server, name: str) -> dict[str, Any]:
    target = server.aliases.get(name, name)
    engine = server.engines[target]
    return {
        "id": name,
        "object": "model",
        "created": int((engine.checkpoint.path / INDEX).stat().st_mtime),
        "owned_by": "kinema",
        "kinema": {"alias_of": None if target == name else target, **_facts(engine)},
    }


def _facts(engine: Engine) -> dict[str, Any]:
    """What it makes by itself; what else is asked for is fitted to that."""
    presets = engine.checkpoint.presets
    most = presets.max_num_frames
    return {
        "family": engine.checkpoint.index.get("_class_name"),
        "size": f"{presets.width}x{presets.height}",
        "sides": {
            "least": presets.min_size,
            "most": presets.max_size,
            "multiple_of": presets.size_multiple,
        },
        "fps": presets.fps,
        "num_frames": presets.num_frames,
        "max_num_frames": most,
        "max_seconds": round(most / presets.fps, 3),
        "steps": presets.num_inference_steps,
        "guidance_scale": presets.guidance_scale,
        "sound": presets.sound is not None,
        "conditions": presets.conditions,
        "last_frame": presets.last_frame,
        "takes": _takes(engine),
    }


def _takes(engine: Engine) -> list[str]:
    """What it can be shown or given, in the API's words."""
    presets, found = engine.checkpoint.presets, []
    if presets.conditions != "none" and presets.last_frame != "needed":
        found.append("input_reference")
    if overlap_of(presets) is not None:
        found.append("extensions")
    with suppress(UsageError):
        edits.check(engine)
        found.append("edits")
    return found
