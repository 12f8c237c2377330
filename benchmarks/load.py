"""Loading a transformer beside reading the bytes of its files.

`python -m kinema.benchmarks.load --gigabytes 3`: random weights in a temporary folder, named and
laid out as published, then two readings of the files (into one small buffer that stays in the
processor's cache, which no loader can beat; into memory of their own, as a copy of them needs) and
kinema's loading, taking turns. `--cold` drops the files from the page cache before every turn
(Linux). Prints the ratios; puts rows into the device's results where asked.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..runtime.checkpoints import weights
from ..runtime.checkpoints.shards import SINGLE_FILES
from ..runtime.models.wan.config import WanConfig
from ..runtime.models.wan.transformer import WanTransformer
from . import rows
from .measure import interleave
from .rows import Row

# The widths of Wan2.1-T2V-1.3B; the number of blocks follows from the size asked for.
WIDTHS: dict[str, Any] = {"num_attention_heads": 12, "attention_head_dim": 128, "ffn_dim": 8960}
BUFFER = 4 << 20


@dataclass(frozen=True)
class Loading:
    """What is loaded and how often; `stored` is the dtype of the files, `dtype` of the module.

    cold: with the files out of the page cache before every turn.
    """

    gigabytes: float = 3.0
    shards: int = 1
    stored: str = "bfloat16"
    dtype: str = "bfloat16"
    device: str = "cpu"
    repeats: int = 5
    cold: bool = False


def main(arguments: list[str] | None = None) -> None:
    """Measure, print the ratios and, if asked, write the rows."""
    parser = argparse.ArgumentParser(prog="python -m kinema.benchmarks.load")
    parser.add_argument("--gigabytes", type=float, default=Loading.gigabytes)
    parser.add_argument("--shards", type=int, default=Loading.shards)
    parser.add_argument("--stored", default=Loading.stored, help="dtype of the files")
    parser.add_argument("--dtype", default=Loading.dtype, help="dtype of the loaded module")
    parser.add_argument("--device", default=Loading.device)
    parser.add_argument("--repeats", type=int, default=Loading.repeats)
    parser.add_argument("--cold", action="store_true", help="drop the page cache before each turn")
    parser.add_argument("--folder", type=Path, help="where to write the files for the time it runs")
    parser.add_argument("--write", action="store_true", help="keep the rows in results/")
    options = vars(parser.parse_args(arguments))
    place, write = options.pop("folder"), options.pop("write")
    with tempfile.TemporaryDirectory(dir=place) as folder:
        found = measure(Path(folder), Loading(**options))
    print(describe(found))
    if write:
        print(f"wrote {rows.merge(found)[0]}")


def measure(folder: Path, asked: Loading) -> list[Row]:
    """Seconds of both readings and of loading, and the ratios to reading."""
    stored, dtype = getattr(torch, asked.stored), getattr(torch, asked.dtype)
    config, device = config_of(asked.gigabytes, stored), torch.device(asked.device)
    files = write_checkpoint(folder, config, stored, asked.shards)

    def load() -> None:
        weights.load(lambda: WanTransformer(config), folder, config.weight_table(), device, dtype)
        if device.type == "cuda":
            torch.cuda.synchronize()

    turns: dict[str, Callable[[], object]] = {
        "read": lambda: read_through(files),
        "read into memory": lambda: [file.read_bytes() for file in files],
        "load": load,
    }
    if asked.cold:
        turns = {name: after_dropping(files, turn) for name, turn in turns.items()}
    seconds = interleave(turns, asked.repeats)
    sizes = {
        "bytes": sum(file.stat().st_size for file in files),
        "files": len(files),
        "stored": asked.stored,
        "page_cache": "cold" if asked.cold else "warm",
    }
    shapes = " ".join(f"{name}={value}" for name, value in sizes.items())
    about = rows.about("load", asked.device, shapes, asked.dtype, "safetensors", on=asked.device)
    return rows.timed(about, seconds, "read")


def config_of(gigabytes: float, dtype: torch.dtype) -> WanConfig:
    """A configuration whose weights take about so many bytes."""
    one, two = (numbers_of(WanConfig(**WIDTHS, num_layers=layers)) for layers in (1, 2))
    rest = gigabytes * 1e9 / dtype.itemsize - one
    return WanConfig(**WIDTHS, num_layers=1 + max(0, round(rest / (two - one))))


def numbers_of(config: WanConfig) -> int:
    """How many parameters a configuration has."""
    with torch.device("meta"):
        return sum(weight.numel() for weight in WanTransformer(config).parameters())


def write_checkpoint(
    folder: Path, config: WanConfig, dtype: torch.dtype, shards: int
) -> list[Path]:
    """Random weights under published names, in so many files of about equal size."""
    with torch.device("meta"):
        published = WanTransformer(config).to_published()
    names = sorted(published)
    if shards == 1:
        held = {SINGLE_FILES[0]: names}
    else:
        held = {
            f"diffusion_pytorch_model-{index + 1:05}-of-{shards:05}.safetensors": names[
                index * len(names) // shards : (index + 1) * len(names) // shards
            ]
            for index in range(shards)
        }
        index = {"weight_map": {name: file for file, mine in held.items() for name in mine}}
        (folder / f"{SINGLE_FILES[0]}.index.json").write_text(json.dumps(index))
    for file, mine in held.items():
        save_file(dict(draw(published, mine, dtype)), folder / file)
    return [folder / file for file in held]


def draw(
    like: dict[str, Tensor], names: list[str], dtype: torch.dtype
) -> Iterator[tuple[str, Tensor]]:
    """Random tensors of given shapes."""
    for name in names:
        yield name, torch.empty(like[name].shape, dtype=dtype).uniform_(-0.02, 0.02)


def read_through(files: list[Path]) -> None:
    """Read every byte into one buffer."""
    buffer = memoryview(bytearray(BUFFER))
    for file in files:
        with file.open("rb", buffering=0) as raw:
            while raw.readinto(buffer):
                pass


def after_dropping(files: list[Path], turn: Callable[[], object]) -> Callable[[], object]:
    """`turn`, with the files out of the page cache; dropping takes next to no time."""

    def cold() -> None:
        for file in files:
            with file.open("rb") as raw:
                os.fsync(raw.fileno())
                os.posix_fadvise(raw.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        turn()

    return cold


def describe(found: list[Row]) -> str:
    """Rows in one line."""
    sizes = found[0].sizes
    seconds = rows.select(found, quantity="seconds")
    ratio = rows.select(found, quantity="ratio", runner="load")[0]
    return (
        f"{int(sizes['bytes']) / 1e9:.2f} GB in {sizes['files']} file(s), {sizes['page_cache']}:"
        f" {', '.join(f'{row.runner} {row.median:.3f} s' for row in seconds)};"
        f" load reaches {ratio.median:.2f} of the speed of reading"
    )


if __name__ == "__main__":
    main()
