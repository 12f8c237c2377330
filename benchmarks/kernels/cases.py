"""Every operation at a model's shapes: its arguments, and its work.

Bytes count each input read once and each output written once; FLOPs those of the products.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from ...kernels import dispatch
from ...kernels.formats import quantize_tokens
from ...kernels.rope import rope_tables
from ...kernels.tiles import best_tile, sliding_tiles
from .case import Case
from .models import Model

QUERIES, HEADS = 256, 2  # of attention that are compared with the definition
ROWS = 4096  # of a product, spread over all


class Make:
    """Random arguments of a model on a device, in a dtype."""

    def __init__(self, model: Model, device: str, dtype: torch.dtype) -> None:
        self.model, self.dtype = model, dtype
        self.draw = partial(torch.randn, device=device)
        self.device = device

    def __call__(self, *shape: int) -> Tensor:
        return self.draw(*shape, dtype=self.dtype)

    def tokens(self, channels: int | None = None) -> Tensor:
        return self(1, self.model.tokens, channels or self.model.dim)

    def vector(self) -> Tensor:
        """One of the modulation's, fp32."""
        return self.draw(1, 1, self.model.dim)

    def heads(self) -> Sequence[Tensor]:
        """Query, key and value (1, L, N, D) as a packed projection leaves them."""
        packed = self(1, self.model.tokens, 3, self.model.heads, self.model.head_dim)
        return packed.unbind(2)

    def case(self, op: str, variant: str, args: tuple[Any, ...], **given: Any) -> Case:
        needs = {"dtype": self.dtype, **given.pop("needs", {})}
        return Case(op, self.model.name, variant, args, needs=needs, **given)


def norm_modulate(make: Make) -> Iterator[Case]:
    x, scale, shift = make.tokens(), make.vector(), make.vector()
    bytes_ = x.nbytes
    yield make.case("norm_modulate", "modulate", (x, scale, shift), bytes=2 * bytes_)
    options = {"residual": make.tokens(), "gate": make.vector()}
    yield make.case(
        "norm_modulate", "residual", (x, scale, shift), options=options, bytes=4 * bytes_
    )
    yield make.case(
        "norm_modulate",
        "quantize",
        (x, scale, shift),
        options={"quantize": "fp8"},
        exact={"quantize": None},
        bytes=bytes_ + x.numel(),
        lossy=True,
    )


def qk_norm_rope(make: Make) -> Iterator[Case]:
    model = make.model
    query, key, _ = make.heads()
    rope = rope_tables(model.grid, model.pairs, model.theta, make.device)
    width = model.dim if model.norm.endswith("across_heads") else model.head_dim
    options = {"norm": model.norm, "interleaved": model.interleaved, "start": model.before}
    names = ["q_weight", "k_weight", *(["q_bias", "k_bias"] * model.norm.startswith("layer"))]
    options |= {name: make.draw(width) for name in names}
    bytes_ = 2 * (query.nbytes + key.nbytes)
    yield make.case("qk_norm_rope", "", (query, key, rope), options=options, bytes=bytes_)


def gate_residual(make: Make) -> Iterator[Case]:
    x, y = make.tokens(), make.tokens()
    yield make.case("gate_residual", "", (x, y, make.vector()), bytes=3 * x.nbytes)


def linear_gelu(make: Make) -> Iterator[Case]:
    model, x = make.model, make.tokens()
    weight, bias = make(model.ffn, model.dim) * model.dim**-0.5, make(model.ffn)
    yield make.case("linear_gelu", "", (x, weight, bias), **_of_product(x, weight))


def quantized_linear(make: Make) -> Iterator[Case]:
    model, x = make.model, make.tokens()
    weight, bias = make(model.ffn, model.dim) * model.dim**-0.5, make(model.ffn)
    for to in ("fp8", "int8"):
        factors = (quantize_tokens(x, to), quantize_tokens(weight, to))
        read = sum(factor.values.nbytes + factor.scale.nbytes for factor in factors)
        written = x.numel() // model.dim * model.ffn * x.itemsize
        yield make.case(
            "quantized_linear",
            to,
            (*factors, bias),
            options={"dtype": make.dtype},
            exact={"dtype": torch.float32},
            needs={"to": to},
            lossy=True,
            peers={"bf16": partial(torch.nn.functional.linear, x, weight, bias)},
            **{**_of_product(x, weight), "bytes": read + written},
        )


def _of_product(x: Tensor, weight: Tensor) -> dict[str, Any]:
    rows, (outputs, inputs) = x.numel() // x.shape[-1], weight.shape
    written = rows * outputs * x.itemsize
    spread = _spread(max(rows // ROWS, 1))
    return {
        "flops": 2 * rows * outputs * inputs,
        "bytes": x.nbytes + weight.nbytes + written,
        "part_of_args": lambda args: (tree_map(spread, args[0]), *args[1:]),
        "part_of_output": spread,
    }


def _spread(step: int) -> Callable[[Tensor], Tensor]:
    return lambda tokens: tokens[:, ::step]


def attention(make: Make) -> Iterator[Case]:
    model = make.model
    query, key, value = (tensor.transpose(1, 2) for tensor in make.heads())
    yield _attention(make, "attention", "joint" if model.joint else "self", query, key, value)
    if model.joint is None:
        keys, values = (make(1, model.heads, model.text, model.head_dim) for _ in range(2))
        bias = make.draw(1, 1, 1, model.text)
        bias[..., model.text // 2 :] = -torch.inf
        yield _attention(make, "attention", "cross", query, keys, values, bias)


def quantized_attention(make: Make) -> Iterator[Case]:
    if make.dtype == torch.float32:
        return
    query, key, value = (tensor.transpose(1, 2) for tensor in make.heads())
    for to in ("fp8", "int8"):
        case = _attention(make, "quantized_attention", to, query, key, value)
        needs = {**case.needs, "to": to}
        options = {"to": to}
        dense = dispatch.choose("attention", make.device, **case.needs).function
        yield Case(
            **{
                **vars(case),
                "needs": needs,
                "options": options,
                "lossy": True,
                "definition": "attention",
                "peers": {"bf16": partial(dense, query, key, value)},
            }
        )


def _attention(
    make: Make, op: str, variant: str, query: Tensor, key: Tensor, value: Tensor, bias=None
) -> Case:
    def part(args: tuple[Any, ...]) -> tuple[Any, ...]:
        query, *rest = args
        some = tuple(tensor[:, :HEADS] for tensor in rest[:2])
        return (query[:, :HEADS, :QUERIES], *some, *rest[2:])

    args = (query, key, value) if bias is None else (query, key, value, bias)
    needs = {"head_dim": make.model.head_dim, "bias": bias is not None}
    return make.case(
        op,
        variant,
        args,
        needs=needs,
        flops=4 * query.numel() * key.shape[2],
        bytes=2 * query.nbytes + key.nbytes + value.nbytes,
        part_of_args=part,
        part_of_output=lambda out: out[:, :HEADS, :QUERIES],
        peers=None if op == "attention" else {},
    )


def block_sparse_attention(make: Make) -> Iterator[Case]:
    model = make.model
    query, key, value = (tensor.transpose(1, 2) for tensor in make.heads())
    tile = best_tile(model.grid)
    tiles = sliding_tiles(model.grid, tile, (3, 3, 3), model.before, model.after).to(make.device)
    held = (tiles.rows >= 0).sum(1).double()
    pairs = (held[:, None] * held * tiles.allowed()[0, 0]).sum().item()
    dense = dispatch.choose("attention", make.device, dtype=make.dtype, head_dim=model.head_dim)
    one_head = tuple(tensor[:, :1] for tensor in (query, key, value))
    fits = model.tokens <= 2**15  # the definition holds every score of a head
    yield make.case(
        "block_sparse_attention",
        f"window 3x3x3 of {tile}, density {pairs / model.tokens**2:.3f}",
        (query, key, value, tiles),
        needs={"head_dim": model.head_dim},
        flops=4 * model.dim * pairs,
        bytes=2 * query.nbytes + key.nbytes + value.nbytes,
        part_of_args=(lambda args: (*one_head, args[3])) if fits else None,
        part_of_output=lambda out: out[:, :1],
        peers={"dense": partial(dense.function, query, key, value)},
    )


def patchify(make: Make) -> Iterator[Case]:
    model = make.model
    latents = make.draw(1, model.channels, *_size(model))
    values = model.channels * _patch(model)
    args = (latents, model.patch, make(model.dim, values), make(model.dim))
    out = latents.numel() // values * model.dim * args[2].itemsize
    flops = 2 * latents.numel() * model.dim
    bytes_ = latents.nbytes + args[2].nbytes + out
    yield make.case("patchify", "embedding", args, flops=flops, bytes=bytes_)


def unpatchify(make: Make) -> Iterator[Case]:
    model = make.model
    tokens, values = make(1, *model.grid, model.dim), model.channels * _patch(model)
    args = (tokens, model.patch, make(values, model.dim) * model.dim**-0.5, make(values))
    modulation = make.vector()[:, None, None]
    options = {"norm": "layer", "scale": modulation, "shift": modulation}
    out = tokens.numel() // model.dim * values * tokens.itemsize
    flops = 2 * tokens.numel() * values
    bytes_ = tokens.nbytes + args[2].nbytes + out
    yield make.case("unpatchify", "head", args, options=options, flops=flops, bytes=bytes_)


def guided_step(make: Make) -> Iterator[Case]:
    shape = (1, make.model.channels, *_size(make.model))
    latents = make.draw(*shape)
    positive, negative = make(*shape), make(*shape)
    euler = torch.tensor([[1.0, -0.1]], device=make.device)
    bytes_ = 2 * latents.nbytes + positive.nbytes + negative.nbytes
    args = (latents, positive, negative, euler)
    options = {"guidance_scale": 5.0}
    yield make.case("guided_step", "euler", args, options=options, bytes=bytes_)


def norm_silu(make: Make) -> Iterator[Case]:
    height, width = make.model.frame
    x = make(1, 96, 4, height, width).contiguous(memory_format=torch.channels_last_3d)
    out = 96 * 6 * (height + 2) * (width + 2) * x.itemsize
    options = {"padding": (2, 1, 1)}
    weight = make.draw(96)
    yield make.case("norm_silu", "rms, causal", (x, weight), options=options, bytes=x.nbytes + out)


def _patch(model: Model) -> int:
    p, q, r = model.patch
    return p * q * r


def _size(model: Model) -> tuple[int, ...]:
    """Frames, height and width of the latents."""
    return tuple(n * p for n, p in zip(model.grid, model.patch, strict=True))


OPS: dict[str, Callable[[Make], Iterator[Case]]] = {
    make.__name__: make
    for make in (
        norm_modulate,
        qk_norm_rope,
        gate_residual,
        linear_gelu,
        attention,
        block_sparse_attention,
        quantized_attention,
        patchify,
        unpatchify,
        quantized_linear,
        guided_step,
        norm_silu,
    )
}
# How many cases each has at most.
VARIANTS = dict.fromkeys(OPS, 1) | {
    "norm_modulate": 3,
    "attention": 2,
    "quantized_attention": 2,
    "quantized_linear": 2,
}


def cases(op: str, model: Model, device: str, dtype: torch.dtype) -> Iterator[Case]:
    """Those of an operation at a model's shapes; arguments live as long as a case does."""
    torch.manual_seed(0)
    yield from OPS[op](Make(model, device, dtype))
