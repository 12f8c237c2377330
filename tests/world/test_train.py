"""Training: a killed run goes on where it stood, and what it draws covers every task."""

import json

import numpy as np
import pytest
import torch

import kinema
from kinema.runtime.checkpoints.checkpoint import EMBEDDED_FOLDER
from kinema.world import train, train_transformer, train_vae
from kinema.world.optim import Muon, orthogonal_update, trapezoid
from kinema.world.run import Process, Run
from kinema.world.scene import SIZE
from kinema.world.sound import SAMPLES_PER_FRAME
from kinema.world.train_transformer import SOUND_LAG, draw_sigmas, rows_of, training_scene


def steps(folder, count: int) -> Run:
    """Fit a line for `count` steps of a run that would last a minute."""
    torch.manual_seed(0)
    module = torch.nn.Linear(4, 4)
    run = Run("line", folder, 1.0, module, lambda _, p: p.ndim == 2, Process())
    for _ in run:
        if run.steps == count:
            run._save()
            break
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(run.steps))
        loss = (module(x) - 3 * x).square().mean()
        run.step(loss, 1.0, {"loss": loss})
    return run


def test_a_resumed_run_equals_an_unbroken_one(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole = steps(tmp_path / "a", 6)
    steps(tmp_path / "b", 3)
    resumed = steps(tmp_path / "b", 6)
    assert resumed.steps == whole.steps == 6
    for key, value in whole.average.items():
        assert torch.equal(resumed.average[key], value), key


def test_a_run_out_of_time_takes_no_step(tmp_path):
    run = Run("line", tmp_path, 0.0, torch.nn.Linear(2, 2), lambda _, p: p.ndim == 2, Process())
    assert list(run) == []
    assert (tmp_path / "line.pt").is_file()


def test_a_gradient_that_is_not_finite_stops_the_run(tmp_path):
    module = torch.nn.Linear(2, 2)
    run = Run("line", tmp_path, 1.0, module, lambda _, p: p.ndim == 2, Process())
    loss = module(torch.full((1, 2), torch.inf)).sum()
    with pytest.raises(FloatingPointError, match="step 0"):
        run.step(loss, 1.0, {"loss": loss})


def test_updates_are_nearly_orthogonal_part_by_part():
    """Five steps bring all but the smallest singular values into about 0.7..1.2 (Jordan et al.)."""
    torch.manual_seed(0)
    update = orthogonal_update(torch.randn(96, 32))  # packed q, k, v
    for part in update.chunk(3):
        values = torch.linalg.svdvals(part)
        assert values.max() < 1.25
        assert values.quantile(0.1) > 0.6


def test_muon_lowers_a_loss_that_adam_does_not_touch():
    torch.manual_seed(0)
    weight, bias = torch.nn.Parameter(torch.randn(8, 8)), torch.nn.Parameter(torch.zeros(8))
    optimiser = Muon([weight], [bias], lr=0.1)
    losses = []
    for _ in range(40):
        loss = (weight - torch.eye(8)).square().sum() + (bias - 1).square().sum()
        losses.append(float(loss.detach()))
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    assert losses[-1] < 0.2 * losses[0]


def test_the_learning_rate_rises_holds_and_falls_to_zero():
    assert trapezoid(0.0) < 0.1
    assert trapezoid(0.4) == 1.0
    assert 0.4 < trapezoid(0.85) < 0.6
    assert trapezoid(1.0) == 0.0


def test_sigmas_cover_every_task():
    sigmas = draw_sigmas(np.random.default_rng(0), 4000, 9, 2.3)
    picture, sound = sigmas[..., 0], sigmas[..., 1]
    assert sigmas.min() == 0 and sigmas.max() < 1
    same = np.isclose(picture, picture[:, :1]).all(1)
    lagged = np.isclose(sound, SOUND_LAG * picture / (1 + (SOUND_LAG - 1) * picture)).all(1)
    shares = {
        "joint": (same & lagged & (picture[:, 0] > 0)).mean(),
        "sound for a picture": ((picture == 0).all(1) & (sound > 0).all(1)).mean(),
        "picture for a sound": ((sound == 0).all(1) & (picture > 0).all(1)).mean(),
        "continuation": ((picture[:, 0] == 0) & (picture[:, 5] > 0)).mean(),
    }
    floors = {
        "joint": 0.55,
        "sound for a picture": 0.08,
        "picture for a sound": 0.01,
        "continuation": 0.04,
    }
    assert all(shares[task] > floor for task, floor in floors.items()), shares
    rows = rows_of(torch.from_numpy(sigmas))
    assert rows.shape == (4000, 9, 5)
    assert torch.equal(rows[..., 4], torch.from_numpy(sound))


def test_held_out_combinations_are_never_drawn():
    from kinema.world.captions import held_out

    rng = np.random.default_rng(0)
    scenes = [training_scene(rng) for _ in range(300)]
    assert not any(held_out(s.color, s.shape, s.motion) for s in scenes)
    assert {s.motion for s in scenes} == {"left", "right", "up", "down", "bounce", "still"}


def test_a_written_checkpoint_is_laid_out_as_the_one_that_ships_and_opens(tmp_path):
    statistics = {"latents_mean": [0.0] * 16, "latents_std": [1.0] * 16}
    model, codec = train_transformer.Generator(), train_transformer.fit_sound(clips=8)
    train.write_checkpoint(tmp_path, train_vae.new_vae(), statistics, model, codec)
    for name in ("model_index.json", "vocabulary.json", "transformer/config.json"):
        assert json.loads((tmp_path / name).read_text()) == json.loads(
            (EMBEDDED_FOLDER / name).read_text()
        )
    with kinema.load(tmp_path, "cpu") as engine:
        video = engine.generate(train.EXAMPLES[0], num_frames=5, num_inference_steps=1)
    assert video.frames.shape == (5, SIZE, SIZE, 3)
    assert len(video.audio) == 5 * SAMPLES_PER_FRAME
