"""When a point has been timed often enough: by the samples alone. How rows are compared."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeshard.runtime import points
from edgeshard.runtime.points import Stepper, is_settled, median_interval, repeat, timing
from edgeshard.runtime.session import ShardSession
from edgeshard.schemas.common import Blob
from support.runtime_double import DIGEST, shard_of


@pytest.mark.parametrize(
    ("count", "interval"),
    [
        (0, None),
        (1, None),
        (5, None),  # all above or all below the median: 2 chances in 32
        (6, (1.0, 6.0)),  # 2 in 64
        (8, (1.0, 8.0)),  # 18 in 256 would be outside of the second from either end
        (9, (2.0, 8.0)),  # 20 in 512
        (12, (3.0, 10.0)),
        (20, (6.0, 15.0)),
        (30, (10.0, 21.0)),
    ],
)
def test_the_interval_is_the_narrowest_that_holds_the_median(
    count: int, interval: tuple[float, float] | None
) -> None:
    times = [float(value) for value in range(1, count + 1)]

    assert median_interval(times) == interval
    assert median_interval(times[::-1]) == interval


@pytest.mark.parametrize(
    ("times", "settled"),
    [
        ([], False),
        ([100.0] * 5, False),  # too few, however alike
        ([100.0] * 6, True),
        ([0.0] * 6, True),
        ([95.0, 100.0, 100.0, 100.0, 100.0, 105.0], True),  # 10 % of the median
        ([95.0, 100.0, 100.0, 100.0, 100.0, 105.5], False),
        ([500.0, *[100.0] * 7], False),  # still from end to end
        ([500.0, *[100.0] * 8], True),  # one outlier does not matter
        ([500.0, 500.0, *[100.0] * 9], False),
        ([500.0, 500.0, *[100.0] * 10], True),
        ([500.0, 100.0] * 10, False),  # two ways to go: the median is of neither
    ],
)
def test_a_point_is_settled_once_its_median_is_known(times: list[float], settled: bool) -> None:
    assert is_settled(times) is settled


class _Clock:
    """Stands in for `time`: each step takes the next of some seconds, over and over."""

    def __init__(self, *seconds: float) -> None:
        self._seconds = itertools.cycle(seconds)
        self.now = 0.0
        self.steps = 0
        self.slept: list[float] = []

    def step(self) -> None:
        self.steps += 1
        self.now += next(self._seconds)

    def monotonic(self) -> float:
        return self.now

    perf_counter = monotonic

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def _clock(monkeypatch: pytest.MonkeyPatch, *seconds: float) -> _Clock:
    clock = _Clock(*seconds)
    monkeypatch.setattr(points, "time", clock)
    return clock


def _nothing() -> None: ...


def test_steps_that_agree_are_timed_six_times(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = _clock(monkeypatch, 0.03125)

    assert repeat(clock.step, 20, 0.0078125, _nothing) == [0.03125] * 6
    assert clock.steps == 7  # the first warms up
    assert clock.slept == [0.0078125] * 6


def test_steps_that_differ_are_timed_as_often_as_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = _clock(monkeypatch, 0.015625, 0.03125)

    assert repeat(clock.step, 9, 0.0, _nothing) == [0.03125, 0.015625] * 4 + [0.03125]
    assert clock.steps == 10


@pytest.mark.parametrize(("step", "samples"), [(1.0, 3), (0.125, 3), (0.0625, 5)])
def test_a_slow_device_stops_at_its_limit(
    monkeypatch: pytest.MonkeyPatch, step: float, samples: int
) -> None:
    clock = _clock(monkeypatch, step)

    assert repeat(clock.step, 20, 0.0, _nothing) == [step] * samples


def test_each_step_is_prepared_untimed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = _clock(monkeypatch, 0.25)
    prepared: list[int] = []

    def prepare() -> None:
        prepared.append(clock.steps)
        clock.now += 8.0

    assert repeat(clock.step, 2, 0.5, prepare) == [0.25, 0.25]
    assert prepared == [0, 1, 2]


def test_timing_is_median_and_spread() -> None:
    found = timing([float(value) for value in range(11)])

    assert (found.low_seconds, found.median_seconds, found.high_seconds) == (1.0, 5.0, 9.0)
    assert found.num_samples == 11


class _Rows(ShardSession):
    """Computes a row by its number, and one that is left over from pairs by another."""

    def __init__(self, *, in_pairs: bool) -> None:
        self.shard = shard_of(1, 2, Blob(digest=DIGEST, size_bytes=1, suffix=".onnx"))
        self._in_pairs = in_pairs
        self._given: dict[int, NDArray[np.float32]] = {}

    def run(
        self,
        first_slot: int,
        positions: Sequence[int],
        values: NDArray[Any],
        *,
        every_position: bool = False,
    ) -> NDArray[np.float32]:
        count = len(values)
        assert len(positions) == count
        left_over = self._in_pairs and count % 2 == 1
        factors = np.full((count, 1, 1), 0.3, np.float32)
        factors[count - left_over :] = 1 / 3
        given = self._given.setdefault(count, np.empty(values.shape, np.float32))
        given[...] = values * factors  # the array is the session's own, as in `ShardSession`
        return given


@pytest.mark.parametrize(
    ("in_pairs", "batch", "alike"),
    [(False, 2, True), (False, 3, True), (True, 2, False), (True, 3, False)],
)
def test_rows_are_compared_with_the_same_rows_alone(
    in_pairs: bool, batch: int, alike: bool
) -> None:
    stepper = Stepper(_Rows(in_pairs=in_pairs))

    assert stepper.rows_alike(8, batch) is alike
