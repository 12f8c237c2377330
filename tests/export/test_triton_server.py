"""A repository for Triton Inference Server: what the server parses, and the model it runs."""

from __future__ import annotations

import inspect
import io
import json
import re
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import av
import numpy as np
import pytest

import kinema
from kinema.export.triton_server import INPUTS, OUTPUTS, PARAMETERS, model_name

HERE = Path(__file__).parent
SMALL = {"NUM_FRAMES": [5], "STEPS": [2], "SEED": [3]}


def load_file(name: str, path: Path):
    spec = spec_from_file_location(name, path)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


backend = load_file("triton_python_backend_utils", HERE / "triton_backend.py")


def asked(outputs: str = "VIDEO", prompt: str = "a red ball bounces", **inputs):
    """A request as the server hands it over: strings are bytes, numbers of their own types."""
    types = {"SEED": np.int64, "GUIDANCE_SCALE": np.float32}
    texts = {"PROMPT": prompt, **{k: v for k, v in inputs.items() if isinstance(v, str)}}
    values = {name: np.array([text.encode()], np.object_) for name, text in texts.items()}
    for name, value in {**SMALL, **inputs}.items():
        if name not in values:
            values[name] = np.array(value, types.get(name, np.int32))
    return backend.InferenceRequest(values, outputs.split())


def arrays(response) -> dict[str, np.ndarray]:
    assert not response.has_error(), response.error().message()
    return {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()}


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("triton") / "repository"
    kinema.export(None, "triton-server", folder)
    return folder


@pytest.fixture(scope="module")
def model(repository):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "triton_python_backend_utils", backend)
        model = load_file("triton_model", repository / "embedded" / "1" / "model.py")
        made = model.TritonPythonModel()
        made.initialize({"model_config": json.dumps(config_of(device="cpu"))})
        yield made
        made.finalize()


def config_of(**parameters: str) -> dict:
    """What the server tells of the parameters, as JSON."""
    values = {**dict.fromkeys(PARAMETERS, ""), **parameters}
    return {"parameters": {name: {"string_value": value} for name, value in values.items()}}


# ---- the files -----------------------------------------------------------------------------------


def test_a_repository_has_what_the_server_looks_for(repository):
    files = {path.relative_to(repository).as_posix() for path in repository.rglob("*.*")}
    assert files == {"README.md", "kinema.json", "embedded/config.pbtxt", "embedded/1/model.py"}
    assert not [path for path in repository.parent.iterdir() if path != repository]
    for name in files:
        assert str(Path.cwd()) not in (repository / name).read_text()


def test_the_config_parses_as_the_servers_own_message(tmp_path):
    client = pytest.importorskip("tritonclient.grpc", reason="pip install tritonclient[grpc]")
    from google.protobuf import text_format

    kinema.export("embedded", "triton-server", tmp_path / "r", dtype="bf16")
    text = (tmp_path / "r" / "embedded" / "config.pbtxt").read_text()
    pb2 = client.model_config_pb2
    config = text_format.Parse(text, pb2.ModelConfig())
    assert (config.name, config.backend, config.max_batch_size) == ("embedded", "python", 0)
    assert not config.model_transaction_policy.decoupled
    for found, wanted in ((config.input, INPUTS), (config.output, OUTPUTS)):
        told = [(t.name, pb2.DataType.Name(t.data_type), tuple(t.dims)) for t in found]
        assert told == [(t.name, t.type, t.dims) for t in wanted]
    assert [t.name for t in config.input if not t.optional] == ["PROMPT"]
    given = {name: value.string_value for name, value in config.parameters.items()}
    empty = dict.fromkeys(PARAMETERS, "")
    assert given == {**empty, "source": "embedded", "dtype": "bfloat16"}


def test_a_name_with_quotes_and_other_letters_survives_the_config(tmp_path):
    client = pytest.importorskip("tritonclient.grpc", reason="pip install tritonclient[grpc]")
    from google.protobuf import text_format

    from kinema.export.triton_server import config

    text = "\n".join(config("m", {"source": 'a "b"\\ü\n'}))
    parsed = text_format.Parse(text, client.model_config_pb2.ModelConfig())
    assert parsed.parameters["source"].string_value == 'a "b"\\ü\n'


def test_a_hub_id_becomes_a_name_that_a_url_takes():
    assert model_name("Wan-AI/Wan2.1-T2V-1.3B-Diffusers") == "Wan2.1-T2V-1.3B-Diffusers"
    assert model_name("/models/my wän/") == "my-w-n"


def test_what_does_not_apply_is_refused_and_an_export_is_not_replaced_unasked(repository):
    with pytest.raises(kinema.UsageError, match="serves the whole model"):
        kinema.export(None, "triton-server", repository, components=["vae"], overwrite=True)
    with pytest.raises(kinema.UsageError, match="--force"):
        kinema.export(None, "triton-server", repository)
    kinema.export(None, "triton-server", repository, overwrite=True)


# ---- the model -----------------------------------------------------------------------------------


def test_the_model_reads_what_the_config_names(model):
    own = type(model).initialize.__globals__
    assert {**own["TEXTS"], **own["NUMBERS"]}.keys() == {tensor.name for tensor in INPUTS}
    assert inspect.signature(kinema.load).parameters.keys() >= set(PARAMETERS)


def test_every_output_is_that_of_the_engine(model):
    request = asked(" ".join(t.name for t in OUTPUTS), NEGATIVE_PROMPT="a blue square")
    assert model.execute([request]) is None
    made = arrays(request.answer())
    fields = {"num_frames": 5, "num_inference_steps": 2, "seed": 3}
    with kinema.load(device="cpu") as engine:
        video = engine.generate("a red ball bounces", negative_prompt="a blue square", **fields)
    assert np.array_equal(made["VIDEO"], video.frames)
    assert np.array_equal(made["AUDIO"], video.audio)
    assert made["SAMPLE_RATE"].tolist() == [video.sample_rate]
    assert made["FPS"].tolist() == [video.fps]
    report = json.loads(made["REPORT"].item())
    assert report["request"]["prompt"] == "a red ball bounces"
    with av.open(io.BytesIO(made["MP4"].item())) as file:
        assert sum(1 for _ in file.decode(video=0)) == len(video.frames)
    types = {t.name: t.type for t in OUTPUTS}
    for name, array in made.items():
        wanted = next(t.dims for t in OUTPUTS if t.name == name)
        assert array.ndim == len(wanted)
        assert array.dtype == backend.NUMPY.get(types[name], object)


def test_only_what_was_asked_for_is_made(model):
    request = asked("REPORT")
    model.execute([request])
    assert list(arrays(request.answer())) == ["REPORT"]


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        ({"prompt": " "}, "prompt is empty"),
        ({"HEIGHT": [7]}, "height"),
        ({"SEED": [1, 2]}, r"SEED has shape \(2,\); one value works"),
    ],
)
def test_one_requests_error_is_its_own(model, bad, told):
    wrong, right = asked(**bad), asked()
    model.execute([wrong, right])
    error = wrong.answer().error()
    assert error.code() == backend.TritonError.INVALID_ARG
    assert re.search(told, error.message())
    assert arrays(right.answer())["VIDEO"].shape == (5, 64, 64, 3)


def test_requests_take_turns_and_a_cancelled_one_stops(model):
    long = asked(STEPS=[1000])
    model.execute([long])
    short = asked()
    model.execute([short])  # the server hands it over while the other is at work
    assert arrays(short.answer())["VIDEO"].shape == (5, 64, 64, 3)
    assert long.sender.sent.empty()
    long.sender.cancelled.set()
    assert long.answer().error().code() == backend.TritonError.CANCELLED


def test_the_server_that_stops_tells_clients(repository, monkeypatch):
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", backend)
    model = load_file("triton_model", repository / "embedded" / "1" / "model.py")
    made = model.TritonPythonModel()
    made.initialize({"model_config": json.dumps(config_of(device="cpu", source="embedded"))})
    request = asked(STEPS=[1000])
    made.execute([request])
    made.finalize()
    assert request.answer(timeout=0.1).error().code() == backend.TritonError.CANCELLED


def test_a_source_that_does_not_open_fails_the_load(repository, monkeypatch):
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", backend)
    model = load_file("triton_model", repository / "embedded" / "1" / "model.py")
    with pytest.raises(kinema.UsageError, match="nowhere"):
        model.TritonPythonModel().initialize(
            {"model_config": json.dumps(config_of(source="./nowhere"))}
        )
