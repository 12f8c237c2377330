"""The table of docs/structure.md holds: no module of the runtime imports one that stands above."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RUNTIME = ROOT / "runtime"
TORCH_FREE = {
    "registry",
    "ledger",
    "requests",
    "media",
    "provenance",
    "hashes",
    "files",
    "errors",
}


def table() -> list[str]:
    text = (ROOT / "docs" / "structure.md").read_text()
    block = text.split("## Who may import whom")[1].split("```")[1]
    return [line.split()[0] for line in block.strip().splitlines()]


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Parts of the runtime that a file imports when it runs, and whether it does at once."""
    tree = ast.parse(path.read_text())
    only_types, later = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            only_types |= {id(inner) for inner in ast.walk(node)}
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            later |= {id(inner) for inner in ast.walk(node)}
    package = path.relative_to(ROOT).parts[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level and id(node) not in only_types:
            base = package[: len(package) - node.level + 1]
            for alias in node.names:
                whole = (*base, *(node.module or "").split("."), alias.name)
                parts = [part for part in whole if part]
                if parts[0] == "runtime" and len(parts) > 1:
                    yield parts[1], id(node) not in later


def owner(path: Path) -> str:
    return path.relative_to(RUNTIME).parts[0].removesuffix(".py")


FILES = sorted(file for file in RUNTIME.rglob("*.py") if file != RUNTIME / "__init__.py")


def test_the_table_names_all_that_there_is():
    there = {owner(file) for file in FILES if "assets" not in file.parts}
    assert set(table()) == there
    assert len(table()) == len(there)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(RUNTIME).as_posix())
def test_no_import_goes_back(file):
    order, own = table(), owner(file)
    back = [to for to, _ in imports(file) if to in order and order.index(to) < order.index(own)]
    assert not back


@pytest.mark.parametrize("part", sorted(TORCH_FREE))
def test_what_needs_no_torch_imports_none_at_once(part):
    for file in FILES:
        if owner(file) == part:
            found = re.findall(
                r"^(?:import|from) (torch|diffusers|transformers)\b", file.read_text(), re.M
            )
            assert not found, file


def test_kernels_import_nothing_of_the_runtime():
    for file in (ROOT / "kernels").rglob("*.py"):
        assert not re.search(r"^\s*(from|import) .*\bruntime\b", file.read_text(), re.M), file
