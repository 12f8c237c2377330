"""A model of NVIDIA Triton Inference Server's Python backend: an engine that requests share.

`kinema export MODEL --to triton-server` copies this file to `<model>/1/model.py`; only the server
can import it. It reads what to load from the parameters in `config.pbtxt`.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils  # pyright: ignore[reportMissingImports]

import kinema

# Inputs, and the fields of a Request that they are.
TEXTS = {"PROMPT": "prompt", "NEGATIVE_PROMPT": "negative_prompt"}
NUMBERS = {
    "SEED": "seed",
    "NUM_FRAMES": "num_frames",
    "HEIGHT": "height",
    "WIDTH": "width",
    "STEPS": "num_inference_steps",
    "GUIDANCE_SCALE": "guidance_scale",
}
LOOK = 0.1  # seconds between looks at whether the client still waits


class TritonPythonModel:
    """One instance. Requests take turns in its engine, a step at a time, however they arrive."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the checkpoint; the server reports what it raises and does not serve the model."""
        given = json.loads(args["model_config"]).get("parameters", {})
        options = {name: value["string_value"] for name, value in given.items()}
        options = {name: value for name, value in options.items() if value}
        options["max_batch"] = int(options.get("max_batch", 1))
        self.engine = kinema.load(options.pop("source", None), **options)
        self.answering: set[threading.Thread] = set()

    def execute(self, requests: list[Any]) -> None:
        """Hand requests in and return: each is answered by a thread of its own, when it is done."""
        for request in requests:
            sender, wanted = request.get_response_sender(), set(request.requested_output_names())
            try:
                job = self.engine.submit(kinema.Request(**fields(request)))
            except Exception as error:  # one request's: the others of the batch go on
                send(sender, error=told(error))
                continue
            thread = threading.Thread(target=answer, args=(job, sender, wanted), daemon=True)
            self.answering = {other for other in self.answering if other.is_alive()} | {thread}
            thread.start()

    def finalize(self) -> None:
        """Cancel what is not done; its clients are told."""
        self.engine.close()
        for thread in self.answering:
            thread.join()


def answer(job: kinema.Job, sender: Any, wanted: set[str]) -> None:
    """Wait for a job and send what was asked for, or why there is nothing."""
    try:
        send(sender, outputs(wait(job, sender), wanted))
    except Exception as error:  # one request's, whatever it is: the server goes on
        send(sender, error=told(error))


def wait(job: kinema.Job, sender: Any) -> kinema.Video:
    """The video; stops the job where the client has gone."""
    while True:
        try:
            return job.result(timeout=LOOK)
        except TimeoutError:
            if sender.is_cancelled():
                job.cancel()


def send(sender: Any, tensors: Sequence[Any] = (), error: Any = None) -> None:
    """The one response of a request."""
    response = pb_utils.InferenceResponse(output_tensors=list(tensors), error=error)
    sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


def fields(request: Any) -> dict[str, Any]:
    """The fields of a `Request` that an inference request's inputs set."""
    found = {}
    for name, field in {**TEXTS, **NUMBERS}.items():
        tensor = pb_utils.get_input_tensor_by_name(request, name)
        if tensor is None:
            continue
        values = tensor.as_numpy()
        if values.size != 1:
            raise kinema.UsageError(f"{name} has shape {values.shape}; one value works")
        value = values.item()
        found[field] = value.decode() if isinstance(value, bytes) else value
    return found


def outputs(video: kinema.Video, wanted: set[str]) -> list[Any]:
    """The outputs that were asked for; sound of a silent model has no samples."""
    audio = np.zeros((0, 1), np.float32) if video.audio is None else video.audio
    made = {
        "VIDEO": lambda: video.frames,
        "FPS": lambda: np.array([video.fps], np.float32),
        "AUDIO": lambda: np.ascontiguousarray(audio, np.float32),
        "SAMPLE_RATE": lambda: np.array([video.sample_rate or 0], np.int32),
        "MP4": lambda: np.array([mp4(video)], np.object_),
        "REPORT": lambda: np.array([json.dumps(video.report).encode()], np.object_),
    }
    return [pb_utils.Tensor(name, make()) for name, make in made.items() if name in wanted]


def mp4(video: kinema.Video) -> bytes:
    """The file as `kinema generate` writes it."""
    with TemporaryDirectory() as folder:
        return video.save(Path(folder) / "video.mp4").read_bytes()


def told(error: Exception) -> Any:
    """An error as the client gets it."""
    code = pb_utils.TritonError.INTERNAL
    if isinstance(error, kinema.Cancelled):
        code = pb_utils.TritonError.CANCELLED
    elif isinstance(error, (kinema.UsageError, UnicodeDecodeError)):
        code = pb_utils.TritonError.INVALID_ARG
    return pb_utils.TritonError(str(error) or type(error).__name__, code)
