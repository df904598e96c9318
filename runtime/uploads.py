"""Blobs that arrive at an agent in chunks.

Rule: chunks come in order, never more bytes than announced, and a blob is published only once its
digest is the announced one.
"""

from __future__ import annotations

from edgeshard.artifacts.store import BlobWriter, Store
from edgeshard.errors import DeviceError, InputError
from edgeshard.schemas.common import Blob

MAX_UNFINISHED = 8


class Uploads:
    """Blobs being written, by sender and digest. Used by one thread."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._writers: dict[tuple[str, str], BlobWriter] = {}

    def put(self, sender: str, blob: Blob, offset: int, data: bytes) -> None:
        """Take a chunk; the last one publishes the blob.

        Raises:
            InputError: it does not follow the chunk before.
            ArtifactError: the bytes are not the announced ones, or the disk refuses them.
            DeviceError: too many blobs are unfinished.
        """
        key = (sender, blob.digest)
        if offset == 0:
            self._drop(key)
            if len(self._writers) >= MAX_UNFINISHED:
                self._drop(next(iter(self._writers)))
            self._writers[key] = BlobWriter(self._store, blob.suffix)
        writer = self._writers.get(key)
        if writer is None:
            raise DeviceError(f"no upload of {blob.digest} is open; send it from its start")
        end = offset + len(data)
        if offset != writer.size_bytes or end > blob.size_bytes:
            self._drop(key)
            raise InputError(
                f"chunk [{offset}, {end}) of {blob.digest} does not follow "
                f"{writer.size_bytes} of {blob.size_bytes} bytes; send it from its start"
            )
        writer.write(data)
        if end == blob.size_bytes:
            del self._writers[key]
            writer.finish(blob)

    def close(self) -> None:
        """Drop what is unfinished."""
        for key in list(self._writers):
            self._drop(key)

    def _drop(self, key: tuple[str, str]) -> None:
        writer = self._writers.pop(key, None)
        if writer is not None:
            writer.abort()
