"""What the documentation says exists: commands, options, files, links, the example."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest
import typer

from edgeshard.cli import app
from edgeshard.errors import EdgeShardError

ROOT = Path(__file__).parents[1]
FOLDERS = (
    "artifacts",
    "benchmarks",
    "compiler",
    "docs",
    "edgeshard",
    "examples",
    "planner",
    "runtime",
    "schemas",
    "tests",
)
DOCS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
DECISIONS = sorted((ROOT / "docs" / "adr").glob("*.md"))
TEXT_SUFFIXES = {".cfg", ".json", ".md", ".py", ".svg", ".toml", ".txt", ".yaml", ".yml", ""}
README = (ROOT / "README.md").read_text("utf-8")
COMMANDS = typer.main.get_command(app)


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def code_blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands_of_readme() -> Iterator[list[str]]:
    """The words of every `esc` line in a code block, continued lines joined."""
    for block in code_blocks(README, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line.removesuffix("&"), comments=True)
            if words[:1] == ["esc"]:
                yield words[1:]


def own_files() -> Iterator[Path]:
    for folder in FOLDERS:
        yield from (ROOT / folder).rglob("*")
    yield from (path for path in ROOT.glob("*") if path.name != ".git")
    yield from (ROOT / ".ci").glob("*")


@pytest.mark.parametrize("words", list(commands_of_readme()), ids=" ".join)
def test_a_command_of_the_readme_can_be_parsed(words: list[str]) -> None:
    # Names, options, types and what is required; nothing runs.
    context = COMMANDS.make_context("esc", words, resilient_parsing=False)
    name, command, rest = COMMANDS.resolve_command(context, words)  # type: ignore[attr-defined]  # it is a group
    assert command is not None, f"no command {words[0]}"
    command.make_context(name, list(rest), parent=context)


def test_the_readme_shows_every_command() -> None:
    shown = {words[0] for words in commands_of_readme()}
    assert shown | {"demo"} == set(COMMANDS.commands)  # type: ignore[attr-defined]  # it is a group


@pytest.mark.parametrize("path", DOCS, ids=named)
def test_a_command_that_is_named_in_passing_exists(path: Path) -> None:
    text = path.read_text("utf-8")
    for name, option in re.findall(r"`esc ([a-z-]+)(?: [^`]*?(--[a-z-]+))?[^`]*`", text):
        command = COMMANDS.commands.get(name)  # type: ignore[attr-defined]  # it is a group
        assert command is not None, name
        known = {word for parameter in command.params for word in parameter.opts}
        assert option in known | {"", "--help"}, f"esc {name} {option}"


def test_the_readme_has_the_two_commands() -> None:
    blocks = "\n".join(code_blocks(README, "sh"))
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for target in ("demo", "test"):
        assert re.search(rf"^make {target}\b", blocks, re.MULTILINE)
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_the_readmes_python_is_the_example() -> None:
    example = (ROOT / "examples" / "generate.py").read_text("utf-8")
    assert code_blocks(README, "python") == [example]


def test_the_readme_has_the_exit_codes() -> None:
    kinds: list[type[EdgeShardError]] = [EdgeShardError, *EdgeShardError.__subclasses__()]
    codes = {kind.exit_code for kind in kinds}
    section = README.split("## Exit codes")[1].split("##")[0]
    shown = {int(number) for number in re.findall(r"\| (\d+) (?=\|)", section)}
    assert shown == codes | {0, 130}


@pytest.mark.parametrize("path", DOCS, ids=named)
def test_a_relative_link_leads_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text("utf-8")):
        if not target.startswith(("https://", "http://", "#")):
            assert (path.parent / target.split("#")[0]).exists(), target


@pytest.mark.parametrize("path", DOCS, ids=named)
def test_a_decision_is_linked_by_its_own_number(path: Path) -> None:
    links = re.findall(
        r"\[(?:adr/)?(\d+)[^\]]*\]\((?:adr/)?(\d{4})-[^)]+\)", path.read_text("utf-8")
    )
    assert all(int(said) == int(number) for said, number in links), links


def test_no_two_decisions_share_a_number() -> None:
    numbers = [path.name.split("-")[0] for path in DECISIONS]
    assert numbers, "no decisions"
    assert len(set(numbers)) == len(numbers), numbers


@pytest.mark.parametrize("path", DECISIONS, ids=named)
def test_a_decision_has_the_number_of_its_file(path: Path) -> None:
    assert path.read_text("utf-8").startswith(f"# {int(path.name.split('-')[0])}. ")


def test_a_decision_that_code_names_exists() -> None:
    numbers = {path.name.split("-")[0] for path in DECISIONS}
    for path in own_files():
        if path.suffix == ".py":
            for number, rest in re.findall(
                r"docs/adr/(\d{4})(-[\w.-]+\.md)?", path.read_text("utf-8")
            ):
                assert number in numbers, f"{named(path)}: {number}"
                assert not rest or (ROOT / "docs" / "adr" / f"{number}{rest}").exists(), named(path)


@pytest.mark.parametrize("path", DOCS, ids=named)
def test_a_module_that_is_named_exists(path: Path) -> None:
    files = [str(file.relative_to(ROOT)) for file in own_files() if file.suffix == ".py"]
    files += [f"edgeshard/{file}" for file in files]
    for name in re.findall(r"`([\w/]+\.py)`", path.read_text("utf-8")):
        assert any(f"/{file}".endswith(f"/{name}") for file in files), name


@pytest.mark.parametrize("path", sorted((ROOT / "docs").rglob("*.svg")), ids=named)
def test_a_picture_is_whole(path: Path) -> None:
    root = ElementTree.parse(path).getroot()
    assert root.get("viewBox")
    assert any(element.tag.endswith("title") for element in root)


def test_no_file_names_a_path_of_one_machine() -> None:
    found = re.compile(r"(?<![\w.])/(work|tmp/w|home/\w+)(?![\w-])")
    for path in own_files():
        if path.is_file() and path.suffix in TEXT_SUFFIXES:
            hit = found.search(path.read_text("utf-8"))
            assert hit is None, f"{named(path)}: {hit}"
