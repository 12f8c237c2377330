"""A denoiser of one request: all that is constant in its transformers' calls computed once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING
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

    firsts: WeakValueDictionary[Expert, Denoiser] = WeakValueDictionary()

    def branch(name: str) -> Denoiser:
        def bind_expert(expert: Expert) -> Denoiser:
            transformer, embeds = engine.use(expert.name), [part[own[name]] for part in text]
            beside = getattr(firsts.get(expert), "beside", None)
            if beside is not None:  # only the text differs from the other branch's
                bound = beside(*embeds, **given.bound)
            else:
                seen = given.shape(shape)
                bound = transformer.bind(seen, timesteps[expert.part], *embeds, **given.bound)
                firsts[expert] = bound

            def predict(latents: Tensor, step: int) -> Tensor:
                engine.use(expert.name)
                return bound(latents, step)

            return predict

        def used(step: int) -> bool:
            return uses_branch(name, count_branches(tracks, guidance, step), batched)

        return in_turn(experts, bind_expert, used)

    branches = Branches(**{name: branch(name) for name in names})
    return given.show(guide(branches, tracks, guidance))
