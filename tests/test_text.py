"""Prompts to embeddings: the reference's, zero at the pads; kept by content; odd words named."""

import shutil

import pytest
import torch

from kinema.runtime.checkpoints import foreign
from kinema.runtime.checkpoints.checkpoint import Component
from kinema.runtime.checkpoints.presets import TEXT_LENGTH
from kinema.runtime.checkpoints.shards import read_entries
from kinema.runtime.conditioning.text import TextEncoder, clean
from kinema.runtime.conditioning.text_cache import EmbeddingCache
from kinema.runtime.errors import KinemaError
from kinema.runtime.execution.block_stream import BlockStream
from kinema.runtime.execution.offload import Offload
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


CPU = torch.device("cpu")


def components(folder):
    return (
        Component("PreTrainedTokenizerFast", folder / "tokenizer", {}),
        Component("UMT5EncoderModel", folder / "text_encoder", {}),
    )


def test_pads_are_zero_and_counted(encoder):
    embeds, pad_count = encoder.encode(["a red ball", ""])
    assert embeds.shape == (2, 4, 256)
    assert pad_count.tolist() == [TEXT_LENGTH - 4, TEXT_LENGTH - 1]
    assert embeds[1, 1:].abs().max() == 0
    assert embeds[0].abs().min(1).values.max() > 0


def test_a_prompt_does_not_depend_on_its_neighbours(folder):
    alone = new_encoder(folder).encode(["a red ball"]).embeds
    beside = new_encoder(folder).encode(["a blue square moves left at night", "a red ball"]).embeds
    assert torch.equal(beside[1:, :4], alone)


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
    (warning,) = encoder.warnings("red " * 511 + "ball " + "blue " * 88)
    assert warning.startswith("the prompt has 601 tokens; those after 512 are cut: 'ball blue blue")
    assert len(warning) < 130
    assert encoder.encode(["red " * 600]).pad_count.tolist() == [0]


def test_a_prompt_of_just_as_many_tokens_as_there_may_be_is_not_cut(encoder):
    assert encoder.warnings("red " * 511) == []
    (warning,) = encoder.warnings("red " * 511 + "ball")
    assert warning.endswith("are cut: 'ball'")


def test_cleaning_is_the_references():
    assert clean("  a &amp;amp; b \n\n c\t") == "a & b c"


# ---- the reference -------------------------------------------------------------------------------

PROMPTS = ["A red  ball &amp; a square", "", "a blue square moves left " * 120]


def reference_embeds(folder, prompts, dtype):
    """Embeddings (prompts, 512, dim) that diffusers' pipeline makes, and its encoder."""
    diffusers = pytest.importorskip("diffusers")
    from transformers import AutoTokenizer, UMT5EncoderModel

    pipeline = diffusers.WanPipeline(
        tokenizer=AutoTokenizer.from_pretrained(folder / "tokenizer"),
        text_encoder=UMT5EncoderModel.from_pretrained(folder / "text_encoder", dtype=dtype).eval(),
        vae=None,
        scheduler=None,
    )
    with torch.inference_mode():
        embeds, _ = pipeline.encode_prompt(
            prompts, do_classifier_free_guidance=False, max_sequence_length=TEXT_LENGTH, device=CPU
        )
    return embeds, pipeline.text_encoder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_embeddings_are_as_near_to_exact_as_the_references(folder, dtype):
    """The reference encodes 512 tokens, pads included; without them sums are rounded elsewhere."""
    ours = new_encoder(folder, dtype)
    embeds, pad_count = ours.encode(PROMPTS)
    reference, model = reference_embeds(folder, PROMPTS, dtype)
    exact, _ = reference_embeds(folder, PROMPTS, torch.float64)
    length = embeds.shape[1]
    assert embeds.dtype == reference.dtype
    assert reference[:, length:].count_nonzero() == 0
    assert torch.equal(embeds.abs().sum(-1) > 0, reference[:, :length].abs().sum(-1) > 0)
    assert pad_count.tolist() == (reference.abs().sum(-1) == 0).sum(1).tolist()
    error, allowed = (
        (x.double()[:, :length] - exact[:, :length]).abs() for x in (embeds, reference)
    )
    assert error.max() <= 2 * allowed.max() and error.square().mean() <= 2 * allowed.square().mean()
    kinds = {name: x.dtype for name, x in ours.open().use().named_parameters()}
    assert kinds == {name: x.dtype for name, x in model.named_parameters()}


def test_what_the_reference_keeps_in_float32_stays_there(folder):
    kept = {
        name.split(".")[-2]
        for name, x in new_encoder(folder, torch.float16).open().use().named_parameters()
        if x.dtype == torch.float32
    }
    assert kept == {"wo"}


# ---- kept by content -----------------------------------------------------------------------------


def new_encoder(folder, dtype=torch.float32, **options):
    return TextEncoder(*components(folder), CPU, dtype, **options)


@pytest.fixture
def runs(monkeypatch):
    """The rows of tokens that an encoder was run on."""
    rows, run = [], TextEncoder._run
    monkeypatch.setattr(TextEncoder, "_run", lambda self, x: rows.extend(x) or run(self, x))
    return rows


def test_a_prompt_is_encoded_once(folder, runs):
    encoder = new_encoder(folder)
    first = encoder.encode(["a red ball", ""])
    again = encoder.encode(["", " a  red ball ", "a blue ball"])
    assert [len(row) for row in runs] == [4, 1, 4]
    assert torch.equal(again.embeds[1], first.embeds[0])


def test_a_disk_serves_the_next_process_without_opening_the_encoder(folder, tmp_path, runs):
    wanted = new_encoder(folder, cache=EmbeddingCache(tmp_path / "kept")).encode(["a red ball"])
    runs.clear()
    later = new_encoder(folder, cache=EmbeddingCache(tmp_path / "kept"))
    later.open = lambda: pytest.fail("the encoder was opened")
    assert torch.equal(later.encode(["a red ball"]).embeds, wanted.embeds)
    assert not runs
    assert [file.suffix for file in (tmp_path / "kept").iterdir()] == [".safetensors"]


def test_other_weights_and_other_types_are_other_entries(folder, tmp_path, runs):
    from safetensors.torch import load_file, save_file

    cache = EmbeddingCache(tmp_path / "kept")
    new_encoder(folder, cache=cache).encode(["a red ball"])
    new_encoder(folder, torch.bfloat16, cache=cache).encode(["a red ball"])
    shutil.copytree(folder, tmp_path / "other")
    new_encoder(tmp_path / "other", cache=cache).encode(["a red ball"])
    assert len(runs) == 2
    file = tmp_path / "other" / "text_encoder" / "model.safetensors"
    tensors = load_file(file)
    tensors["encoder.block.1.layer.1.DenseReluDense.wo.weight"].add_(1)
    save_file(tensors, file, metadata={"format": "pt"})
    new_encoder(tmp_path / "other", cache=cache).encode(["a red ball"])
    assert len(runs) == 3


def test_a_damaged_entry_is_made_anew(folder, tmp_path, runs):
    kept = tmp_path / "kept"
    wanted = new_encoder(folder, cache=EmbeddingCache(kept)).encode(["a red ball"])
    (file,) = kept.iterdir()
    file.write_bytes(file.read_bytes()[:50])
    again = new_encoder(folder, cache=EmbeddingCache(kept)).encode(["a red ball"])
    assert torch.equal(again.embeds, wanted.embeds) and len(runs) == 2
    assert EmbeddingCache(kept).get(file.stem) is not None


def test_memory_is_bounded_and_the_oldest_go_first():
    cache = EmbeddingCache(memory_bytes=100)
    for i in range(3):
        cache.put(str(i), torch.full((10,), float(i)))
        cache.get("0")
    assert cache.held_bytes == 80
    assert cache.get("1") is None
    assert cache.get("0")[0] == 0 and cache.get("2")[0] == 2
    cache.put("large", torch.zeros(26))
    assert cache.get("large") is None and cache.held_bytes == 80
    cache.put("2", torch.full((5,), 9.0))
    assert cache.held_bytes == 60
    cache.clear()
    assert cache.get("0") is None and cache.held_bytes == 0


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(KinemaError, match="cannot keep embeddings in"):
        EmbeddingCache(tmp_path / "file").put("key", torch.zeros(1))


@pytest.mark.parametrize("mode", ["model", "block"])
def test_offloaded_it_says_the_same_each_time(folder, mode):
    wanted = new_encoder(folder).encode(["a red ball"]).embeds
    encoder = new_encoder(folder, offload=Offload(CPU, mode), cache=EmbeddingCache(memory_bytes=0))
    for turn in (1, 2):
        assert torch.equal(encoder.encode(["a red ball"]).embeds, wanted)
        streams = [m for m in encoder.open().use().modules() if isinstance(m, BlockStream)]
        assert [stream.turn for stream in streams] == [turn] * (mode == "block")


# ---- bad input -----------------------------------------------------------------------------------


def test_weights_that_do_not_fit_are_named(folder, tmp_path):
    from safetensors.torch import load_file, save_file

    shutil.copytree(folder, tmp_path / "copy")
    file = tmp_path / "copy" / "text_encoder" / "model.safetensors"
    tensors = load_file(file)
    tensors["stray"] = tensors.pop("encoder.final_layer_norm.weight")
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(KinemaError, match=r"missing: encoder\.final.*; not known: stray"):
        new_encoder(tmp_path / "copy").encode(["a red ball"])
    tensors["encoder.final_layer_norm.weight"] = tensors.pop("stray")[:7].clone()
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(KinemaError, match=r"misshapen: encoder\.final\S+ \[7\], not \[256\]"):
        new_encoder(tmp_path / "copy").encode(["a red ball"])


def test_another_class_is_answered_with_the_known_ones(folder):
    tokenizer, encoder = components(folder)
    with pytest.raises(KinemaError, match=r"is a T5EncoderModel.*known: UMT5EncoderModel"):
        TextEncoder(tokenizer, encoder._replace(class_name="T5EncoderModel"), CPU, torch.float32)


def test_no_code_of_a_checkpoint_runs(folder, tmp_path):
    """A tokenizer that names code of its own is opened without it, or not at all."""
    import json

    shutil.copytree(folder, tmp_path / "copy")
    file = tmp_path / "copy" / "tokenizer" / "tokenizer_config.json"
    config = json.loads(file.read_text())
    config["auto_map"] = {"AutoTokenizer": ["ours.Ours", None]}
    file.write_text(json.dumps(config))
    ran = tmp_path / "ran"
    (file.parent / "ours.py").write_text(f"open({str(ran)!r}, 'w').close()\nclass Ours: pass\n")
    try:
        new_encoder(tmp_path / "copy")
    except KinemaError as error:
        assert "tokenizer" in str(error)
    assert not ran.exists()


@pytest.mark.parametrize("missing", ["tokenizer/tokenizer.json", "text_encoder/model.safetensors"])
def test_a_missing_file_is_one_line(folder, tmp_path, missing):
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / missing).unlink()
    with pytest.raises(KinemaError) as raised:
        new_encoder(tmp_path / "copy")
    assert missing.split("/")[0] in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_fingerprint_tells_weights_apart_and_not_folders(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    one, other = components(folder)[1], components(tmp_path / "copy")[1]
    assert foreign.fingerprint(one) == foreign.fingerprint(other)
    smallest = min(read_entries(other.folder).values(), key=lambda entry: entry.end - entry.start)
    data = bytearray(smallest.file.read_bytes())
    data[smallest.end - 1] ^= 1
    smallest.file.write_bytes(data)
    assert foreign.fingerprint(one) != foreign.fingerprint(other)
