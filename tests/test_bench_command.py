"""`esc bench`: several models, each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from edgeshard.artifacts.store import Store
from edgeshard.compiler.compile import compile_model
from support.tiny_llama import folder

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench")
    for precision in ("fp32", "int8"):
        compile_model(folder("grouped"), Store(path), precision=precision, name=precision)
    return path


def bench(store: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edgeshard", "bench", "--store", store, "--rounds", "2", *words],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_every_model_has_a_row_for_each_context_and_prompt(store: Path) -> None:
    done = bench(store, "--contexts", "4,8", "--prompts", "6", "--json")

    rows = json.loads(done.stdout)["rows"]
    places = [(row["name"], row["kind"], row["context"], row["prompt"]) for row in rows]
    assert places == [
        (name, *place)
        for name in ("fp32", "int8")
        for place in (("prefill", 0, 6), ("decode", 4, 0), ("decode", 8, 0))
    ]
    assert all(min(row["samples"]) > 0 and len(row["samples"]) == 2 for row in rows)


@pytest.mark.parametrize("models", [("fp32",), ("fp32", "int8")])
def test_what_one_cannot_do_is_said_once_and_ends_it(store: Path, models: tuple[str, ...]) -> None:
    named = [word for model in models for word in ("--model", model)]

    done = bench(store, "--contexts", "100000", "--prompts", "6", *named)

    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "context 100064 is more than the model's" in done.stderr
