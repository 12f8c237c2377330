"""Whole pipelines: the same checkpoint, prompt and seed in the reference and in ours.

Latents after every step lie within 1e-4 of the reference's in units of their RMS (the two differ by
the order of sums; a few 1e-6 is usual), frames at 60 dB or more.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

import kinema
from kinema.runtime.requests.conditions import Condition

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

from .checkpoints import (  # noqa: E402
    EULER,
    PROMPT,
    SHOWN_PICTURES,
    VAE_16X,
    Variant,
    build,
    mask,
    picture,
    reference_run,
    request,
)

SIZE = {"height": 48, "width": 80, "num_frames": 9, "num_inference_steps": 4}
TWO_EXPERTS = {"experts": 2, "index": {"boundary_ratio": 0.8}}
LATENTS_BESIDE = {"in_channels": 12}  # 4 of its own, 4 of a mask, 4 of what is shown
HELD = {
    "transformer": {"in_channels": 6, "out_channels": 6},
    "index": {"expand_timesteps": True},
    "vae": VAE_16X,
}
SIZE_16X = {**SIZE, "height": 96, "width": 64}
VARIANTS = {
    "t2v": Variant("WanPipeline", {}, {**SIZE, "guidance_scale": 4.0}),
    "t2v, distilled": Variant("WanPipeline", {}, {**SIZE, "guidance_scale": 1.0}, scheduler=EULER),
    "ti2v, text": Variant("WanPipeline", asked={**SIZE_16X, "guidance_scale": 4.0}, **HELD),
    "ti2v": Variant(
        "WanImageToVideoPipeline",
        asked={**SIZE_16X, "guidance_scale": 4.0},
        pictures=("image",),
        **HELD,
    ),
    "t2v, two experts": Variant(
        "WanPipeline", {}, {**SIZE, "guidance_scale": 4.0, "guidance_scale_2": 2.0}, **TWO_EXPERTS
    ),
    "t2v, one of two guided": Variant(
        "WanPipeline", {}, {**SIZE, "guidance_scale": 4.0, "guidance_scale_2": 1.0}, **TWO_EXPERTS
    ),
    "i2v, two experts": Variant(
        "WanImageToVideoPipeline",
        LATENTS_BESIDE,
        {**SIZE, "guidance_scale": 3.5},
        pictures=("image",),
        **TWO_EXPERTS,
    ),
    "first and last frame, two experts": Variant(
        "WanImageToVideoPipeline",
        LATENTS_BESIDE,
        {**SIZE, "guidance_scale": 3.5},
        pictures=("image", "last_image"),
        **TWO_EXPERTS,
    ),
    "i2v": Variant(
        "WanImageToVideoPipeline",
        {**LATENTS_BESIDE, **SHOWN_PICTURES},
        {**SIZE, "height": 64, "width": 32, "num_frames": 13, "guidance_scale": 3.0},
        pictures=("image",),
    ),
    "i2v, one frame": Variant(
        "WanImageToVideoPipeline",
        {**LATENTS_BESIDE, **SHOWN_PICTURES},
        {**SIZE, "num_frames": 1, "guidance_scale": 1.0},
        pictures=("image",),
    ),
    "flf2v": Variant(
        "WanImageToVideoPipeline",
        {**LATENTS_BESIDE, **SHOWN_PICTURES, "pos_embed_seq_len": 10},
        {**SIZE, "guidance_scale": 3.0},
        pictures=("image", "last_image"),
    ),
}
CLIP = [picture(i, 80, 48) for i in range(9)]
MASKS = [mask(20 + i) for i in range(9)]
FACES = [picture(40, 30, 61), picture(41, 150, 47)]
VACE = Variant(
    "WanVACEPipeline",
    {"num_layers": 3, "vace_layers": [0, 2], "vace_in_channels": 2 * 4 + 64},
    {**SIZE, "guidance_scale": 3.0},
    model="WanVACETransformer3DModel",
)
VARIANTS |= {
    "vace, text": VACE,
    "vace, control": VACE._replace(
        given={"video": CLIP, "conditioning_scale": 0.7},
        conditions=(Condition(frames=CLIP, mask=1.0, strength=0.7),),
    ),
    "vace, two experts": VACE._replace(
        given={"reference_images": FACES[:1]},
        conditions=(Condition(FACES[0], frame=None),),
        **TWO_EXPERTS,
    ),
    "vace, masked, references": VACE._replace(
        given={"video": CLIP, "mask": MASKS, "reference_images": FACES},
        conditions=(
            Condition(frames=CLIP, mask=MASKS),
            *(Condition(face, frame=None) for face in FACES),
        ),
    ),
}


@pytest.fixture(scope="module", params=VARIANTS)
def case(request, tmp_path_factory):
    """The variant, the reference's pipeline, and the folder it was saved to."""
    variant = VARIANTS[request.param]
    pipeline = build(variant)
    folder = tmp_path_factory.mktemp("checkpoint")
    pipeline.save_pretrained(folder, safe_serialization=True)
    return variant, pipeline, folder


def error(found, wanted):
    """Largest absolute difference in units of the wanted RMS."""
    return float((found - wanted).abs().max() / wanted.square().mean().sqrt())


def psnr(found, wanted):
    """In dB, of frames uint8 and frames from 0 to 1, which are rounded to 8 bits."""
    difference = found.astype(np.float64) - np.round(wanted.astype(np.float64) * 255)
    return 10 * np.log10(255**2 / max(np.square(difference).mean(), 1e-12))


def test_latents_and_frames_are_the_references(case):
    variant, pipeline, folder = case
    wanted, frames = reference_run(pipeline, variant)
    session = kinema.load(folder, device="cpu").session(request(variant))
    found = [step.latents for step in session]
    assert len(found) == len(wanted) == variant.asked["num_inference_steps"]
    if variant.index.get("expand_timesteps") and variant.pictures:
        found[-1], wanted[-1] = found[-1][:, :, 1:], wanted[-1][:, :, 1:]  # ours holds it already
    for ours, theirs in zip(found, wanted, strict=True):
        assert error(ours, theirs) < 1e-4
    video = session.finish()
    assert video.frames.shape == frames.shape
    assert video.frames.std() > 5  # a picture, not one grey
    assert psnr(video.frames, frames) > 60


def test_a_saved_run_goes_on_to_the_same_bits(tmp_path):
    """Its pictures, masks and references are in the file."""
    variant = VARIANTS["vace, masked, references"]
    build(variant).save_pretrained(tmp_path)
    engine = kinema.load(tmp_path, device="cpu")
    whole = engine.generate(request(variant))
    session = engine.session(request(variant))
    next(session)
    file = session.save(tmp_path / "run.kinema")
    again = engine.resume(file).finish()
    assert torch.equal(again.latents, whole.latents)
    assert np.array_equal(again.frames, whole.frames)


def test_a_published_ti2v_is_a_text_pipeline_that_takes_a_picture(tmp_path):
    """Its index names the pipeline without pictures; the other one runs on the same folder."""
    variant = VARIANTS["ti2v"]
    build(variant).save_pretrained(tmp_path)
    wanted = kinema.load(tmp_path, device="cpu").generate(request(variant)).latents
    index = tmp_path / "model_index.json"
    index.write_text(index.read_text().replace("WanImageToVideoPipeline", "WanPipeline"))
    found = kinema.load(tmp_path, device="cpu").generate(request(variant)).latents
    assert torch.equal(found, wanted)


@torch.no_grad()
def test_a_distilled_model_steps_through_its_own_list(tmp_path):
    """The reference library has no pipeline for these; its transformer is stepped here: a clean
    prediction, noised anew to the next sigma, with what the generator draws next."""
    variant = VARIANTS["t2v, distilled"]
    pipeline = build(variant)
    pipeline.save_pretrained(tmp_path)
    index = tmp_path / "model_index.json"
    index.write_text(index.read_text().replace("WanPipeline", "WanDMDPipeline"))
    own = {"num_inference_steps": None, "guidance_scale": None}
    engine = kinema.load(tmp_path, device="cpu")
    found = [step.latents for step in engine.session(request(variant, **own))]
    generator, shape = torch.Generator().manual_seed(7), found[0].shape
    text = pipeline.encode_prompt(
        PROMPT, do_classifier_free_guidance=False, max_sequence_length=512
    )
    latents = torch.randn(shape, generator=generator)
    for ours, sigma, after in zip(found, (1, 0.757, 0.522), (0.757, 0.522, 0), strict=True):
        flow = pipeline.transformer(latents, torch.tensor([1000 * sigma]), text[0]).sample
        clean = latents - sigma * flow
        noise = torch.randn(shape, generator=generator) if after else torch.zeros(shape)
        latents = (1 - after) * clean + after * noise
        assert error(ours, latents) < 1e-4
    asked = engine.plan(request(variant, **own, solver="euler", sigmas=[0.9, 0.4, 0]))
    assert (asked.num_inference_steps, asked.solver, asked.sigmas) == (2, "euler", (0.9, 0.4))
    plan = engine.plan(request(variant, guidance_scale=None))
    assert (plan.num_inference_steps, plan.sigmas, plan.guidance_scale) == (4, None, 1)


def test_bfloat16_is_no_worse_than_the_reference(tmp_path):
    """Both in bfloat16 against the reference in float32, on weights that bfloat16 holds; the
    autoencoder and the picture encoder stay in float32, as in the published examples."""
    variant, kept = VARIANTS["i2v"], {}
    build(variant).to(torch.bfloat16).save_pretrained(tmp_path)
    classes = {"vae": diffusers.AutoencoderKLWan, "image_encoder": transformers.CLIPVisionModel}
    for name, model in classes.items():
        kept[name] = model.from_pretrained(tmp_path / name, dtype=torch.float32)
    trajectories = []
    for dtype in (torch.float32, torch.bfloat16):
        pipeline = diffusers.WanImageToVideoPipeline.from_pretrained(tmp_path, **kept, dtype=dtype)
        pipeline.set_progress_bar_config(disable=True)
        trajectories.append(reference_run(pipeline, variant)[0])
    exact, theirs = trajectories
    session = kinema.load(tmp_path, device="cpu", dtype="bfloat16").session(request(variant))
    ours = [step.latents for step in session]
    apart = {"ours": ours, "theirs": theirs}
    for name, trajectory in apart.items():
        differences = [a - b for a, b in zip(trajectory, exact, strict=True)]
        apart[name] = torch.stack([d.square().mean().sqrt() for d in differences])
    assert (apart["theirs"] > 0).all()
    assert (apart["ours"] < 1.5 * apart["theirs"]).all(), apart
