"""Times of opening weights, beside reading their bytes; see `load`."""

from __future__ import annotations

import pytest
import torch

import kinema
from kinema.benchmarks import load
from kinema.runtime.checkpoints import weights
from kinema.runtime.models.wan.transformer import WanTransformer

GIGABYTES = 0.25


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    config = load.config_of(GIGABYTES, torch.bfloat16)
    return folder, config, load.write_checkpoint(folder, config, torch.bfloat16, 1)


@pytest.mark.benchmark(group="load")
def test_read(benchmark, checkpoint):
    _, _, files = checkpoint
    benchmark(load.read_through, files)


@pytest.mark.benchmark(group="load")
def test_open(benchmark, checkpoint):
    folder, config, _ = checkpoint
    table, device = config.weight_table(), torch.device("cpu")
    arguments = (lambda: WanTransformer(config), folder, table, device, torch.bfloat16)
    model = benchmark(weights.load, *arguments)
    assert next(model.parameters()).device.type == "cpu"


@pytest.mark.benchmark(group="load")
def test_embedded(benchmark):
    def open_all():
        with kinema.load(device="cpu") as engine:
            engine.open_components()

    benchmark(open_all)
