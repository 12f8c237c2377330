"""The report of `kinema profile` as one page that needs no other file and no network."""

from __future__ import annotations

from collections.abc import Sequence

from . import page_facts as facts
from . import page_tables as tables
from . import page_words as words
from . import palette
from . import quantities as say
from .classes import HIDDEN
from .markup import Markup, join, tag
from .page_charts import roofline, stacked
from .page_facts import Report
from .page_parts import cards, document, legend, lines, section, table
from .page_parts import facts as listed

ABOUT_STEPS = (
    "Each bar is one step, split by what its operations do."
    " The line across it is its floor: the least time this device needs for the same work."
)
ABOUT_ROOFLINE = (
    "Lines are what this device was measured at: copying bounds the slope, matrix products the top."
    " A dotted line leads from what a class reached to what the device could do for it. What moves"
    " bytes and computes nothing is in the table below."
)


def page(report: Report) -> str:
    """The HTML of one report."""
    body = [_header(report), _stages(report), _steps(report), _rooflines(report)]
    body += [_memory_and_what_if(report), _about(report)]
    title = f"kinema profile: {say.seconds(report['total_seconds'])}"
    return document(title, body, {"report": report})


def _header(report: Report) -> Markup:
    prompt = (report.get("request") or {}).get("prompt")
    return tag(
        "header",
        tag("div", "kinema profile", class_="brand"),
        tag("h1", f"{say.seconds(report['total_seconds'])} for one video"),
        tag("p", prompt, class_="prompt") if prompt else None,
        tag("p", words.subtitle(report), class_="quiet"),
        _cards(report),
        _contents(report),
    )


def _contents(report: Report) -> Markup:
    names = {"stages": "Stages", "steps": "Steps", "roofline": "Roofline", "classes": "Classes"}
    names |= {"memory": "Memory"} if tables.memory(report) else {}
    names |= {"what-if": "What if"} if tables.what_if(report) else {}
    links = (
        tag("a", title, href=f"#{name}") for name, title in {**names, "about": "About"}.items()
    )
    return tag("nav", *links, aria_label="Sections")


def _cards(report: Report) -> Markup:
    """The few numbers that a reader came for."""
    stages, numbers = report["stages"], facts.figures(report)
    found = []
    if numbers.again:
        found.append(("again, warm", say.seconds(numbers.again), "the same request once more"))
    if numbers.step:
        found.append(("a step", say.seconds(numbers.step), f"median of {len(report['steps'])}"))
    if numbers.over_floor:
        remark = f"{100 / numbers.over_floor:.1f}{say.THIN}% of what the device can do"
        found.append(("steps over floor", say.times(numbers.over_floor), remark))
    longest = max(stages, key=lambda name: stages[name]["seconds"])
    part = say.share(stages[longest]["seconds"], report["total_seconds"])
    found.append(("longest stage", longest, f"{part} of the time"))
    if numbers.peak:
        found.append(("peak memory", say.size(numbers.peak), f"in {numbers.peak_stage}"))
    return cards(found)


def _stages(report: Report) -> Markup:
    return section("stages", "Where the time went", tables.stages(report))


def _steps(report: Report) -> Markup:
    bars = facts.bars(report)
    colors = {one.name: one.color for one in facts.classes(report)}
    rest = {HIDDEN: palette.REST} if any(HIDDEN in dict(bar.parts) for bar in bars) else {}
    label = f"Seconds of each of {len(bars)} steps by class of operation"
    chart = stacked(bars, colors | rest, label)
    floor = any(bar.floor for bar in bars)
    about = tag("p", ABOUT_STEPS)
    return section("steps", "Inside each step", about, legend(colors | rest, floor), chart)


def _rooflines(report: Report) -> Markup:
    points = facts.points(report)
    chart = roofline(points, facts.ceilings(report), f"Roofline of {len(points)} classes")
    names = legend({point.name: point.color for point in points}, shapes=True)
    measured = lines(facts.measured(report))
    about = tag("p", ABOUT_ROOFLINE)
    plot = section("roofline", "How near to the hardware", about, names, measured, chart)
    inside = [tables.operations(report)]
    if operators := tables.operators(report):
        inside.append(tag("details", tag("summary", "The operators that took longest"), operators))
    return join([plot, section("classes", "Classes of operations", *inside)])


def _memory_and_what_if(report: Report) -> Markup:
    memory, what_if = tables.memory(report), tables.what_if(report)
    parts = [
        section("memory", "Memory", memory) if memory else None,
        section("what-if", "What if", what_if) if what_if else None,
    ]
    return tag("div", *parts, class_="pair")


def _about(report: Report) -> Markup:
    entries = words.settings(report)
    save = tag(
        "button", "Save the numbers (JSON)", type="button", class_="save", value="report", hidden=""
    )
    return section("about", "About this report", listed(entries), tag("p", save))


def page_of_two(before: Report, after: Report, names: Sequence[str] = ("before", "after")) -> str:
    """The HTML that compares two reports, stage by stage and class by class."""
    first, second = before["total_seconds"], after["total_seconds"]
    title = f"{say.change(first, second)}: {say.seconds(first)} to {say.seconds(second)}"
    stages = tables.changed("Seconds of each stage", names, facts.stage_changes(before, after))
    classes = tables.changed(
        "Seconds of each class of operation, all steps", names, facts.class_changes(before, after)
    )
    figures = tables.glance(names, facts.figures(before), facts.figures(after))
    differs = words.differences(before, after)
    rows = [(name, *(tag("td", one, class_="words") for one in both)) for name, *both in differs]
    head = ("", *(tag("th", name, scope="col", class_="words") for name in names))
    settings = table("Whatever is not the same in both", head, rows)
    body = [
        tag("header", tag("div", "kinema profile, two reports", class_="brand"), tag("h1", title)),
        section("figures", "At a glance", figures),
        section("stages", "Stages", stages),
        section("classes", "Classes of operations", classes),
        section("differs", "What differs", settings) if rows else None,
    ]
    return document(f"kinema profile: {title}", body, {"before": before, "after": after})
