"""Error feedback: what a column loses, those behind it make up for."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeshard.compiler.encoding import Encoding, block_encoding, decode, quantise
from edgeshard.compiler.error_feedback import feedback, follow

Floats = NDArray[np.float32]


def _codes(values: Floats, moments: Floats) -> list[list[int]]:
    """Codes about 8, in steps of 1."""
    ones = np.ones((len(values), 1), np.float32)
    codes = np.empty(values.shape, np.uint8)
    follow(values, ones, 8 * ones, 15.0, feedback(moments), codes)
    return [[int(code) - 8 for code in row] for row in codes]


def test_a_column_makes_up_for_the_one_it_goes_along_with() -> None:
    values = np.array([[0.4, 0.4], [-0.4, -0.3]], np.float32)
    together = np.array([[1, 0.99], [0.99, 1]], np.float32)

    assert _codes(values, together) == [[0, 1], [0, -1]]
    assert _codes(values, np.eye(2, dtype=np.float32)) == [[0, 0], [0, 0]]


def test_codes_stay_within_their_range() -> None:
    values = np.full((1, 2), 20, np.float32)

    assert _codes(values, np.ones((2, 2), np.float32)) == [[7, 7]]


def _inputs(columns: int, seed: int) -> Floats:
    """Rows that lie near a few directions, as hidden states do."""
    generator = np.random.default_rng(seed)
    mixed = generator.standard_normal((512, 8)) @ generator.standard_normal((8, columns))
    return (mixed + 0.3 * generator.standard_normal((512, columns))).astype(np.float32)


@pytest.mark.parametrize("encoding", [block_encoding(bits, 128) for bits in (4, 8)])
def test_products_of_other_inputs_are_nearer(encoding: Encoding) -> None:
    weight = np.random.default_rng(1).standard_normal((48, 128)).astype(np.float32)
    rows = _inputs(128, 2)
    seen, unseen = rows[:384], rows[384:]
    importance = np.square(seen).mean(0)
    moved = feedback(seen.T @ seen / np.float32(len(seen)))

    def lost(parts: dict[str, NDArray[np.generic]]) -> float:
        return float(np.square(unseen @ (decode(parts, encoding) - weight).T).mean())

    plain = lost(quantise(weight, encoding, importance))
    assert lost(quantise(weight, encoding, importance, moved)) < plain / 2


def test_rows_do_not_depend_on_their_neighbours() -> None:
    encoding = block_encoding(4, 64)
    weight = np.random.default_rng(3).standard_normal((9, 64)).astype(np.float32)
    rows = _inputs(64, 4)
    moved = feedback(rows.T @ rows)

    whole = decode(quantise(weight, encoding, None, moved), encoding)
    parts = [
        decode(quantise(part, encoding, None, moved), encoding) for part in (weight[:4], weight[4:])
    ]
    np.testing.assert_array_equal(whole, np.concatenate(parts))


def test_zeros_and_silent_columns_do_no_harm() -> None:
    encoding = block_encoding(4, 64)
    weight = np.zeros((2, 64), np.float32)
    weight[1, 3] = 1

    found = decode(
        quantise(weight, encoding, None, feedback(np.zeros((64, 64), np.float32))), encoding
    )
    np.testing.assert_allclose(found, weight, atol=0.05)
