"""Plots are drawn from rows and nothing else: what is longer in a row is longer in the picture."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest

from kinema.benchmarks import plots
from kinema.benchmarks.rows import Row, slug

SVG = "{http://www.w3.org/2000/svg}"
TECHNIQUES = {
    "diffusers eager": 2.0,
    "constants once": 1.0,
    "<packed> & more": 0.5,
    "bfloat16": 0.6,
}


def row(bench: str, name: str, runner: str, seconds: float, **more) -> Row:
    spread = {"p20": 0.9 * seconds, "p80": 1.2 * seconds, "n": 5}
    about = {"device": "NVIDIA H200", "versions": "torch 2.13.0; kinema 0.1.0", "dtype": "float32"}
    found = Row(**about, bench=bench, name=name, runner=runner, quantity="seconds", unit="s")
    return replace(found, median=seconds, **spread, **more)


@pytest.fixture
def techniques() -> list[Row]:
    shapes = "latents=16x9x10x8 steps=20"
    return [row("waterfall", "embedded", *one, shapes=shapes) for one in TECHNIQUES.items()]


@pytest.fixture
def growth() -> list[Row]:
    """Seconds of two runners, one three times as slow; in the order of no axis."""
    return [
        row("scaling", axis, runner, factor * value, shapes=_shapes(axis, value))
        for axis, values in {"tokens": (10, 5000, 100), "steps": (4, 1, 2)}.items()
        for value in values
        for runner, factor in {"diffusers eager": 0.3, "kinema eager": 0.1}.items()
    ]


def _shapes(axis: str, value: int) -> str:
    return " ".join(
        f"{k}={v}" for k, v in {"tokens": 8, "steps": 1, "batch": 1, axis: value}.items()
    )


def words(drawing: str) -> list[str]:
    return ["".join(text.itertext()) for text in ET.fromstring(drawing).iter(f"{SVG}text")]


def test_the_same_rows_give_the_same_bytes(techniques, growth, tmp_path):
    rows = [*techniques, *growth]
    written = plots.draw(rows, tmp_path / "a")
    assert [path.name for path in written] == ["waterfall-h200.svg", "scaling-h200.svg"]
    assert slug("NVIDIA H200") == "h200"
    again = plots.draw(rows, tmp_path / "b")
    assert [path.read_bytes() for path in written] == [path.read_bytes() for path in again]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "scaling-h200.svg",
        "waterfall-h200.svg",
    ]


def test_a_device_without_such_rows_has_no_plot(techniques, tmp_path):
    others = [replace(one, bench="step") for one in techniques]
    skipped = replace(techniques[0], quantity="skipped", median=None, p20=None, p80=None)
    assert plots.draw([*others, skipped], tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_a_waterfall_has_a_bar_a_technique_as_long_as_its_seconds(techniques):
    drawing = plots.waterfall(techniques)
    bars = [
        float(rect.get("width"))
        for rect in ET.fromstring(drawing).iter(f"{SVG}rect")
        if rect.get("fill") and not rect.get("fill-opacity")
    ]
    wanted = [seconds / 2.0 for seconds in TECHNIQUES.values()]
    assert [bar / bars[0] for bar in bars] == pytest.approx(wanted, abs=0.001)
    found = words(drawing)
    assert "diffusers eager" in found and "+ <packed> & more" in found
    assert any(re.fullmatch(r"500\W*ms4\.00\W", text) for text in found)


def test_a_waterfall_says_the_ratio_of_neighbouring_calls_where_there_is_one(techniques):
    ratio = replace(
        techniques[1], quantity="ratio", unit="times", base="diffusers eager", median=2.1
    )
    told = words(plots.waterfall([*techniques, ratio]))
    assert any(text.endswith("2.10\N{MULTIPLICATION SIGN}") for text in told)
    assert not any(text.endswith("2.00\N{MULTIPLICATION SIGN}") for text in told)


def test_a_panel_an_axis_and_a_line_a_runner(growth):
    drawing = plots.scaling(growth)
    told = words(drawing)
    assert [text for text in told if text.startswith("Seconds against")] == [
        "Seconds against tokens, logarithmic",
        "Seconds against steps",
    ]
    lines = _lines(drawing)
    assert len(lines) == 4
    for line in lines:
        across = [x for x, _ in line]
        assert len(line) == 3 and across == sorted(across)


def test_lines_are_where_their_seconds_are(growth):
    tokens, slower, _, _ = (line for line in _lines(plots.scaling(growth)))
    # Logarithmic: three times as long is as far apart at every size.
    gaps = [low[1] - high[1] for high, low in zip(tokens, slower, strict=True)]
    assert gaps == pytest.approx([gaps[0]] * 3, abs=0.11)
    assert gaps[0] > 10
    # From 0: time grows with steps as a straight line through the corner.
    (x1, y1), (x2, y2), (x4, y4) = _lines(plots.scaling(growth))[2]
    assert (x4 - x2) == pytest.approx(2 * (x2 - x1), abs=0.2)
    assert (y2 - y4) == pytest.approx(2 * (y1 - y2), abs=0.2)


def _lines(drawing: str) -> list[list[tuple[float, float]]]:
    return [
        [tuple(map(float, point.split())) for point in path.get("d")[1:].split("L")]
        for path in ET.fromstring(drawing).iter(f"{SVG}path")
        if path.get("fill") == "none"
    ]


def test_names_at_the_lines_ends_stay_apart(growth):
    near = [replace(one, median=1.0 + 1e-3 * index) for index, one in enumerate(growth)]
    drawing = ET.fromstring(plots.scaling(near))
    places = [
        float(text.get("y"))
        for text in drawing.iter(f"{SVG}text")
        if text.text and text.text.endswith("eager float32")
    ]
    assert len(places) == 4
    assert all(abs(a - b) >= 19.9 for i, a in enumerate(places) for b in places[:i])


def test_text_stays_inside(techniques, growth):
    """At 7.5 pixels a character, which is more than 13 pixels of these fonts take on average."""
    for drawing in (plots.waterfall(techniques), plots.scaling(growth)):
        root = ET.fromstring(drawing)
        for text in root.iter(f"{SVG}text"):
            wide, x = 7.5 * len("".join(text.itertext())), float(text.get("x"))
            left = x - {"end": wide, "middle": wide / 2}.get(text.get("text-anchor"), 0)
            assert left >= 0 and left + wide <= plots.WIDTH, "".join(text.itertext())
            assert 0 < float(text.get("y")) < float(root.get("height"))
