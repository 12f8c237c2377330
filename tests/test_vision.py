"""Pictures to embeddings, as the reference's image-to-video pipeline makes them."""

import numpy as np
import pytest
import torch
from PIL import Image

from kinema.runtime.checkpoints.checkpoint import Component
from kinema.runtime.conditioning.vision import ImageEncoder
from kinema.runtime.errors import KinemaError, UsageError
from kinema.runtime.execution.block_stream import BlockStream
from kinema.runtime.execution.offload import Offload

transformers = pytest.importorskip("transformers")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small random vision tower and its processor in the published layout."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("checkpoint")
    config = transformers.CLIPVisionConfig(
        hidden_size=24, intermediate_size=20, num_hidden_layers=3, num_attention_heads=3,
        image_size=28, patch_size=7, projection_dim=8,
    )  # fmt: skip
    transformers.CLIPVisionModel(config).save_pretrained(folder / "image_encoder")
    transformers.CLIPImageProcessor(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}
    ).save_pretrained(folder / "image_processor")
    return folder


def encoder(folder, dtype=torch.float32, **options):
    return ImageEncoder(*components(folder), CPU, dtype, **options)


def components(folder):
    return (
        Component("CLIPImageProcessor", folder / "image_processor", {}),
        Component("CLIPVisionModel", folder / "image_encoder", {}),
    )


def picture(seed=0, size=(50, 33)):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def reference_embeds(folder, pictures, dtype):
    """What diffusers' pipeline makes of them."""
    pipelines = pytest.importorskip("diffusers")
    parts = ("tokenizer", "text_encoder", "vae", "scheduler")
    pipeline = pipelines.WanImageToVideoPipeline(
        **dict.fromkeys(parts),
        image_processor=transformers.CLIPImageProcessor.from_pretrained(folder / "image_processor"),
        image_encoder=transformers.CLIPVisionModel.from_pretrained(
            folder / "image_encoder", dtype=dtype
        ),
    )
    with torch.inference_mode():
        return pipeline.encode_image(pictures, CPU)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [1, 2])
def test_embeddings_are_the_references_bit_for_bit(folder, count, dtype):
    pictures = [picture(seed) for seed in range(count)]
    embeds = encoder(folder, dtype).encode(pictures)
    assert embeds.shape == (count, 17, 24) and embeds.dtype == dtype
    assert torch.equal(embeds, reference_embeds(folder, pictures, dtype))


def test_a_path_an_array_and_a_picture_are_the_same(folder, tmp_path):
    shown = picture()
    shown.save(tmp_path / "shown.png")
    ours = encoder(folder)
    wanted = ours.encode([shown])
    assert torch.equal(ours.encode([str(tmp_path / "shown.png")]), wanted)
    assert torch.equal(ours.encode([np.asarray(shown)]), wanted)
    assert torch.equal(ours.encode([shown.convert("RGBA")]), wanted)


@pytest.mark.parametrize("mode", ["model", "block"])
def test_offloaded_it_says_the_same_each_time(folder, mode):
    wanted = encoder(folder).encode([picture()])
    ours = encoder(folder, offload=Offload(CPU, mode))
    for turn in (1, 2):
        assert torch.equal(ours.encode([picture()]), wanted)
        streams = [m for m in ours.open().use().modules() if isinstance(m, BlockStream)]
        assert [stream.turn for stream in streams] == [turn] * (mode == "block")


def test_what_is_no_picture_is_refused(folder, tmp_path):
    ours = encoder(folder)
    (tmp_path / "note.png").write_text("no picture")
    for wrong, words in (
        (tmp_path / "note.png", r"note\.png' cannot be read"),
        (tmp_path / "nothing.png", r"nothing\.png' cannot be read: no such file"),
        (np.zeros((4, 4)), r"shape \(4, 4\)"),
        (np.full((4, 4, 3), 2.0), "floats from 0 to 1"),
        (3, "given as int"),
    ):
        with pytest.raises(UsageError, match=words):
            ours.encode([wrong])


def test_another_class_is_answered_with_the_known_ones(folder):
    processor, tower = components(folder)
    with pytest.raises(KinemaError, match=r"SiglipVisionModel.*known: CLIPVisionModel"):
        ImageEncoder(processor, tower._replace(class_name="SiglipVisionModel"), CPU, torch.float32)


def test_a_tower_published_with_its_projection_is_the_same_tower(folder, tmp_path):
    config = transformers.CLIPVisionConfig.from_pretrained(folder / "image_encoder")
    with_projection = transformers.CLIPVisionModelWithProjection(config)
    tower = transformers.CLIPVisionModel.from_pretrained(folder / "image_encoder")
    tower = getattr(tower, "vision_model", tower)
    with_projection.vision_model.load_state_dict(tower.state_dict())
    with_projection.save_pretrained(tmp_path / "image_encoder")
    processor, _ = components(folder)
    published = Component("CLIPVisionModelWithProjection", tmp_path / "image_encoder", {})
    found = ImageEncoder(processor, published, CPU, torch.float32).encode([picture()])
    assert torch.equal(found, encoder(folder).encode([picture()]))
