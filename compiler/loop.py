"""How the loops over every weight are compiled, once for a machine and not in every process.

The machine code lies where Python keeps its bytecode, in `__pycache__`, made anew when the source
or the processor is another one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit


def loop(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function of arrays and numbers that releases the interpreter's lock.

    No `fastmath`: the same weights give the same bytes on every machine.
    """
    how = {"nogil": True, "error_model": "numpy"}
    try:
        found: Callable[..., Any] = njit(cache=True, **how)(function)
    except RuntimeError:  # no folder that could be written: it is compiled every time
        found = njit(**how)(function)
    return found
