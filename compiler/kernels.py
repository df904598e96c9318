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
_LARGEST = np.finfo(np.float32).max


@njit(nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
def quantise_blocks(
    values: NDArray[np.float32],
    block: int,
    zero: float,
    scales: NDArray[np.float32],
    codes: NDArray[np.uint8],
) -> None:
    """Scale each block of `values` by its value of largest magnitude; that value gets code 0.

    Args:
        values: flat, `block` times as many as `scales`.
        block: values with one scale.
        zero: code of the value 0, half the number of codes.
        scales: receives a scale for each block; 0 where its values are zero, or next to it.
        codes: receives one byte for each value.
    """
    origin, top = np.float32(zero), np.float32(2 * zero - 1)
    for index in range(scales.size):
        source = values[index * block : (index + 1) * block]
        target = codes[index * block : (index + 1) * block]
        high = np.float32(0)
        low = np.float32(0)
        for i in range(block):
            high = source[i] if source[i] > high else high
            low = source[i] if source[i] < low else low
        scale = (high if high >= -low else low) / -origin
        inverse = np.float32(1) / scale
        if not abs(inverse) <= _LARGEST:  # zeros, or too small for float32 to invert
            scale = inverse = np.float32(0)
        scales[index] = scale
        for i in range(block):
            code = np.rint(source[i] * inverse) + origin
            target[i] = np.uint8(np.int32(min(max(code, np.float32(0)), top)))


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
