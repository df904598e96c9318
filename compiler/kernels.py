"""The loops that go over every weight, compiled by numba: one pass, no temporary arrays.

They release the interpreter's lock, so that units are quantised in threads. Nothing here may be
reordered by the compiler (no `fastmath`): the same weights give the same bytes on every machine.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

_HALF_EXPONENT = np.uint32(0x7C00)
_EXPONENT = np.uint32(0x7F800000)


@njit(nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
def pack_nibbles(codes: NDArray[np.uint8], packed: NDArray[np.uint8]) -> None:
    """Two codes below 16 in a byte, the first one low."""
    for i in range(packed.size):
        packed[i] = codes[2 * i] | (codes[2 * i + 1] << np.uint8(4))


@njit(nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
def widen_halves(halves: NDArray[np.uint16], words: NDArray[np.uint32]) -> None:
    """Float16 bits to the bits of float32, short of a factor of 2**112; exact for all values."""
    for i in range(halves.size):
        bits = np.uint32(halves[i])
        word = ((bits & np.uint32(0x8000)) << np.uint32(16)) | (
            (bits & np.uint32(0x7FFF)) << np.uint32(13)
        )
        if bits & _HALF_EXPONENT == _HALF_EXPONENT:  # infinity or NaN
            word |= _EXPONENT
        words[i] = word


@njit(nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
def all_finite(words: NDArray[np.uint32]) -> bool:
    """Whether no float32 among these bits is infinite or NaN."""
    found = np.uint32(0)
    for i in range(words.size):
        found |= np.uint32((words[i] & _EXPONENT) == _EXPONENT)
    return bool(found == 0)
