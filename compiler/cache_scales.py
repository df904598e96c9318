"""Scales of keys and values that are kept in int8, from what a text showed of them.

keys [T, kv_heads, D] ─► largest of each channel, turned by any angle ─┐
values [T, kv_heads, D] ─► largest of each channel ────────────────────┴ × MARGIN / 127
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from edgeshard.schemas.model import ModelManifest

Floats = NDArray[np.float32]
# Keys and values `[T, kv_heads, D]` of one block after the other, of a model that is not named yet.
ShowCache = Callable[[ModelManifest], Iterator[tuple[Floats, Floats]]]

MOST = 127
MARGIN = 1.1  # above what the text showed: other texts go further


def cache_scales(keys: Floats, values: Floats, rotary_dim: int) -> dict[str, Floats]:
    """Scales `[1, kv_heads, 1, D]` of a block's `key` and `value`.

    Args:
        keys: as the cache has them, turned by their positions.
        values: of the same positions.
        rotary_dim: channels that are turned, i together with i + rotary_dim / 2. What they can
            reach at another position is the length of the pair.
    """
    sizes = np.abs(keys)
    half = rotary_dim // 2
    if half:
        pairs = np.hypot(keys[..., :half], keys[..., half:rotary_dim])
        sizes[..., :rotary_dim] = np.concatenate([pairs, pairs], -1)
    return {"key": _scales(sizes), "value": _scales(np.abs(values))}


def _scales(sizes: Floats) -> Floats:
    largest = sizes.max(0)
    largest = np.where(largest > 0, largest, 1)  # a channel that is always zero stays zero
    # Half precision: what the last bits of a sum are must not decide a byte of a blob.
    scales = np.maximum(MARGIN / MOST * largest, np.finfo(np.float16).tiny).astype(np.float16)
    return scales.astype(np.float32)[None, :, None]
