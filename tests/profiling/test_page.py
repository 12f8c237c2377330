"""The report's page: what it says, and what a real browser makes of it, with no network."""

from __future__ import annotations

import copy
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

from kinema.runtime.profiling import palette
from kinema.runtime.profiling import quantities as say
from kinema.runtime.profiling.page import page, page_of_two

HOSTILE = "a red ball </script><script>window.broken = 1</script><img src=x onerror=alert(1)>\"'&"
PALE = 0.2  # of what a stage took beside another
CEILINGS = {
    "copy_bytes_per_second": 1e10,
    "matmul_flops_per_second": {"float32": 1e11, "bfloat16": 4e11},
}
SECONDS = {
    "attention": 0.4,
    "matrix products": 0.3,
    "fused elementwise": 0.15,
    "copies": 0.1,
    "launch gaps": 0.05,
}


def operation(name: str, scale: float) -> dict:
    computes, moves = name != "copies", True
    if name == "launch gaps":
        computes = moves = False
    seconds = scale * SECONDS[name]
    work = {"flops": 4e9 * scale if computes else 0, "bytes": 2e8 * scale if moves else 0}
    return {"count": 30, "seconds": seconds, **work, "floor_seconds": 0.4 * seconds}


@pytest.fixture(scope="module")
def report() -> dict:
    """Four steps, the first twice as long; classes are 40, 30, 15, 10 and 5 per cent of each."""
    scales = (2.0, 1.0, 1.0, 1.0)
    steps = [
        {"seconds": scale, "classes": {name: operation(name, scale) for name in SECONDS}}
        for scale in scales
    ]
    seconds = {"load": 2.0, "encode": 0.5, "denoise": 5.0, "decode": 2.0, "mux": 0.5}
    return {
        "total_seconds": 10.0,
        "stages": {
            name: {"seconds": value, "peak_memory_bytes": int(1e9 * (1 + value))}
            for name, value in seconds.items()
        },
        "steps": steps,
        "device": {"name": "a device", "ceilings": CEILINGS},
        "versions": {"kinema": "1.2.3", "torch": "4.5.6"},
        "request": {"prompt": HOSTILE},
        "model": {"name": "embedded"},
        "plan": {"width": 64, "height": 32, "num_frames": 33, "num_inference_steps": 4},
        "timeline": [
            {"stage": "load", "start": 0.0, "seconds": 2.0, "thread": "main"},
            {"stage": "denoise", "start": 2.5, "seconds": 5.0, "thread": "main", "step": 0},
            {"stage": "mux", "start": 3.5, "seconds": 0.5, "thread": "main"},
            {"stage": "decode", "start": 7.5, "seconds": 2.0, "thread": "main"},
            {"stage": "mux", "start": 8.0, "seconds": 2.0, "thread": "encode"},
        ],
        "steady": {"total_seconds": 7.0, "stages": {"encode": 0.4, "denoise": 4.0, "decode": 2.0}},
        "what_if": [
            {"name": "half the steps", "seconds": 7.5},
            {"name": "at 128x64", "seconds": 20.0, "note": "by the cost model"},
        ],
        "operations": [{"name": "mm", "class": "matrix products", **operation("copies", 1.0)}],
        "overhead": {"attribution": 1.12},
        "notes": ["measured twice"],
    }


@pytest.fixture(scope="module")
def file(report, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(page(report))
    return path


def texts(browser, selector: str) -> list[str]:
    words = browser.run(
        f"[...document.querySelectorAll({json.dumps(selector)})].map(e => e.textContent)"
    )
    return [" ".join(word.split()) for word in words]


def colored(picture: np.ndarray, color: str) -> np.ndarray:
    """Where a picture has a color, (height, width) bool."""
    return (np.abs(picture.astype(int) - rgb(color)) <= 2).all(axis=-1)


def rgb(color: str) -> np.ndarray:
    return np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)])


def test_opens_with_no_network_and_no_complaint(browser, file):
    browser.open(file)
    assert browser.requested == [file.as_uri()]
    assert browser.complaints == []


def test_nothing_outside_is_named(report):
    urls = re.findall(r"""(?:src|href|url\()=?["']?([^"')\s>]+)""", page({**report, "request": {}}))
    assert urls and all(url.startswith(("#", "data:")) for url in urls)


def test_a_hostile_prompt_is_words(browser, file, report):
    browser.open(file)
    assert browser.run("typeof window.broken") == "undefined"
    assert browser.run("document.images.length") == 0
    assert browser.run("document.querySelector('.prompt').textContent") == HOSTILE
    carried = browser.run("document.getElementById('report').textContent")
    assert json.loads(carried) == report


def test_every_string_of_the_report_is_escaped(browser, report, tmp_path):
    """Stages, classes, devices, versions and names of either report may hold markup."""
    bad = "<b onclick='x'>&</b>"
    hostile = json.loads(json.dumps(report).replace('"load"', f'"{bad}"'))
    hostile["steps"][0]["classes"][bad] = operation("copies", 1.0)
    hostile["device"]["name"] = hostile["versions"][bad] = bad
    hostile["device"]["ceilings"]["matmul_flops_per_second"][bad] = 2e11
    hostile["what_if"] = [{"name": bad, "seconds": 1.0, "note": bad}]
    hostile["operations"][0] |= {"name": bad, "class": bad}
    hostile["model"]["name"] = hostile["plan"]["executor"] = hostile["notes"][0] = bad
    for text in (page(hostile), page_of_two(hostile, report, (bad, "b"))):
        path = tmp_path / "hostile.html"
        path.write_text(text)
        browser.open(path)
        assert browser.run("document.querySelectorAll('b, [onclick]').length") == 0
        assert bad in browser.run("document.body.innerText")


def test_says_the_numbers_of_the_report(browser, file, report):
    browser.open(file)
    assert texts(browser, "h1") == ["10.0 s for one video"]
    assert len(texts(browser, ".steps .step")) == len(report["steps"])
    assert texts(browser, "#stages tbody th") == list(report["stages"])
    assert texts(browser, "#stages tbody td:nth-child(3)") == [
        "2.00 s", "500 ms", "5.00 s", "2.00 s", "500 ms"
    ]  # fmt: skip
    assert texts(browser, "#stages tfoot td")[1:] == ["10.0 s", "100.0 %", "7.00 s"]
    again = texts(browser, "#stages tbody td:last-child")
    assert again == [say.ABSENT, "400 ms", "4.00 s", "2.00 s", say.ABSENT]
    rows = texts(browser, "#classes > .scroll tbody th")
    assert rows == list(SECONDS)
    cells = texts(browser, "#classes > .scroll tbody tr:first-child td")
    flops, moved = "20.0 GFLOP", "1.00 GB"
    reached = ["10.0 GFLOP/s", "500 MB/s", "800 ms", "2.50\u00d7"]
    assert cells == ["40.0 %", "120", "2.00 s", flops, moved, *reached]
    copies = texts(browser, "#classes > .scroll tbody tr:nth-child(4) td")
    assert copies[3] == copies[5] == say.ABSENT
    assert texts(browser, "#classes > .scroll tfoot td")[2] == "5.00 s"
    assert texts(browser, "#classes details tbody th") == ["mm"]
    minus = "\N{MINUS SIGN}"
    assert texts(browser, "#what-if tbody td:last-child") == [f"{minus}25.0 %", "+100.0 %"]
    assert "embedded \N{MIDDLE DOT} 64x32 \N{MIDDLE DOT} 33 frames" in texts(browser, "header")[0]
    assert "measured twice" in texts(browser, "#about")[0]
    assert texts(browser, "#memory tbody td:last-child")[0] == "3.00 GB"


def test_bars_are_as_tall_as_steps_are_long(browser, file, report):
    browser.open(file)
    tall = browser.run(
        "[...document.querySelectorAll('.steps .step')].map(step =>"
        " [...step.querySelectorAll('rect')].map(r => r.getBoundingClientRect().height))"
    )
    first, *others = (np.array(parts) for parts in tall)
    assert first / first.sum() == pytest.approx(list(SECONDS.values()), abs=0.01)
    for other in others:
        assert first.sum() / other.sum() == pytest.approx(2, rel=0.01)


def test_lanes_show_when_and_what_ran_beside(browser, file):
    browser.open(file)
    found = browser.run(
        "[...document.querySelectorAll('.lanes tbody tr')].map(row => {"
        " const box = row.querySelector('svg').getBoundingClientRect();"
        " return [...row.querySelectorAll('rect')].map(r => { const at = r.getBoundingClientRect();"
        " return [(at.left - box.left) / box.width, (at.right - box.left) / box.width,"
        " Number(getComputedStyle(r).fillOpacity)]; }); })"
    )
    wanted = (
        [(0, 0.2, PALE), (0, 0.2, 1)],
        [],
        [(0.25, 0.75, PALE), (0.25, 0.35, 1), (0.4, 0.75, 1)],  # without what was inside it
        [(0.75, 0.95, PALE), (0.75, 0.95, 1)],
        [(0.35, 0.4, PALE), (0.8, 1, PALE), (0.35, 0.4, 1)],
    )
    for lane, spans in zip(found, wanted, strict=True):
        assert np.array(lane) == pytest.approx(np.array(spans), abs=0.005)


def test_the_roofline_puts_each_class_where_it_was_measured(browser, file):
    """All do 20 FLOPs a byte; attention does 10 GFLOP/s, the others do the same in less time."""
    browser.open(file)
    assert texts(browser, ".roofline .mark title")[0] == (
        "attention: 10.0 GFLOP/s at 20.0 FLOPs per byte"
    )
    place = browser.run(
        "(() => { const box = document.querySelector('.roofline > svg').getBoundingClientRect();"
        " return [...document.querySelectorAll('.roofline .mark path')].map(mark => {"
        " const at = mark.getBoundingClientRect();"
        " return [(at.x + at.width / 2 - box.x) / box.width,"
        " (at.y + at.height / 2 - box.y) / box.height]; }); })()"
    )
    ticks = [text.replace(",", "") for text in texts(browser, ".roofline text")]
    assert {"1", "10", "100", "10 G", "100 G", "copy", "float32"} <= {*ticks}
    lines = "copy 10.0 GB/s", "matrix products bfloat16 400 GFLOP/s"
    assert {*lines} <= {*texts(browser, "#roofline .legend li")}
    # The frame is 1 to 100 FLOPs a byte and 1 to 1000 GFLOP/s: two decades across, three up.
    rates = [10, 10 * 4 / 3, 10 * 4 / 1.5]
    wanted = [(math.log10(20) / 2, 1 - math.log10(rate) / 3) for rate in rates]
    assert np.array(place) == pytest.approx(np.array(wanted), abs=0.005)


@pytest.mark.parametrize(("width", "dark"), [(1400, False), (1400, True), (360, False)])
def test_a_screenshot_has_the_colors_in_the_right_proportions(browser, file, width, dark):
    browser.open(file, width, dark)
    picture = browser.picture()
    assert picture.shape[1] == width
    page_color = (palette.DARK if dark else palette.LIGHT)["page"]
    assert 0.5 < colored(picture, page_color).mean() < 0.97
    box = browser.run(
        "(() => { const box = document.querySelector('.steps').getBoundingClientRect();"
        " return [box.top, box.bottom, box.left, box.right].map(Math.round); })()"
    )
    chart = picture[box[0] : box[1], box[2] : box[3]]
    found = {name: colored(chart, color).sum() for name, color in palette.CLASSES.items()}
    whole = sum(found.values())
    # Anti-aliased edges and the lines at the floors, two rows of 240 or more, take little away.
    for name, part in SECONDS.items():
        assert found[name] / whole == pytest.approx(part, abs=0.03), name


@pytest.mark.parametrize("width", [360, 768, 1400])
def test_nothing_runs_out_of_the_page(browser, file, report, tmp_path, width):
    both = tmp_path / "both.html"
    both.write_text(page_of_two(report, report))
    for one in (file, both):
        browser.open(one, width)
        assert browser.run("document.documentElement.scrollWidth") == width
    browser.open(file, width)
    left = browser.run(
        "Math.min(...[...document.querySelectorAll('.plot text')].filter(t =>"
        " t.getClientRects().length).map(t => t.getBoundingClientRect().left))"
    )
    right = browser.run(
        "Math.max(...[...document.querySelectorAll('.plot text')].filter(t =>"
        " t.getClientRects().length).map(t => t.getBoundingClientRect().right))"
    )
    assert left >= 0 and right <= width


def test_a_legend_singles_a_class_out(browser, file):
    browser.open(file)
    browser.run("document.querySelector('.legend button[value=copies]').click()")
    faint = (
        "[...document.querySelectorAll('.step rect')].filter(r => getComputedStyle(r).opacity < 1)"
    )
    assert browser.run(f"{faint}.length") == 16
    assert browser.run(f"{faint}.some(r => r.dataset.class === 'copies')") is False
    browser.run("document.querySelector('.legend button[value=copies]').click()")
    assert browser.run(f"{faint}.length") == 0


def test_every_chart_and_table_says_what_it_is(browser, file):
    browser.open(file)
    tables = "[...document.querySelectorAll('table')]"
    assert browser.run(f"{tables}.every(t => t.caption && t.querySelector('th[scope=col]'))")
    unnamed = "svg:not([aria-label]):not([aria-hidden]):not(.mark)"
    assert browser.run(f"document.querySelectorAll('{unnamed}').length") == 0
    assert browser.run("document.documentElement.lang") == "en"


def test_prints(browser, file):
    browser.open(file, dark=True)
    printed = browser.printed()
    assert printed.startswith(b"%PDF") and len(printed) > 10_000


def test_two_reports_show_what_changed(browser, report, tmp_path):
    after = copy.deepcopy(report)
    after["total_seconds"] = 9.0
    after["stages"]["denoise"]["seconds"] = 4.0
    for step in after["steps"]:
        step["classes"]["attention"]["seconds"] *= 0.5
    after["versions"]["torch"] = "4.6.0"
    path = tmp_path / "two.html"
    path.write_text(page_of_two(report, after, ("a.json", "b.json")))
    browser.open(path)
    assert browser.complaints == []
    minus = "\N{MINUS SIGN}"
    assert texts(browser, "h1") == [f"{minus}10.0 %: 10.0 s to 9.00 s"]
    attention = texts(browser, "#classes > .scroll tbody tr:first-child td")[1:]
    assert attention == ["2.00 s", "1.00 s", f"{minus}1.00 s", f"{minus}50.0 %"]
    assert texts(browser, "#differs tbody tr") == ["versions torch4.5.64.6.0"]


@pytest.mark.parametrize(
    "missing", ["timeline", "what_if", "request", "steps", "ceilings", "peaks"]
)
def test_a_sparse_report_has_a_page(browser, report, tmp_path, missing):
    """A request without a denoising step, a device without ceilings, a CPU without peaks."""
    sparse = copy.deepcopy(report)
    sparse.pop(missing, None)
    if missing == "steps":
        sparse["steps"] = []
    if missing == "ceilings":
        del sparse["device"]["ceilings"]
    if missing == "peaks":
        for stage in sparse["stages"].values():
            stage["peak_memory_bytes"] = None
    path = tmp_path / "sparse.html"
    path.write_text(page(sparse))
    browser.open(path)
    assert browser.complaints == []
    assert texts(browser, "h1") == ["10.0 s for one video"]
    words = browser.run("document.body.innerText")
    assert not re.search(r"\b(NaN|None|nan|inf|undefined)\b", words)
