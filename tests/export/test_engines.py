"""Every graph of a checkpoint as TensorRT engines, which TensorRT-RTX builds without a GPU."""

from __future__ import annotations

import pytest

import kinema
from kinema.runtime.errors import UsageError

pytest.importorskip("diffusers")
pytest.importorskip("tensorrt_rtx")

from ..parity.checkpoints import build
from ..parity.test_pipelines import VARIANTS

ARCHES = ["sm_89", "sm_120"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model that is shown pictures, with every kind of graph and few layers."""
    folder, variant = tmp_path_factory.mktemp("checkpoint"), VARIANTS["i2v"]
    vae = {**variant.vae, "num_res_blocks": 0, "dim_mult": [1, 1, 1, 1]}
    build(variant._replace(vae=vae)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp8", "int8"])
def test_every_graph_builds(folder, dtype, tmp_path):
    parts = None if dtype == "fp16" else ["transformer"]
    manifest = kinema.export(
        folder, "tensorrt", tmp_path / "engines", dtype=dtype, arch=ARCHES, components=parts
    )
    for name, entry in manifest.graphs.items():
        assert entry.built["arches"] == tuple(ARCHES)
        assert entry.checks
        assert (tmp_path / "engines" / entry.file).stat().st_size == entry.bytes
        assert [path.name for path in (tmp_path / "engines" / name).iterdir()] == ["model.engine"]
    if parts is None:
        assert len(manifest.graphs) == 8
    assert sorted(path.name for path in (tmp_path / "engines").iterdir()) == sorted(
        [*manifest.graphs, "kinema.json"]
    )
    with pytest.raises(UsageError, match="run on a GPU"):
        engine = kinema.load(folder, "cpu", engines=tmp_path / "engines")
        engine.transformer  # noqa: B018  # opened when it is first used


def test_clips_are_profiles(folder, tmp_path):
    manifest = kinema.export(
        folder,
        "tensorrt",
        tmp_path / "engines",
        arch=["sm_89"],
        shapes=["48x64x9", "64x64x5"],
        components=["transformer"],
    )
    step = manifest.graphs["transformer"].built["profiles"]
    latents = [profile["latents"] for profile in step]
    assert [tuple(shape[1][2:]) for shape in latents] == [(3, 8, 6), (2, 8, 8)]
