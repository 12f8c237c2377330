"""The most memory that each stage of a request held: an allocator's peak, or the process's."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from typing import Protocol

import torch

CLEAR, STATUS, STATM = (Path(f"/proc/self/{name}") for name in ("clear_refs", "status", "statm"))
PAGE = 4096
EVERY = 0.005  # seconds between samples


class Gauge(Protocol):
    """Says the most that was held since it was asked last. `how` tells in words."""

    how: str

    def take(self) -> int: ...
    def close(self) -> None: ...


class Allocator:
    """What PyTorch's allocator on a GPU handed out."""

    how = "peaks of PyTorch's allocator on the device, weights included"

    def __init__(self, device: torch.device) -> None:
        self.device = device
        torch.cuda.reset_peak_memory_stats(device)

    def take(self) -> int:
        peak = torch.cuda.max_memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        return peak

    def close(self) -> None: ...


class HighWater:
    """The process's resident memory at its highest (VmHWM), which Linux lets it begin anew."""

    how = "the process's resident memory at its highest (VmHWM, begun anew by stage)"

    def __init__(self) -> None:
        CLEAR.write_text("5")
        self._read()

    def take(self) -> int:
        peak = self._read()
        CLEAR.write_text("5")
        return peak

    def close(self) -> None: ...

    def _read(self) -> int:
        lines = STATUS.read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


class Sampler:
    """The process's resident memory, looked at every few milliseconds by a thread."""

    how = f"the process's resident memory, looked at every {1000 * EVERY:g} ms"

    def __init__(self) -> None:
        self._most, self._over = self._now(), threading.Event()
        self._thread = threading.Thread(target=self._watch, name="kinema-memory", daemon=True)
        self._thread.start()

    def take(self) -> int:
        most, self._most = max(self._most, self._now()), 0
        return most

    def close(self) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(EVERY):
            self._most = max(self._most, self._now())

    def _now(self) -> int:
        return PAGE * int(STATM.read_text().split()[1])


class Unknown:
    """No memory is told."""

    how = "not known on this system"

    def take(self) -> int:
        return 0

    def close(self) -> None: ...


def gauge_of(device: torch.device) -> Gauge:
    """The best gauge there is here."""
    if device.type == "cuda":
        return Allocator(device)
    for kind in (HighWater, Sampler):
        with contextlib.suppress(OSError, StopIteration, ValueError):
            return kind()
    return Unknown()


class Peaks:
    """The most that was held in each of several stages, which take turns."""

    def __init__(self, gauge: Gauge, stage: str) -> None:
        self.gauge, self.stage = gauge, stage
        self.found: dict[str, int] = {}

    def enter(self, stage: str) -> None:
        """From now on memory is this stage's."""
        if stage == self.stage:
            return
        self._note()
        self.stage = stage

    def close(self) -> dict[str, int]:
        """Peaks by stage; the gauge is not read again."""
        self._note()
        self.gauge.close()
        return {stage: peak for stage, peak in self.found.items() if peak}

    def _note(self) -> None:
        self.found[self.stage] = max(self.found.get(self.stage, 0), self.gauge.take())
