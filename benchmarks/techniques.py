"""What each technique brings to a video, one on top of another, and how its time grows.

`kinema bench --only waterfall`, `--only scaling`: beside diffusers eager, in turns.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from . import rows
from .measure import BASE, interleave
from .rows import Row
from .samplers import (
    PACKAGES,
    Sampler,
    Terms,
    beside,
    frames_of,
    kinema_sampler,
    missing,
    name_of,
    reference_sampler,
)
from .step import tokens_of


class Technique(NamedTuple):
    """What is put on top of all before it."""

    title: str
    dtype: str
    executor: str
    batched: bool


AXES = {
    "tokens": [{"num_frames": frames, "steps": 4} for frames in (1, 9, 17, 25, 33)],
    "steps": [{"steps": steps} for steps in (5, 10, 20, 40)],
    "batch": [{"batch": batch, "steps": 4} for batch in (1, 2, 4, 8)],
}


def techniques(device: str) -> list[Technique]:
    """Of our step, in the order they are put on."""
    found = [
        Technique("what is constant once", "float32", "eager", False),
        Technique("both branches in one forward", "float32", "eager", True),
    ]
    able = [name for name in ("packed", "graph") if not missing(f"kinema {name}", device, "")]
    found += [Technique(f"executor {name}", "float32", name, True) for name in able[:1]]
    return [*found, Technique("bfloat16", "bfloat16", able[0] if able else "eager", True)]


def waterfall(terms: Terms, repeats: int) -> list[Row]:
    """Seconds of a video by diffusers eager, and as one technique is put on top of another."""
    plan = terms.plan()
    shape, scale = plan.latent_shape, plan.guidance_scale
    noise = terms.noise(shape)
    exact = terms.engine("float32", executor="eager")
    found: dict[str, Sampler] = {BASE: reference_sampler(exact, noise, terms.steps, scale)}
    put_on = techniques(terms.device)
    for on in put_on:
        engine = terms.engine(on.dtype, executor=on.executor)
        found[on.title] = kinema_sampler(engine, noise, terms.steps, scale, on.batched)
    wanted = frames_of(exact, kinema_sampler(exact, noise, terms.steps, scale)())
    quality = {name: beside(frames_of(exact, make()), wanted) for name, make in found.items()}
    sizes, packages = terms.shapes(shape, scale), PACKAGES[:2]
    about = rows.about("waterfall", name_of(terms), sizes, "float32", *packages, on=terms.device)
    dtypes = {on.title: on.dtype for on in put_on}
    return [
        replace(row, dtype=dtypes.get(row.runner, "float32"))
        for row in rows.timed(about, interleave(found, repeats), BASE, quality)
    ]


def scaling(terms: Terms, repeats: int) -> Iterator[Row]:
    """Seconds of a video against its tokens, its steps, and how many are made in one forward."""
    for axis, values in AXES.items():
        for changed in values:
            here = replace(terms, **changed)
            plan = here.plan()
            given = here.noise(plan.latent_shape), here.steps, plan.guidance_scale
            engine = here.engine("float32")
            found = {
                BASE: reference_sampler(engine, *given),
                f"kinema {engine.executor}": kinema_sampler(engine, *given),
            }
            sizes = f"tokens={tokens_of(plan.latent_shape)} steps={here.steps} batch={here.batch}"
            about = rows.about("scaling", axis, sizes, "float32", *PACKAGES[:2], on=here.device)
            yield from rows.timed(about, interleave(found, repeats), BASE)
