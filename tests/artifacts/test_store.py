"""A blob appears whole or not at all, and a changed one is refused by name."""

from __future__ import annotations

import hashlib
import os
import re
import stat
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeshard.artifacts.store import Store
from edgeshard.errors import ArtifactError, InputError
from edgeshard.schemas.common import Blob
from edgeshard.schemas.note import SourceNote
from support.tiny_llama import compiled


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def _incoming(store: Store) -> list[Path]:
    return list((store.root / "incoming").iterdir())


def _blobs(store: Store) -> list[Path]:
    return list((store.root / "blobs").iterdir())


def _replace(store: Store, blob: Blob, data: bytes) -> str:
    """Put other bytes in a blob's place; returns their digest."""
    store.path(blob).unlink()
    store.path(blob).write_bytes(data)
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def test_a_blob_is_named_by_what_it_holds_and_is_read_only(store: Store) -> None:
    blob = store.put(b"hello", ".json")

    path = store.path(blob)
    assert path.name == hashlib.sha256(b"hello").hexdigest() + ".json"
    assert path.read_bytes() == b"hello"
    assert stat.S_IMODE(path.stat().st_mode) == 0o444
    assert _incoming(store) == []


def test_known_bytes_are_not_written_again(store: Store) -> None:
    first = store.put(b"hello", ".json")
    inode = store.path(first).stat().st_ino

    assert store.put(b"hello", ".json") == first
    assert store.path(first).stat().st_ino == inode


def test_one_text_under_two_suffixes_is_two_blobs(store: Store) -> None:
    assert store.put(b"x", ".json") != store.put(b"x", ".jinja")
    assert len(_blobs(store)) == 2


@settings(derandomize=True, deadline=None, max_examples=40)
@given(st.lists(st.binary(max_size=300), max_size=6))
def test_what_is_written_in_pieces_is_read_whole(pieces: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        with store.writer(".safetensors") as writer:
            for piece in pieces:
                writer.write(memoryview(piece))
            blob = writer.finish()

        assert store.read(blob) == b"".join(pieces)
        assert blob == store.put(b"".join(pieces), ".safetensors")
        assert store.has(blob)


def test_verify_tells_how_many_bytes_it_read(store: Store) -> None:
    blobs = [store.put(bytes(size), ".safetensors") for size in (0, 10, 5_000_000)]
    seen: list[int] = []

    store.verify(blobs, seen.append)

    assert sum(seen) == 5_000_010


@pytest.mark.parametrize("data", [b"jello", b"hell", b"hello!", b""])
def test_a_changed_blob_is_refused_with_both_digests(store: Store, data: bytes) -> None:
    blob = store.put(b"hello", ".json")
    actual = _replace(store, blob, data)

    with pytest.raises(ArtifactError) as caught:
        store.read(blob)

    text = str(caught.value)
    assert str(store.path(blob)) in text
    assert blob.digest in text
    assert actual in text
    assert "\n" not in text


def test_a_missing_blob_is_refused_by_name(store: Store) -> None:
    blob = store.put(b"hello", ".json")
    store.path(blob).unlink()

    with pytest.raises(ArtifactError, match=f"missing.*{blob.digest}"):
        store.verify([blob])
    assert not store.has(blob)


def test_a_link_is_no_blob_even_to_the_right_bytes(store: Store, tmp_path: Path) -> None:
    blob = store.put(b"hello", ".json")
    store.path(blob).rename(tmp_path / "elsewhere")
    store.path(blob).symlink_to(tmp_path / "elsewhere")

    with pytest.raises(ArtifactError, match="is a link"):
        store.verify([blob])
    assert not store.has(blob)


def test_a_folder_is_no_blob(store: Store) -> None:
    blob = store.put(b"hello", ".json")
    store.path(blob).unlink()
    store.path(blob).mkdir()

    with pytest.raises(ArtifactError, match="not a plain file"):
        store.verify([blob])


def test_an_interrupted_writer_leaves_nothing(store: Store) -> None:
    with pytest.raises(KeyboardInterrupt), store.writer(".onnx") as writer:  # noqa: PT012  # the interruption is the point
        writer.write(b"half of it")
        raise KeyboardInterrupt

    assert _incoming(store) == []
    assert _blobs(store) == []


def test_other_bytes_than_expected_leave_nothing(store: Store, tmp_path: Path) -> None:
    expected = Store(tmp_path / "other").put(b"what was promised", ".onnx")

    with store.writer(".onnx") as writer:
        writer.write(b"what came")
        with pytest.raises(ArtifactError, match=f"{expected.digest} .* arrived as sha256:"):
            writer.finish(expected)

    assert _incoming(store) == []
    assert _blobs(store) == []


def test_a_full_disk_is_an_error_of_the_artifact_and_leaves_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)

    with pytest.raises(ArtifactError, match="No space left on device"):
        store.put(b"hello", ".json")
    assert _incoming(store) == []
    assert _blobs(store) == []


def test_a_path_that_is_a_file_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(InputError, match="as a store"):
        Store(tmp_path / "file")


# Names and manifests


def test_a_model_is_found_by_its_name(store: Store) -> None:
    manifest = compiled("grouped").manifest

    blob = store.put_model(manifest)

    assert store.models() == [manifest.name]
    assert store.model(manifest.name) == (manifest, blob)


def test_a_model_is_found_by_its_digest(store: Store) -> None:
    manifest = compiled("grouped").manifest
    blob = store.put_model(manifest)
    assert store.find(blob.digest) == (manifest, blob)
    with pytest.raises(InputError, match=r"no model in .* is sha256:0000"):
        store.find("sha256:" + "0" * 64)


def test_an_unknown_name_is_refused_with_those_that_are_known(store: Store) -> None:
    with pytest.raises(InputError, match=r"none; run `esc compile`"):
        store.model("llama")
    store.put_model(compiled("grouped").manifest)
    with pytest.raises(InputError, match=re.escape(compiled("grouped").manifest.name)):
        store.model("llama")


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "x" * 65, "a\n", "é"])
def test_a_name_that_is_no_plain_file_name_is_refused(store: Store, name: str) -> None:
    with pytest.raises(InputError, match="model name"):
        store.model(name)


def test_a_changed_manifest_is_refused(store: Store) -> None:
    manifest = compiled("grouped").manifest
    blob = store.put_model(manifest)
    text = store.path(blob).read_bytes()
    _replace(store, blob, text.replace(b'"ort"', b'"0rt"'))

    with pytest.raises(ArtifactError, match=blob.digest):
        store.model(manifest.name)


# Writing in any order, notes


def test_bytes_may_come_in_any_order(store: Store) -> None:
    with store.writer(".json") as writer:
        writer.reserve(6)
        writer.write_at(3, b"def")
        writer.write_at(0, b"abc")
        blob = writer.finish()

    assert blob == store.put(b"abcdef", ".json")
    assert store.read(blob) == b"abcdef"


def test_a_note_comes_back_and_a_broken_one_is_as_none(store: Store) -> None:
    note = SourceNote(digest=f"sha256:{'0' * 64}")
    assert store.note("source-1", SourceNote) is None

    store.put_note("source-1", note)
    (store.root / "notes" / "source-2.json").write_text('{"format": ')

    assert store.note("source-1", SourceNote) == note
    assert store.note("source-2", SourceNote) is None


def test_sweeping_takes_what_dead_processes_left_and_no_more(store: Store) -> None:
    incoming = store.root / "incoming"
    old, new, old_folder, folder = (incoming / name for name in ("a", "b", "c", "d"))
    for path in (old, new, old_folder / "blobs" / "x", folder / "x", folder / "y"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    outside = store.root / "outside"
    outside.touch()
    (old_folder / "link").symlink_to(outside)
    for path in (old, *old_folder.rglob("*"), old_folder, folder / "x", folder):
        os.utime(path, (0, 0), follow_symlinks=False)

    store.sweep()

    assert sorted(_incoming(store)) == [new, folder]  # `y` in it was written lately
    assert sorted(path.name for path in folder.iterdir()) == ["x", "y"]
    assert outside.exists()
