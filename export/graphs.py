"""The graphs of a checkpoint: pure functions of named tensors, each with examples of any size.

Nothing here knows a family. A transformer is asked for `grid`, `grid_rope`, `modulation`,
`text_context`, `forward` and an `example` of what its text context takes; it has `patch_embedding`,
and in its `config` are `patch` and `in_channels`. Where it pads keys, to `key_multiple`, it is told
not to. An autoencoder is asked for `decode_first`, `decode_next`, `encode_first` and `encode_next`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..kernels import Operations
from ..kernels.operations import registered
from ..runtime.checkpoints.checkpoint import TRANSFORMERS
from ..runtime.graphs.names import flatten, rebuild
from ..runtime.models.layers import Sizes
from .axes import Axes, find_axes
from .encoders import ImageEncoderGraph, TextEncoderGraph

if TYPE_CHECKING:
    from ..runtime.engine import Engine


BASE = Sizes()


@dataclass(frozen=True)
class Graph:
    """`module(*tensors)` gives tensors; `examples(sizes)` are its inputs by name, in order.

    `most`: limits of sizes, beyond which the module refuses.
    """

    name: str
    module: Any
    examples: Callable[[Sizes], Mapping[str, Tensor]]
    outputs: tuple[str, ...]
    most: Mapping[str, int] = field(default_factory=dict)
    base: Sizes = BASE

    def axes(self) -> Axes:
        """The axes of its inputs that vary."""
        return find_axes(self.examples, self.base)

    @torch.no_grad()
    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Its outputs by name."""
        outputs = self.module(*inputs.values())
        return dict(zip(self.outputs, outputs, strict=True))


def graphs_of(engine: Engine, component: str) -> Iterator[Graph]:
    """The graphs of one component of an engine on the CPU, by its name in the index."""
    if component in TRANSFORMERS:
        axes = engine.checkpoint.presets.timestep_axes
        return transformer_graphs(getattr(engine, component), component, axes)
    return OTHERS[component](engine)


def rebind(model: Any, operations: Operations) -> None:
    """Let a transformer compute with other operations."""
    for module in model.modules():
        if hasattr(module, "ops"):
            module.ops = operations


# ---- transformers --------------------------------------------------------------------------------


class TextGraph(nn.Module):
    """A transformer's `text_context`, of flat tensors."""

    def __init__(self, model: Any, names: Sequence[str]) -> None:
        super().__init__()
        self.model, self.names = model, tuple(names)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        context = self.context(dict(zip(self.names, inputs, strict=True)))
        return tuple(flatten("text", context).values())

    def context(self, given: Mapping[str, Tensor]) -> Any:
        """What the model makes of inputs of any precision."""
        like = self.model.patch_embedding.weight.dtype
        given = {name: x.to(like) if x.is_floating_point() else x for name, x in given.items()}
        return self.model.text_context(**given)


class StepGraph(nn.Module):
    """A transformer's forward: latents, timesteps and the text's tensors to a prediction in fp32.

    `rope`: the rotation tables of a grid.
    """

    def __init__(self, model: Any, like: Any, rope: Callable[..., Any]) -> None:
        super().__init__()
        self.model, self.like, self.rope = model, like, rope
        self.names = tuple(flatten("text", like))

    def forward(self, latents: Tensor, timesteps: Tensor, *text: Tensor) -> tuple[Tensor]:
        context = rebuild(self.like, "text", dict(zip(self.names, text, strict=True)))
        rope = self.rope(self.model.grid(latents.shape))
        modulation = self.model.modulation(timesteps, context)
        return (self.model(latents, modulation, context, rope).float(),)


def transformer_graphs(
    model: Any, name: str, timestep_axes: Sequence[bool] = (False, False, False)
) -> Iterator[Graph]:
    """Two: what is computed once for a text, and the step.

    `timestep_axes`: whether timesteps differ along frames, rows and columns of the token grid.
    """
    rebind(model, registered())
    model.key_multiple = 1  # any number of keys, as they come
    patch, device = model.config.patch, model.patch_embedding.weight.device

    def seen(sizes: Sizes) -> dict[str, Tensor]:
        return {name: x.to(device) for name, x in model.example(sizes).items()}

    text = TextGraph(model, tuple(seen(BASE)))
    with torch.no_grad():
        like = text.context(seen(BASE))

    def inputs(sizes: Sizes) -> dict[str, Tensor]:
        grid = (sizes.frames, sizes.rows, sizes.columns)
        sides = (size * p for size, p in zip(grid, patch, strict=True))
        spread = (s if varies else 1 for s, varies in zip(grid, timestep_axes, strict=True))
        latents = torch.randn(sizes.batch, model.config.in_channels, *sides, device=device)
        timesteps = 1000 * torch.rand(sizes.batch, *spread, device=device)
        with torch.no_grad():
            context = text.context(seen(sizes))
        return {"latents": latents, "timesteps": timesteps, **flatten("text", context)}

    rope, most = model.grid_rope()
    own = name.removeprefix("transformer")
    yield Graph(f"text_context{own}", text, seen, tuple(flatten("text", like)))
    yield Graph(name, StepGraph(model, like, rope), inputs, ("prediction",), most)


# ---- autoencoders --------------------------------------------------------------------------------


class CodeGraph(nn.Module):
    """One of an autoencoder's four functions of a frame and of what came before it."""

    def __init__(self, vae: nn.Module, function: str) -> None:
        super().__init__()
        self.vae, self.function = vae, function

    def forward(self, x: Tensor, *memory: Tensor) -> tuple[Tensor, ...]:
        code = getattr(self.vae, self.function)
        made, kept = code(x, list(memory)) if memory else code(x)
        return made, *kept


def _vae(engine: Engine) -> Iterator[Graph]:
    presets = engine.checkpoint.presets
    channels, stride = presets.latent_channels, presets.spatial_stride
    vae = engine.vae
    for coder, given, made, shape in (
        ("decode", "latents", "pixels", (channels, 1, 1)),
        ("encode", "pixels", "latents", (3, presets.frame_stride, stride)),
    ):
        yield from _coder(vae, coder, given, made, shape)


def _coder(
    vae: Any, coder: str, given: str, made: str, shape: tuple[int, int, int]
) -> Iterator[Graph]:
    channels, frames, stride = shape
    first = CodeGraph(vae, f"{coder}_first")

    def one(sizes: Sizes, count: int = 1) -> Tensor:
        sides = sizes.rows * stride, sizes.columns * stride
        return torch.randn(sizes.batch, channels, count, *sides).clamp(-1, 1)

    def begin(sizes: Sizes) -> dict[str, Tensor]:
        return {given: one(sizes)}

    def go_on(sizes: Sizes) -> dict[str, Tensor]:
        with torch.no_grad():
            _, *memory = first(one(sizes))
        return {given: one(sizes, frames), **flatten("memory", memory)}

    base = Sizes(batch=2, rows=4, columns=5)
    outputs = made, *(name.replace("memory", "next") for name in list(go_on(base))[1:])
    yield Graph(f"vae_{coder}r_first", first, begin, outputs, base=base)
    yield Graph(f"vae_{coder}r", CodeGraph(vae, f"{coder}_next"), go_on, outputs, base=base)


# ---- encoders ------------------------------------------------------------------------------------


def _text_encoder(engine: Engine) -> Iterator[Graph]:
    model = engine.text_encoder.open().use()

    def inputs(sizes: Sizes) -> dict[str, Tensor]:
        shape = (sizes.batch, sizes.tokens)
        tokens = torch.randint(1, model.config.vocab_size, shape)
        own = torch.arange(sizes.tokens) < sizes.tokens - torch.arange(sizes.batch)[:, None] % 3
        return {"input_ids": tokens, "attention_mask": own.long()}

    yield Graph("text_encoder", TextEncoderGraph(model), inputs, ("embeds",))


def _image_encoder(engine: Engine) -> Iterator[Graph]:
    model = engine.image_encoder.open().use()
    side = model.config.image_size

    def inputs(sizes: Sizes) -> dict[str, Tensor]:
        return {"pixel_values": torch.randn(sizes.batch, 3, side, side)}

    yield Graph("image_encoder", ImageEncoderGraph(model), inputs, ("embeds",))


OTHERS = {"vae": _vae, "text_encoder": _text_encoder, "image_encoder": _image_encoder}
