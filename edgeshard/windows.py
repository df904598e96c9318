"""Cuts a text's tokens into the windows that models are compared on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgeshard.errors import InputError


def windows_of(token_ids: Sequence[int], length: int, most: int) -> list[NDArray[np.int64]]:
    """Cut a text's tokens into at most `most` windows `[1, length]`, spread evenly over it.

    Raises:
        InputError: the text is shorter than one window.
    """
    whole = len(token_ids) // length
    if not whole:
        raise InputError(
            f"the text has {len(token_ids)} tokens, one window takes {length}; "
            "give a longer text or a shorter window"
        )
    ids = np.asarray(token_ids, np.int64)
    count = min(whole, most)
    return [ids[None, at * length : (at + 1) * length] for at in np.arange(count) * whole // count]
