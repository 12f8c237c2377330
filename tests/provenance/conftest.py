"""Clips that were made by a model that is none, and a signed file."""

import av
import numpy as np
import pytest
from cryptography.hazmat.primitives import serialization as s
from cryptography.hazmat.primitives.asymmetric import ec

from kinema import Video
from kinema.runtime.provenance import certificates

PROMPT = "a red ball bounces in secret"


def report(**request):
    return {
        "request": {"prompt": PROMPT, "seed": 7, **request},
        "plan": {"num_frames": 33, "height": 96, "width": 128, "seed": 7, "dtype": "float32"},
        "model": {"name": "tiny", "weights": "ab" * 32},
        "executor": "eager",
        "backends": {"attention": "torch", "norm_modulate": "triton"},
        "loras": [],
    }


def clip(num_frames=17, height=96, width=128, told=None, sample_rate=16_000):
    f, y, x = np.mgrid[:num_frames, :height, :width].astype(np.float64)
    waves = [np.sin(x / 20 + f / 9), np.cos(y / 25), np.sin((x + y) / 30)]
    frames = np.round(127 + 90 * np.stack(waves, axis=-1)).astype(np.uint8)
    noise = np.random.default_rng(0).normal(0, 0.1, (num_frames * sample_rate // 8, 1))
    return Video(frames, 8, noise.astype(np.float32), sample_rate, report=told or report())


@pytest.fixture(scope="session")
def signed(tmp_path_factory):
    return clip(33).save(tmp_path_factory.mktemp("signed") / "a.mp4")


def remuxed(source, target):
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        copies = {s.index: new.add_stream_from_template(s) for s in old.streams}
        for packet in old.demux():
            if packet.dts is not None:
                packet.stream = copies[packet.stream.index]
                new.mux(packet)
    return target


def studio(folder, name="Studio", lasts=certificates.LASTS):
    """An identity of its own, and the file of its authority."""
    folder.mkdir()
    by, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    root = certificates.issue(f"{name} authority", by, by, None)
    leaf = certificates.issue(name, key, by, root, lasts)
    pem = s.Encoding.PEM
    (folder / "key.pem").write_bytes(
        key.private_bytes(pem, s.PrivateFormat.PKCS8, s.NoEncryption())
    )
    (folder / "chain.pem").write_bytes(leaf.public_bytes(pem) + root.public_bytes(pem))
    (folder / "root.pem").write_bytes(root.public_bytes(pem))
    return folder
