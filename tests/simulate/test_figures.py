"""Figures of runs that are written down, not simulated."""

from __future__ import annotations

import pytest

from edgeshard.errors import InputError
from edgeshard.simulate import Arrival, Run, figures
from edgeshard.simulate.engine import TokenAt
from support.simulated_chain import make_chain


def run_of(times: list[tuple[int, float]], arrivals: list[float]) -> Run:
    tokens = tuple(TokenAt(request, 0, seconds) for request, seconds in times)
    coming = tuple(Arrival(at, 1, 1) for at in arrivals)
    return Run(make_chain([1.0]), coming, tokens, ())


def test_the_rate_counts_from_the_first_arrival() -> None:
    assert figures(run_of([(0, 3.0), (0, 4.0)], [2.0])).tokens_per_second == pytest.approx(1.0)


def test_the_first_token_counts_from_its_own_arrival() -> None:
    found = figures(run_of([(0, 3.0), (1, 9.0)], [2.0, 4.0]))
    assert found.first_token_seconds == pytest.approx((1.0 + 5.0) / 2)


def test_times_between_tokens_stay_within_a_request() -> None:
    found = figures(run_of([(0, 1.0), (1, 5.0), (0, 11.0), (1, 15.0)], [0.0, 0.0]))
    assert found.token_seconds == pytest.approx(10.0)


def test_single_tokens_have_no_time_between_them() -> None:
    assert figures(run_of([(0, 1.0)], [0.0])).token_seconds is None


def test_the_steady_rate_leaves_beginning_and_end_out() -> None:
    times = [10.0, 11, 12, 13, 14, 15, 16, 30]
    found = figures(run_of([(0, at) for at in times], [0.0]))
    assert found.steady_tokens_per_second == pytest.approx(1.0)
    assert found.tokens_per_second == pytest.approx(8 / 30)


def test_a_run_without_time_says_nothing() -> None:
    with pytest.raises(InputError, match="takes 0 s"):
        figures(run_of([(0, 0.0)], [0.0]))
