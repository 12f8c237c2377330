"""The registered operators as ONNX: the same values in onnxruntime, in the nodes meant for them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.utils._pytree import tree_leaves, tree_map

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from kinema import kernels  # noqa: E402
from kinema.export.translations import TRANSLATED, translations  # noqa: E402
from kinema.kernels import Rope, operations, quantize_tokens, reference, rope_tables  # noqa: E402
from kinema.runtime.errors import UsageError  # noqa: E402

HEADS, HEAD_DIM, PAIRS, LIMIT = 2, 16, (4, 2, 2), 16
WIDTH = HEADS * HEAD_DIM
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class Sizes(NamedTuple):
    batch: int
    frames: int
    rows: int
    columns: int
    text: int


SEEN, UNSEEN = Sizes(2, 3, 4, 5, 7), Sizes(1, 2, 6, 3, 9)


class Case(NamedTuple):
    """`function(ops, *tensors)` of tensors of any size; `fp32` are those never rounded to less.

    `nodes`: how many of each the graph of opset 23 has, and `taken_apart` that of opset 18.
    """

    function: Callable[..., Any]
    tensors: Callable[[Sizes], Sequence[Tensor]]
    fp32: tuple[int, ...] = ()
    nodes: dict[str, int] | None = None
    taken_apart: dict[str, int] | None = None


def call(name: str, **options: Any) -> Callable[..., Any]:
    return lambda ops, *tensors: getattr(ops, name)(*tensors, **options)


def modulated(ops, x, scale, shift, residual, gate, weight, bias):
    return ops.norm_modulate(
        x, scale, shift, weight=weight, bias=bias, residual=residual, gate=gate, eps=1e-5
    )


def rotated(text: bool = False, pairs: Sequence[int] = PAIRS, **options: Any) -> Callable[..., Any]:
    """q and k (B, F, H, W, N, D), after tokens of a text where there are any."""

    def function(ops, q, k, q_weight, k_weight, *more):
        grid, start, names = tuple(q.shape[1:4]), 0, ("q_bias", "k_bias")
        q, k = q.flatten(1, 3), k.flatten(1, 3)
        if text:
            start, names = more[0].shape[1], ()
            q, k = torch.cat([more[0], q], dim=1), torch.cat([more[0], k], dim=1)
        weights = {"q_weight": q_weight, "k_weight": k_weight, **dict(zip(names, more))}  # noqa: B905
        return ops.qk_norm_rope(q, k, cut_rope(grid, pairs), start=start, **weights, **options)

    return function


def cut_rope(grid: tuple[int, int, int], pairs: Sequence[int]) -> Rope:
    """Tables of `LIMIT` positions, cut to the grid as a graph of any size must."""
    cos, sin, *_ = rope_tables((LIMIT,) * 3, pairs)
    counts = [LIMIT * count for count in pairs]
    cut = (
        torch.cat([t[: n * p] for t, n, p in zip(table.split(counts), grid, pairs, strict=True)])
        for table in (cos, sin)
    )
    return Rope(*cut, grid, pairs)


def heads(weight: int, text: bool = False, biases: int = 0) -> Callable[[Sizes], list[Tensor]]:
    def tensors(s: Sizes) -> list[Tensor]:
        drawn = [*torch.randn(2, *s[:4], HEADS, HEAD_DIM), *torch.randn(2, weight)]
        if text:
            drawn.append(torch.randn(s.batch, s.text, HEADS, HEAD_DIM))
        return [*drawn, *torch.randn(biases, weight)]

    return tensors


def attended(biased: bool) -> Callable[[Sizes], list[Tensor]]:
    def tensors(s: Sizes) -> list[Tensor]:
        drawn = [torch.randn(s.batch, HEADS, s.rows, HEAD_DIM)]
        drawn += torch.randn(2, s.batch, HEADS, s.text, HEAD_DIM)
        if biased:
            drawn.append(torch.randn(s.batch, 1, 1, s.text))
            drawn[-1][..., -2:] = -torch.inf
        return drawn

    return tensors


def guided(rescale: float) -> Callable[..., Any]:
    def function(ops, latents, positive, negative, weights, past):
        return ops.guided_step(
            latents, positive, negative, weights, [past], guidance_scale=3.0, rescale=rescale
        )

    return function


def quantized(to: str) -> Callable[..., Any]:
    """A norm that quantizes and the product that reads it; for the truth, what they stand for."""

    def function(ops, x, weight, bias):
        if ops is reference:
            return ops.linear_gelu(ops.norm_modulate(x), weight, bias)
        eight_bit, weight = ops.norm_modulate(x, quantize=to), quantize_tokens(weight, to)
        return ops.quantized_linear(eight_bit, weight, bias, gelu=True, dtype=x.dtype)

    return function


def tokens(s: Sizes, count: int = 1, width: int = WIDTH) -> list[Tensor]:
    return list(torch.randn(count, *s[:4], width))


def latents(s: Sizes, count: int = 1) -> list[Tensor]:
    return list(torch.randn(count, s.batch, 3, s.frames, 2 * s.rows, 2 * s.columns))


def pixels(s: Sizes, frames: int) -> Tensor:
    return torch.randn(s.batch, 8, frames, s.rows, s.columns)


PATCH = (1, 2, 2)
CASES = {
    "norm_modulate": Case(
        call("norm_modulate"),
        lambda s: [*tokens(s), *torch.randn(2, s.batch, 1, 1, 1, WIDTH)],
        fp32=(1, 2),
        nodes={"LayerNormalization": 1},
        taken_apart={"LayerNormalization": 1},
    ),
    "norm_modulate after a residual": Case(
        modulated,
        lambda s: [
            *tokens(s),
            *torch.randn(2, s.batch, s.frames, 1, 1, WIDTH),
            *tokens(s),
            torch.randn(s.batch, s.frames, 1, 1, WIDTH),
            *torch.randn(2, WIDTH),
        ],
        fp32=(1, 2, 4, 5, 6),
        nodes={"LayerNormalization": 1},
    ),
    "norm_modulate by rms": Case(
        lambda ops, x, weight: ops.norm_modulate(x, norm="rms", weight=weight),
        lambda s: [torch.randn(s.batch, s.text, WIDTH), torch.randn(WIDTH)],
        nodes={"RMSNormalization": 1},
        taken_apart={"RMSNormalization": 0, "ReduceMean": 1},
    ),
    "qk_norm_rope": Case(
        rotated(interleaved=True),
        heads(WIDTH),
        nodes={"RMSNormalization": 2, "RotaryEmbedding": 2, "Pad": 0},
        taken_apart={"ReduceMean": 2, "RotaryEmbedding": 0},
    ),
    "qk_norm_rope after text": Case(
        rotated(text=True, norm="rms_per_head", layout="bnld"),
        heads(HEAD_DIM, text=True),
        nodes={"RMSNormalization": 2, "RotaryEmbedding": 2, "Pad": 2},
    ),
    "qk_norm_rope by layer": Case(
        rotated(norm="layer_per_head", pairs=(8, 0, 0), eps=1e-5),
        heads(HEAD_DIM, biases=2),
        nodes={"LayerNormalization": 2, "RotaryEmbedding": 2},
        taken_apart={"LayerNormalization": 2},
    ),
    "qk_norm_rope of heads that differ": Case(
        rotated(pairs=(8, 4, 4), interleaved=True), heads(WIDTH), nodes={"RMSNormalization": 2}
    ),
    "gate_residual": Case(
        call("gate_residual"),
        lambda s: [*tokens(s, 2), torch.randn(s.batch, 1, s.rows, 1, WIDTH)],
        fp32=(2,),
        nodes={"Mul": 1, "Add": 1},
    ),
    "gate_residual without a gate": Case(
        call("gate_residual"), lambda s: tokens(s, 2), nodes={"Add": 1}
    ),
    "linear_gelu": Case(
        call("linear_gelu"),
        lambda s: [*tokens(s), torch.randn(24, WIDTH) / WIDTH**0.5, torch.randn(24)],
        nodes={"MatMul": 1, "Gelu": 1},
        taken_apart={"MatMul": 1, "Tanh": 1},
    ),
    "attention": Case(
        call("attention", scale=0.3),
        attended(biased=False),
        nodes={"Attention": 1},
        taken_apart={"MatMul": 2, "Softmax": 1},
    ),
    "attention with a bias": Case(
        call("attention"), attended(biased=True), fp32=(3,), nodes={"Attention": 1}
    ),
    "patchify": Case(
        call("patchify", patch_size=PATCH, channels_first=False), latents, nodes={"MatMul": 0}
    ),
    "patchify and embed": Case(
        lambda ops, x, *weights: ops.patchify(x, PATCH, *weights),
        lambda s: [*latents(s), torch.randn(WIDTH, 12) / 12**0.5, torch.randn(WIDTH)],
        fp32=(0,),
        nodes={"MatMul": 1},
    ),
    "unpatchify": Case(call("unpatchify", patch_size=PATCH), lambda s: tokens(s, width=12)),
    "unpatchify after the head": Case(
        lambda ops, x, weight, bias, scale, shift: ops.unpatchify(
            x, PATCH, weight, bias, scale=scale, shift=shift, norm="layer", channels_first=False
        ),
        lambda s: [
            *tokens(s),
            torch.randn(12, WIDTH) / WIDTH**0.5,
            torch.randn(12),
            *torch.randn(2, s.batch, 1, 1, 1, WIDTH),
        ],
        fp32=(3, 4),
        nodes={"LayerNormalization": 1, "MatMul": 1},
    ),
    "guided_step": Case(
        guided(0.0), lambda s: [*latents(s, 3), torch.randn(2, 3), *latents(s)], fp32=(0, 3, 4)
    ),
    "guided_step rescaled": Case(
        guided(0.7), lambda s: [*latents(s, 3), torch.randn(2, 3), *latents(s)], fp32=(0, 3, 4)
    ),
    "norm_silu": Case(
        lambda ops, x, weight, before: ops.norm_silu(
            x, weight, padding=(2, 1, 1), before=before, eps=1e-24
        ),
        lambda s: [pixels(s, s.frames), torch.randn(8), pixels(s, 2)],
        nodes={"Pad": 1},
    ),
    "norm_silu by group": Case(
        lambda ops, x, *affine: ops.norm_silu(
            x, *affine, norm="group", groups=2, padding=(2, 0, 0), repeat_first=True
        ),
        lambda s: [pixels(s, s.frames), *torch.randn(2, 8)],
        nodes={"InstanceNormalization": 1, "Pad": 0},
    ),
    "quantized_linear of int8": Case(
        quantized("int8"),
        lambda s: [*tokens(s), torch.randn(24, WIDTH) / WIDTH**0.5, torch.randn(24)],
    ),
    "quantized_linear of fp8": Case(
        quantized("fp8"),
        lambda s: [*tokens(s), torch.randn(24, WIDTH) / WIDTH**0.5, torch.randn(24)],
    ),
}


class Calls(nn.Module):
    """All cases in one graph, each a module whose name its nodes bear."""

    def __init__(self, cases: dict[str, Case]) -> None:
        super().__init__()
        for name, case in cases.items():
            self.add_module(name.replace(" ", "_"), Call(case))

    def forward(self, *inputs: Sequence[Tensor]) -> list[list[Tensor]]:
        return [module(*tensors) for module, tensors in zip(self.children(), inputs, strict=True)]


class Call(nn.Module):
    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case

    def forward(self, *tensors: Tensor) -> list[Tensor]:
        return tree_leaves(self.case.function(kernels, *tensors))


class Exported(NamedTuple):
    """A graph of all cases, and the nodes of each."""

    opset: int
    dtype: torch.dtype
    cases: dict[str, Case]
    proto: Any
    nodes: dict[str, Counter]


def draw(cases: dict[str, Case], sizes: Sizes, dtype: torch.dtype) -> list[list[Tensor]]:
    torch.manual_seed(0)
    return [
        [x if i in case.fp32 else x.to(dtype) for i, x in enumerate(case.tensors(sizes))]
        for case in cases.values()
    ]


def to_onnx(module: nn.Module, seen: Any, unseen: Any, opset: int) -> Any:
    """An exported program whose axes vary where those of two examples differ."""
    varying = tree_map(
        lambda x, y: {i: Dim.DYNAMIC for i in range(x.dim()) if x.shape[i] != y.shape[i]},
        *(seen, unseen),
    )
    return torch.onnx.export(
        module.eval(),
        tuple(seen),
        dynamo=True,
        opset_version=opset,
        dynamic_shapes=(tuple(varying),),
        custom_translation_table=translations(opset),
        verbose=False,
    )


def export(opset: int, dtype: torch.dtype) -> Exported:
    cases = {name: case for name, case in CASES.items() if opset >= 19 or "fp8" not in name}
    program = to_onnx(Calls(cases), draw(cases, SEEN, dtype), draw(cases, UNSEEN, dtype), opset)
    nodes = {name: Counter() for name in cases}
    for node in program.model.graph:
        scopes = node.metadata_props.get("pkg.torch.onnx.name_scopes", "")
        for name in cases:
            if f"'{name.replace(' ', '_')}'" in scopes:
                nodes[name][node.op_type] += 1
    return Exported(opset, dtype, cases, program.model_proto, nodes)


@pytest.fixture(scope="module", params=[23, 18], ids="opset{}".format)
def exported(request) -> dict[str, Exported]:
    return {name: export(request.param, DTYPES[name]) for name in ("fp32", "fp16")}


def run(graph: Exported, inputs: list[list[Tensor]]) -> dict[str, list[Tensor]]:
    """What onnxruntime makes of it, by case."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        graph.proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    flat = (x.numpy() for x in tree_leaves(inputs))
    given = {x.name: array for x, array in zip(session.get_inputs(), flat, strict=True)}
    found = [torch.from_numpy(x) for x in session.run(None, given)]
    outputs = {}
    for (name, case), tensors in zip(graph.cases.items(), inputs, strict=True):
        count = len(Call(case)(*tensors))
        outputs[name], found = found[:count], found[count:]
    return outputs


def assert_as_accurate(found: Tensor, plain: Tensor, truth: Tensor) -> None:
    """As near the truth as PyTorch is in the same dtype, twice over; half a unit of the largest
    value besides, as PyTorch may be lucky."""
    assert found.dtype == plain.dtype
    assert found.shape == truth.shape
    largest = truth.abs().max().item() * torch.finfo(found.dtype).eps / 2
    error, allowed = (found.double() - truth).abs(), (plain.double() - truth).abs()
    assert error.max() <= 2 * allowed.max() + largest
    assert error.square().mean().sqrt() <= 2 * allowed.square().mean().sqrt() + largest


@pytest.mark.parametrize("sizes", [SEEN, UNSEEN], ids=["seen", "unseen"])
@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_values(exported, dtype, sizes) -> None:
    graph = exported[dtype]
    inputs = draw(graph.cases, sizes, graph.dtype)
    for (name, found), tensors in zip(run(graph, inputs).items(), inputs, strict=True):
        case = graph.cases[name]
        truth = tree_leaves(case.function(reference, *(x.double() for x in tensors)))
        for ours, plain, true in zip(found, Call(case)(*tensors), truth, strict=True):
            assert_as_accurate(ours, plain, true)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.nodes])
def test_nodes(exported, name) -> None:
    for graph in exported.values():
        wanted = CASES[name].nodes if graph.opset >= 23 else CASES[name].taken_apart or {}
        found = graph.nodes[name]
        assert {op_type: found[op_type] for op_type in wanted} == wanted
        if graph.opset < 20:
            assert not found.keys() & {"Attention", "Gelu", "RMSNormalization", "RotaryEmbedding"}


def test_bf16_builds() -> None:
    """onnxruntime has no bf16 on a CPU; the checker infers every type."""
    onnx.checker.check_model(export(23, torch.bfloat16).proto, full_check=True)


class Layers(nn.Module):
    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, *inputs: Tensor) -> Tensor:
        x, bias, rope = *inputs, cut_rope(tuple(inputs[0].shape[1:4]), PAIRS)
        heads = x.flatten(1, 3)
        for _ in range(self.count):
            query, key = kernels.qk_norm_rope(heads, heads + 1, rope)
            out = kernels.attention(query, key, heads.transpose(1, 2), bias)
            heads = out.transpose(1, 2).contiguous()
        return heads


def test_layers_share_angles_and_mask() -> None:
    def inputs(s: Sizes) -> list[Tensor]:
        x = torch.randn(*s[:4], HEADS, HEAD_DIM)
        return [x, torch.randn(s.batch, 1, 1, x[0, ..., 0, 0].numel())]

    one, three = (
        Counter(n.op_type for n in to_onnx(Layers(n), inputs(SEEN), inputs(UNSEEN), 23).model.graph)
        for n in (1, 3)
    )
    for op_type in ("Expand", "Slice", "Shape"):
        assert one[op_type] == three[op_type]
    assert (three["Attention"], three["RotaryEmbedding"]) == (3, 6)


def test_every_operator_of_a_transformer_is_translated() -> None:
    bound = {name.removeprefix("biased_") for name in operations.BOUND}
    assert bound <= TRANSLATED.keys()


def test_an_unknown_opset_is_refused() -> None:
    with pytest.raises(UsageError, match="opset 17 is not known; 18, 23, 24 work"):
        translations(17)
