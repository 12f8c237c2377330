"""Times of a command from its start to its end, in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

COMMANDS = {
    "import": ["-c", "import kinema"],
    "help": ["-m", "kinema", "--help"],
    "generate": ["-m", "kinema", "generate", "a red ball bounces", "--steps", "1", "-o", "TARGET"],
}


@pytest.mark.benchmark(group="cold start")
@pytest.mark.parametrize("name", COMMANDS)
def test_command(benchmark, name, tmp_path):
    paths = (tmp_path / f"{turn}.mp4" for turn in range(1000))

    def run():
        target = str(next(paths))
        command = [target if word == "TARGET" else word for word in COMMANDS[name]]
        subprocess.run([sys.executable, *command], check=True, capture_output=True)

    benchmark.pedantic(run, rounds=3, warmup_rounds=1)
