"""`mixed`: which matrices keep 8 bits when the others get 4, within a budget of bits a weight.

Rule: whoever gains most for a byte comes first. A gain is what int4 loses and int8 does not: on a
text measured as divergence, or from the weights alone as squared error over the squares of the
weights, so that every product counts alike and small matrices, such as values of few heads, win.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from edgeshard.compiler.calibration import Calibration
from edgeshard.compiler.checkpoint import Checkpoint
from edgeshard.compiler.encoding import FLOAT, Encoding, block_encoding, decode, quantise
from edgeshard.errors import InputError

MAX_ROWS = 256  # of a matrix are looked at: enough to know its error to a few per cent


def mix(
    checkpoint: Checkpoint,
    matrices: Sequence[str],
    bits: float,
    calibration: Calibration,
) -> dict[str, Encoding]:
    """Choose the encoding of every matrix.

    Args:
        checkpoint: where the weights are.
        matrices: names of all of them.
        bits: most that a parameter of the model may take on average, scales and vectors included.
        calibration: says what is gained; where it has no gains the weights do.

    Raises:
        InputError: all in int4 takes more, or all in int8 less.
    """
    low, high = (
        {name: block_encoding(b, checkpoint.shape(name)[1], fine=True) for name in matrices}
        for b in (4, 8)
    )
    sizes = {name: math.prod(checkpoint.shape(name)) for name in checkpoint.names()}
    vectors = 32 * sum(size for name, size in sizes.items() if name not in low)
    least, most = (vectors + sum(_bits(checkpoint, chosen).values()) for chosen in (low, high))
    num_weights = sum(sizes.values())
    if not least <= bits * num_weights <= most:
        raise InputError(
            f"--bits {bits:g} is out of reach for {checkpoint.path}: all in 4 bits takes "
            f"{least / num_weights:.2f}, all in 8 {most / num_weights:.2f}; --precision int4, in "
            "larger blocks, takes less"
        )
    gains = calibration.gains or {
        name: gain(checkpoint, name, low[name], high[name]) for name in matrices
    }
    small, large = _bits(checkpoint, low), _bits(checkpoint, high)
    prices = {name: large[name] - small[name] for name in matrices}
    kept = choose(gains, prices, bits * num_weights - least)
    return {name: high[name] if name in kept else low[name] for name in matrices}


def choose(gains: Mapping[str, float], prices: Mapping[str, float], budget: float) -> set[str]:
    """Names to pay for, by gain over price while the budget lasts; what is free is not chosen."""
    worth = sorted(
        (name for name in gains if prices[name] > 0),
        key=lambda name: (-gains[name] / prices[name], name),
    )
    chosen: set[str] = set()
    for name in worth:
        if prices[name] <= budget:
            budget -= prices[name]
            chosen.add(name)
    return chosen


def gain(checkpoint: Checkpoint, name: str, low: Encoding, high: Encoding) -> float:
    """Relative squared error of a matrix in one encoding, less that in the other."""
    if low == FLOAT:
        return 0.0
    weight = checkpoint.floats(name)
    rows = weight[:: max(1, len(weight) // MAX_ROWS)].astype(np.float32)
    total = float(np.square(rows, dtype=np.float64).sum())
    lost = [
        float(np.square(decode(quantise(rows, e), e) - rows, dtype=np.float64).sum())
        for e in (low, high)
    ]
    return (lost[0] - lost[1]) / total if total else 0.0


def _bits(checkpoint: Checkpoint, encodings: Mapping[str, Encoding]) -> dict[str, float]:
    return {
        name: encoding.stored_bits(checkpoint.shape(name)[1]) * math.prod(checkpoint.shape(name))
        for name, encoding in encodings.items()
    }
