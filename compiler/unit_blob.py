"""Writes the weights of a unit: read from the checkpoint, encoded, streamed into a blob.

One tensor is in memory at a time. Floats lie in the type that the model computes in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from edgeshard.artifacts.store import Store
from edgeshard.compiler.blob import WrittenBlob, write_blob
from edgeshard.compiler.checkpoint import Checkpoint
from edgeshard.compiler.encoding import STORED, Array, Encoding, import_gguf, quantise
from edgeshard.compiler.lowering import FLOATS, joined_name
from edgeshard.errors import InputError
from edgeshard.schemas.common import FloatType

# Blobs by place and encodings: another target whose weights lie the same way writes nothing.
Written = dict[tuple[object, ...], WrittenBlob]
# Names of matrices that are joined to one, and what stands before them in the checkpoint.
Group = tuple[tuple[str, ...], str]
Layout = dict[str, tuple[type[np.generic], tuple[int, ...]]]


class UnitWriter:
    """Writes units of one checkpoint.

    Attributes:
        encodings: of every matrix, by name.
        done: parameters of the checkpoint that were written, or found written.
    """

    def __init__(
        self, checkpoint: Checkpoint, store: Store, activations: FloatType, written: Written
    ) -> None:
        self.encodings: Mapping[str, Encoding] = {}
        self.done = 0
        self._checkpoint = checkpoint
        self._store = store
        self._float = FLOATS[activations][1]
        self._written = written

    def write(
        self,
        place: str,
        groups: Sequence[Group],
        vectors: Sequence[tuple[str, ...]],
        prefix: str = "",
    ) -> WrittenBlob:
        """Stream a unit's matrices, then its vectors, into its blob.

        Raises:
            InputError: a tensor holds NaN, infinity or more than the type of activations can.
            ArtifactError: the store cannot be written.
        """
        key = (place, *((names, self.encodings[before + names[0]]) for names, before in groups))
        if key in self._written:
            self.done += self._size(groups, vectors, prefix)
            return self._written[key]
        layout = self._layout(groups, vectors, prefix)
        tensors = (
            (name, self._cast(name, value, layout[name][0]))
            for name, value in self._tensors(groups, vectors, prefix)
        )
        self._written[key] = write_blob(self._store, layout, tensors)
        return self._written[key]

    def _size(
        self, groups: Sequence[Group], vectors: Sequence[tuple[str, ...]], prefix: str
    ) -> int:
        names = [before + name for group, before in groups for name in group]
        names += [prefix + name for group in vectors for name in group]
        return sum(int(np.prod(self._checkpoint.shape(name))) for name in names)

    def _layout(
        self, groups: Sequence[Group], vectors: Sequence[tuple[str, ...]], prefix: str
    ) -> Layout:
        layout: Layout = {}
        for names, before in groups:
            rows = sum(self._checkpoint.shape(before + name)[0] for name in names)
            columns = self._checkpoint.shape(before + names[0])[1]
            encoding = self.encodings[before + names[0]]
            for part, (kind, shape) in encoding.parts(rows, columns).items():
                # A row's scale stays as it is: DequantizeLinear takes no other before opset 19.
                kept = encoding.kind == "rows" or kind != np.float32
                layout[f"{joined_name(names)}.{part}"] = (kind if kept else self._float, shape)
        for names in vectors:
            size = sum(self._checkpoint.shape(prefix + name)[0] for name in names)
            layout[joined_name(names)] = (self._float, (size,))
        return layout

    def _tensors(
        self, groups: Sequence[Group], vectors: Sequence[tuple[str, ...]], prefix: str
    ) -> Iterator[tuple[str, Array]]:
        for names, before in groups:
            encoding = self.encodings[before + names[0]]
            pieces = [self._encode(before + name, encoding) for name in names]
            for part in pieces[0]:
                axis = 1 if part == "offsets" else 0
                values = [piece[part] for piece in pieces]
                joined = values[0] if len(values) == 1 else np.concatenate(values, axis)
                yield f"{joined_name(names)}.{part}", joined
        for names in vectors:
            floats = [self._checkpoint.floats(prefix + name) for name in names]
            for name, value in zip(names, floats, strict=True):
                self._check_finite(prefix + name, value)
            self.done += sum(value.size for value in floats)
            yield joined_name(names), np.concatenate(floats)

    def _encode(self, weight: str, encoding: Encoding) -> dict[str, Array]:
        stored = self._checkpoint.stored_type(weight)
        self.done += int(np.prod(self._checkpoint.shape(weight)))
        if STORED.get(stored) == encoding:
            parts = import_gguf(self._checkpoint.gguf_blocks(weight), stored)
            self._check_finite(weight, *(parts[name] for name in parts if name != "codes"))
            return parts
        values = self._checkpoint.floats(weight)
        self._check_finite(weight, values)
        return quantise(values, encoding)

    def _check_finite(self, weight: str, *values: Array) -> None:
        if not all(np.isfinite(array).all() for array in values):
            raise InputError(f"tensor {weight} of {self._checkpoint.path} holds NaN or infinity")

    def _cast(self, name: str, value: Array, kind: type[np.generic]) -> Array:
        if value.dtype.type == kind:
            return value
        if kind == np.float16 and np.abs(value).max() > np.finfo(np.float16).max:
            raise InputError(
                f"tensor {name} of {self._checkpoint.path} has {np.abs(value).max():.3g}, more "
                "than float16 holds; compile with --precision bf16 or fp32"
            )
        return value.astype(kind)
