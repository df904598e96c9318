"""The same `esc compile` again does nothing; whatever may decide what comes out counts."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeshard.artifacts.store import Store
from edgeshard.cli.compile import run_compile
from edgeshard.compiler import compile as compiling
from edgeshard.compiler import finished
from edgeshard.compiler.finished import Compiled
from edgeshard.errors import InputError
from edgeshard.schemas.common import Precision, Target
from support.gguf_file import MIXED, write_gguf
from support.tiny_llama import NUM_BLOCKS, save


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return save("grouped", tmp_path / "checkpoint")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def _again(
    monkeypatch: pytest.MonkeyPatch,
    checkpoint: Path,
    store: Store,
    precision: Precision = "int8",
    target: Target = "ort",
    name: str | None = None,
    bits: float | None = None,
) -> Compiled | None:
    """What is given without compiling; None where it would be compiled."""

    class CompiledAnewError(Exception):
        pass

    def refuse(*_: object, **__: object) -> None:
        raise CompiledAnewError

    with monkeypatch.context() as patch:
        patch.setattr(compiling, "compile_model", refuse)
        try:
            return run_compile(checkpoint, store, precision, target, name, bits=bits)
        except CompiledAnewError:
            return None


def test_it_is_the_same_model_and_says_the_same(
    tmp_path: Path,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", MIXED).path
    first = run_compile(path, store, "int8", "ort")
    told = capsys.readouterr()

    again = _again(monkeypatch, path, store)

    assert again is not None
    assert (again.blob, again.manifest) == (first.blob, first.manifest)
    assert first.notices == again.notices != ()
    assert (first.num_reused, again.num_reused) == (0, len(first.manifest.units))
    told_again = capsys.readouterr()
    assert told_again.err == told.err
    assert told_again.out == told.out.replace(
        " units,", f" units ({again.num_reused} made before),"
    )


def test_a_name_stands_for_what_it_was_compiled_to_last(
    checkpoint: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run_compile(checkpoint, store, "int8", "ort", "model")
    other = run_compile(checkpoint, store, "fp32", "ort", "model")
    assert store.model("model")[1] == other.blob

    again = _again(monkeypatch, checkpoint, store, name="model")

    assert again is not None
    assert store.model("model")[1] == first.blob == again.blob != other.blob


def test_other_wishes_are_compiled(
    checkpoint: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_compile(checkpoint, store, "int8", "ort")

    assert _again(monkeypatch, checkpoint, store, precision="fp32") is None
    assert _again(monkeypatch, checkpoint, store, target="portable") is None
    assert _again(monkeypatch, checkpoint, store, name="other") is None
    assert _again(monkeypatch, checkpoint, store, bits=5.0) is None
    assert _again(monkeypatch, checkpoint, store) is not None


def _touch(checkpoint: Path, store: Store) -> None:
    os.utime(checkpoint / "config.json", ns=(1, 1))


def _add(checkpoint: Path, store: Store) -> None:
    (checkpoint / "chat_template.jinja").write_text("{{ messages[0].content }}")


def _drop_weights(checkpoint: Path, store: Store) -> None:
    next((store.root / "blobs").glob("*.safetensors")).unlink()


def _drop_manifest(checkpoint: Path, store: Store) -> None:
    store.path(store.model(store.models()[0])[1]).unlink()


def _change_manifest(checkpoint: Path, store: Store) -> None:
    path = store.path(store.model(store.models()[0])[1])
    path.chmod(0o644)
    path.write_bytes(path.read_bytes().replace(b"int8", b"int4"))


def _drop_notes(checkpoint: Path, store: Store) -> None:
    for path in (store.root / "notes").glob("model-*"):
        path.unlink()


@pytest.mark.parametrize(
    "change", [_touch, _add, _drop_weights, _drop_manifest, _change_manifest, _drop_notes]
)
def test_what_is_not_as_it_was_is_compiled(
    change: Callable[[Path, Store], None],
    checkpoint: Path,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run_compile(checkpoint, store, "int8", "ort")
    assert _again(monkeypatch, checkpoint, store) is not None

    change(checkpoint, store)

    assert _again(monkeypatch, checkpoint, store) is None


@pytest.mark.parametrize("part", ["_code", "_versions"])
def test_another_compiler_compiles(
    part: str, checkpoint: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_compile(checkpoint, store, "int8", "ort")
    monkeypatch.setattr(finished, part, lambda: "another")

    assert _again(monkeypatch, checkpoint, store) is None


def test_the_code_and_the_packages_are_looked_at() -> None:
    assert len(finished._code()) == 64
    assert all(finished._versions())


def test_a_missing_checkpoint_is_refused_by_the_compile(tmp_path: Path, store: Store) -> None:
    with pytest.raises(InputError, match="no checkpoint at"):
        run_compile(tmp_path / "nothing", store, "int8", "ort")

    assert list((store.root / "notes").iterdir()) == []


def test_another_text_to_calibrate_with_is_another_compile(checkpoint: Path) -> None:
    words = "the text"

    keys = {finished.key_of(checkpoint, {"text": text}) for text in (None, words, words + " ")}

    assert len(keys) == 3


def test_what_cannot_be_read_has_no_key(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The compile is to say what is wrong."""

    def refuse(_: Path) -> None:
        raise PermissionError

    assert finished.key_of(checkpoint, {}) is not None
    assert finished.key_of(tmp_path / "nothing", {}) is None
    monkeypatch.setattr(Path, "iterdir", refuse)
    assert finished.key_of(checkpoint, {}) is None


def test_every_unit_is_counted(checkpoint: Path, store: Store) -> None:
    assert len(run_compile(checkpoint, store, "int8", "ort").manifest.units) == NUM_BLOCKS + 2
