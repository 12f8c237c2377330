"""Every configuration of our kernels on a case's arguments, for a GPU to tell which is fastest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from typing import Any

from ...kernels._chip import capability
from ...kernels._product import configs as product_configs
from ...kernels._product import product
from ...kernels._triton import power_of_2
from .case import Case

Configurations = Iterator[tuple[str, Callable[[], Any]]]


def _kernel(op: str) -> Any:
    return import_module(f"kinema.kernels.{op}")


def _of_attention(case: Case) -> Configurations:
    module = _kernel("attention")
    query, key, value, *bias = case.args
    scale = query.shape[-1] ** -0.5
    for config in module.configs(capability(query.device), query.shape[-1], query.dtype):
        bias_of_keys = bias[0] if bias else None
        yield str(config), partial(module.run, query, key, value, bias_of_keys, scale, config)


def _of_block_sparse(case: Case) -> Configurations:
    module = _kernel("block_sparse_attention")
    query = case.args[0]
    scale = query.shape[-1] ** -0.5
    for config in module.configs(capability(query.device), query.shape[-1], query.dtype):
        yield str(config), partial(module.run, *case.args, scale, config)


def _of_quantized_attention(case: Case) -> Configurations:
    module = _kernel("quantized_attention")
    query, to = case.args[0], case.options["to"]
    scale = query.shape[-1] ** -0.5
    for config in module.configs(capability(query.device), query.shape[-1], to):
        yield str(config), partial(module.run, *case.args, None, scale, to, config)


def _of_linear_gelu(case: Case) -> Configurations:
    x = case.args[0]
    for config in product_configs(capability(x.device), x.dtype):
        yield str(config), partial(product, *case.args, x.dtype, gelu=True, config=config)


def _of_quantized_linear(case: Case) -> Configurations:
    x, weight, bias = case.args
    scales, dtype = (x.scale, weight.scale), case.options["dtype"]
    for config in product_configs(capability(x.values.device), x.values.dtype):
        factors = (x.values, weight.values, bias, dtype)
        yield str(config), partial(product, *factors, gelu=False, config=config, scales=scales)


def _of_norm_modulate(case: Case) -> Configurations:
    module = _kernel("norm_modulate")
    x, scale, shift = case.args
    options = {"residual": None, "gate": None, "quantize": None, **case.options}
    for tile in module.tiles(power_of_2(x.shape[-1])):
        arguments = (x, scale, shift, "layer", None, None, 1e-6, *options.values())
        yield str(tuple(tile)), partial(module.run, *arguments, tile=tile)


def _of_qk_norm_rope(case: Case) -> Configurations:
    module = _kernel("qk_norm_rope")
    query, key, rope = case.args
    heads, head_dim = query.shape[2:]
    given = {"q_bias": None, "k_bias": None, **case.options}
    vectors = (given[name] for name in ("q_weight", "k_weight", "q_bias", "k_bias"))
    arguments = (
        query, key, rope.cos, rope.sin, list(rope.grid), list(rope.pairs), given["norm"], *vectors,
        1e-6, given["interleaved"], given["start"], "blnd",
    )  # fmt: skip
    for tile in module.tiles(heads, head_dim, given["norm"].endswith("across_heads")):
        yield str(tuple(tile)), partial(module.run, *arguments, tile)


def _of_gate_residual(case: Case) -> Configurations:
    module = _kernel("gate_residual")
    for tile in module.tiles(case.args[0].shape[-1]):
        yield str(tuple(tile)), partial(module.run, *case.args, tile)


def _of_norm_silu(case: Case) -> Configurations:
    module = _kernel("norm_silu")
    x, weight = case.args
    arguments = (x, weight, None, "rms", 32, 1e-6, list(case.options["padding"]), None, False)
    for tile in module.tiles(power_of_2(x.shape[1])):
        yield str(tuple(tile)), partial(module.run, *arguments, tile)


def _of_patchify(case: Case) -> Configurations:
    module = _kernel("patchify")
    latents, patch, *given = case.args
    for tile in module.tiles(given[0].dtype):
        yield str(tile), partial(module.run, latents, list(patch), *given, True, tile)


def _of_unpatchify(case: Case) -> Configurations:
    module = _kernel("unpatchify")
    tokens, patch, *given = case.args
    options = case.options
    given += [options["scale"], options["shift"], options["norm"], None, None, 1e-6, True]
    for tile in module.tiles(tokens.dtype):
        yield str(tile), partial(module.run, tokens, list(patch), *given, tile)


def _of_guided_step(case: Case) -> Configurations:
    module = _kernel("guided_step")
    arguments = (*case.args, [], case.options["guidance_scale"], 0.0)
    for block in module.BLOCKS:
        yield str(block), partial(module.run, *arguments, block)


CONFIGURATIONS: dict[str, Callable[[Case], Configurations]] = {
    "attention": _of_attention,
    "quantized_attention": _of_quantized_attention,
    "quantized_linear": _of_quantized_linear,
    "linear_gelu": _of_linear_gelu,
    "norm_modulate": _of_norm_modulate,
    "qk_norm_rope": _of_qk_norm_rope,
    "gate_residual": _of_gate_residual,
    "block_sparse_attention": _of_block_sparse,
    "norm_silu": _of_norm_silu,
    "patchify": _of_patchify,
    "unpatchify": _of_unpatchify,
    "guided_step": _of_guided_step,
}
