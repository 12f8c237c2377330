"""What given clips and guidance that comes and goes cost, beside what the modules themselves do."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from kinema.benchmarks.plan import allocated
from kinema.runtime.checkpoints.checkpoint import open_checkpoint
from kinema.runtime.ledger import Ledger
from kinema.runtime.planning.branches import branches_of_steps
from kinema.runtime.planning.plan import resolve
from kinema.runtime.requests.guidance_options import Guidance
from kinema.runtime.requests.request import Request
from kinema.runtime.sampling.guidance import count_branches
from kinema.runtime.sessions.pipeline import scheduled
from kinema.runtime.vaes.wan_sizes import WanVae

NARROW = {"base_dim": 16}
NARROW_22 = {
    "base_dim": 16,
    "decoder_base_dim": 16,
    "z_dim": 48,
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_spatial": 16,
    "latents_mean": [0.0] * 48,
    "latents_std": [1.0] * 48,
}


@pytest.mark.parametrize(
    ("config", "latents"), [(NARROW, (16, 3, 12, 10)), (NARROW_22, (48, 3, 6, 6))]
)
def test_encoding_with_wans_autoencoders(config, latents):
    diffusers = pytest.importorskip("diffusers")
    from kinema.runtime.vaes.wan import WanVAE

    vae = WanVAE(diffusers.AutoencoderKLWan(**config).eval().requires_grad_(False))
    sides = [side * vae.config.scale_factor_spatial for side in latents[2:]]
    chunks = [torch.zeros(1, 3, frames, *sides) for frames in (1, *[4] * (latents[1] - 1))]
    with torch.inference_mode():
        vae.encode_chunks(chunks)
        measured = allocated(lambda: vae.encode_chunks(chunks))
        with FlopCounterMode(display=False) as counter:
            vae.encode_chunks(chunks)
    ledger = Ledger()
    WanVae(ledger, dict(vae.config)).encode(latents)
    flops = sum(one.flops * times for one, times in ledger.work.items())
    assert flops / counter.get_total_flops() == pytest.approx(1, abs=0.01)
    assert ledger.peak / measured == pytest.approx(1, abs=0.15)


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
