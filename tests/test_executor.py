"""What runs the transformer: the same video by each, and refusals that say why."""

import subprocess
import sys

import pytest
import torch

import kinema
from kinema.runtime.execution import executor, pack

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SHORT = {"num_inference_steps": 2, "output": "latents"}


def latents(name, prompt="a red ball bounces"):
    return kinema.load(device="cpu", executor=name).generate(prompt, **SHORT).latents


@pytest.mark.skipif(not pack.can_pack(), reason="this build of PyTorch cannot pack")
def test_packed_layers_are_the_default_on_a_cpu_and_change_nothing():
    engine = kinema.load(device="cpu")
    assert engine.executor == "packed"
    found = engine.generate("a red ball bounces", **SHORT).latents
    # Sums in another order, through 2 steps of 6 blocks.
    torch.testing.assert_close(found, latents("eager"), rtol=0, atol=1e-4)


@pytest.mark.skipif(executor.MISSING["compiled"](CPU) is not None, reason="no C++ compiler")
def test_a_second_process_finds_what_the_first_compiled(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    code = (
        "import sys, kinema, torch\n"
        "engine = kinema.load(device='cpu', executor='compiled')\n"
        f"video = engine.generate('a red ball bounces', **{SHORT})\n"
        "torch.save(video.latents, sys.argv[1])\n"
        "from torch._dynamo.utils import counters\n"
        "print(counters['inductor']['fxgraph_cache_hit'])\n"
    )
    hits = []
    for name in ("first", "second"):
        command = [sys.executable, "-c", code, str(tmp_path / name)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        hits.append(int(done.stdout))
    assert hits[0] == 0 and hits[1] == 2  # the first block, which splits branches, and the others
    assert (tmp_path / "kinema" / "compiled").is_dir()
    found = torch.load(tmp_path / "second")
    torch.testing.assert_close(found, latents("eager"), rtol=0, atol=1e-4)


def test_one_that_cannot_run_says_why(monkeypatch):
    with pytest.raises(kinema.UsageError, match="executor 'fast' is not known; known: eager, pac"):
        executor.choose("fast", CPU)
    with pytest.raises(kinema.UsageError, match="packed cannot run here: it is for the CPU"):
        executor.choose("packed", CUDA)
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(kinema.UsageError, match=r"compiled cannot run here: .* install g\+\+"):
        executor.choose("compiled", CPU)
    assert executor.choose(None, CUDA) == "eager"
