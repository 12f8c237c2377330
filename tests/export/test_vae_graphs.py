"""Autoencoders as graphs: onnxruntime streams a clip of any size as the module does."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.export import Dim

pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")
diffusers = pytest.importorskip("diffusers")
autoencoder_kl_wan = pytest.importorskip("diffusers.models.autoencoders.autoencoder_kl_wan")

from kinema.export.graphs import CodeGraph  # noqa: E402
from kinema.export.translations import translations  # noqa: E402
from kinema.runtime.vaes.kinema import AutoencoderKinema, KinemaVAEConfig  # noqa: E402
from kinema.runtime.vaes.streaming import StreamedVAE  # noqa: E402
from kinema.runtime.vaes.wan import WanVAE  # noqa: E402

FUNCTIONS = ("decode_first", "decode_next", "encode_first", "encode_next")
EMBEDDED = {"z_dim": 4, "encoder_dim": 8, "decoder_dim": 8, "frame_dim": 8, "pixel_dim": 4}
WAN21 = {  # every kind of layer, and no more of each than there must be: tracing takes long
    "base_dim": 4, "z_dim": 4, "dim_mult": [1, 1, 1], "num_res_blocks": 0,
    "temperal_downsample": [True, True], "scale_factor_spatial": 4,
}  # fmt: skip
WAN22 = {
    **WAN21, "decoder_base_dim": 8, "z_dim": 6, "is_residual": True, "patch_size": 2,
    "in_channels": 12, "out_channels": 12, "scale_factor_spatial": 8,
}  # fmt: skip


def embedded() -> AutoencoderKinema:
    return AutoencoderKinema(KinemaVAEConfig(**EMBEDDED))


def wan(config: dict[str, Any]) -> WanVAE:
    statistics = {"latents_mean": [0.0] * config["z_dim"], "latents_std": [1.0] * config["z_dim"]}
    vae = diffusers.AutoencoderKLWan(**config, **statistics)
    with torch.no_grad():
        for name, weight in vae.named_parameters():
            if "gamma" in name or "bias" in name:
                weight.add_(0.2 * torch.randn_like(weight))
    return WanVAE(vae)


# Module, pixels a side, opset and which functions are exported; others stay PyTorch's. (Tracing
# Wan's layers takes seconds a function, so each of its versions has two.)
CASES: dict[str, tuple[Callable[[], Any], int, int, tuple[str, ...]]] = {
    "embedded": (embedded, 8, 18, FUNCTIONS),
    "wan 2.1": (lambda: wan(WAN21), 4, 18, ("decode_first", "encode_first")),
    "wan 2.2": (lambda: wan(WAN22), 8, 23, ("decode_next", "encode_next")),
}
Sizes = tuple[int, int, int]  # batch, and the sides of a latent frame
SEEN: Sizes = (2, 3, 4)


class Case(NamedTuple):
    """An autoencoder, the same in float64, and the same as graphs that onnxruntime runs."""

    vae: Any
    exact: Any
    stride: int
    graphs: Any = None
    exported: tuple[str, ...] = ()

    def latents(self, sizes: Sizes, frames: int = 1) -> Tensor:
        batch, height, width = sizes
        return torch.randn(batch, self.vae.config.z_dim, frames, height, width)

    def pixels(self, sizes: Sizes, frames: int = 1) -> Tensor:
        batch, height, width = sizes
        return torch.rand(batch, 3, frames, height * self.stride, width * self.stride) * 2 - 1

    def inputs(self, function: str, sizes: Sizes) -> list[Tensor]:
        """What one of the functions takes: a frame, and for a later one what came before it."""
        kind, time = function.split("_")
        make = self.latents if kind == "decode" else self.pixels
        if time == "first":
            return [make(sizes)]
        _, memory = getattr(self.vae, f"{kind}_first")(make(sizes))
        return [make(sizes, 1 if kind == "decode" else 4), *memory]


@pytest.fixture(scope="module", params=CASES)
def case(request) -> Case:
    create, stride, opset, functions = CASES[request.param]
    torch.manual_seed(0)
    vae = create().eval().requires_grad_(False)
    case = Case(vae, copy.deepcopy(vae).double(), stride)
    made = {function: exported(case, function, opset) for function in functions}
    graphs = StreamedVAE(vae.config, *(made.get(name, getattr(vae, name)) for name in FUNCTIONS))
    return case._replace(graphs=graphs, exported=functions)


def exported(case: Case, function: str, opset: int) -> Callable[..., tuple[Tensor, list[Tensor]]]:
    """One of the functions, run by onnxruntime; batch and sides are free."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    inputs = case.inputs(function, SEEN)
    batch, height, width = (Dim(name, min=1) for name in ("batch", "height", "width"))
    free = [
        {
            0: batch,
            3: scaled(height, x.shape[3] // SEEN[1]),
            4: scaled(width, x.shape[4] // SEEN[2]),
        }
        for x in inputs
    ]
    shapes = (free[0], tuple(free[1:])) if len(inputs) > 1 else (free[0],)
    with torch.no_grad():
        graph = CodeGraph(case.vae, function).eval()
        traced = torch.export.export(graph, tuple(inputs), dynamic_shapes=shapes)
        program = torch.onnx.export(
            traced, (), dynamo=True, opset_version=opset, verbose=False,
            custom_translation_table=translations(opset),
        )  # fmt: skip
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), options)
    names = [port.name for port in session.get_inputs()]

    def run(x: Tensor, memory: Iterable[Tensor] = ()) -> tuple[Tensor, list[Tensor]]:
        given = (x, *memory)
        feed = {name: x.numpy() for name, x in zip(names, given, strict=True)}
        made, *kept = (torch.from_numpy(x) for x in session.run(None, feed))
        return made, kept

    return run


def scaled(dim: Any, factor: int) -> Any:
    return dim if factor == 1 else factor * dim


@pytest.fixture
def float64(monkeypatch):
    """Wan's modules compute in float64 if asked to: without their detours by float32."""
    upsample = autoencoder_kl_wan.WanUpsample
    monkeypatch.setattr(upsample, "forward", torch.nn.Upsample.forward)


def assert_as_good(found: Tensor, wanted: Tensor, exact: Tensor, what: str = "") -> None:
    """Both round differently and as often: one is as near to float64 as the other."""
    assert found.shape == wanted.shape, what
    found, wanted = (found.double() - exact).abs(), (wanted.double() - exact).abs()
    assert found.max() <= 4 * wanted.max() + 1e-6, what
    assert found.square().mean().sqrt() <= 2 * wanted.square().mean().sqrt() + 1e-7, what


@pytest.mark.parametrize("sizes", [SEEN, (3, 5, 2), (1, 7, 9)])
@torch.no_grad()
def test_each_function_is_the_modules(case, float64, sizes):
    for function in case.exported:
        inputs = case.inputs(function, sizes)
        x, *memory = inputs
        given = (x, memory) if memory else (x,)
        doubled = (x.double(), [x.double() for x in memory])[: len(given)]
        wanted, found, exact = (
            [made, *kept]
            for made, kept in (
                getattr(case.vae, function)(*given),
                getattr(case.graphs, function)(*given),
                getattr(case.exact, function)(*doubled),
            )
        )
        for number, parts in enumerate(zip(found, wanted, exact, strict=True)):
            assert_as_good(*parts, f"{function}, output {number}")


@torch.no_grad()
def test_a_clip_streams_through_the_graphs(case, float64):
    """What came before flows from graph to graph: four latent frames there and back."""
    latents, pixels = case.latents((1, 4, 3), 4), case.pixels((1, 4, 3), 13)
    chunks = list(case.graphs.decode_chunks(latents))
    assert [chunk.shape[2] for chunk in chunks] == [1, 4, 4, 4]
    wanted, exact = (
        torch.cat(list(vae.decode_chunks(x)), 2)
        for vae, x in ((case.vae, latents), (case.exact, latents.double()))
    )
    assert_as_good(torch.cat(chunks, 2), wanted, exact)
    encoded = case.graphs.encode(pixels)
    assert_as_good(encoded, case.vae.encode(pixels), case.exact.encode(pixels.double()))
