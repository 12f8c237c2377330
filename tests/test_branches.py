"""How many branches of guidance each step has, counted before any runs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kinema.runtime.checkpoints.checkpoint import open_checkpoint
from kinema.runtime.planning.branches import branches_of_steps
from kinema.runtime.planning.plan import resolve
from kinema.runtime.requests.guidance_options import Guidance
from kinema.runtime.requests.request import Request
from kinema.runtime.sampling.guidance import count_branches
from kinema.runtime.sessions.pipeline import scheduled


@pytest.mark.parametrize("solver", [None, "heun"])
@pytest.mark.parametrize(
    "guidance",
    [
        Guidance(),
        Guidance(interval=(0.2, 0.7)),
        Guidance(zero_init_steps=2, interval=(0.0, 0.5)),
        Guidance(by_step=(1.0, 3.0, 1.0, 4.0, 5.0, 1.0, 1.0)),
    ],
    ids=str,
)
def test_branches_are_counted_as_they_run(guidance, solver):
    checkpoint = open_checkpoint()
    plan = resolve(Request("a ball", num_inference_steps=7), checkpoint, "cpu", "float32")
    plan = replace(plan, guidance=guidance, solver=solver)
    config = checkpoint.component("scheduler").config
    tracks, _ = scheduled(plan, config, torch.Generator())
    total = len(tracks[0].schedule)
    wanted = [count_branches(tracks, guidance, step) for step in range(total)]
    found = branches_of_steps(plan)
    assert [found[count] for count in range(3)] == [wanted.count(count) for count in range(3)]
