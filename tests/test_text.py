"""Prompts to embeddings: zero at the pads, unknown words named, the reference's cleaning."""

import pytest
import torch

from kinema.runtime.checkpoint import Component
from kinema.runtime.errors import KinemaError
from kinema.runtime.text import MAX_TOKENS, TextEncoder, clean
from kinema.world import text as world_text
from kinema.world.captions import heldout_prompts


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tokenizer and an untrained encoder in the published layout."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("checkpoint")
    world_text.write_tokenizer(folder / "tokenizer")
    world_text.new_text_encoder().save_pretrained(folder / "text_encoder")
    return folder


@pytest.fixture(scope="module")
def encoder(folder):
    return TextEncoder(*components(folder), torch.device("cpu"), torch.float32)


def components(folder):
    return (
        Component("PreTrainedTokenizerFast", folder / "tokenizer", {}),
        Component("UMT5EncoderModel", folder / "text_encoder", {}),
    )


def test_pads_are_zero_and_counted(encoder):
    embeds, pad_count = encoder.encode(["a red ball", ""])
    assert embeds.shape == (2, 4, 256)
    assert pad_count.tolist() == [MAX_TOKENS - 4, MAX_TOKENS - 1]
    assert embeds[1, 1:].abs().max() == 0
    assert embeds[0].abs().min(1).values.max() > 0


def test_a_prompt_does_not_depend_on_its_neighbours(encoder):
    """Only rounding may differ between a batch and a single prompt."""
    alone = encoder.encode(["a red ball"]).embeds
    beside = encoder.encode(["a red ball", "a blue square moves left at night"]).embeds
    torch.testing.assert_close(beside[:1, :4], alone, rtol=1e-5, atol=1e-5)


def test_training_and_running_tokenize_alike(encoder):
    prompts = [prompt for prompt, _ in heldout_prompts(24)] + ["A RED, red-ball!", "zzz"]
    table = world_text.token_table()
    tokens, lengths = world_text.tokenize(prompts, table)
    for prompt, row, length in zip(prompts, tokens, lengths, strict=True):
        assert encoder.tokenizer(prompt).input_ids == row[:length].tolist()


def test_unknown_words_are_named_once(encoder):
    (warning,) = encoder.warnings("a chartreuse ball zooms, zooms over the grass")
    assert warning == "the model has never seen: chartreuse, zooms"
    assert encoder.warnings("a red ball bounces on the grass") == []


def test_what_is_cut_is_said(encoder):
    (warning,) = encoder.warnings("red " * 600)
    assert "601 tokens" in warning and "512" in warning
    assert encoder.encode(["red " * 600]).pad_count.tolist() == [0]


def test_cleaning_is_the_references():
    assert clean("  a &amp;amp; b \n\n c\t") == "a & b c"


@pytest.mark.parametrize("missing", ["tokenizer/tokenizer.json", "text_encoder/model.safetensors"])
def test_a_missing_file_is_one_line(folder, tmp_path, missing):
    import shutil

    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / missing).unlink()
    with pytest.raises(KinemaError) as raised:
        TextEncoder(*components(tmp_path / "copy"), torch.device("cpu"), torch.float32)
    assert missing.split("/")[0] in str(raised.value)
    assert "\n" not in str(raised.value)
