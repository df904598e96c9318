"""How hidden states travel between stages: the layout that planner and runtime agree on.

    fp32   values, 4 bytes each
    fp16   values, 2 bytes each
    int8   scales, then values: a float32 scale for each block of neighbouring values of a position

Rule: what a position becomes depends on that position alone, so neither company nor the cut of a
prompt into chunks changes it.
"""

from __future__ import annotations

import math

from edgeshard.schemas.common import Activation

BLOCK_VALUES = 32
"""Values that share a scale; docs/adr/0019-lossy-links.md has what other sizes cost."""
SCALE_BYTES = 4
VALUE_BYTES: dict[Activation, int] = {"fp32": 4, "fp16": 2, "int8": 1}


def block_values(hidden_size: int) -> int:
    """Values of a position that share a scale: `BLOCK_VALUES`, or what of it divides the size."""
    return math.gcd(hidden_size, BLOCK_VALUES)


def state_bytes(hidden_size: int, activation: Activation) -> int:
    """Bytes of the hidden state of one position."""
    scales = hidden_size // block_values(hidden_size) if activation == "int8" else 0
    return hidden_size * VALUE_BYTES[activation] + scales * SCALE_BYTES
