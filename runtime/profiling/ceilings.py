"""What a device was measured to reach at most: copying, matrix products, and launching.

Measured once and kept in the user's cache folder, under the device's name, the number of threads
and the version of PyTorch. Nothing is taken from a datasheet.
"""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from ..execution import pack
from ..files import cache_folder, write_cache
from ..planning.device import identity
from .operators import Call

FORMAT = 1
ENOUGH, LEAST, MOST = 0.06, 4, 400  # seconds that one is timed for, and how often
LAUNCHES = 200
DTYPES = {
    "cpu": (torch.float32, torch.bfloat16),
    "cuda": (torch.float32, torch.bfloat16, torch.float16),
}
# rows, in, out
PRODUCTS = {
    "cpu": ((512, 1024, 1024), (512, 1280, 2560), (1024, 1024, 1024)),
    "cuda": ((4096, 4096, 4096), (8192, 8192, 8192), (32760, 1536, 8960)),
}
# bytes of what is copied: what fits a core's caches, what all share, and what fits none
COPIES = {
    "cpu": (1 << 16, 1 << 18, 1 << 20, 8 << 20, 64 << 20),
    "cuda": (1 << 20, 16 << 20, 256 << 20, 1 << 30),
}


@dataclass(frozen=True)
class Ceilings:
    """The most that was reached.

    matmul: FLOP/s by dtype. copies: (bytes that were touched, bytes a second), by rising size;
    small ones lie in caches. launch: seconds from one call of an operator to the next.
    """

    device: str
    matmul: Mapping[str, float]
    copies: tuple[tuple[int, float], ...]
    launch: float
    measured: str = ""

    @property
    def copy(self) -> float:
        """Bytes a second, read and written, of what fits no cache."""
        return self.copies[-1][1]

    @cached_property
    def _rates(self) -> tuple[tuple[int, float], ...]:
        """A size, and the most that was reached there or at any larger one."""
        found, best = [], 0.0
        for size, rate in reversed(self.copies):
            best = max(best, rate)
            found.append((size, best))
        return tuple(reversed(found))

    def bandwidth(self, moved: int) -> float:
        """Bytes a second that so many bytes can be read and written at."""
        return next((rate for size, rate in self._rates if size >= moved), self.copy)

    def flops(self, dtype: str) -> float:
        """FLOP/s of a dtype; of one that was not measured, the most of any."""
        return self.matmul.get(dtype) or max(self.matmul.values())

    def floor(self, call: Call) -> float:
        """The least seconds that a call can take: for what it computes, or for what it moves."""
        computing = call.flops / self.flops(call.dtype) if call.flops else 0.0
        return max(computing, call.bytes / self.bandwidth(call.bytes))

    def as_dict(self) -> dict[str, Any]:
        return {
            "copy_bytes_per_second": self.copy,
            "matmul_flops_per_second": dict(self.matmul),
            "launch_seconds": self.launch,
            "copy_points": [list(point) for point in self.copies],
            "versions": {"torch": torch.__version__},
            "measured": self.measured,
        }


def ceilings(device: torch.device | str, remeasure: bool = False) -> Ceilings:
    """A device's ceilings: from the cache if they are there, else measured, in seconds.

    A cache that cannot be written is done without.
    """
    device = torch.device(device)
    file = cache_folder() / f"roofline-{identity(device)}.json"
    if not remeasure and (known := _read(file)) is not None:
        return known
    found = measure(device)
    write_cache(file.name, json.dumps({"format": FORMAT, **asdict(found)}))
    return found


def _read(file: Path) -> Ceilings | None:
    try:
        found = json.loads(file.read_text())
        if found["format"] != FORMAT:
            return None
        return Ceilings(
            found["device"],
            {name: float(rate) for name, rate in found["matmul"].items()},
            tuple((int(size), float(rate)) for size, rate in found["copies"]),
            float(found["launch"]),
            found["measured"],
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


@torch.inference_mode()
def measure(device: torch.device | str) -> Ceilings:
    """Time copies, products and launches, the best of several calls each."""
    device = torch.device(device)
    return Ceilings(
        device=identity(device),
        matmul={str(dtype)[6:]: _product(device, dtype) for dtype in DTYPES[device.type]},
        copies=tuple(_copies(device)),
        launch=_launch(device),
        measured=datetime.date.today().isoformat(),
    )


def _product(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the best of several sizes, packed for the CPU or not."""
    best = 0.0
    for rows, inner, width in PRODUCTS[device.type]:
        linear = torch.nn.Linear(inner, width, device=device, dtype=dtype)
        x = torch.randn(rows, inner, device=device, dtype=dtype)
        calls: list[Callable[[], Any]] = [lambda: F.linear(x, linear.weight, linear.bias)]  # noqa: B023
        if device.type == "cpu" and pack.can_pack():
            packed = pack.PackedLinear(linear)
            calls.append(lambda: packed(x))  # noqa: B023
        for call in calls:
            best = max(best, 2 * rows * inner * width / _best(call, device))
    return best


def _copies(device: torch.device) -> Iterator[tuple[int, float]]:
    for size in COPIES[device.type]:
        try:
            source = torch.ones(size, dtype=torch.uint8, device=device)
            target = torch.empty_like(source)
        except torch.OutOfMemoryError:  # others hold the device's memory
            return
        seconds = _best(lambda: target.copy_(source), device)  # noqa: B023
        yield 2 * size, 2 * size / seconds


def _launch(device: torch.device) -> float:
    """Seconds a call of the smallest operator there is, many in a row."""
    x = torch.zeros(1, device=device)

    def many() -> None:
        for _ in range(LAUNCHES):
            x.add_(1.0)

    return _best(many, device) / LAUNCHES


def _best(call: Callable[[], Any], device: torch.device) -> float:
    """The least seconds of a call, of as many as fit in a moment."""
    call()
    taken: list[float] = []
    while len(taken) < LEAST or (sum(taken) < ENOUGH and len(taken) < MOST):
        _wait(device)
        started = time.perf_counter()
        call()
        _wait(device)
        taken.append(time.perf_counter() - started)
    return min(taken)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
