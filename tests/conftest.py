"""Fixtures that several test files share."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

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
def keys_of_the_tests(tmp_path_factory: pytest.TempPathFactory):
    """Files are signed with an identity of the tests' own, not with the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("data")))
        yield


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
