"""Processes that work on items in turn, so that one that dies or stalls loses one item.

    python -m kinema.benchmarks.kernels.workers LINES TASK

A worker writes a line of JSON to the file LINES for what it begins, each row, and what it ended.
TASK is JSON: items, limits, and until when (seconds since the epoch) another may be begun.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .rows import Item, Limits, Row, reason, rows_of

STALL_S = 100.0  # without a line; a kernel or a compiler hangs
COMMAND = (sys.executable, "-m", __name__)


# ---- the process that asks -----------------------------------------------------------------------


class Worker:
    """A process, what it was given, and what it has written so far."""

    def __init__(
        self, items: Sequence[Item], limits: Limits, until: float, lines: Path, command=COMMAND
    ) -> None:
        self.left, self.lines, self.log = list(items), lines, lines.with_suffix(".log")
        self.begun: Item | None = None
        self.read_to, self.heard = 0, time.monotonic()
        lines.touch()
        task = json.dumps({"items": items, "limits": limits, "until": until})
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*command, str(lines), task], stdout=log, stderr=subprocess.STDOUT
            )

    def rows(self) -> list[Row]:
        """Those written since the last time."""
        with self.lines.open() as file:
            file.seek(self.read_to)
            text = file.read()
        whole = text[: text.rfind("\n") + 1]
        self.read_to += len(whole.encode())
        self.heard = time.monotonic() if whole else self.heard
        return [row for line in whole.splitlines() if (row := self._note(json.loads(line)))]

    def _note(self, line: dict[str, Any]) -> Row | None:
        if "begin" in line:
            self.begun = Item(*line["begin"])
        if "end" in line:
            self.left.remove(Item(*line["end"]))
            self.begun = None
        return line.get("row")

    def stop_if_stalled(self, stall_s: float, end: float) -> None:
        """End the process that said nothing for too long, or has no time left."""
        now = time.monotonic()
        if self.process.poll() is None and (now > self.heard + stall_s or now > end):
            self.process.kill()
            self.process.wait()

    def failure(self) -> Row:
        """The row of an item that a process did not survive."""
        said = self.log.read_text(errors="replace").strip().splitlines() or ["nothing was said"]
        code = self.process.returncode
        error = f"the process ended with {code}: {said[-1]}"[:300]
        item = self.begun or Item("start")
        return {**item._asdict(), "kind": item.stage, "error": error}


def work(
    groups: Sequence[Sequence[Item]],
    limits: Limits,
    minutes: float,
    say: Callable[[Row], None],
    folder: Path,
    slots: int = 1,
    stall_s: float = STALL_S,
    command: Sequence[str] = COMMAND,
) -> list[Item]:
    """Work on groups of items, a process for each, `slots` at a time; returns what was left out."""
    end = time.monotonic() + 60 * minutes
    until = time.time() + 60 * minutes
    waiting, running, left_out = [list(group) for group in groups], [], []
    started = 0
    while waiting or running:
        while waiting and len(running) < slots:
            lines = folder / f"{time.monotonic_ns()}.jsonl"
            running.append(Worker(waiting.pop(0), limits, until, lines, command))
            started += 1
        time.sleep(0.1)
        for worker in list(running):
            worker.stop_if_stalled(stall_s, end)
            ended = worker.process.poll() is not None
            for row in worker.rows():
                say(row)
            if not ended:
                continue
            running.remove(worker)
            if worker.process.returncode and time.monotonic() < end:
                say(worker.failure())
                rest = [item for item in worker.left if item != worker.begun]
                # One that cannot even begin would not the next time either.
                (waiting.insert(0, rest) if rest and worker.begun else left_out.extend(rest))
            else:
                left_out += worker.left
    return left_out


# ---- the process that works ----------------------------------------------------------------------


def main(lines: str, task: str) -> None:
    """Rows of each item; ends with an error where the GPU is of no more use to this process."""
    given = json.loads(task)
    with Path(lines).open("a") as file:

        def write(**line: Any) -> None:
            print(json.dumps(line), file=file, flush=True)

        for item in (Item(*names) for names in given["items"]):
            if time.time() > given["until"]:
                return
            write(begin=item)
            try:
                for row in rows_of(item, given["limits"]):
                    write(row=row)
                    if "error" in row:
                        _still_works()
            except Exception as error:
                write(row={**item._asdict(), "kind": item.stage, "error": reason(error)})
                _still_works()
            write(end=item)


def _still_works() -> None:
    """Raise `SystemExit` where an error has taken the GPU's context with it."""
    import torch

    try:
        torch.cuda.synchronize()
    except Exception as error:
        raise SystemExit(f"the GPU's context is lost: {error}") from None


if __name__ == "__main__":
    main(*sys.argv[1:])
