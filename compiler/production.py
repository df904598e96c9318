"""Fills the blobs of all units, several at once, and leaves a note of each that is done.

A note's key says everything that decides a blob's bytes: the checkpoint's files as they lie on the
disk, the unit's tensors and their encodings, and the code that encodes. A later compile, or the
same one after it was killed, takes the blob of an equal key as it is.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np

from edgeshard.artifacts.store import Store
from edgeshard.compiler import blob as blob_module
from edgeshard.compiler import (
    encoding,
    error_feedback,
    jit,
    kernels,
    scale_search,
    stored,
    vectors,
    weights,
)
from edgeshard.compiler.blob import WrittenBlob, blob_bytes, write_blob
from edgeshard.compiler.checkpoint import Checkpoint
from edgeshard.compiler.graph import Extent
from edgeshard.compiler.source import SourceDigest
from edgeshard.compiler.weights import Recipe, layout_of, pieces
from edgeshard.errors import ArtifactError
from edgeshard.schemas.note import TensorPlace, WeightsNote

MAX_JOBS = 8
# Whatever decides which bytes come out of which weights.
_CODE = (
    *(blob_module, encoding, error_feedback, jit, kernels),
    *(scale_search, stored, vectors, weights),
)


def default_jobs() -> int:
    """Units at once unless a person asks for another number."""
    return max(1, min(MAX_JOBS, os.cpu_count() or 1))


class Production:
    """Makes the blobs of one checkpoint in one store."""

    def __init__(
        self,
        store: Store,
        checkpoint: Checkpoint,
        source: SourceDigest,
        jobs: int,
        on_values: Callable[[str, int], None],
    ) -> None:
        """Make nothing yet.

        Args:
            store: where blobs and notes go.
            checkpoint: where weights come from.
            source: the checkpoint's digest, being taken.
            jobs: units at once; each holds a few MiB.
            on_values: told the unit and how many more values of the checkpoint are behind.
        """
        self._store = store
        self._checkpoint = checkpoint
        self._jobs = jobs
        self._on_values = on_values
        self._lock = threading.Lock()
        self._source = source
        self.num_reused = 0

    def run(self, recipes: Sequence[Recipe]) -> Generator[tuple[Recipe, WrittenBlob]]:
        """Make every recipe's blob; they come in the order of the recipes, while others are made.

        Who ends early closes it, and waits for what has begun.

        Raises:
            InputError: a tensor cannot be used, or a file was changed meanwhile.
            ArtifactError: the store cannot take the blobs; said before there is a first one.
        """
        self._store.sweep()
        self._check_room(recipes)
        return self._made(recipes)

    def _made(self, recipes: Sequence[Recipe]) -> Generator[tuple[Recipe, WrittenBlob]]:
        # One more thread than jobs: one may wait for the disk where the others need the processor.
        pool = ThreadPoolExecutor(self._jobs + 1, thread_name_prefix="compile")
        try:
            made = [pool.submit(self._make, recipe) for recipe in recipes]
            for recipe, future in zip(recipes, made, strict=True):
                yield recipe, future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
        self._source.check_unchanged()

    def _make(self, recipe: Recipe) -> WrittenBlob:
        # Asked again here: another compile into this store may have made it by now.
        known = self._known(recipe)
        if known is not None:
            with self._lock:
                self.num_reused += 1
            self._count(recipe, sum(self._num_values(name) for name in recipe.tensors))
            return known
        filling = pieces(recipe, self._checkpoint, lambda count: self._count(recipe, count))
        written = write_blob(self._store, layout_of(recipe, self._checkpoint), filling)
        places = tuple(
            TensorPlace(name=name, offset=extent.offset, length=extent.length)
            for name, extent in written.extents.items()
        )
        note = WeightsNote(blob=written.blob, tensors=places)
        self._store.put_note(self._note_name(recipe), note)
        return written

    def _known(self, recipe: Recipe) -> WrittenBlob | None:
        note = self._store.note(self._note_name(recipe), WeightsNote)
        if note is None or not self._store.has(note.blob):
            return None
        name = note.blob.filename
        extents = {t.name: Extent(name, t.offset, t.length) for t in note.tensors}
        return WrittenBlob(note.blob, extents)

    def _note_name(self, recipe: Recipe) -> str:
        products = [(p.names, p.encoding) for p in recipe.products]
        counts = [recipe.calibration.digest(name) for name in recipe.tensors]
        made_of = (recipe.prefix, products, recipe.vectors, recipe.floats, recipe.plus_one)
        text = repr((self._source.stamp, _code(), made_of, counts))
        return f"weights-{hashlib.sha256(text.encode()).hexdigest()}"

    def _check_room(self, recipes: Sequence[Recipe]) -> None:
        """Refuse before the work what the disk cannot take."""
        needed = sum(
            blob_bytes(layout_of(recipe, self._checkpoint))
            for recipe in recipes
            if self._known(recipe) is None
        )
        free = shutil.disk_usage(self._store.root).free
        if needed > free:
            raise ArtifactError(
                f"{self._store.root} needs {needed} more bytes, the disk has {free}; "
                "free space or give another --out"
            )

    def _count(self, recipe: Recipe, count: int) -> None:
        with self._lock:
            self._on_values(recipe.unit, count)

    def _num_values(self, name: str) -> int:
        return int(np.prod(self._checkpoint.shape(name)))


@cache
def _code() -> str:
    """Digest of the modules that make blobs, so that no note outlives a change of them."""
    sources = [Path(module.__file__ or "").read_bytes() for module in _CODE]
    return hashlib.sha256(b"".join(sources)).hexdigest()
