"""Words for a scene, and a scene's attributes from words.

A caption is a sentence over phrases, one list of phrases for each attribute. Some combinations of
attributes, the last phrase for every motion and background and the last sentence are held out: the
trained model never sees them (but knows their words), and `heldout_prompts` is made of them.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from .scene import BACKGROUNDS, COLORS, MOTIONS, SHAPES, Scene

T = TypeVar("T")

SHAPE_WORDS = {
    "ball": ("ball", "circle", "sphere", "disc", "disk"),
    "square": ("square", "box", "cube", "block"),
    "triangle": ("triangle", "pyramid", "cone", "wedge"),
}
COLOR_WORDS = {
    "red": ("red", "crimson", "scarlet"),
    "yellow": ("yellow", "golden", "lemon"),
    "green": ("green", "emerald", "lime"),
    "cyan": ("cyan", "turquoise", "aqua"),
    "blue": ("blue", "navy", "azure"),
    "purple": ("purple", "violet", "magenta"),
}
BACKGROUND_PHRASES = {
    "grass": (
        "on the grass",
        "on a meadow",
        "in a green field",
        "on the lawn",
        "in the park",
        "in the meadow",
        "on the meadow",
        "over the grass",
        "in the grass",
        "in a meadow",
    ),
    "sand": (
        "on the sand",
        "on a beach",
        "in the desert",
        "on the beach",
        "over the dunes",
        "over the sand",
        "in the dunes",
        "in the sand",
    ),
    "night": (
        "at night",
        "under the stars",
        "in the night sky",
        "in the dark",
        "in the night",
    ),
    "brick": (
        "in front of a brick wall",
        "by a brick wall",
        "against the bricks",
        "in front of a wall",
        "against a wall",
        "by the bricks",
        "against a brick wall",
    ),
    "snow": (
        "in the snow",
        "on the snow",
        "on a snowy field",
        "in winter",
        "on the ice",
        "over the ice",
        "over a snowy field",
        "over the snow",
    ),
}
# Verbs as (third person, participle); every motion's directions follow.
_GO = (
    ("moves", "moving"),
    ("slides", "sliding"),
    ("goes", "going"),
    ("drifts", "drifting"),
    ("travels", "traveling"),
    ("glides", "gliding"),
    ("floats", "floating"),
    ("flies", "flying"),
    ("rolls", "rolling"),
)
_LEVEL = ("{0}", "to the {0}", "{0}ward", "towards the {0}", "{0}wards", "toward the {0}")


def _going(
    directions: tuple[str, ...], extra: tuple[tuple[str, str], ...]
) -> list[tuple[str, str]]:
    moves = [(f"{v} {d}", f"{p} {d}") for d in directions for v, p in _GO]
    return [*extra, *moves]


MOTION_PHRASES: dict[str, list[tuple[str, str]]] = {
    "left": _going(
        tuple(d.format("left") for d in _LEVEL),
        (("moves from right to left", "moving from right to left"),),
    ),
    "right": _going(
        tuple(d.format("right") for d in _LEVEL),
        (("moves from left to right", "moving from left to right"),),
    ),
    "up": _going(
        ("up", "upward", "upwards", "to the top"),
        (
            ("rises", "rising"),
            ("climbs", "climbing"),
            ("ascends", "ascending"),
            ("climbs up", "climbing up"),
        ),
    ),
    "down": _going(
        ("down", "downward", "downwards", "to the bottom"),
        (
            ("falls", "falling"),
            ("drops", "dropping"),
            ("sinks", "sinking"),
            ("descends", "descending"),
            ("falls down", "falling down"),
        ),
    ),
    "bounce": [
        ("bounces", "bouncing"),
        ("hops", "hopping"),
        ("jumps", "jumping"),
        ("bounces up and down", "bouncing up and down"),
        ("keeps bouncing", "bouncing and bouncing"),
        ("hops up and down", "hopping up and down"),
        ("bounces again and again", "bouncing again and again"),
        ("jumps up and down", "jumping up and down"),
    ],
    "still": [
        ("stays still", "staying still"),
        ("rests", "resting"),
        ("does not move", "not moving"),
        ("stands still", "standing still"),
        ("sits", "sitting"),
        ("is still", "being still"),
        ("sits still", "sitting still"),
        ("stays", "staying"),
        ("rests still", "resting still"),
    ],
}
SIZE_WORDS = {"small": ("small", "little", "tiny"), "big": ("big", "large", "huge")}
SMALL, BIG = 10.0, 11.5  # radii below and above which a size may be named

# {a}: article, size, colour and shape; {v}: verb; {p}: participle; {b}: background.
SENTENCES = (
    "{a} {v} {b}",
    "{a} {v} {b}",
    "{a} is {p} {b}",
    "{a} {p} {b}",
    "a video of {a} {p} {b}",
    "{a} that {v} {b}",
    "{b} {a} {v}",
    "there is {a} {p} {b}",
    "we see {a} that {v} {b}",
    "{b} there is {a} {p}",
    "a clip of {a} that {v} {b}",
    "we see {a} {p} {b}",
)
# Words that say nothing of a motion or a background by themselves.
FUNCTION_WORDS = frozenset(
    [
        *("a", "again", "against", "an", "and", "at", "being", "by", "does", "from", "in", "is"),
        *("keeps", "not", "of", "on", "over", "the", "to", "under"),
    ]
)


@dataclasses.dataclass(frozen=True)
class Attributes:
    """What a prompt asks for; None where it leaves the choice open."""

    color: str | None
    shape: str | None
    motion: str | None
    background: str | None


def held_out(color: str, shape: str, motion: str) -> bool:
    """Whether a combination is never trained on: 18 of 108, three for every motion."""
    c, s, m = list(COLORS).index(color), SHAPES.index(shape), MOTIONS.index(motion)
    return (c + 2 * s + m) % 6 == 0


def words(text: str) -> list[str]:
    """Lower-case words of a prompt, as the tokenizer splits them."""
    return re.findall(r"[a-z0-9]+", text.lower())


def sample_caption(rng: np.random.Generator, scene: Scene, *, drop: float = 0.06) -> str:
    """A training caption; each attribute is left out with probability `drop`."""
    size = _size(rng, scene) if rng.random() < 0.25 else ""
    color = "" if rng.random() < drop else _word(rng, COLOR_WORDS[scene.color])
    shape = "shape" if rng.random() < drop / 2 else _word(rng, SHAPE_WORDS[scene.shape])
    verb = _phrase(rng, MOTION_PHRASES[scene.motion])
    background = (
        "" if rng.random() < 2 * drop else _phrase(rng, BACKGROUND_PHRASES[scene.background])
    )
    return _fill(rng, _phrase(rng, SENTENCES), f"{size} {color} {shape}", verb, background)


def heldout_prompts(count: int, seed: int = 0) -> list[tuple[str, Attributes]]:
    """Prompts of held-out combinations, half in held-out phrasings; motions in turn, no chance."""
    rng = np.random.default_rng((seed, 77))
    combinations = {
        m: [(c, s) for c in COLORS for s in SHAPES if held_out(c, s, m)] for m in MOTIONS
    }
    prompts = []
    for i in range(count):
        motion = MOTIONS[i % len(MOTIONS)]
        color, shape = combinations[motion][i // len(MOTIONS) % len(combinations[motion])]
        background = BACKGROUNDS[int(rng.integers(len(BACKGROUNDS)))]
        # Every prompt is a held-out combination; half of them are held-out phrases as well.
        last = i // len(MOTIONS) % 2 == 1
        noun = f"{_word(rng, COLOR_WORDS[color])} {_word(rng, SHAPE_WORDS[shape])}"
        verb = _phrase(rng, MOTION_PHRASES[motion], last)
        place = _phrase(rng, BACKGROUND_PHRASES[background], last)
        sentence = _phrase(rng, SENTENCES, last)
        text = _fill(rng, sentence, noun, verb, place)
        prompts.append((text, Attributes(color, shape, motion, background)))
    return prompts


def vocabulary() -> dict[str, list[str]]:
    """Every word of the grammar by what it is about."""
    phrases = {
        "colors": [w for v in COLOR_WORDS.values() for w in v],
        "shapes": [w for v in SHAPE_WORDS.values() for w in v] + ["shape"],
        "sizes": [w for v in SIZE_WORDS.values() for w in v],
        "motions": [text for v in MOTION_PHRASES.values() for pair in v for text in pair],
        "backgrounds": [text for v in BACKGROUND_PHRASES.values() for text in v],
        "other": [re.sub(r"{.}", "", text) for text in SENTENCES] + ["a", "an", "the"],
    }
    groups = {name: {w for text in v for w in words(text)} for name, v in phrases.items()}
    for name, group in groups.items():
        if name != "other":
            groups["other"] |= group & FUNCTION_WORDS
            group -= FUNCTION_WORDS
    return {name: sorted(group) for name, group in groups.items()}


def _word(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    """The plain word half of the time, any other one of the same meaning otherwise."""
    return options[0] if rng.random() < 0.5 else options[int(rng.integers(len(options)))]


def _phrase(rng: np.random.Generator, options: Sequence[T], held_out: bool = False) -> T:
    """Any trained phrase, or the last one, which is held out."""
    return options[-1] if held_out else options[int(rng.integers(len(options) - 1))]


def _size(rng: np.random.Generator, scene: Scene) -> str:
    name = "small" if scene.radius < SMALL else "big" if scene.radius > BIG else ""
    return str(rng.choice(SIZE_WORDS[name])) if name else ""


def _fill(
    rng: np.random.Generator, sentence: str, noun: str, verb: tuple[str, str], background: str
) -> str:
    noun = " ".join(noun.split())
    article = ("an" if noun[0] in "aeiou" else "a") if rng.random() < 0.8 else "the"
    text = sentence.format(a=f"{article} {noun}", v=verb[0], p=verb[1], b=background)
    return " ".join(text.split())
