"""A run between two steps, as a file: safetensors with the request in its header.

Written beside its name and renamed, so that the name always holds a whole run.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import KinemaError, UsageError
from ..files import reason_of, whole_or_nothing
from ..planning.cost import Setting
from ..requests.request import Request
from ..sampling.denoise import State

FORMAT = "1"


def write(
    path: str | Path, request: Request, state: State, identity: dict[str, str], setting: Setting
) -> Path:
    """Write a run. `identity`: what the run was made with and must go on with; `setting`: how."""
    path = Path(path).expanduser()
    tensors = {"latents": state.latents}
    for track, history in enumerate(state.histories):
        tensors.update({f"history.{track}.{i}": part for i, part in enumerate(history)})
    values, given = request.as_saved()
    tensors.update({f"request.{name}": tensor for name, tensor in given.items()})
    header = {
        "kinema": FORMAT,
        "index": str(state.index),
        "tracks": str(len(state.histories)),
        "request": json.dumps(values),
        "setting": json.dumps(asdict(setting)),
        **identity,
    }
    if not path.parent.is_dir():
        raise UsageError(f"folder {str(path.parent)!r} does not exist; the session needs one")
    with whole_or_nothing(path) as unfinished:
        try:
            save_file({name: own(tensor) for name, tensor in tensors.items()}, unfinished, header)
        except SafetensorError as error:  # a full disk, too
            raise KinemaError(f"cannot write {str(path)!r}: {reason_of(error)}") from None
    return path


def read(
    path: str | Path, identity: dict[str, str], device: torch.device
) -> tuple[Request, State, Setting]:
    """The request, the state and the setting of a run; latents and histories on the device.

    Raises `UsageError` for a file of another model, dtype or format, cut off, or none of ours.
    """
    path = Path(path).expanduser()
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            _check(path, header, identity)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        values, index = json.loads(header["request"]), int(header["index"])
        histories = tuple(
            _history(tensors, track, device) for track in range(int(header["tracks"]))
        )
        given = _below(tensors, "request")
        request = Request.from_saved(values, given)
        setting = Setting(**json.loads(header["setting"]))
        return request, State(index, tensors["latents"].to(device), histories), setting
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, UsageError):
            raise
        reason = reason_of(error)
        raise UsageError(f"{str(path)!r} is not a whole session file: {reason}") from None


def _check(path: Path, header: dict[str, str], identity: dict[str, str]) -> None:
    if header.get("kinema") != FORMAT:
        found = header.get("kinema", "none")
        raise UsageError(
            f"{str(path)!r} has session format {found}; this version reads format {FORMAT}"
        )
    for name, wanted in identity.items():
        if header.get(name) != wanted:
            raise UsageError(
                f"{str(path)!r} was made with {name} {_short(header.get(name))}; this engine has"
                f" {_short(wanted)}"
            )


def _short(value: str | None) -> str:
    return "unknown" if value is None else value if len(value) < 40 else f"{value[:12]}..."


def _history(tensors: dict[str, Tensor], track: int, device: torch.device) -> tuple[Tensor, ...]:
    parts = _below(tensors, f"history.{track}")
    ordered = (parts[str(i)] for i in range(len(parts)))
    # A generator's state is bytes, and stays where its generator is.
    return tuple(part if part.dtype == torch.uint8 else part.to(device) for part in ordered)


def _below(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    start = f"{name}."
    return {key[len(start) :]: value for key, value in tensors.items() if key.startswith(start)}


def own(tensor: Tensor) -> Tensor:
    """A copy that shares no memory with another, as the format asks."""
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
