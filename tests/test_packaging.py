"""The five folders install under one name, and nothing that is tracked is ignored."""

from __future__ import annotations

import os
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("artifacts", "compiler", "planner", "runtime", "schemas")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
SETUPTOOLS = PROJECT["tool"]["setuptools"]


def test_every_package_is_listed() -> None:
    own = {path.parent for path in (ROOT / "edgeshard").glob("*/__init__.py")}
    found = {"edgeshard", *(f"edgeshard.{folder.name}" for folder in own)}

    assert found == set(SETUPTOOLS["packages"])
    assert len(SETUPTOOLS["packages"]) == len(found)


def test_no_folder_within_a_package_is_left_out() -> None:
    """A nested package would need a line of its own."""
    for folder in (*FOLDERS, "edgeshard/cli", "edgeshard/paper", "edgeshard/simulate"):
        nested = [path.parent.name for path in (ROOT / folder).glob("*/**/*.py")]
        assert nested == [], folder


@pytest.mark.parametrize("name", FOLDERS)
def test_the_links_name_the_folders(name: str) -> None:
    link = ROOT / "edgeshard" / name

    assert os.readlink(link) == f"../{name}"
    assert link.resolve() == ROOT / name
    assert SETUPTOOLS["package-dir"][f"edgeshard.{name}"] == name


def test_no_other_package_is_mapped() -> None:
    mapped = {"edgeshard", *(f"edgeshard.{name}" for name in FOLDERS)}

    assert set(SETUPTOOLS["package-dir"]) == mapped


def test_the_schemas_travel_with_the_package() -> None:
    (pattern,) = SETUPTOOLS["package-data"]["edgeshard.schemas"]

    assert len(list((ROOT / "schemas").glob(pattern))) >= 5
    (name,) = SETUPTOOLS["package-data"]["edgeshard.paper"]
    assert (ROOT / "edgeshard" / "paper" / name).exists()
    assert (ROOT / "edgeshard" / "py.typed").exists()


def test_the_texts_travel_with_the_package() -> None:
    own = {str(path.relative_to(ROOT / "edgeshard")) for path in ROOT.glob("edgeshard/texts/*")}
    listed = {
        str(path.relative_to(ROOT / "edgeshard"))
        for pattern in SETUPTOOLS["package-data"]["edgeshard"]
        for path in (ROOT / "edgeshard").glob(pattern)
    }

    assert own
    assert own <= listed


def test_what_a_device_needs_has_no_compiler_in_it() -> None:
    needed = " ".join(PROJECT["project"]["dependencies"])

    for name in ("torch", "transformers", "optimum", "gguf", "safetensors"):
        assert name not in needed
        assert any(
            item.startswith(name) for item in PROJECT["project"]["optional-dependencies"]["compile"]
        )


def test_what_a_device_needs_has_no_simulator_in_it() -> None:
    needed = " ".join(PROJECT["project"]["dependencies"])
    extra = " ".join(PROJECT["project"]["optional-dependencies"]["simulate"])

    for name in ("matplotlib", "simpy"):
        assert name not in needed
        assert name in extra


def _git(*arguments: str) -> list[str]:
    command = ["git", "-C", str(ROOT), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_no_tracked_file_is_ignored() -> None:
    assert _git("ls-files", "--cached", "--ignored", "--exclude-standard") == []


def test_every_source_file_can_be_tracked() -> None:
    """`/schemas/json` or `artifacts` once matched an ignore line and would have been left out."""
    sources = [str(path.relative_to(ROOT)) for name in FOLDERS for path in (ROOT / name).rglob("*")]
    kept = [name for name in sources if name.endswith((".py", ".json"))]
    ignored = subprocess.run(
        ["git", "-C", str(ROOT), "check-ignore", "--no-index", "--stdin"],
        input="\n".join(kept),
        capture_output=True,
        text=True,
    )

    assert ignored.stdout == ""
    assert ignored.returncode == 1  # none is ignored
