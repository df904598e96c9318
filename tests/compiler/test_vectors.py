"""What numba has no name for: exact, and the same as numpy's."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgeshard.compiler.jit import WIDENS_HALVES, compiled
from edgeshard.compiler.kernels import convert_halves, widen_halves
from edgeshard.compiler.vectors import TILE, fma, transpose_tile

floats = st.floats(-(2.0**60), 2.0**60, width=32)


@compiled
def _fused(a: np.float32, b: np.float32, c: np.float32) -> Any:
    return fma(a, b, c)


@compiled
def _transposed(
    source: NDArray[np.generic], start: int, step: int, target: NDArray[np.generic], to: int
) -> None:
    transpose_tile(source, start, step, target, to, TILE + 3)


@settings(deadline=None)  # the first call compiles
@given(floats, floats, floats)
def test_a_fused_product_and_sum_is_rounded_once(a: float, b: float, c: float) -> None:
    exact = Fraction(a) * Fraction(b) + Fraction(c)

    found = np.float32(_fused(np.float32(a), np.float32(b), np.float32(c)))

    near = np.array([np.nextafter(found, np.float32(side)) for side in (-np.inf, np.inf)])
    distance = abs(Fraction(float(found)) - exact)
    assert all(distance <= abs(Fraction(float(other)) - exact) for other in near)


@pytest.mark.parametrize("kind", [np.float32, np.uint8])
def test_a_tile_is_laid_the_other_way(kind: type[np.generic]) -> None:
    source = np.arange(200).astype(kind)
    target = np.zeros(200, kind)

    _transposed(source, 5, 20, target, 7)

    expected = np.zeros(200, kind)
    for row in range(TILE):
        for column in range(TILE):
            expected[7 + column * (TILE + 3) + row] = source[5 + row * 20 + column]
    np.testing.assert_array_equal(target, expected)


@pytest.mark.parametrize("widen", [convert_halves, widen_halves])
def test_every_half_is_widened_exactly(
    widen: Callable[[NDArray[np.uint16], NDArray[np.float32]], None],
) -> None:
    if widen is convert_halves and not WIDENS_HALVES:
        pytest.skip("this processor has no instruction for it")
    halves = np.arange(2**16, dtype=np.uint16)
    found = np.empty(halves.size, np.float32)

    widen(halves, found)

    np.testing.assert_array_equal(found, halves.view(np.float16).astype(np.float32))
