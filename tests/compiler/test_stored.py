"""Bytes of a checkpoint become the float32 that they stand for, whatever piece they come in."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from edgeshard.compiler import stored
from edgeshard.compiler.stored import is_finite, read_rows, widen
from edgeshard.errors import InputError

EVERY_HALF = np.arange(2**16, dtype=np.uint16)[None]


@pytest.mark.parametrize(("name", "kind"), [("F16", np.float16), ("BF16", ml_dtypes.bfloat16)])
def test_every_16_bit_float_is_widened_exactly(name: str, kind: type[np.generic]) -> None:
    expected = EVERY_HALF.view(kind).astype(np.float32)

    found = widen(EVERY_HALF.view(np.uint8), name)

    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(np.signbit(found), np.signbit(expected))


@pytest.mark.parametrize(
    ("kind", "largest"),
    [(np.float32, 3.4028235e38), (np.float16, 65504.0), (ml_dtypes.bfloat16, 3.3895314e38)],
)
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_one_value_that_is_not_finite_is_found(
    value: float, kind: type[np.generic], largest: float
) -> None:
    floats = np.array([largest, -largest, 0, -0.0, 1] * 3).astype(kind).reshape(3, 5)
    assert is_finite(floats)
    floats[2, 4] = value
    assert not is_finite(floats)


@pytest.mark.parametrize("multiple", [1, 3])
@pytest.mark.parametrize("piece_bytes", [1, 40, 10**6])
def test_pieces_are_the_rows_in_order(
    multiple: int, piece_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored, "PIECE_BYTES", piece_bytes)
    rows = np.arange(7 * 11, dtype=np.uint8).reshape(11, 7)
    file = tmp_path / "file"
    file.write_bytes(b"head" + rows.tobytes() + b"tail")

    pieces = list(read_rows(file, 4, 11, 7, multiple))

    np.testing.assert_array_equal(np.concatenate(pieces), rows)
    assert all(len(piece) % multiple == 0 for piece in pieces[:-1])


def test_a_file_that_ends_too_early_is_named(tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(bytes(10))

    with pytest.raises(InputError, match=r"short ends too early; fetch it again"):
        list(read_rows(tmp_path / "short", 4, 3, 4))
