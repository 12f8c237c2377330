"""A denoiser of one request: all that is constant in its transformers' calls computed once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from torch import Tensor

from ..conditioning.given import NOTHING, Given
from ..requests.guidance_options import PLAIN, Guidance
from ..sampling.experts import Expert, in_turn
from ..sampling.guidance import (
    Branches,
    Denoiser,
    branches_needed,
    count_branches,
    guide,
    uses_branch,
)
from ..sampling.tracks import Track, timesteps_of

if TYPE_CHECKING:
    from ..engine import Engine


def bind(
    engine: Engine,
    prompts: list[str],
    negative_prompts: list[str],
    tracks: Sequence[Track],
    latent_shape: Sequence[int],
    given: Given = NOTHING,
    experts: Sequence[Expert] | None = None,
    guidance: Guidance = PLAIN,
    batched: bool = True,
) -> Denoiser:
    """A guided denoiser of these prompts, all that is constant in it computed.

    `batched`: both branches of guidance in one forward, or in two, one after the other.
    """
    num_predictions, shape = len(tracks[0].schedule), tuple(latent_shape)
    experts = experts or [Expert("transformer", range(num_predictions))]
    names = branches_needed(tracks, guidance, num_predictions, batched)
    rows = prompts + negative_prompts if names != ("positive",) else prompts
    text = engine.text_encoder.encode(rows)
    count = len(prompts)
    own = {"both": slice(None), "positive": slice(count), "negative": slice(count, None)}
    timesteps = given.timesteps(timesteps_of(tracks).to(engine.device), shape[2])
    binder = Binder(engine, given.shape(shape), timesteps, given.bound)

    def branch(name: str) -> Denoiser:
        embeds = [part[own[name]] for part in text]

        def used(step: int) -> bool:
            return uses_branch(name, count_branches(tracks, guidance, step), batched)

        return in_turn(experts, lambda expert: binder.bind(expert, embeds), used)

    branches = Branches(**{name: branch(name) for name in names})
    return given.show(guide(branches, tracks, guidance))


class Binder:
    """Binds the transformers of a request, to the text of one branch of guidance after another.

    shape: of the latents (B, C, F, H, W) that a transformer sees. timesteps: (S,), or as `Given`
    has them, of all experts. shown: what is bound besides the text.
    """

    def __init__(
        self,
        engine: Engine,
        shape: tuple[int, ...],
        timesteps: Tensor,
        shown: Mapping[str, Any],
    ) -> None:
        self.engine, self.shape, self.timesteps, self.shown = engine, shape, timesteps, shown
        self._bound: WeakValueDictionary[Expert, Denoiser] = WeakValueDictionary()

    def bind(self, expert: Expert, embeds: Sequence[Tensor]) -> Denoiser:
        """An expert's predictions for a text; the engine may use others between two of them."""
        engine, bound = self.engine, self._of(expert, embeds)

        def predict(latents: Tensor, step: int) -> Tensor:
            engine.use(expert.name)
            return bound(latents, step)

        return predict

    def _of(self, expert: Expert, embeds: Sequence[Tensor]) -> Denoiser:
        transformer = self.engine.use(expert.name)
        beside = getattr(self._bound.get(expert), "beside", None)
        if beside is not None:  # only the text differs from the other branch's
            return beside(*embeds, **self.shown)
        timesteps = self.timesteps[expert.part]
        bound = transformer.bind(self.shape, timesteps, *embeds, **self.shown)
        self._bound[expert] = bound
        return bound
