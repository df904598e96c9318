"""The checkpoint's digest: taken beside everything else, noted, given up if nobody wants it."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from blake3 import blake3

from edgeshard.artifacts.store import Store
from edgeshard.compiler import stored
from edgeshard.compiler.checkpoint import Checkpoint, open_checkpoint
from edgeshard.compiler.source import SourceDigest
from edgeshard.compiler.stored import hash_file, ignore
from edgeshard.errors import InputError
from support.gguf_family import gguf_file
from support.tiny_llama import folder, save


def test_it_is_the_checkpoints_digest_and_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = open_checkpoint(folder("grouped"))
    expected = checkpoint.digest()
    with SourceDigest(Store(tmp_path), checkpoint) as source:
        assert source.result() == expected

    monkeypatch.setattr(checkpoint, "digest", _refuse)
    with SourceDigest(Store(tmp_path), checkpoint) as source:
        assert source.result() == expected


def _refuse(on_bytes: Callable[[int], None]) -> str:
    raise AssertionError("read again")


def test_leaving_early_ends_the_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = open_checkpoint(folder("grouped"))
    begun = threading.Event()

    def endless(on_bytes: Callable[[int], None]) -> str:
        while True:
            begun.set()
            on_bytes(1)

    monkeypatch.setattr(checkpoint, "digest", endless)
    with SourceDigest(Store(tmp_path), checkpoint):
        assert begun.wait(60)

    assert list((tmp_path / "notes").iterdir()) == []


def test_a_file_that_changes_under_the_reading_is_refused_and_not_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save("grouped", tmp_path / "checkpoint")
    checkpoint: Checkpoint = open_checkpoint(path)
    digest = checkpoint.digest

    def disturbed(on_bytes: Callable[[int], None]) -> str:
        with (path / "model.safetensors").open("ab") as file:
            file.write(b"more")
        return digest(on_bytes)

    monkeypatch.setattr(checkpoint, "digest", disturbed)
    with (
        SourceDigest(Store(tmp_path / "store"), checkpoint) as source,
        pytest.raises(InputError, match="changed during the compile"),
    ):
        source.result()

    assert list((tmp_path / "store" / "notes").iterdir()) == []


@pytest.mark.parametrize("size", [0, 1, 7, 8, 50])
def test_a_file_is_digested_in_pieces(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored, "DIGEST_BYTES", 7)
    path = tmp_path / "file"
    path.write_bytes(bytes(range(size)))
    told: list[int] = []
    quick, usual = blake3(), hashlib.sha256()

    hash_file(path, quick, told.append)
    hash_file(path, usual, ignore)

    assert sum(told) == size
    assert quick.digest() == blake3(bytes(range(size))).digest()
    assert usual.digest() == hashlib.sha256(bytes(range(size))).digest()


def test_a_folder_is_known_by_the_names_and_bytes_of_its_files(tmp_path: Path) -> None:
    path = save("grouped", tmp_path)
    checkpoint = open_checkpoint(path)
    total = blake3()
    for file in checkpoint.files():
        total.update(file.name.encode() + b" " + blake3(file.read_bytes()).digest())

    assert checkpoint.digest() == f"blake3:{total.hexdigest()}"
    assert {"config.json", "model.safetensors"} <= {file.name for file in checkpoint.files()}


def test_a_gguf_file_is_known_by_the_digest_that_others_have_of_it() -> None:
    path = gguf_file("llama")
    expected = hashlib.sha256(path.read_bytes()).hexdigest()

    assert open_checkpoint(path).digest() == f"sha256:{expected}"
