"""One colour for each class of operation, in every chart of a report and of the README.

Each stands out at 3 to 1 or more from the light and from the dark page, and any two stay apart for
readers who see no red, no green or no blue.
"""

from __future__ import annotations

from .classes import ATTENTION, CONVOLUTIONS, COPIES, ELEMENTWISE, GAPS, PRODUCTS

CLASSES = {
    ATTENTION: "#3664ff",
    PRODUCTS: "#d48100",
    ELEMENTWISE: "#09a970",
    COPIES: "#a854b8",
    GAPS: "#5d6570",
    CONVOLUTIONS: "#c42d2e",
}
REST = "var(--rest)"  # what no known class accounts for; of the page, light or dark

# What is not a class: ink, lines and pages, light and dark.
LIGHT = {
    "page": "#ffffff",
    "panel": "#f6f7f9",
    "ink": "#171b22",
    "quiet": "#566070",
    "line": "#d9dde3",
    "bar": "#8794a8",
    "rest": "#c3cad4",
    "good": "#0b7a53",
    "bad": "#b3261e",
}
DARK = {
    "page": "#101318",
    "panel": "#181d24",
    "ink": "#e8ebf0",
    "quiet": "#9aa5b5",
    "line": "#2d343f",
    "bar": "#6c7a90",
    "rest": "#3d4757",
    "good": "#3fcf97",
    "bad": "#ff8a80",
}


def color(name: str) -> str:
    """That of a class; whatever is no known class shares one."""
    return CLASSES.get(name, REST)
