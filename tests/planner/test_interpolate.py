"""Times between and beyond the measured points."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeshard.planner.interpolate import decode_seconds, prefill_seconds
from edgeshard.schemas.profile import DecodePoint, PrefillPoint
from support.planner_cases import timing

PLACES = st.dictionaries(st.integers(1, 4000), st.floats(0.001, 1.0), min_size=1, max_size=5)


def decode_points(times: dict[int, float], batch: int = 1) -> list[DecodePoint]:
    return [DecodePoint(context=c, batch=batch, time=timing(t)) for c, t in times.items()]


def prefill_points(times: dict[int, float], past: int = 0) -> list[PrefillPoint]:
    return [PrefillPoint(num_tokens=n, past=past, time=timing(t)) for n, t in times.items()]


@pytest.mark.parametrize(
    ("context", "expected"),
    [(0, 0.010), (100, 0.010), (550, 0.015), (1000, 0.020), (1450, 0.030), (2800, 0.060)],
)
def test_decode_is_flat_before_straight_between_and_beyond(context: int, expected: float) -> None:
    points = decode_points({1900: 0.040, 100: 0.010, 1000: 0.020})
    assert decode_seconds(points, context) == pytest.approx(expected)


def test_decode_never_falls_beyond_the_last_point() -> None:
    assert decode_seconds(decode_points({100: 0.011, 200: 0.010}), 4000) == 0.010


def test_decode_of_a_single_point_is_flat() -> None:
    assert decode_seconds(decode_points({100: 0.010}), 4000) == 0.010


def test_decode_leaves_larger_batches_aside() -> None:
    points = decode_points({100: 0.010}) + decode_points({100: 0.080}, batch=8)
    assert decode_seconds(points, 100) == 0.010
    assert decode_seconds(decode_points({100: 0.080}, batch=8), 100) is None


@pytest.mark.parametrize(
    ("num_tokens", "expected"),
    [(8, 0.060), (64, 0.200), (96, 0.280), (128, 0.360), (256, 0.680)],
)
def test_prefill_is_straight_everywhere(num_tokens: int, expected: float) -> None:
    points = prefill_points({64: 0.200, 128: 0.360})
    assert prefill_seconds(points, num_tokens) == pytest.approx(expected)


def test_prefill_below_the_first_point_keeps_at_least_its_share() -> None:
    """Attention grows with the square: the line through 64 and 128 would fall below zero."""
    points = prefill_points({64: 0.1, 128: 0.4})
    assert prefill_seconds(points, 8) == pytest.approx(0.1 / 8)


def test_prefill_of_a_single_point_is_proportional() -> None:
    assert prefill_seconds(prefill_points({64: 0.1}), 128) == pytest.approx(0.2)


def test_prefill_leaves_points_with_past_aside() -> None:
    assert prefill_seconds(prefill_points({64: 0.1}, past=64), 64) is None


@settings(deadline=None, derandomize=True)
@given(PLACES)
def test_measured_points_are_kept(times: dict[int, float]) -> None:
    for place, seconds in times.items():
        assert decode_seconds(decode_points(times), place) == pytest.approx(seconds)
        assert prefill_seconds(prefill_points(times), place) == pytest.approx(seconds)


@settings(deadline=None, derandomize=True)
@given(PLACES, st.integers(1, 10_000))
def test_times_stay_positive(times: dict[int, float], place: int) -> None:
    decode, prefill = (
        decode_seconds(decode_points(times), place),
        prefill_seconds(prefill_points(times), place),
    )
    assert decode is not None
    assert prefill is not None
    assert decode > 0
    assert prefill > 0
