"""Bytes of a checkpoint, read in pieces and widened to float32.

Rule: files are read, never mapped. A mapped file stays resident for as long as it is open, and a
checkpoint is larger than what compiling may take.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import gguf
import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from edgeshard.compiler.jit import WIDENS_HALVES
from edgeshard.compiler.kernels import all_finite, convert_halves, widen_halves
from edgeshard.errors import InputError

Rows = NDArray[np.uint8]
Floats = NDArray[np.float32]

# Small enough to stay in a core's cache on its way through the quantiser.
PIECE_BYTES = 2**20
# Large: whoever hashes beside Python code waits for the interpreter's lock at every piece.
DIGEST_BYTES = 2**23
VALUE_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
HALVES: dict[str, type[np.generic]] = {"F16": np.float16, "BF16": ml_dtypes.bfloat16}
# All bits of it set: infinite, or not a number.
_EXPONENTS: dict[np.dtype[np.generic], np.uint32 | np.uint16] = {
    np.dtype(np.float32): np.uint32(0x7F800000),
    np.dtype(np.float16): np.uint16(0x7C00),
    np.dtype(ml_dtypes.bfloat16): np.uint16(0x7F80),
}


def read_rows(
    path: Path, offset: int, num_rows: int, row_bytes: int, multiple: int = 1
) -> Iterator[Rows]:
    """Read neighbouring rows of a file.

    Args:
        path: the file.
        offset: where the first row starts.
        num_rows: how many; with 0 columns or rows nothing is read.
        row_bytes: bytes of each.
        multiple: every piece but the last has a multiple of so many rows.

    Yields:
        Pieces `[rows, row_bytes]` of about `PIECE_BYTES`.

    Raises:
        InputError: the file cannot be read, or ends too early.
    """
    step = max(1, PIECE_BYTES // max(1, row_bytes * multiple)) * multiple
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(offset)
            for start in range(0, num_rows, step):
                piece = np.empty((min(step, num_rows - start), row_bytes), np.uint8)
                left = piece.reshape(-1).data
                while left:
                    count = file.readinto(left)
                    if not count:
                        raise InputError(f"{path} ends too early; fetch it again")
                    left = left[count:]
                yield piece
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error


def ignore(num_bytes: int) -> None:
    """Who is told of bytes and does not care."""


class Hash(Protocol):
    """What `hashlib` and `blake3` have in common."""

    def update(self, data: memoryview, /) -> object:
        """Take more bytes."""


def hash_file(path: Path, found: Hash, on_bytes: Callable[[int], None]) -> None:
    """Give a file's bytes to a hash.

    Args:
        path: the file.
        found: takes them; it releases the interpreter's lock meanwhile.
        on_bytes: told how many more bytes are behind; what it raises ends the reading.
    """
    size = path.stat().st_size
    buffer = memoryview(bytearray(max(1, min(DIGEST_BYTES, size))))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            found.update(buffer[:count])
            on_bytes(count)


def widen(rows: Rows, stored_type: str) -> Floats:
    """Rows as stored to float32 `[rows, columns]`; block formats are dequantised."""
    if stored_type == "F32":
        return rows.view(np.float32)
    if stored_type not in HALVES:
        kind = gguf.GGMLQuantizationType[stored_type]
        return np.ascontiguousarray(gguf.dequantize(rows, kind), np.float32)
    halves = rows.view(np.uint16)
    floats = np.empty(halves.shape, np.float32)
    if stored_type == "BF16":
        np.left_shift(halves, 16, out=floats.view(np.uint32), dtype=np.uint32)
    elif WIDENS_HALVES and halves.size % 16 == 0:
        convert_halves(halves.reshape(-1), floats.reshape(-1))
    else:
        widen_halves(halves.reshape(-1), floats.reshape(-1))
    return floats


def is_finite(floats: NDArray[np.generic]) -> bool:
    """Whether no value is infinite or NaN, of float32, float16 or bfloat16."""
    exponent = _EXPONENTS[floats.dtype]
    words = np.ascontiguousarray(floats).reshape(-1).view(exponent.dtype)
    return bool(all_finite(words, exponent))
