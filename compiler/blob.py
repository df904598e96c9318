"""Writes tensors into a safetensors blob of the store, piece by piece in any order.

The layout is fixed before the first byte is written: a header padded so that the data start on a
64-byte boundary, then the tensors without gaps, in the order given.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from edgeshard.artifacts.store import Store
from edgeshard.compiler.graph import Extent
from edgeshard.errors import ArtifactError
from edgeshard.schemas.common import Blob

ALIGNMENT = 64
_NAMES = {
    np.dtype(np.float32): "F32",
    np.dtype(np.float16): "F16",
    np.dtype(ml_dtypes.bfloat16): "BF16",
    np.dtype(np.uint8): "U8",
    np.dtype(np.int8): "I8",
}

Layout = Mapping[str, tuple[type[np.generic], tuple[int, ...]]]


@dataclass(frozen=True)
class Piece:
    """Neighbouring values of a tensor, from the value `start` of the flat tensor on."""

    tensor: str
    start: int
    values: NDArray[np.generic]


@dataclass(frozen=True)
class WrittenBlob:
    """A blob and where its tensors lie in it."""

    blob: Blob
    extents: dict[str, Extent]


def blob_bytes(layout: Layout) -> int:
    """Length of the blob that `write_blob` makes of a layout."""
    return len(_header(layout)) + sum(_sizes(layout).values())


def write_blob(store: Store, layout: Layout, pieces: Iterable[Piece]) -> WrittenBlob:
    """Write tensors as their pieces come.

    Args:
        store: where the blob goes.
        layout: type and shape of every tensor, in the order of the file.
        pieces: together every value of every tensor, once.

    Raises:
        ArtifactError: the pieces are not what the layout says, or the disk is full.
    """
    header = _header(layout)
    left = _sizes(layout)
    places = {}
    end = len(header)
    for name, size in left.items():
        places[name] = (end, size)
        end += size
    with store.writer(".safetensors") as writer:
        writer.reserve(end)
        writer.write_at(0, header)
        for piece in pieces:
            kind = np.dtype(layout[piece.tensor][0])
            left[piece.tensor] -= piece.values.nbytes
            if piece.values.dtype != kind or left[piece.tensor] < 0:
                raise ArtifactError(f"tensor {piece.tensor} {piece.values.dtype} breaks the layout")
            at = places[piece.tensor][0] + piece.start * kind.itemsize
            data = np.ascontiguousarray(piece.values).reshape(-1).view(np.uint8)
            writer.write_at(at, data.data)
        if any(left.values()):
            raise ArtifactError("fewer values than the layout says")
        blob = writer.finish()
    extents = {name: Extent(blob.filename, at, size) for name, (at, size) in places.items()}
    return WrittenBlob(blob, extents)


def _sizes(layout: Layout) -> dict[str, int]:
    return {
        name: int(np.prod(shape)) * np.dtype(dtype).itemsize
        for name, (dtype, shape) in layout.items()
    }


def _header(layout: Layout) -> bytes:
    offset = 0
    entries = {}
    for name, size in _sizes(layout).items():
        dtype, shape = layout[name]
        entries[name] = {
            "dtype": _NAMES[np.dtype(dtype)],
            "shape": list(shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text
