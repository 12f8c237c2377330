"""LoRA files, in the formats of the tools people use, as changes of named weights.

A key is a prefix of the tool, a module under its published or its original name (dots may be
underscores), and a suffix that says what the tensor is. The tables below name all three.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from .. import registry
from ..checkpoints.shards import PICKLED, how_to_convert, read_entries, read_metadata, where
from ..checkpoints.weights import stream
from ..errors import KinemaError, UsageError
from ..hashes import file_hash

# peft, diffusers, ComfyUI, DiffSynth, kohya; they also occur one after another.
PREFIXES = (
    "base_model.model.",
    "transformer_2.",
    "transformer.",
    "model.diffusion_model.",
    "diffusion_model.",
    "pipe.dit.",
    "lora_unet_",
    "lora_transformer_",
)
# What a tensor is, by the end of its key. An adapter's name may stand before ".weight".
SUFFIXES = {
    "down": r"\.lora_A(\.\w+)?\.weight|\.lora_down\.weight|\.lora\.down\.weight",
    "up": r"\.lora_B(\.\w+)?\.weight|\.lora_up\.weight|\.lora\.up\.weight",
    "up_bias": r"\.lora_B(\.\w+)?\.bias",
    "alpha": r"\.alpha",
    "diff": r"\.diff",
    "diff_b": r"\.diff_b",
    "diff_m": r"\.diff_m",
}
OTHER_METHODS = {
    "DoRA": r"\.dora_scale$|\.lora_magnitude_vector(\.|$)",
    "LoHa": r"\.hada_w\d",
    "LoKr": r"\.lokr_w\d",
    "OFT": r"\.oft_",
}
# What else a file may be for, when none of its keys fits; the first that matches. Dots are
# underscores.
OTHER_MODELS = {
    "Flux or HunyuanVideo": r"(double|single)_blocks_\d|single_transformer_blocks_\d",
    "Stable Diffusion 3": r"joint_(transformer_)?blocks_\d",
    "Stable Diffusion": r"(down|up|input|output)_blocks_\d|mid_block_|middle_block_",
    "Qwen-Image": r"transformer_blocks_\d+_(img|txt)_",
    "LTX-Video": r"transformer_blocks_\d+_attn2",
    "CogVideoX": r"transformer_blocks_\d+_attn1",
    "a text encoder": r"^lora_te|text_encoder|text_model|_layers_\d+_self_attn_",
}
FOLDER_FILES = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")
PEFT_CONFIG = "adapter_config.json"
DIFFUSERS_CONFIG = "lora_adapter_metadata"


@dataclass(frozen=True)
class Change:
    """What is added to one weight: scale * up @ down, or scale * up where there is no `down`.

    `target` is the module (or parameter) as the file names it, without prefix; `kind` "weight" or
    "bias"; `keys` what it was read from.
    """

    component: str
    target: str
    kind: str
    keys: tuple[str, ...]
    scale: float
    up: Tensor
    down: Tensor | None = None

    @property
    def rank(self) -> int | None:
        """Rows of `down`; None for a change of full rank."""
        return None if self.down is None else self.down.shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of what it is added to; a product is one of matrices, kernels are flattened."""
        if self.down is None:
            return tuple(self.up.shape)
        return self.up.shape[0], math.prod(self.down.shape[1:])


@dataclass(frozen=True)
class Lora:
    """A LoRA file. `unread` are keys that belong to no complete change."""

    name: str
    sha256: str
    changes: tuple[Change, ...]
    unread: tuple[str, ...] = ()

    @property
    def tells_components(self) -> bool:
        """Whether it has keys for each of two transformers."""
        return len({change.component for change in self.changes}) > 1

    def part(self, component: str) -> Lora:
        """What is for one of two transformers, where the file tells them apart."""
        if not self.tells_components:
            return self
        mine = tuple(change for change in self.changes if change.component == component)
        return replace(self, changes=mine)

    def looks_like(self) -> str | None:
        """The family that its keys are of, if they tell."""
        names = [key.replace(".", "_") for key in self.keys]
        known = dict(row.lora for row in registry.TRANSFORMERS.values() if row.lora)
        for family, pattern in {**known, **OTHER_MODELS}.items():
            if any(re.search(pattern, name) for name in names):
                return family
        return None

    @property
    def keys(self) -> tuple[str, ...]:
        """Every key of the file."""
        return tuple(key for change in self.changes for key in change.keys) + self.unread


def read(path: str | Path) -> Lora:
    """Read a LoRA: a safetensors file, or a folder as peft or diffusers saves it.

    Raises `UsageError` for what is no LoRA or one of another kind (DoRA, ...), `KinemaError` for a
    file that is damaged or pickled.
    """
    path = Path(path).expanduser()
    file = _file(path)
    entries = read_entries(file)
    for method, pattern in OTHER_METHODS.items():
        if key := next((key for key in entries if re.search(pattern, key)), None):
            raise UsageError(
                f"{where(file)} is a {method} ({key}), which is not supported; plain LoRA is"
            )
    for entry in entries.values():
        if not entry.dtype.startswith(("F", "BF")):
            raise UsageError(f"{where(file)} holds {entry.name} as {entry.dtype}; floats work")
    tensors = {key: tensor.clone() for key, tensor in stream(entries)}
    changes, unread = _changes(tensors, _config(file))
    if not changes:
        first = next(iter(entries), "nothing")
        raise UsageError(f"{where(file)} is no LoRA: it holds {first}, and no pair of factors")
    name = path.stem if path.is_file() else path.name
    return Lora(name, file_hash(file), tuple(changes), tuple(unread))


def _file(path: Path) -> Path:
    if path.is_file():
        if path.suffix in PICKLED:
            raise KinemaError(how_to_convert(path))
        return path
    if not path.is_dir():
        raise UsageError(f"no LoRA at {str(path)!r}; a safetensors file or a folder with one works")
    found = sorted(path.glob("*.safetensors"))
    named = [path / name for name in FOLDER_FILES if path / name in found]
    if named or len(found) == 1:
        return (named or found)[0]
    pickled = [file for file in sorted(path.iterdir()) if file.suffix in PICKLED]
    if pickled and not found:
        raise KinemaError(how_to_convert(pickled[0]))
    names = ", ".join(file.name for file in found) or "no safetensors file"
    raise UsageError(f"{where(path)} holds {names}; give the path of one")


# ---- keys ----------------------------------------------------------------------------------------


def _changes(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any]
) -> tuple[list[Change], list[str]]:
    """Changes, and the keys that make none."""
    stems: dict[str, dict[str, str]] = {}
    unread = []
    for key in tensors:
        kind, stem = _split(key)
        if kind is None:
            unread.append(key)
        else:
            stems.setdefault(stem, {})[kind] = key
    changes = []
    for stem, keys in stems.items():
        found = list(_of_stem(stem, keys, tensors, config))
        used = {key for change in found for key in change.keys}
        changes += found
        unread += [key for key in keys.values() if key not in used]
    return changes, unread


def _of_stem(
    stem: str,
    keys: Mapping[str, str],
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any],
) -> Iterable[Change]:
    """The changes that the keys of one module make."""
    component, target = _target(stem)
    if "up" in keys and "down" in keys:
        up, down = tensors[keys["up"]], tensors[keys["down"]]
        if up.dim() < 2 or down.dim() < 2 or up[0].numel() != down.shape[0]:
            raise KinemaError(
                f"LoRA factors do not fit: {keys['up']} is {list(up.shape)},"
                f" {keys['down']} is {list(down.shape)}"
            )
        alpha = tensors[keys["alpha"]] if "alpha" in keys else None
        scale = _scale(target, down.shape[0], alpha, config)
        pair = [keys[kind] for kind in ("down", "up", "alpha") if kind in keys]
        yield Change(component, target, "weight", tuple(pair), scale, up, down)
        if "up_bias" in keys:
            key = keys["up_bias"]
            yield Change(component, target, "bias", (key,), scale, tensors[key])
    for kind, name, of in (
        ("diff", target, "weight"),
        ("diff_b", target, "bias"),
        ("diff_m", f"{target}.modulation", "weight"),
    ):
        if kind in keys:
            yield Change(component, name, of, (keys[kind],), 1.0, tensors[keys[kind]])


def _split(key: str) -> tuple[str | None, str]:
    """What a tensor is, and its key without that."""
    for kind, pattern in SUFFIXES.items():
        if found := re.search(rf"({pattern})$", key):
            return kind, key[: found.start()]
    return None, key


def _target(stem: str) -> tuple[str, str]:
    """The component that a key is for, and the module without prefixes."""
    component = "transformer"
    while prefix := next((prefix for prefix in PREFIXES if stem.startswith(prefix)), None):
        if prefix == "transformer_2.":
            component = "transformer_2"
        stem = stem[len(prefix) :]
    return component, stem


# ---- scale ---------------------------------------------------------------------------------------


def _scale(target: str, rank: int, alpha: Tensor | None, config: Mapping[str, Any]) -> float:
    """alpha / rank; alpha is the module's own, else the config's, else the rank."""
    if alpha is not None:
        return float(alpha.flatten()[0]) / rank
    value = config.get("lora_alpha", rank)
    for pattern, special in (config.get("alpha_pattern") or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", target):
            value = special
    return value / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _config(file: Path) -> Mapping[str, Any]:
    """What peft or diffusers says of the adapter: beside the file, or in its header."""
    beside = file.parent / PEFT_CONFIG
    if file.name == FOLDER_FILES[0] and beside.is_file():
        text = beside.read_text(encoding="utf-8")
    else:
        text = read_metadata(file).get(DIFFUSERS_CONFIG, "{}")
    try:
        values = json.loads(text)
        config = {re.sub(r"^transformer(_2)?\.", "", name): values[name] for name in values}
    except (ValueError, TypeError) as error:
        raise KinemaError(f"cannot read the adapter's config of {where(file)}: {error}") from None
    if config.get("use_dora"):
        raise UsageError(f"{where(file)} is a DoRA, which is not supported; plain LoRA is")
    return config
