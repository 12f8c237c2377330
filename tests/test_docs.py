"""What the pages tell one to type works, and their links lead somewhere.

Every fenced block of the README, of docs/ and of CONTRIBUTING.md is run, in the order of its page,
in a folder of the page's own. What cannot run here stands in `LEFT_OUT` with its reason, and is
parsed.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import shlex
from collections import deque
from functools import reduce
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer

import kinema
from kinema.runtime import cli

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]

PACKAGES = "packages are installed by whoever runs the tests; extras are looked up"
CHECKPOINT = "a published checkpoint"
MINUTES = "minutes"
SERVER = "tests/serve runs it"
TESTS = "the tests themselves"
EXPORT = "a minute a graph; tests/export does it"

# What begins so is not run. The first that fits counts.
LEFT_OUT = {
    "pip install": PACKAGES,
    "pre-commit install": PACKAGES,
    "pytest": TESTS,
    "bash .ci/": TESTS,
    'kinema generate "a red ball bounces" -o ball.mp4 --sign-key': "a certificate of an authority",
    'kinema generate "the cat stretches" --model Wan-AI': CHECKPOINT,
    "kinema export": EXPORT,
    'kinema generate "a red ball bounces on the grass" --engines': EXPORT,
    'kinema generate "a red ball bounces on the grass" --model MODEL --engines': EXPORT,
    "tritonserver": "a server of NVIDIA's",
    "kinema serve": SERVER,
    "kinema bench": MINUTES,
    "python -m kinema.benchmarks": MINUTES,
    'import openai\n\nclient = openai.OpenAI(base_url="http://': "tests/serve/test_migration.py",
    'client = openai.OpenAI(base_url="http://': "a part of the README's, which is run",
    'engine = kinema.load("Wan2.2-TI2V-5B-Diffusers", device="cuda")': CHECKPOINT,
    'engine = kinema.load("my-wan", device="cuda"': "a GPU",
}


def blocks(page: Path) -> list[tuple[str, str]]:
    """(language, text) of each fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[str]:
    """The lines of a shell block, without comments; what `&&` joins is several."""
    lines = [re.sub(r"(^|\s+)# .*", "", line) for line in text.replace("\\\n", " ").splitlines()]
    return [part.strip() for line in lines for part in line.split("&&") if part.strip()]


def steps(page: Path) -> list[tuple[str, str]]:
    """(language, text) of all that a reader types, in order; a shell block is cut into commands."""
    found = []
    for language, text in blocks(page):
        if language == "sh":
            found += [("sh", command) for command in commands(text)]
        elif language:
            found.append((language, text.strip()))
    return found


EXTRAS = re.findall(r"^([\w-]+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)


def left_out(text: str) -> str | None:
    """Why it does not run; None if it does."""
    return next((start for start in LEFT_OUT if text.startswith(start)), None)


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    """The embedded model; what is kept for the next process is kept for the next page alone."""
    with pytest.MonkeyPatch.context() as patch, kinema.load() as engine:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield engine


@pytest.fixture
def supplied(tmp_path, monkeypatch, engine, request):
    """The names that the page's snippets assume; their files are in the folder."""
    monkeypatch.chdir(tmp_path)
    given = {"kinema": kinema, "Path": Path, "engine": engine}
    supply = {
        "docs/provenance.md": signer,
        "docs/checkpoints.md": style,
        "docs/profiling.md": asked,
    }
    given |= supply.get(request.node.callspec.params["page"], dict)()
    return given


def signer() -> dict:
    """A key in a box that signs by a callback, and its chain."""
    from kinema.runtime.provenance import keys

    identity = keys.development()
    Path("chain.pem").write_text(identity.chain)
    return {"hsm": SimpleNamespace(sign=identity.sign)}


def style() -> dict:
    """A LoRA of the embedded model."""
    import torch
    from safetensors.torch import save_file

    name = "transformer.blocks.0.attn1.to_q"
    halves = {f"{name}.lora_A.weight": torch.ones(2, 256) / 256}
    save_file({**halves, f"{name}.lora_B.weight": torch.ones(256, 2)}, "style.safetensors")
    return {}


def asked() -> dict:
    """A request as a file."""
    Path("request.json").write_text(
        json.dumps({"prompt": "a cone rises", "num_inference_steps": 2})
    )
    return {}


@pytest.mark.parametrize("page", NAMES)
def test_all_that_a_page_tells_one_to_type_works(page, supplied, capsys):
    for language, text in steps(ROOT / page):
        why = left_out(text)
        if language == "sh":
            parse_command(text)
            if why is None:
                run_command(text, capsys)
        else:
            assert language == "python", f"{page}: nobody runs {language}"
            parse_python(text)
            if why is None:
                exec(compile(text, page, "exec"), supplied)
    if page in MOUNTED:
        make_over_http(supplied["app"], MOUNTED[page])


MOUNTED = {"docs/serving.md": "/v1", "docs/embedding.md": "/sora/v1"}


def make_over_http(app: Any, root: str) -> None:
    """The app of a page makes a video while it lives."""
    from fastapi.testclient import TestClient

    small = {"prompt": "a red ball bounces", "size": "64x64", "steps": 1}
    with TestClient(app, "http://127.0.0.1") as client:
        made = client.post(f"{root}/videos", json=small).json()
        told = client.get(f"{root}/videos/{made['id']}/events").text  # until it is done
    assert '"completed"' in told


def run_command(text: str, capsys) -> None:
    argv = shlex.split(text)
    assert argv[0] == "kinema", f"neither run nor left out: {text}"
    assert cli.run(argv[1:]) == 0, f"{text}: {capsys.readouterr().err}"
    for option, value in pairwise(argv):
        if option in ("-o", "--json", "--html", "--trace") and not value.startswith("-"):
            assert Path(value).stat().st_size > 0, text


def parse_command(text: str) -> None:
    """Programs, modules, files, extras and options that a command names exist."""
    argv = deque(shlex.split(text))
    match argv.popleft():
        case "kinema":
            parse_kinema(argv)
        case "pip":
            extras = re.findall(r"\[([\w,-]+)\]", text)
            for extra in ",".join(extras).split(",") if extras else ():
                assert extra in EXTRAS, text
        case "python":
            assert (
                importlib.util.find_spec(argv[1]) if argv[0] == "-m" else (ROOT / argv[0]).exists()
            )
        case "bash":
            assert (ROOT / argv[0]).exists()
        case program:
            assert program in ("pytest", "pre-commit", "tritonserver"), text


def parse_kinema(argv: deque[str]) -> None:
    """By the command line's own parser, down to the command; nothing runs."""
    command, name = command_of(argv)
    command.make_context(name, list(argv))


def command_of(argv: deque[str]) -> tuple[Any, str]:
    """The command that a line names, and its name; what is left of `argv` is its own."""
    command, name = typer.main.get_command(cli.app), "kinema"
    while hasattr(command, "commands") and argv and not argv[0].startswith("-"):
        name = argv.popleft()
        command = command.commands[name]
    return command, name


def parse_python(text: str) -> None:
    """It compiles, and `kinema.a.b` is there."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Attribute):
            dotted = ast.unparse(node)
            if re.fullmatch(r"kinema(\.\w+)+", dotted):
                reduce(getattr, dotted.split(".")[1:], kinema)


def test_what_is_left_out_is_still_told():
    told = {left_out(text) for page in PAGES for _, text in steps(page)}
    assert not set(LEFT_OUT) - told


def test_serving_shows_the_snippet_of_the_readme():
    def snippet(page: str) -> str:
        (found,) = [t for _, t in steps(ROOT / page) if "client = openai.OpenAI(" in t]
        return found

    assert snippet("README.md").endswith(snippet("docs/serving.md"))


@pytest.mark.parametrize("page", NAMES)
def test_commands_within_sentences_exist(page):
    prose = re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)
    for text in re.findall(r"`((?:kinema|python -m|python|pip install) [^`]+)`", prose):
        argv = deque(shlex.split(text))
        if argv[0] != "kinema":
            parse_command(" ".join(argv))
            continue
        argv.popleft()
        command, _ = command_of(argv)
        known = {name for option in command.params for name in option.opts} | {"--help"}
        assert {word for word in argv if word.startswith("-")} <= known, text


def slug(heading: str) -> str:
    """The anchor that a heading gets where Markdown is shown."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", [*NAMES, "CHANGELOG.md"])
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
            assert anchor in map(slug, headings), target
