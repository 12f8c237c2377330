"""What the README and the example promise to code for the hosted API."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import av
import numpy as np

from kinema.runtime.media.video import read_info

ROOT = Path(__file__).parents[2]
PORT = "127.0.0.1:8000"


def test_the_readme_has_all_that_is_needed(served, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (code,) = [block for block in blocks if "base_url" in block]
    assert len(code.splitlines()) <= 5 and PORT in code
    exec(code.replace(PORT, served.url.removeprefix("http://")), {})
    (file,) = tmp_path.glob("*.mp4")
    info = read_info(file)
    assert (info["media"]["width"], info["media"]["height"]) == (720, 1280)
    told = {name: info["served"][name] for name in ("made_at", "scaled_to", "padded_to")}
    assert told == {"made_at": "64x64", "scaled_to": "720x720", "padded_to": "720x1280"}
    with av.open(str(file)) as container:
        frames = np.stack([f.to_ndarray(format="gray") for f in container.decode(video=0)])
    assert frames.shape == (33, 1280, 720)
    black = frames[:, :270] < 30  # all but the label
    assert black.mean() > 0.98 and frames[:, 300:-300].mean() > 50


def test_the_example_runs_where_the_environment_names_a_server(served, tmp_path):
    environment = {**os.environ, "OPENAI_BASE_URL": f"{served.url}/v1", "OPENAI_API_KEY": "none"}
    command = [sys.executable, "-W", "error::DeprecationWarning:__main__"]
    command += [ROOT / "examples" / "sora_migration.py", "a red ball bounces on the grass"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    ids = re.findall(r"^(video_\w+) completed 1280x720", done.stdout, re.MULTILINE)
    assert len(set(ids)) >= 2
    for id in ids[:2]:
        for suffix in ("mp4", "webp"):
            assert f"{tmp_path}/{id}.{suffix}" in done.stdout
            assert (tmp_path / f"{id}.{suffix}").stat().st_size > 0
    assert read_info(tmp_path / f"{ids[0]}.mp4")["request"]["prompt"].startswith("a blue square")
