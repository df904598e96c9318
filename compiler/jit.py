"""How the loops over weights are compiled: by numba, for this processor, all of them alike.

They release the interpreter's lock, so that units are quantised in threads. Nothing may be
reordered by the compiler (no `fastmath`): the same weights give the same bytes on every machine.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import TypeVar

from numba import config, njit
from numba.core.codegen import get_host_cpu_features

F = TypeVar("F", bound=Callable[..., object])


def _use_widest_vectors() -> None:
    """Let LLVM use vectors of 512 bits where the processor has them.

    On Intel's it stays at 256 by itself, for the sake of programs that use wide ones now and then.
    numba looks at this when the first function is decorated.
    """
    if config.CPU_FEATURES is None and platform.machine().lower() in ("x86_64", "amd64"):
        config.CPU_FEATURES = f"{get_host_cpu_features()},-prefer-256-bit"


_use_widest_vectors()
# On x86 since 2012; without the instruction LLVM would call a function that numba does not have.
WIDENS_HALVES = "+f16c" in (config.CPU_FEATURES or "") or platform.machine().lower() in (
    "arm64",
    "aarch64",
)


def compiled(function: F) -> F:
    """A function that numba compiles at its first call."""
    made: F = njit(nogil=True, error_model="numpy")(function)
    return made
