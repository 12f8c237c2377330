"""A model repository for NVIDIA Triton Inference Server: `kinema export MODEL --to triton-server`.

The model is not converted: the server's Python backend embeds an engine, which loads the source by
its name.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from ..runtime.errors import UsageError

MODEL = Path(__file__).with_name("triton_model.py")
LEAST_SERVER = "24.06"  # answers that are sent after `execute` returned

# What `kinema.load` is given; those that are empty it settles itself.
PARAMETERS = ("source", "base", "device", "dtype", "executor", "engines", "max_batch")


class Tensor(NamedTuple):
    """An input or output; -1 is any length."""

    name: str
    type: str
    dims: tuple[int, ...] = (1,)
    optional: bool = True


INPUTS = (
    Tensor("PROMPT", "TYPE_STRING", optional=False),
    Tensor("NEGATIVE_PROMPT", "TYPE_STRING"),
    Tensor("SEED", "TYPE_INT64"),
    Tensor("NUM_FRAMES", "TYPE_INT32"),
    Tensor("HEIGHT", "TYPE_INT32"),
    Tensor("WIDTH", "TYPE_INT32"),
    Tensor("STEPS", "TYPE_INT32"),
    Tensor("GUIDANCE_SCALE", "TYPE_FP32"),
)
OUTPUTS = (
    Tensor("VIDEO", "TYPE_UINT8", (-1, -1, -1, 3)),
    Tensor("FPS", "TYPE_FP32"),
    Tensor("AUDIO", "TYPE_FP32", (-1, -1)),
    Tensor("SAMPLE_RATE", "TYPE_INT32"),
    Tensor("MP4", "TYPE_STRING"),
    Tensor("REPORT", "TYPE_STRING"),
)

README = """\
# {name}: a model repository for NVIDIA Triton Inference Server

Made by kinema {version}. Needs Triton {server} or newer with its Python backend, and in the
backend's Python: `pip install kinema=={version}`, with the extras that the model needs.

    tritonserver --model-repository DIR     # this folder

Inputs, one value each: PROMPT; and, if wanted,
{optional}.
Outputs: VIDEO (frames, height, width, 3) uint8, FPS, AUDIO (samples, channels) from -1 to 1,
SAMPLE_RATE (0 where the model is silent), MP4 (the file), REPORT (JSON). Only those asked for are
made.

What is loaded is in the parameters of `{name}/config.pbtxt`, as `kinema.load` takes them; what is
empty it settles itself. A source that is a folder must be there on the server; `engines` is a
folder that `kinema export` wrote, on the server too. `max_batch` requests of one shape may share a
forward.

Weights are read when the first request needs them. Requests take turns a step at a time. A request
that cannot run gets an error of its own (INVALID_ARG); a client that cancels stops its request
before the next step.
"""


def write(folder: Path, name: str, parameters: Mapping[str, str]) -> None:
    """Write the repository of one model: config.pbtxt, 1/model.py and a README beside.

    parameters: of `PARAMETERS`; raises `UsageError` for a name that is not one of them.
    """
    from .. import __version__

    if unknown := sorted(set(parameters) - set(PARAMETERS)):
        raise UsageError(f"no parameter {unknown[0]!r}; {', '.join(PARAMETERS)} work")
    name = model_name(name)
    (folder / name / "1").mkdir(parents=True)
    shutil.copyfile(MODEL, folder / name / "1" / "model.py")
    (folder / name / "config.pbtxt").write_text("\n".join(config(name, parameters)) + "\n")
    optional = ", ".join(tensor.name for tensor in INPUTS if tensor.optional)
    readme = README.format(name=name, version=__version__, server=LEAST_SERVER, optional=optional)
    (folder / "README.md").write_text(readme)


def model_name(checkpoint: str) -> str:
    """What the server calls a checkpoint: the end of its name, of letters that a URL takes."""
    return re.sub(r"[^\w.-]+", "-", checkpoint.rstrip("/").split("/")[-1], flags=re.ASCII)


def config(name: str, parameters: Mapping[str, str]) -> Iterator[str]:
    """Lines of config.pbtxt, a `ModelConfig` message in protobuf's text format."""
    yield f"name: {json.dumps(name)}"
    yield 'backend: "python"'
    yield "max_batch_size: 0"  # the engine batches
    yield "input ["
    yield ",\n".join(_tensor(tensor, tensor.optional) for tensor in INPUTS)
    yield "]"
    yield "output ["
    yield ",\n".join(_tensor(tensor, False) for tensor in OUTPUTS)
    yield "]"
    yield "instance_group [ { count: 1 kind: KIND_MODEL } ]"  # the engine picks its device
    for key in PARAMETERS:
        value = json.dumps(parameters.get(key, ""), ensure_ascii=False)
        yield f'parameters {{ key: "{key}" value {{ string_value: {value} }} }}'


def _tensor(tensor: Tensor, optional: bool) -> str:
    rest = " optional: true" if optional else ""
    return f'  {{ name: "{tensor.name}" data_type: {tensor.type} dims: {list(tensor.dims)}{rest} }}'
