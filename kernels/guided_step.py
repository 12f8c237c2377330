"""Classifier-free guidance and the solver's update in one pass over fp32 latents.

Every solver's step is linear in the latents, the guided prediction and what it remembers, so a step
is a small matrix, read from the device: one captured graph serves all steps. The rescale needs the
predictions' deviations first, which is a pass of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product
from math import inf, prod

import torch
from torch import Tensor

from . import torch_backend
from ._checks import DTYPES, check_shape, check_tensors
from ._compilations import ARCHES, Compilation, record
from ._layout import merge_axes, unravel
from ._moments import MAX_SPLITS, empty_parts, merge_moments
from ._operator import operator
from ._triton import ceil_div, launch, tl, triton
from .reference import LEAST_DEVIATION

MAX_HISTORY = 4
MAX_OUTPUTS = 3
BLOCKS = (1024, 2048, 512)  # values of a program, the default first; 8 a thread


@triton.jit
def _guide(positive, negative, at, mask, guidance_scale):
    wanted = tl.load(positive + at, mask, 0.0).to(tl.float32)
    guided = wanted
    if negative is not None:
        unwanted = tl.load(negative + at, mask, 0.0).to(tl.float32)
        guided = unwanted + guidance_scale * (wanted - unwanted)
    return wanted, guided


@triton.jit
def _moments(value, mask, count):
    mean = tl.sum(value, 0) / count
    centred = tl.where(mask, value - mean, 0.0)
    return mean, tl.sum(centred * centred, 0)


@triton.jit
def _merge(mean, squares, seen, own, own_squares, count):
    delta, total = own - mean, seen + count
    mean += delta * (count / total)
    return mean, squares + own_squares + delta * delta * (seen * (count / total))


@triton.jit(do_not_specialize=["n1", "n2", "inner", "groups", "size", "splits"])
def _deviations(
    positive, negative, parts, n1, n2, inner, groups, size, splits, guidance_scale, p0, p1, p2, p3,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Moments of both predictions in each of `splits` parts of a sample's `size` values."""
    sample, split = tl.program_id(0) // splits, tl.program_id(0) % splits
    seen, mean, squares, guided_mean, guided_squares = 0.0, 0.0, 0.0, 0.0, 0.0
    for first in range(split * BLOCK, size, splits * BLOCK):
        place = first + tl.arange(0, BLOCK)
        mask = place < size
        i0, i1, i2 = unravel(sample * groups + place // inner, n1, n2)
        at = i0 * p0 + i1 * p1 + i2 * p2 + (place % inner).to(tl.int64) * p3
        wanted, guided = _guide(positive, negative, at, mask, guidance_scale)
        count = tl.minimum(size - first, BLOCK).to(tl.float32)
        own, own_squares = _moments(wanted, mask, count)
        mean, squares = _merge(mean, squares, seen, own, own_squares, count)
        own, own_squares = _moments(guided, mask, count)
        guided_mean, guided_squares = _merge(
            guided_mean, guided_squares, seen, own, own_squares, count
        )
        seen += count
    at = parts + tl.program_id(0) * 6
    tl.store(at, seen)
    tl.store(at + 1, mean)
    tl.store(at + 2, squares)
    tl.store(at + 3, seen)
    tl.store(at + 4, guided_mean)
    tl.store(at + 5, guided_squares)


@triton.jit(do_not_specialize=["n1", "n2", "inner", "groups"])
def _guided_step(
    latents, positive, negative, weights, moments, past0, past1, past2, past3, out0, out1, out2,
    n1, n2, inner, groups, guidance_scale, rescale, least_deviation, l0, l1, l2, l3, p0, p1, p2, p3,
    HISTORY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(inner, BLOCK)
    group = tl.program_id(0) // blocks
    i0, i1, i2 = unravel(group, n1, n2)
    i3 = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    mask = i3 < inner
    here = i0 * p0 + i1 * p1 + i2 * p2 + i3.to(tl.int64) * p3
    _, guided = _guide(positive, negative, here, mask, guidance_scale)
    if moments is not None:
        of_sample = moments + group // groups * 4
        wanted, mean = tl.load(of_sample + 1), tl.load(of_sample + 2)
        found, least = tl.load(of_sample + 3), least_deviation * mean
        constant = found <= least * least
        ratio = tl.sqrt(wanted / tl.where(constant, 1.0, found))
        guided *= rescale * tl.where(constant, 1.0, ratio) + (1 - rescale)
    here = i0 * l0 + i1 * l1 + i2 * l2 + i3.to(tl.int64) * l3
    value = tl.load(latents + here, mask, 0.0)
    dense = group.to(tl.int64) * inner + i3
    h0 = tl.load(past0 + dense, mask, 0.0) if HISTORY > 0 else 0.0
    h1 = tl.load(past1 + dense, mask, 0.0) if HISTORY > 1 else 0.0
    h2 = tl.load(past2 + dense, mask, 0.0) if HISTORY > 2 else 0.0
    h3 = tl.load(past3 + dense, mask, 0.0) if HISTORY > 3 else 0.0
    tl.store(out0 + dense, _sum(weights, value, guided, h0, h1, h2, h3, HISTORY), mask)
    if out1 is not None:
        total = _sum(weights + (2 + HISTORY), value, guided, h0, h1, h2, h3, HISTORY)
        tl.store(out1 + dense, total, mask)
    if out2 is not None:
        total = _sum(weights + 2 * (2 + HISTORY), value, guided, h0, h1, h2, h3, HISTORY)
        tl.store(out2 + dense, total, mask)


@triton.jit
def _sum(weights, value, guided, h0, h1, h2, h3, HISTORY: tl.constexpr):
    """One output: the row of weights times latents, guided prediction and history."""
    total = tl.load(weights) * value + tl.load(weights + 1) * guided
    if HISTORY > 0:
        total += tl.load(weights + 2) * h0
    if HISTORY > 1:
        total += tl.load(weights + 3) * h1
    if HISTORY > 2:
        total += tl.load(weights + 4) * h2
    if HISTORY > 3:
        total += tl.load(weights + 5) * h3
    return total


def run(
    latents: Tensor,
    positive: Tensor,
    negative: Tensor | None,
    weights: Tensor,
    history: list[Tensor],
    guidance_scale: float,
    rescale: float,
    block: int = BLOCKS[0],
) -> list[Tensor]:
    """Launch. History is read as it was written, contiguous; other layouts are copied."""
    outputs = _fake(latents, positive, negative, weights, history, guidance_scale, rescale)
    if latents.numel() == 0:
        return outputs
    if negative is not None and negative.stride() != positive.stride():
        positive, negative = positive.contiguous(), negative.contiguous()
    strides = [latents.stride(), positive.stride()]
    sizes, (of_latents, of_prediction) = merge_axes(latents.shape, strides, keep_first=True)
    moments = None
    if rescale and negative is not None:
        moments = _predictions_moments(
            positive, negative, latents.shape[0], sizes, of_prediction, guidance_scale, block
        )
    past = [tensor.contiguous() for tensor in history]
    launch(
        _guided_step,
        (prod(sizes[:3]) * ceil_div(sizes[3], block),),
        *(latents, positive, negative, weights.contiguous(), moments),
        *(*past, *[None] * (MAX_HISTORY - len(past))),
        *(*outputs, *[None] * (MAX_OUTPUTS - len(outputs))),
        *(*sizes[1:], prod(sizes[:3]) // latents.shape[0]),
        *(float(guidance_scale), float(rescale), LEAST_DEVIATION),
        *(*of_latents, *of_prediction),
        HISTORY=len(history),
        BLOCK=block,
        num_warps=max(block // 256, 1),
    )
    return outputs


def _predictions_moments(
    positive: Tensor,
    negative: Tensor,
    samples: int,
    sizes: list[int],
    strides: list[int],
    guidance_scale: float,
    block: int,
) -> Tensor:
    """Mean and variance (B, 2, 2) of the positive and of the guided prediction."""
    size = prod(sizes) // samples
    splits = min(ceil_div(size, 4 * block), MAX_SPLITS)
    parts = empty_parts(positive, samples, splits, 2)
    launch(
        _deviations,
        (samples * splits,),
        *(
            positive,
            negative,
            parts,
            *sizes[1:],
            size // sizes[3],
            size,
            splits,
            float(guidance_scale),
            *strides,
        ),
        BLOCK=block,
        num_warps=max(block // 256, 1),
    )
    return merge_moments(parts)


def _plain(latents, positive, negative, weights, history, guidance_scale, rescale):
    outputs = torch_backend.guided_step(
        latents, positive, negative, weights, history,
        guidance_scale=guidance_scale, rescale=rescale,
    )  # fmt: skip
    return [output.clone(memory_format=torch.contiguous_format) for output in outputs]


def _fake(latents, positive, negative, weights, history, guidance_scale, rescale):
    return [latents.new_empty(latents.shape) for _ in range(weights.shape[0])]


_op = operator(
    "guided_step",
    "(Tensor latents, Tensor positive, Tensor? negative, Tensor weights, Tensor[] history,"
    " float guidance_scale, float rescale) -> Tensor[]",
    launch=run,
    plain=_plain,
    fake=_fake,
)


def guided_step(
    latents: Tensor,
    positive: Tensor,
    negative: Tensor | None,
    weights: Tensor,
    history: Sequence[Tensor] = (),
    *,
    guidance_scale: float = 1.0,
    rescale: float = 0.0,
) -> list[Tensor]:
    """As `reference.guided_step`; raises `ValueError` naming what does not fit."""
    past = {f"history[{index}]": tensor for index, tensor in enumerate(history)}
    check_tensors((torch.float32,), latents=latents, weights=weights, **past)
    check_tensors(positive=positive, negative=negative)
    if latents.dim() < 2 or positive.device != latents.device:
        raise ValueError(
            f"latents {tuple(latents.shape)} on {latents.device} and predictions on"
            f" {positive.device}; (B, ...) on one device works"
        )
    if latents.shape[0] and latents.numel() // latents.shape[0] >= 2**31:
        raise ValueError(f"latents {tuple(latents.shape)} have 2^31 values a sample or more")
    for name, tensor in {"positive": positive, "negative": negative, **past}.items():
        check_shape(name, tensor, latents.shape)
    if len(past) > MAX_HISTORY:
        raise ValueError(f"history has {len(past)} tensors; up to {MAX_HISTORY} work")
    if not 1 <= weights.shape[0] <= MAX_OUTPUTS if weights.dim() else True:
        raise ValueError(f"weights have shape {tuple(weights.shape)}; 1 to {MAX_OUTPUTS} rows work")
    check_shape("weights", weights, (weights.shape[0], 2 + len(past)))
    if not -inf < guidance_scale < inf:
        raise ValueError(f"guidance_scale={guidance_scale} is not finite")
    if not 0 <= rescale <= 1:
        raise ValueError(f"rescale={rescale} is not in 0..1")
    return _op(
        latents, positive, negative, weights, list(history), float(guidance_scale), float(rescale)
    )


def compilations() -> Iterator[Compilation]:
    """Euler, and UniPC of order 2 with the rescale; predictions of every dtype; every block."""
    latents = torch.empty(1, 16, 21, 60, 104, device="meta")
    solvers = {"euler": (1, 0, 0.0), "unipc": (3, 2, 0.7)}
    for dtype, (name, solver), block in product(DTYPES, solvers.items(), BLOCKS):
        rows, past, rescale = solver
        prediction = latents.to(dtype)
        weights = latents.new_empty(rows, 2 + past)
        yield from record(
            "guided_step",
            f"{str(dtype)[6:]} {name} block={block}",
            partial(
                run, latents, prediction, prediction, weights, [latents] * past, 5.0, rescale, block
            ),
            default=ARCHES if (dtype, block) == (torch.bfloat16, BLOCKS[0]) else (),
        )
