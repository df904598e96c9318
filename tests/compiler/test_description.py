"""The model is described by another process as it would be here, and a failing one is said."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from edgeshard.compiler import description
from edgeshard.compiler.checkpoint import open_checkpoint
from edgeshard.compiler.describe import describe
from edgeshard.compiler.description import Describing, Description, decode, encode
from edgeshard.errors import EdgeShardError, InputError
from support.gguf_family import gguf_file
from support.tiny_llama import folder, save


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where torch is not imported yet."""
    entered = Describing.__enter__

    def enter(describing: Describing) -> Describing:
        with monkeypatch.context() as without:
            without.delitem(sys.modules, "torch")
            return entered(describing)

    monkeypatch.setattr(Describing, "__enter__", enter)


def _said(found: Description) -> tuple[object, ...]:
    """All that a description says, to be compared."""
    tables = {
        kind: (table.cos.dtype, table.cos.tolist(), table.sin.dtype, table.sin.tolist())
        for kind, table in found.tables.items()
    }
    kinds = found.model.kinds
    return found.architecture, found.is_tied, found.text, found.model, len(kinds), tables


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("kind", ["folder", "gguf"])
def test_another_process_describes_the_same_model(kind: str) -> None:
    path = folder("grouped") if kind == "folder" else gguf_file("llama")
    checkpoint = open_checkpoint(path)

    with Describing(path) as describing:
        assert describing._process is not None
        found = describing.result(checkpoint)
        assert describing.result(checkpoint) is found

    assert _said(found) == _said(describe(checkpoint))


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_a_message_says_the_whole_description(architecture: str) -> None:
    found = describe(open_checkpoint(gguf_file(architecture)))

    assert len(found.model.kinds) == len(found.tables) == (2 if architecture == "gemma3" else 1)
    assert _said(decode(encode(found))) == _said(found)


def test_a_process_that_has_torch_describes_the_model_itself() -> None:
    path = folder("grouped")

    with Describing(path) as describing:
        assert describing._process is None
        found = describing.result(open_checkpoint(path))

    assert _said(found) == _said(describe(open_checkpoint(path)))


def test_a_reason_travels_as_an_error() -> None:
    with pytest.raises(InputError, match="no such thing"):
        decode(encode(InputError("no such thing")))


@pytest.mark.usefixtures("elsewhere")
def test_what_the_other_process_refuses_is_refused_here(tmp_path: Path) -> None:
    path = save("grouped", tmp_path)
    config = path / "config.json"
    config.write_text(config.read_text("utf-8").replace('"vocab_size": ', '"vocab_size": -'))
    with Describing(path) as describing, pytest.raises(InputError) as there:
        describing.result(open_checkpoint(path))
    with pytest.raises(InputError) as here:
        describe(open_checkpoint(path))

    assert str(there.value) == str(here.value)


@pytest.mark.usefixtures("elsewhere")
def test_a_process_that_dies_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder("grouped")
    started = subprocess.Popen
    program = "import sys; sys.exit('no memory left')"
    monkeypatch.setattr(
        subprocess,
        "Popen",
        lambda command, **options: started([sys.executable, "-c", program], **options),
    )
    with (
        Describing(path) as describing,
        pytest.raises(EdgeShardError, match="ended with status 1: no memory left"),
    ):
        describing.result(open_checkpoint(path))


@pytest.mark.usefixtures("elsewhere")
def test_a_process_that_takes_too_long_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder("grouped")
    monkeypatch.setattr(description, "LIMIT_SECONDS", 0.05)
    with Describing(path) as describing:
        with pytest.raises(EdgeShardError, match="more than 0 s"):
            describing.result(open_checkpoint(path))
        process = describing._process

    assert process is not None
    assert process.poll() is not None


@pytest.mark.usefixtures("elsewhere")
def test_leaving_early_ends_the_process() -> None:
    with Describing(folder("grouped")) as describing:
        process = describing._process
        assert process is not None
        assert process.poll() is None

    assert process.poll() is not None


COMPILE = """
import sys
from pathlib import Path
from edgeshard.artifacts.store import Store
from edgeshard.compiler.compile import compile_model

path, store = map(Path, sys.argv[1:])
print(compile_model(path, Store(store), name="model").blob.digest, "torch" in sys.modules)
"""


def test_compiling_imports_no_torch_and_gives_the_same_model(tmp_path: Path) -> None:
    from edgeshard.artifacts.store import Store
    from edgeshard.compiler.compile import compile_model

    path = folder("grouped")
    said = subprocess.run(
        [sys.executable, "-P", "-c", COMPILE, path, tmp_path / "there"],
        capture_output=True,
        text=True,
        check=True,
        timeout=240,
    ).stdout.split()
    here = compile_model(path, Store(tmp_path / "here"), name="model")

    assert said == [here.blob.digest, "False"]
