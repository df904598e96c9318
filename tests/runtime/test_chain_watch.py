"""The watch over a chain: silence, other epochs and dead stages are problems, pauses are not."""

from __future__ import annotations

import pytest

from edgeshard.runtime.chain_watch import ChainWatch
from edgeshard.runtime.control import StageState, StageView


def view(index: int, epoch: int = 7, state: StageState = "ready", reason: str = "") -> StageView:
    return StageView(epoch=epoch, index=index, start=0, stop=1, state=state, reason=reason)


def ready_watch() -> ChainWatch:
    watch = ChainWatch(["laptop", "phone"], 7, 0.0)
    watch.heard(0, view(0), False, 0.0)
    watch.heard(1, view(1), False, 0.0)
    return watch


def test_a_chain_is_ready_once_every_stage_said_so() -> None:
    watch = ChainWatch(["laptop", "phone"], 7, 0.0)
    watch.heard(0, view(0), False, 0.0)
    assert not watch.is_ready
    watch.heard(1, view(1), False, 0.0)
    assert watch.is_ready
    assert watch.problem(1.0) is None


def test_silence_is_a_problem_named_with_stage_and_device() -> None:
    watch = ready_watch()
    for tenth in range(1, 45):
        watch.asks(tenth / 10)
        watch.heard(0, view(0), False, tenth / 10)
    problem = watch.problem(4.4)
    assert problem is not None
    assert "stage 1 on phone is lost" in problem


def test_a_connection_that_is_cut_is_a_problem_long_before_the_silence() -> None:
    watch = ready_watch()
    for index in (0, 1):
        watch.saw(index, True, 0.0)
    watch.saw(1, False, 0.25)
    assert watch.problem(0.4) is None  # it may be back at once, or say why it ends
    assert watch.problem(0.5) == "stage 1 on phone is lost: the connection to its agent is cut"
    watch.saw(1, True, 0.6)
    assert watch.problem(0.6) is None


def test_connections_are_looked_at_four_times_a_second() -> None:
    watch = ready_watch()
    assert [watch.looks(twentieth / 20) for twentieth in range(21)].count(True) == 5


def test_a_connection_that_is_not_there_yet_is_not_missed() -> None:
    watch = ready_watch()
    watch.saw(1, False, 0.0)
    watch.saw(1, False, 2.0)
    assert watch.problem(2.0) is None


def test_our_own_pause_is_not_their_silence() -> None:
    watch = ready_watch()
    watch.asks(60.0)
    assert watch.problem(60.0) is None


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        (None, "stage 1 on phone was stopped"),
        (view(1, epoch=8), "stage 1 on phone was deployed anew for another chain"),
        (view(0), "stage 1 on phone was deployed anew for another chain"),
        (view(1, state="failed", reason="killed"), "stage 1 on phone is failed: killed"),
    ],
)
def test_what_an_agent_says_can_be_a_problem(said: StageView | None, problem: str) -> None:
    watch = ready_watch()
    watch.heard(1, said, False, 0.5)
    assert watch.problem(0.5) == problem
    assert not watch.is_ready


def test_a_stage_that_stays_blocked_is_a_problem_and_at_once_not_ready() -> None:
    watch = ready_watch()
    watch.heard(1, view(1, state="blocked", reason="no way"), False, 0.5)
    assert not watch.is_ready
    assert watch.problem(1.2) is None
    assert watch.problem(1.25) == "stage 1 on phone is blocked: no way"


def test_a_stage_that_died_is_named_before_those_that_it_blocks() -> None:
    watch = ready_watch()
    watch.heard(0, view(0, state="blocked", reason="the connection is cut"), False, 0.5)
    watch.heard(1, view(1, state="failed", reason="killed"), False, 0.5)
    assert watch.problem(0.5) == "stage 1 on phone is failed: killed"


def test_a_stage_that_is_gone_is_named_even_where_another_is_blocked_sooner() -> None:
    watch = ready_watch()
    watch.saw(1, True, 0.0)
    watch.heard(0, view(0, state="blocked", reason="the connection is cut"), False, 0.5)
    watch.saw(1, False, 0.75)
    assert watch.problem(0.99) is None
    assert watch.problem(1.0) == "stage 1 on phone is lost: the connection to its agent is cut"


def test_a_stage_that_is_not_blocked_any_more_is_no_problem() -> None:
    watch = ready_watch()
    watch.heard(0, view(0, state="blocked", reason="no way"), False, 0.5)
    watch.heard(0, view(0), False, 1.0)
    watch.heard(0, view(0, state="blocked", reason="no way"), False, 1.5)
    assert watch.problem(1.5) is None
    assert watch.problem(2.25) == "stage 0 on laptop is blocked: no way"


def test_agents_are_asked_once_a_second() -> None:
    watch = ready_watch()
    assert [watch.asks(tenth / 10) for tenth in range(22)].count(True) == 3


def test_a_device_about_to_stop_is_named() -> None:
    watch = ready_watch()
    assert watch.draining() is None
    watch.heard(1, view(1), True, 0.5)
    assert watch.draining() == "device phone is stopping"
