"""What every encoding of the same matrix is, as one digest; imports no more than that takes."""

from __future__ import annotations

import hashlib

import numpy as np

from edgeshard.compiler.encoding import block_encoding, quantise
from edgeshard.compiler.stored import widen


def digest() -> str:
    """The same on every processor."""
    numbers = np.random.default_rng(5)
    halves = numbers.standard_normal((48, 1536)).astype(np.float16)
    counts = numbers.random(1536, np.float32)
    found = hashlib.sha256()
    encodings = [block_encoding(bits, 1536) for bits in (4, 6, 8)]
    encodings += [block_encoding(4, 1536, fine=True), block_encoding(4, 1536, zeros=False)]
    for encoding in encodings:
        for importance in (None, counts):
            weight = widen(halves.view(np.uint8), "F16")
            for part in quantise(weight, encoding, importance).values():
                found.update(part.tobytes())
    return found.hexdigest()
