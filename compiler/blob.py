"""Streams tensors into a safetensors blob of the store, one in memory at a time.

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
class WrittenBlob:
    """A blob and where its tensors lie in it."""

    blob: Blob
    extents: dict[str, Extent]


def write_blob(
    store: Store, layout: Layout, tensors: Iterable[tuple[str, NDArray[np.generic]]]
) -> WrittenBlob:
    """Write tensors as they come.

    Args:
        store: where the blob goes.
        layout: type and shape of every tensor, in the order of the file.
        tensors: names and values, in the order of `layout`.

    Raises:
        ArtifactError: a tensor is not what the layout says, or the disk is full.
    """
    header = _header(layout)
    expected = iter(layout.items())
    extents: dict[str, tuple[int, int]] = {}
    with store.writer(".safetensors") as writer:
        writer.write(header)
        for name, value in tensors:
            if (name, (value.dtype.type, value.shape)) != next(expected, None):
                raise ArtifactError(f"tensor {name} {value.dtype}{value.shape} breaks the layout")
            extents[name] = (writer.size_bytes, value.nbytes)
            writer.write(np.ascontiguousarray(value).view(np.uint8).data.cast("B"))
        if next(expected, None) is not None:
            raise ArtifactError("fewer tensors than the layout says")
        blob = writer.finish()
    places = {name: Extent(blob.filename, at, size) for name, (at, size) in extents.items()}
    return WrittenBlob(blob, places)


def _header(layout: Layout) -> bytes:
    offset = 0
    entries = {}
    for name, (dtype, shape) in layout.items():
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        entries[name] = {
            "dtype": _NAMES[np.dtype(dtype)],
            "shape": list(shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text
