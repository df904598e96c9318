"""What the coordinator notes of traced requests."""

from __future__ import annotations

import pytest

from edgeshard.errors import InputError
from edgeshard.runtime.ask import Clocks, StageClock, Timed
from edgeshard.runtime.tracing import FIRST_PINGS, Tracer
from edgeshard.runtime.wire import MAX_TIMED_STAGES, Marks, Sampled, Token

MARKS = (Marks(1, 2, 3, 4, 5), Marks(6, 7, 8, 9, 10))


def tracer() -> Tracer:
    return Tracer(["a", "b"])


def test_nothing_is_noted_of_requests_that_are_not_traced() -> None:
    one = tracer()
    assert one.leaves(1, 1, [5], 0.0) is None
    one.begin(6, 1)
    assert one.leaves(1, 1, [5], 0.0) is None
    one.back(Token(0, 1, (Sampled(5, 70),), 0.0, MARKS), 1.0)
    assert one.take(5) == one.end(5) == []


def test_a_step_is_told_with_its_marks() -> None:
    one = tracer()
    one.begin(5, 1)
    one.free = 0.25
    assert one.leaves(3, 4, [5, 6], 0.5) == ()
    one.back(Token(0, 3, (Sampled(5, None), Sampled(6, 9)), 0.0, MARKS), 2.0)
    assert one.take(5) == [Timed(1, 0, 4, False, 0.5, MARKS, 0.25, 2.0)]
    assert one.take(5) == []


def test_two_traced_requests_of_a_step_are_both_told() -> None:
    one = tracer()
    one.begin(5, 1)
    one.begin(6, 9)
    one.leaves(3, 1, [5, 6], 0.5)
    one.back(Token(0, 3, (Sampled(5, 7), Sampled(6, 8)), 0.0, MARKS), 2.0)
    assert [event.id for event in (*one.take(5), *one.take(6)) if isinstance(event, Timed)] == [
        1,
        9,
    ]


def test_the_end_brings_what_is_left_and_the_clocks() -> None:
    one = tracer()
    one.begin(5, 1)
    (first, number), _ = one.asks(10.0)
    one.answered(first, number, 110.1, 10.2)
    one.leaves(3, 1, [5], 0.5)
    one.back(Token(0, 3, (Sampled(5, 7),), 0.0, MARKS), 2.0)
    timed, clocks = one.end(5)
    assert isinstance(timed, Timed)
    assert isinstance(clocks, Clocks)
    known, unknown = clocks.stages
    assert known.device == "a"
    assert known.offset_seconds == pytest.approx(100.0)
    assert known.error_seconds == pytest.approx(0.1)
    assert unknown == StageClock("b", None, 0.0)
    assert not one.is_active
    assert one.asks(99.0) == []


def test_the_quickest_ping_counts() -> None:
    one = tracer()
    one.begin(5, 1)
    for now, seconds in ((1.0, 0.4), (2.0, 0.1), (3.0, 0.2)):
        (index, number), _ = one.asks(now)
        one.answered(index, number, now + 100 + seconds, now + seconds)
    (clocks,) = one.end(5)
    assert isinstance(clocks, Clocks)
    assert clocks.stages[0].error_seconds == pytest.approx(0.05)
    assert clocks.stages[0].offset_seconds == pytest.approx(100.05)


def test_pings_come_close_at_first_and_then_seldom() -> None:
    one = tracer()
    one.begin(5, 1)
    asked = 0
    for tick in range(200):  # 2 s in hundredths
        for index, number in one.asks(tick / 100):
            asked += 1
            one.answered(index, number, 0.0, tick / 100)
    assert 2 * FIRST_PINGS < asked < 2 * FIRST_PINGS + 20


def test_a_pong_that_nobody_asked_for_says_nothing() -> None:
    one = tracer()
    one.answered(0, 0, 5.0, 1.0)
    one.begin(5, 1)
    one.answered(0, 77, 5.0, 1.0)
    (clocks,) = one.end(5)
    assert isinstance(clocks, Clocks)
    assert clocks.stages[0].offset_seconds is None


def test_a_chain_with_too_many_stages_is_refused() -> None:
    with pytest.raises(InputError, match="49 stages, at most 48"):
        Tracer(["d"] * (MAX_TIMED_STAGES + 1)).check()
