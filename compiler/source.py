"""The digest of a checkpoint's files, taken in a thread from the beginning of a compile.

It reads everything, which takes about as long as all else that one core has to do. A note of it
spares a later compile the reading, as long as the files look as they did.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from edgeshard.artifacts.store import Store
from edgeshard.compiler.checkpoint import Checkpoint
from edgeshard.compiler.finished import stamp
from edgeshard.errors import InputError
from edgeshard.schemas.common import CheckpointDigest
from edgeshard.schemas.note import SourceNote


class _StoppedError(Exception):
    """Nobody wants the digest any more."""


class SourceDigest:
    """Runs from `with` on; when the block is left early, the reading ends soon after."""

    def __init__(self, store: Store, checkpoint: Checkpoint) -> None:
        """Look at the files, but into none."""
        self._store = store
        self._checkpoint = checkpoint
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="digest")
        self.stamp = _stamp(checkpoint.files())

    def __enter__(self) -> SourceDigest:
        """Begin."""
        self._future = self._pool.submit(self._take)
        return self

    def __exit__(self, *error: object) -> None:
        """End, whether or not the digest is there."""
        self._stop.set()
        self._pool.shutdown(wait=True)

    def result(self) -> CheckpointDigest:
        """The digest, once it is there.

        Raises:
            InputError: a file was changed meanwhile.
        """
        return self._future.result()

    def check_unchanged(self) -> None:
        """Raises InputError where a file is not what it was at the beginning."""
        if _stamp(self._checkpoint.files()) != self.stamp:
            raise InputError(
                f"{self._checkpoint.path} was changed during the compile; run it again"
            )

    def _take(self) -> CheckpointDigest:
        known = self._store.note(f"checkpoint-{self.stamp}", SourceNote)
        if known is not None:
            return known.digest
        digest = self._checkpoint.digest(self._go_on)
        self.check_unchanged()
        self._store.put_note(f"checkpoint-{self.stamp}", SourceNote(digest=digest))
        return digest

    def _go_on(self, num_bytes: int) -> None:
        if self._stop.is_set():
            raise _StoppedError


def _stamp(files: Sequence[Path]) -> str:
    return hashlib.sha256(repr([stamp(path) for path in files]).encode()).hexdigest()
