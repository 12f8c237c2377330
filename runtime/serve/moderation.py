"""What a prompt may not ask for, by a list of words.

It is a list and no classifier: it finds words as they are written, spaced out or in leetspeak, and
what they mean it does not know. Whoever wants to get past it will. Only text is looked at.
"""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from . import moderation_words as words
from .errors import APIError

if TYPE_CHECKING:
    from .orders import Order

log = logging.getLogger("kinema.serve")

OFF, MINORS, STRICT = "off", "minors", "strict"
LEVELS = (OFF, MINORS, STRICT)
NAME = "kinema-words-1"  # what judges, in answers
SEXUAL_MINORS = "sexual/minors"
CATEGORIES = (
    "harassment",
    "harassment/threatening",
    "hate",
    "hate/threatening",
    "illicit",
    "illicit/violent",
    "self-harm",
    "self-harm/instructions",
    "self-harm/intent",
    "sexual",
    SEXUAL_MINORS,
    "violence",
    "violence/graphic",
)
ALONE = {
    "harassment": words.HARASSMENT,
    "harassment/threatening": words.THREATS,
    "hate": words.HATE,
    "illicit": words.ILLICIT,
    "illicit/violent": words.ILLICIT_VIOLENT,
    "self-harm": words.SELF_HARM,
    "self-harm/instructions": words.SELF_HARM_INSTRUCTIONS,
    "self-harm/intent": words.SELF_HARM_INTENT,
    "sexual": words.EXPLICIT,
    SEXUAL_MINORS: words.MINORS_ALONE,
    "violence": words.VIOLENCE,
    "violence/graphic": words.GRAPHIC,
}
ADULT = 18
LONGEST = 4  # letters that one character is taken for; there are some that stand for a sentence
NUMBERS = (
    *("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven"),
    *("twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen"),
)
NUMBER = rf"(\d{{1,2}}|{'|'.join(NUMBERS)})"
# Groups: the number, what follows, and the number where it comes last.
AGE = re.compile(
    rf"\b(?:{NUMBER} ?(?:years?|yrs?|y) ?(?:olds?|o|of age)\b(?: (\w+))?"
    rf"|age[ds]?(?: of)? {NUMBER}\b)"
)
YOUNG = re.compile(r"\b\w+ (?:months?|weeks?|days?) olds?\b(?: (\w+))?")
SPACED = re.compile(r"\b(?:\w ){2,}\w\b")
LEET = str.maketrans("013457@$", "oieastas")
ALIKE = str.maketrans("авекмнорстухіјѕԁοαενικτυρ", "abekmhopctyxijsdoaeviktup")


def judge(*texts: str) -> tuple[str, ...]:
    """The categories that texts fall into, taken together."""
    views = [view for text in texts for view in _views(text)]
    found = {name for name, listed in ALONE.items() if _any(listed, views)}
    sexual = _any(words.EXPLICIT, views) or _any(words.SUGGESTIVE, views)
    if sexual and (_any(words.MINORS, views) or any(map(_is_minor, views))):
        found.add(SEXUAL_MINORS)
    if _any(words.GROUPS, views):
        if _any(words.DEGRADING, views):
            found.add("hate")
        if _any(words.ELIMINATING, views):
            found.add("hate/threatening")
    found |= {name.split("/")[0] for name in found}
    return tuple(name for name in CATEGORIES if name in found)


def check(order: Order, level: str, made_of: Sequence[Mapping[str, Any]] = ()) -> None:
    """Raises `APIError` 400 for an order whose prompts a server of this level does not make.

    made_of: orders of the videos that it works on, which count with it.
    """
    if level == OFF:
        return
    found = judge(*_prompts([order.as_dict(), *made_of]))
    blocked = found if level == STRICT else [name for name in found if name == SEXUAL_MINORS]
    if not blocked:
        return
    log.warning("prompt refused", extra={"fields": {"categories": list(blocked)}})
    message = f"the prompt is refused by this server's word list: {', '.join(blocked)}"
    raise APIError(400, message, param="prompt", code="moderation_blocked")


def _prompts(value: Any) -> Iterator[str]:
    """All that is to be shown, however deep; a negative prompt says what is not."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if name == "prompt" and isinstance(inner, str):
                yield inner
            else:
                yield from _prompts(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _prompts(inner)


# ---- text ----------------------------------------------------------------------------------------


def _views(text: str) -> tuple[str, str]:
    """Lower case words with a space between: as they are, and with digits read as letters."""
    whole = "".join(unicodedata.normalize("NFKD", c)[:LONGEST] for c in text)
    plain = whole.casefold().translate(ALIKE)
    plain = "".join(c for c in plain if unicodedata.category(c) not in ("Mn", "Cf"))
    return _tidy(plain), _tidy(plain.translate(LEET))


def _tidy(text: str) -> str:
    text = " ".join(re.findall(r"[^\W_]+", text))
    text = SPACED.sub(lambda found: found[0].replace(" ", ""), text)
    text = re.sub(r"([a-z])\1{2,}", r"\1", text)
    return _pattern(words.HARMLESS).sub(" ", text)


def _any(listed: str, views: list[str]) -> bool:
    return any(_pattern(listed).search(view) for view in views)


@cache
def _pattern(listed: str) -> re.Pattern[str]:
    phrases = [phrase.strip() for line in listed.splitlines() for phrase in line.split("|")]
    known = (re.escape(phrase).replace(r"\*", r"\w*") for phrase in phrases if phrase)
    return re.compile(rf"\b(?:{'|'.join(known)})\b")


def _is_minor(view: str) -> bool:
    """Whether an age below 18 is told, of somebody."""
    thing = _pattern(words.THINGS)
    if any(not thing.fullmatch(found[1] or "") for found in YOUNG.finditer(view)):
        return True
    for before, what, after in AGE.findall(view):
        told = before or after
        age = int(told) if told.isdigit() else 1 + NUMBERS.index(told)
        if age < ADULT and not thing.fullmatch(what):
            return True
    return False
