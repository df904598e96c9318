"""What is counted, and how it travels."""

from __future__ import annotations

import msgspec
import pytest

from edgeshard.runtime import schedule_events as events
from edgeshard.runtime.child import Line
from edgeshard.runtime.figures import TELL_SECONDS, CoordinatorFigures, Due, Histogram
from edgeshard.runtime.request_counts import RequestCounts
from edgeshard.runtime.schedule import Limits, Schedule
from edgeshard.runtime.wire import Sampling


def submit(request: int, prompt: tuple[int, ...] = (1, 2, 3)) -> events.Submit:
    return events.Submit(
        request=request, client="a", prompt=prompt, max_tokens=2, sampling=Sampling()
    )


class Counted:
    """A schedule whose requests are counted."""

    def __init__(self, slots: int = 1, max_waiting: int = 64) -> None:
        self.schedule = Schedule(Limits(slots=slots, context=16, max_waiting=max_waiting))
        self.counts = RequestCounts()

    def handle(self, event: events.ScheduleEvent, now: float) -> list[int]:
        """Numbers of the steps that leave."""
        instructions = self.schedule.handle(event)
        self.counts.note(event, instructions, now)
        return [one.number for one in instructions if isinstance(one, events.SendStep)]

    def back(self, number: int, request: int, now: float) -> list[int]:
        row = events.TokenBack(request, 7)
        return self.handle(events.StepBack(number, (row,)), now)

    def read(self) -> CoordinatorFigures:
        return self.counts.read(self.schedule)


def test_a_histogram_counts_by_upper_bounds() -> None:
    histogram = Histogram((1.0, 2.0))
    for seconds in (0.5, 1.0, 1.5, 9.0):
        histogram.add(seconds)
    found = histogram.read()
    assert (found.counts, found.total_seconds) == ((2, 1, 1), 12.0)


def test_a_whole_request_is_counted_once() -> None:
    chain = Counted()
    (step,) = chain.handle(submit(1), 10.0)
    running = chain.read()
    assert (running.running, running.steps_in_flight, running.tokens) == (1, 1, 0)
    (step,) = chain.back(step, 1, 10.5)
    chain.back(step, 1, 10.75)
    found = chain.read()
    assert found.requests == {"length": 1}
    assert (found.tokens, found.prompt_tokens) == (2, 3)
    assert found.first_token_seconds.total_seconds == pytest.approx(0.5)
    assert found.token_seconds.total_seconds == pytest.approx(0.25)
    assert (found.running, found.waiting, found.is_up) == (0, 0, True)


def test_what_waits_is_counted_and_what_is_turned_away() -> None:
    chain = Counted(max_waiting=1)
    for request in (1, 2, 3):
        chain.handle(submit(request), 1.0)
    assert chain.read().waiting == 1
    assert chain.read().requests == {"refused": 1}
    assert chain.read().refusals == {"BusyError": 1}


def test_what_never_reaches_the_schedule_is_counted_too() -> None:
    chain = Counted()
    chain.counts.refuse("InputError")
    chain.counts.refuse("InputError")
    found = chain.read()
    assert (found.requests, found.refusals) == ({"refused": 2}, {"InputError": 2})


def test_a_request_that_dies_with_the_chain_failed() -> None:
    chain = Counted()
    chain.handle(submit(1), 1.0)
    chain.handle(events.ChainFailed("stage 1 is gone"), 2.0)
    found = chain.read()
    assert (found.requests, found.is_up) == ({"failed": 1}, False)


def test_a_cancelled_request_is_neither_failed_nor_refused() -> None:
    chain = Counted()
    chain.handle(submit(1), 1.0)
    chain.handle(events.Cancel(1), 2.0)
    assert chain.read().requests == {"cancelled": 1}


def test_figures_travel_as_a_line() -> None:
    line = Line(figures=Counted().read())
    assert msgspec.json.decode(msgspec.json.encode(line), type=Line) == line


def test_figures_are_told_about_once_a_second() -> None:
    due = Due()
    told = [now for now in range(100) if due.at(now / 10)]
    assert len(told) == pytest.approx(10 / TELL_SECONDS, abs=1)
