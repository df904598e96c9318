"""Steps placed on one clock: nothing arrives before it left, and the parts add up."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeshard.errors import LinkError
from edgeshard.runtime.ask import StageClock, Timed
from edgeshard.runtime.exchange import Trace
from edgeshard.runtime.token_times import breakdown, clock_offsets, places, spread, token_times
from edgeshard.runtime.wire import Marks

settings.register_profile("times", derandomize=True, deadline=None, max_examples=200)

HOPS = (0.1, 0.2, 0.4)  # source -> a, a -> b, b -> source
OFFSETS = (1000.0, 50.0)
CLOCKS = tuple(StageClock(name, offset, 0.01) for name, offset in zip("ab", OFFSETS, strict=True))


def step_at(number: int, sent: float, *, has_token: bool = True, free: float = 0.0) -> Timed:
    """Read 1, compute 2, write 3 on each stage, over `HOPS`, by clocks that are off."""
    now, marks = sent, []
    for hop, offset in zip(HOPS, OFFSETS, strict=False):
        taken = now + hop + offset
        marks.append(Marks(free + offset, taken, taken + 1, taken + 3, taken + 6))
        now += hop + 6
    return Timed(1, number, 4, has_token, sent, tuple(marks), sent, now + HOPS[-1])


def test_a_token_is_taken_apart_in_the_order_of_the_chain() -> None:
    first = step_at(0, 10.0)
    second = step_at(1, first.returned + 0.5)
    _, token = token_times(Trace((first, second), CLOCKS))
    found = [(part.where, part.kind, round(part.seconds, 6)) for part in token.parts]
    assert found == [
        ("source", "source", 0.5),
        ("source -> a", "wait", 0.0),
        ("source -> a", "hop", 0.1),
        ("a", "read", 1.0),
        ("a", "compute", 2.0),
        ("a", "write", 3.0),
        ("a -> b", "wait", 0.0),
        ("a -> b", "hop", 0.2),
        ("b", "read", 1.0),
        ("b", "compute", 2.0),
        ("b", "write", 3.0),
        ("b -> source", "wait", 0.0),
        ("b -> source", "hop", 0.4),
    ]
    assert token.seconds == pytest.approx(second.returned - first.returned)


def test_a_hop_to_a_busy_stage_is_a_wait_until_it_is_free() -> None:
    trace = Trace((step_at(0, 10.0, free=10.06),), CLOCKS)
    (step,) = token_times(trace)
    first = [(part.kind, round(part.seconds, 6)) for part in step.parts[:2]]
    assert first == [("wait", 0.06), ("hop", 0.04)]


def test_the_prompt_is_not_a_token() -> None:
    prompt = [step_at(0, 0.0, has_token=False), step_at(1, 0.0)]
    times = token_times(Trace((*prompt, step_at(2, 20.0)), CLOCKS))
    assert [step.is_decode for step in times] == [False, False, True]
    assert sum(one.share for one in breakdown(times)) == pytest.approx(1.0)


def test_places_are_in_the_order_of_the_chain() -> None:
    trace = Trace((), CLOCKS)
    assert places(trace) == ["source", "source -> a", "a", "a -> b", "b", "b -> source"]
    assert token_times(trace) == []


def test_a_device_whose_times_run_backwards_is_named() -> None:
    step = step_at(0, 0.0)
    bad = Marks(0.0, 2.0, 1.0, 3.0, 4.0)
    wrong = Timed(1, 0, 1, True, 0.0, (step.marks[0], bad), 0.0, 99.0)
    with pytest.raises(LinkError, match="stage 1 on b reports times that run backwards"):
        token_times(Trace((wrong,), CLOCKS))


def test_a_clock_that_jumped_is_an_error() -> None:
    steps = (step_at(0, 0.0), Timed(1, 1, 1, True, 30.0, step_at(1, 0.0).marks, 0.0, 30.1))
    with pytest.raises(LinkError, match="trace again"):
        token_times(Trace(steps, CLOCKS))


def test_a_step_that_lacks_a_stage_is_an_error() -> None:
    wrong = Timed(1, 0, 1, True, 0.0, step_at(0, 0.0).marks[:1], 0.0, 99.0)
    with pytest.raises(LinkError, match="1 stages of 2"):
        token_times(Trace((wrong,), CLOCKS))


durations = st.floats(0, 10)
offsets = st.floats(-1e5, 1e5)


@st.composite
def traces(draw: st.DrawFn) -> tuple[Trace, list[list[float]], list[float]]:
    """A trace, the true hops of each step, and the true offsets."""
    num_stages = draw(st.integers(1, 4))
    true = draw(st.lists(offsets, min_size=num_stages, max_size=num_stages))
    steps, hops, now = [], [], 2e5
    for number in range(draw(st.integers(1, 5))):
        sent = now = now + draw(durations)
        taken_times, marks = [draw(durations) for _ in range(num_stages + 1)], []
        for hop, offset in zip(taken_times, true, strict=False):
            taken = now + hop
            written = taken + draw(durations)
            times = (sent, taken, taken, written, written)
            marks.append(Marks(*(one + offset + 1e6 for one in times)))
            now = written
        now += taken_times[-1]
        steps.append(Timed(1, number, 1, True, sent + 1e6, tuple(marks), sent + 1e6, now + 1e6))
        hops.append(taken_times)
    measured = [draw(st.none() | st.floats(-20, 20).map(lambda e, o=one: o + e)) for one in true]  # type: ignore[misc]
    clocks = tuple(StageClock("d", one, 20.0) for one in measured)
    return Trace(tuple(steps), clocks), hops, true


@settings(settings.get_profile("times"))
@given(traces())
def test_whatever_the_clocks_say_nothing_arrives_early_and_everything_adds_up(
    made: tuple[Trace, list[list[float]], list[float]],
) -> None:
    trace, _, _ = made
    times = token_times(trace)
    for step in times:
        assert all(part.seconds >= -1e-5 for part in step.parts)
        assert all(
            left.stop == pytest.approx(right.start, abs=1e-4)
            for left, right in itertools.pairwise(step.parts)
        )
        assert sum(part.seconds for part in step.parts) == pytest.approx(step.seconds, abs=1e-4)
    for before, step, timed in zip(trace.steps, times[1:], trace.steps[1:], strict=False):
        assert step.seconds == pytest.approx(timed.returned - before.returned, abs=1e-4)


@settings(settings.get_profile("times"))
@given(traces())
def test_offsets_that_are_right_are_kept(
    made: tuple[Trace, list[list[float]], list[float]],
) -> None:
    trace, _, true = made
    assert clock_offsets(trace.steps, true) == pytest.approx(true, abs=1e-4)


def test_a_spread_is_median_and_tenths() -> None:
    assert spread([float(value) for value in range(11)]) == (5.0, 1.0, 9.0)
    assert spread([3.0]) == (3.0, 3.0, 3.0)
