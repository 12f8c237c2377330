"""Embeddings kept by what they were made of: in memory up to a number of bytes, and on disk."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

from torch import Tensor

from ..errors import KinemaError
from ..files import reason_of, whole_or_nothing

MEMORY_BYTES = 256 * 2**20
SUFFIX = ".safetensors"


class EmbeddingCache:
    """Tensors by key, the least recently used dropped first; all of them in `folder`, if given.

    A key is a name fit for a file. What is kept in memory stays on the device it came from.
    """

    def __init__(self, folder: str | Path | None = None, memory_bytes: int = MEMORY_BYTES) -> None:
        self.folder = None if folder is None else Path(folder).expanduser()
        self.memory_bytes, self.held_bytes = memory_bytes, 0
        self._held: OrderedDict[str, Tensor] = OrderedDict()

    def get(self, key: str) -> Tensor | None:
        """The tensor of a key, from memory, else from disk; None where there is none."""
        if key in self._held:
            self._held.move_to_end(key)
            return self._held[key]
        if self.folder is None or (tensor := _read(self.folder / f"{key}{SUFFIX}")) is None:
            return None
        self._keep(key, tensor)
        return tensor

    def put(self, key: str, tensor: Tensor) -> None:
        """Keep a tensor. Raises `KinemaError` where the folder cannot be written."""
        self._keep(key, tensor)
        if self.folder is not None:
            _write(self.folder / f"{key}{SUFFIX}", tensor)

    def clear(self) -> None:
        """Forget what is in memory; files stay."""
        self._held.clear()
        self.held_bytes = 0

    def _keep(self, key: str, tensor: Tensor) -> None:
        if (size := tensor.nbytes) > self.memory_bytes:
            return
        if (old := self._held.pop(key, None)) is not None:
            self.held_bytes -= old.nbytes
        while self.held_bytes + size > self.memory_bytes:
            _, dropped = self._held.popitem(last=False)
            self.held_bytes -= dropped.nbytes
        self._held[key] = tensor
        self.held_bytes += size


def _read(file: Path) -> Tensor | None:
    """A tensor from disk; None where there is none, or a damaged one, which is made anew."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)["embeds"]
    except (OSError, SafetensorError, KeyError):
        return None


def _write(file: Path, tensor: Tensor) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with whole_or_nothing(file) as unfinished:
            save_file({"embeds": tensor.contiguous().cpu()}, unfinished)
    except (OSError, SafetensorError) as error:
        raise KinemaError(
            f"cannot keep embeddings in {str(file.parent)!r}: {reason_of(error)}"
        ) from None
