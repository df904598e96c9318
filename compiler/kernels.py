"""The loops that go over every weight: one pass, no temporary arrays."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgeshard.compiler.jit import compiled
from edgeshard.compiler.vectors import widen_sixteen

_HALF_EXPONENT = np.uint32(0x7C00)
_EXPONENT = np.uint32(0x7F800000)
_CHUNK = 4096  # values that stay in a core's first cache between two loops


@compiled
def pack_nibbles(codes: NDArray[np.uint8], packed: NDArray[np.uint8]) -> None:
    """Two codes below 16 in a byte, the first one low."""
    for i in range(packed.size):
        packed[i] = codes[2 * i] | (codes[2 * i + 1] << np.uint8(4))


@compiled
def widen_halves(halves: NDArray[np.uint16], floats: NDArray[np.float32]) -> None:
    """The bits of float16 values to float32; exact for all of them."""
    for start in range(0, halves.size, _CHUNK):
        source, target = halves[start : start + _CHUNK], floats[start : start + _CHUNK]
        words = target.view(np.uint32)
        for i in range(source.size):
            # Each step is cast: numba would go on in 64 bits.
            sign = np.uint32(np.uint32(source[i] & np.uint16(0x8000)) << np.uint32(16))
            rest = np.uint32(source[i] & np.uint16(0x7FFF))
            word = np.uint32(sign | np.uint32(rest << np.uint32(13)))
            infinite = _EXPONENT if rest >= _HALF_EXPONENT else np.uint32(0)  # or not a number
            words[i] = np.uint32(word | infinite)
        for i in range(target.size):
            target[i] *= np.float32(2.0**112)  # what the exponents are apart


@compiled
def convert_halves(halves: NDArray[np.uint16], floats: NDArray[np.float32]) -> None:
    """The same for a multiple of 16 values, by a processor that has an instruction for it."""
    for start in range(0, halves.size, 16):
        widen_sixteen(halves, start, floats, start)


@compiled
def all_finite(words: NDArray[np.unsignedinteger], exponent: np.unsignedinteger) -> bool:
    """Whether no float among these bits is infinite or NaN: has all bits of its exponent set."""
    found = np.uint8(0)
    for i in range(words.size):
        found = np.uint8(found | np.uint8((words[i] & exponent) == exponent))
    return bool(found == 0)
