"""A content-addressed store: blobs by sha256, and names that point at manifests.

    STORE/blobs/0f3a….safetensors     immutable, 0444, named by what they hold
    STORE/models/NAME.json            which manifest a name stands for
    STORE/incoming/…                  unfinished writes; never read
    STORE/notes/KIND-KEY.json         what spares a later compile work; may be deleted at any time

A blob appears whole or not at all: it is written aside, flushed to disk, checked and renamed, and
the folder is flushed after. A graph and its weights lie in one folder, so ONNX Runtime and every
other tool opens them where they are.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, TypeVar

from edgeshard.errors import ArtifactError, InputError
from edgeshard.schemas import files
from edgeshard.schemas.common import Blob, Schema
from edgeshard.schemas.model import ModelManifest
from edgeshard.schemas.shard import ShardManifest
from edgeshard.system import open_plain, set_mode, sync_folder

CHUNK_BYTES = 4 * 2**20
STALE_SECONDS = 3600.0
Note = TypeVar("Note", bound=Schema)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class BlobWriter:
    """One blob being written: takes bytes, knows their digest, publishes on `finish`.

    Bytes come in order (`write`), or after `reserve` in any order (`write_at`).
    """

    def __init__(self, store: Store, suffix: str) -> None:
        self._store = store
        self._suffix = suffix
        handle, name = tempfile.mkstemp(dir=store.root / "incoming", suffix=suffix)
        self._path = Path(name)
        self._file = os.fdopen(handle, "w+b")
        self._hash = hashlib.sha256()
        self._in_order = True
        self.size_bytes = 0

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes."""
        with _disk_errors(self._path):
            self._file.write(data)
        self._hash.update(data)
        self.size_bytes += len(data)

    def reserve(self, size_bytes: int) -> None:
        """Set the blob's length; from now on bytes come by `write_at`."""
        with _disk_errors(self._path):
            self._file.truncate(size_bytes)
        self.size_bytes = size_bytes
        self._in_order = False

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        """Put bytes at their place within what was reserved."""
        with _disk_errors(self._path):
            self._file.seek(offset)
            self._file.write(data)

    def finish(self, expected: Blob | None = None) -> Blob:
        """Flush, check against `expected` and publish.

        Raises:
            ArtifactError: the bytes are not the expected ones, or the disk refused them.
        """
        if not self._in_order:
            self._file.seek(0)
            self._hash = hashlib.file_digest(self._file, "sha256")
        blob = Blob(
            digest=f"sha256:{self._hash.hexdigest()}",
            size_bytes=self.size_bytes,
            suffix=self._suffix,  # type: ignore[arg-type]  # the callers pass literals
        )
        if expected is not None and blob != expected:
            self.abort()
            raise ArtifactError(
                f"blob {expected.digest} ({expected.size_bytes} bytes) arrived as {blob.digest} "
                f"({blob.size_bytes} bytes); nothing was kept, send it again"
            )
        with _disk_errors(self._path):
            self._file.flush()
            os.fsync(self._file.fileno())
            set_mode(self._path, self._file.fileno(), 0o444)
            self._file.close()
            os.replace(self._path, self._store.path(blob))
            sync_folder(self._store.root / "blobs")
        return blob

    def abort(self) -> None:
        """Forget what was written."""
        self._file.close()
        self._path.unlink(missing_ok=True)


class Store:
    """Blobs and model names below one folder."""

    def __init__(self, root: Path) -> None:
        """Open a store, making its folders where they are missing.

        Raises:
            InputError: the folder cannot be made or written.
        """
        self.root = root
        try:
            for folder in ("blobs", "models", "incoming", "notes"):
                (root / folder).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot use {root} as a store: {error.strerror}") from error

    def path(self, blob: Blob) -> Path:
        """Where a blob lies, or would lie."""
        return self.root / "blobs" / blob.filename

    def has(self, blob: Blob) -> bool:
        """Whether a blob is here with its size; its bytes are checked when it is used."""
        try:
            found = os.lstat(self.path(blob))
        except FileNotFoundError:
            return False
        return stat.S_ISREG(found.st_mode) and found.st_size == blob.size_bytes

    @contextlib.contextmanager
    def writer(self, suffix: str) -> Iterator[BlobWriter]:
        """Write a blob; what was not finished when the block ends is dropped."""
        writer = BlobWriter(self, suffix)
        try:
            yield writer
        finally:
            writer.abort()

    def put(self, data: bytes, suffix: str) -> Blob:
        """Store bytes as a blob; known bytes are not written again."""
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        blob = Blob(digest=digest, size_bytes=len(data), suffix=suffix)  # type: ignore[arg-type]
        if not self.has(blob):
            with self.writer(suffix) as writer:
                writer.write(data)
                writer.finish()
        return blob

    def verify(
        self, blobs: Iterable[Blob], on_bytes: Callable[[int], None] = lambda _: None
    ) -> None:
        """Read blobs and compare their digests.

        Args:
            blobs: what to check.
            on_bytes: told how many more bytes were read, for a progress bar.

        Raises:
            ArtifactError: a blob is missing or changed; names it, with expected and actual digest.
        """
        for blob in blobs:
            with self._open(blob) as file:
                actual = hashlib.sha256()
                while chunk := file.read(CHUNK_BYTES):
                    actual.update(chunk)
                    on_bytes(len(chunk))
            found = f"sha256:{actual.hexdigest()}"
            if found != blob.digest:
                raise ArtifactError(
                    f"blob {self.path(blob)} is changed: expected {blob.digest}, found {found}; "
                    "delete it, then compile or deploy again"
                )

    def read(self, blob: Blob) -> bytes:
        """Read a small blob whole and checked.

        Raises:
            ArtifactError: see `verify`.
        """
        self.verify([blob])
        return self.path(blob).read_bytes()

    def _open(self, blob: Blob) -> BinaryIO:
        path = self.path(blob)
        try:
            handle = open_plain(path)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise ArtifactError(f"blob {path} is a link; blobs are plain files") from error
            raise ArtifactError(
                f"blob {path} is missing (expected {blob.digest}): {error.strerror}; "
                "compile or deploy again"
            ) from error
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            os.close(handle)
            raise ArtifactError(f"blob {path} is not a plain file; delete it, then compile again")
        if found.st_size != blob.size_bytes:
            with os.fdopen(handle, "rb") as file:
                actual = hashlib.file_digest(file, "sha256").hexdigest()
            raise ArtifactError(
                f"blob {path} is changed: expected {blob.digest} of {blob.size_bytes} bytes, "
                f"found sha256:{actual} of {found.st_size} bytes; "
                "delete it, then compile or deploy again"
            )
        return os.fdopen(handle, "rb")

    # Notes

    def note(self, name: str, kind: type[Note]) -> Note | None:
        """A note, or None where there is none that can be read."""
        path = self.root / "notes" / f"{name}.json"
        if not path.exists():
            return None
        try:
            return files.read(path, kind)
        except InputError:  # cut off, or of another version: the work is done again
            return None

    def put_note(self, name: str, note: Schema) -> None:
        """Leave a note for a later compile."""
        files.write(self.root / "notes" / f"{name}.json", note)

    def sweep(self) -> None:
        """Delete what dead processes left in `incoming`; a living one writes more often."""
        for path in (self.root / "incoming").iterdir():
            with contextlib.suppress(OSError):  # another process was faster
                parts = [path, *path.rglob("*")] if path.is_dir() else [path]
                if time.time() - max(part.lstat().st_mtime for part in parts) < STALE_SECONDS:
                    continue
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()

    # Names and manifests

    def put_model(self, manifest: ModelManifest) -> Blob:
        """Publish a model manifest, last of all its parts, and point its name at it."""
        blob = self.put(files.encode(manifest), ".json")
        files.write(self._name_path(manifest.name), blob)
        return blob

    def model(self, name: str) -> tuple[ModelManifest, Blob]:
        """The manifest that a name stands for, with its blob.

        Raises:
            InputError: no such name here; lists those that are.
            ArtifactError: the manifest is missing or changed.
        """
        path = self._name_path(name)
        if not path.exists():
            known = ", ".join(self.models()) or "none; run `esc compile`"
            raise InputError(f"no model {name!r} in {self.root}; known: {known}")
        blob = files.read(path, Blob)
        return self.manifest(blob), blob

    def manifest(self, blob: Blob) -> ModelManifest:
        """Read a model manifest.

        Raises:
            ArtifactError: it is missing or changed.
            InputError: it is of another version.
        """
        return files.decode(self.read(blob), ModelManifest, str(self.path(blob)))

    def find(self, digest: str) -> tuple[ModelManifest, Blob]:
        """The manifest of a digest, with its blob.

        Raises:
            InputError: no name here stands for it.
            ArtifactError: the manifest is missing or changed.
        """
        for name in self.models():
            blob = files.read(self._name_path(name), Blob)
            if blob.digest == digest:
                return self.model(name)
        raise InputError(f"no model in {self.root} is {digest}; compile it there")

    def models(self) -> list[str]:
        """Names of the models here, sorted."""
        return sorted(path.stem for path in (self.root / "models").glob("*.json"))

    def put_shard(self, shard: ShardManifest) -> Blob:
        """Store a shard manifest."""
        return self.put(files.encode(shard), ".json")

    def shard(self, blob: Blob) -> ShardManifest:
        """Read a shard manifest.

        Raises:
            ArtifactError: it is missing or changed.
        """
        return files.decode(self.read(blob), ShardManifest, str(self.path(blob)))

    def _name_path(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise InputError(
                f"model name {name!r} is not letters, digits, '.', '_' or '-' (at most 64)"
            )
        return self.root / "models" / f"{name}.json"


@contextlib.contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        path.unlink(missing_ok=True)
        raise ArtifactError(
            f"cannot write {path.parent}: {error.strerror}; nothing was kept, free space and retry"
        ) from error
