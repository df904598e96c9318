"""Blobs in chunks: in order, no more than announced, published only when right."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from edgeshard.artifacts.store import Store
from edgeshard.errors import ArtifactError, DeviceError, InputError
from edgeshard.runtime.uploads import MAX_UNFINISHED, Uploads
from edgeshard.schemas.common import Blob


def blob_of(data: bytes) -> Blob:
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    return Blob(digest=digest, size_bytes=len(data), suffix=".onnx")


def test_chunks_in_order_become_a_blob(tmp_path: Path) -> None:
    store, blob = Store(tmp_path), blob_of(b"abcdef")
    uploads = Uploads(store)
    uploads.put("me", blob, 0, b"abc")
    assert not store.has(blob)
    uploads.put("me", blob, 3, b"def")
    assert store.read(blob) == b"abcdef"


def test_an_empty_blob_is_one_chunk(tmp_path: Path) -> None:
    store, blob = Store(tmp_path), blob_of(b"")
    Uploads(store).put("me", blob, 0, b"")
    assert store.read(blob) == b""


@pytest.mark.parametrize(("offset", "data"), [(2, b"x"), (4, b"x"), (3, b"defg")])
def test_a_chunk_that_does_not_follow_is_refused(tmp_path: Path, offset: int, data: bytes) -> None:
    uploads, blob = Uploads(Store(tmp_path)), blob_of(b"abcdef")
    uploads.put("me", blob, 0, b"abc")
    with pytest.raises(InputError, match="does not follow"):
        uploads.put("me", blob, offset, data)
    with pytest.raises(DeviceError, match="from its start"):
        uploads.put("me", blob, 3, b"def")


def test_other_bytes_than_announced_leave_nothing(tmp_path: Path) -> None:
    uploads, blob = Uploads(Store(tmp_path)), blob_of(b"abcdef")
    with pytest.raises(ArtifactError, match="arrived as"):
        uploads.put("me", blob, 0, b"abcdeX")
    assert not list(tmp_path.rglob("*.onnx"))


def test_beginning_again_and_giving_up_leave_nothing_behind(tmp_path: Path) -> None:
    uploads = Uploads(Store(tmp_path))
    for number in range(MAX_UNFINISHED + 3):
        uploads.put("me", blob_of(bytes([number, 1])), 0, bytes([number]))
    uploads.put("me", blob_of(bytes([0, 1])), 0, b"\0")
    assert len(list((tmp_path / "incoming").iterdir())) == MAX_UNFINISHED
    uploads.close()
    assert not list((tmp_path / "incoming").iterdir())
