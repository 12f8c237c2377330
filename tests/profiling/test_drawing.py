"""Numbers as words, colors that stay apart, markup that nothing breaks out of."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from kinema.runtime.profiling import palette
from kinema.runtime.profiling import quantities as say
from kinema.runtime.profiling.drawing import decades, ticks
from kinema.runtime.profiling.markup import Markup, embedded_json, tag

# Of linear RGB, for a reader without one kind of cone: Machado, Oliveira and Fernandes, "A
# physiologically-based model for simulation of color vision deficiency" (2009), severity 1.
BLINDNESS = {
    "none": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)
WHITE = XYZ.sum(axis=1)
COLORS = list(palette.CLASSES.values())


def linear(color: str) -> np.ndarray:
    srgb = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    x = XYZ @ np.clip(rgb, 0, 1) / WHITE
    f = np.where(x > 0.008856, np.cbrt(x), 7.787 * x + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def contrast(first: str, second: str) -> float:
    high, low = sorted(((XYZ[1] @ linear(c)) + 0.05 for c in (first, second)), reverse=True)
    return high / low


@pytest.mark.parametrize("blindness", BLINDNESS)
def test_colors_of_classes_stay_apart(blindness):
    """By a distance of 25 in CIE Lab, ten times what an eye just tells."""
    seen = [lab(np.array(BLINDNESS[blindness]) @ linear(color)) for color in COLORS]
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) > 25


@pytest.mark.parametrize("page", [palette.LIGHT, palette.DARK], ids=["light", "dark"])
def test_colors_stand_out_on_the_page(page):
    """WCAG 2.2, 1.4.3 and 1.4.11: words at 4.5 to 1, shapes at 3 to 1."""
    assert min(contrast(color, page["page"]) for color in COLORS) >= 3
    for words in ("ink", "quiet", "good", "bad"):
        assert contrast(page[words], page["page"]) >= 4.5
        assert contrast(page[words], page["panel"]) >= 4.5


@pytest.mark.parametrize(
    ("value", "unit", "words"),
    [
        (0.0123456, "s", "12.3 ms"),
        (0.99999, "s", "1.00 s"),
        (12345.6, "s", "12,346 s"),
        (4.3e12, "B/s", "4.30 TB/s"),
        (790e12, "FLOP/s", "790 TFLOP/s"),
        (999.96e6, "B", "1.00 GB"),
        (2.5e-9, "s", "2.50 ns"),
        (0, "B", "0 B"),
        (None, "B", say.ABSENT),
    ],
)
def test_quantities_have_three_digits_and_a_unit(value, unit, words):
    assert say.quantity(value, unit).replace(say.THIN, " ") == words


def test_changes_have_a_sign():
    minus = "\N{MINUS SIGN}"
    assert say.change(2.0, 3.0).replace(say.THIN, " ") == "+50.0 %"
    assert say.change(2.0, 1.0).replace(say.THIN, " ") == f"{minus}50.0 %"
    assert say.change(2.0, 2.0).replace(say.THIN, " ") == "0.0 %"
    assert say.change(0.0, 2.0) == say.ABSENT


@pytest.mark.parametrize("highest", [1e-6, 0.3, 1, 7, 9.99, 12345.0])
def test_ticks_are_few_and_reach_the_highest(highest):
    found = ticks(highest)
    assert 3 <= len(found) <= 8
    assert found[0] == 0 and found[-2] < highest <= found[-1] * (1 + 1e-9)


def test_decades_hold_what_is_between():
    assert decades(3, 250) == [1, 10, 100, 1000]
    assert decades(10, 10) == [10, 100]


def test_markup_escapes_what_is_no_markup():
    assert tag("b", "<i>", Markup("<i>"), None, class_='"') == '<b class="&quot;">&lt;i&gt;<i></b>'


@pytest.mark.parametrize("text", ["</script>", "<!--", "]]>", "a & b", "\u2028 \u00e9"])
def test_json_inside_a_script_cannot_end_it(text):
    found = embedded_json({text: [text]})
    assert not set("<>&") & set(found)
    assert json.loads(found) == {text: [text]}
