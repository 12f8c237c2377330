"""Fixtures that several test files share."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from kinema.runtime.checkpoints.checkpoint import Checkpoint
    from kinema.runtime.planning.plan import Plan

os.environ["TRITON_INTERPRET"] = "1"  # before anything imports Triton; tests/kernels need it
if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    # Before anything imports torch: threads of several processes would wait for each other's cores.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(workers))))

PRESETS = {
    "num_frames": 33,
    "height": 64,
    "width": 64,
    "fps": 8,
    "num_inference_steps": 16,
    "guidance_scale": 3.0,
    "max_num_frames": 65,
    "min_size": 32,
    "max_size": 128,
    "sound": {"rows": 2, "sample_rate": 16000, "shift": 4.0},
}
VOCABULARY = {
    "words": {"things": ["ball", "square"], "colours": ["red", "blue"]},
    "examples": ["a red ball bounces"],
}


@pytest.fixture(scope="session", autouse=True)
def folders_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Files are signed with an identity of the tests' own; what is kept is kept from the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("data")))
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def numbers_of_its_own() -> None:
    """What a test draws does not depend on the tests before it."""
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """PyTorch computes on one thread for a while."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def checkpoint_folder(tmp_path: Path) -> Path:
    """A checkpoint folder with everything but weights: index, one config, vocabulary."""
    folder = tmp_path / "tiny"
    index = {
        "_class_name": "WanPipeline",
        "_diffusers_version": "0.42.1",
        "transformer": ["diffusers", "WanTransformer3DModel"],
        "vae": ["kinema", "AutoencoderKinema"],
        "image_encoder": [None, None],
        "kinema": {"presets": PRESETS},
    }
    (folder / "transformer").mkdir(parents=True)
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "vocabulary.json").write_text(json.dumps(VOCABULARY))
    (folder / "transformer" / "config.json").write_text(json.dumps({"num_layers": 6}))
    return folder


@pytest.fixture
def big_checkpoint(tmp_path: Path) -> Checkpoint:
    """A checkpoint with the config of Wan2.1-1.3B and hardly any weights."""
    import torch
    from safetensors.torch import save_file

    from kinema.runtime.checkpoints.checkpoint import open_checkpoint

    configs = {
        "transformer": {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30},
        "vae": {"base_dim": 96},
        "text_encoder": {"d_model": 4096, "num_heads": 64, "d_kv": 64, "d_ff": 10240}
        | {"num_layers": 24},
    }
    for name, config in configs.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        tensors = {f"blocks.{i}.weight": torch.zeros(256, 64) for i in range(8)}
        save_file(tensors | {"head": torch.zeros(8)}, folder / "model.safetensors")
    index = {
        "_class_name": "WanPipeline",
        "transformer": ["diffusers", "WanTransformer3DModel"],
        "vae": ["diffusers", "AutoencoderKLWan"],
        "text_encoder": ["transformers", "UMT5EncoderModel"],
    }
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    return open_checkpoint(tmp_path)


@pytest.fixture
def big_plan(big_checkpoint: Checkpoint) -> Callable[..., Plan]:
    """`big_plan(frames, height, width)`: of that checkpoint, in bfloat16 on a GPU."""
    from kinema.runtime.planning.plan import resolve
    from kinema.runtime.requests.request import Request

    def plan(frames: int = 81, height: int = 480, width: int = 832) -> Plan:
        request = Request("a red ball", num_frames=frames, height=height, width=width)
        return resolve(request, big_checkpoint, "cuda", "bfloat16")

    return plan
