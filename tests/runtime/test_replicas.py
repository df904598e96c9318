"""Which of several chains a request goes to."""

from __future__ import annotations

import pytest

from edgeshard.errors import InputError
from edgeshard.runtime.ask import Load
from edgeshard.runtime.channel import KeyPair
from edgeshard.runtime.replicas import Replicas, rank
from edgeshard.runtime.schedule import Limits, Schedule
from edgeshard.runtime.schedule_events import ChainFailed, Clock, Drain, Submit
from edgeshard.runtime.wire import Sampling


@pytest.mark.parametrize(
    ("loads", "order"),
    [
        ([Load(2.0, 3.0), Load(0.5, 9.0)], [1, 0]),  # the least wait, however many there are
        ([Load(0.0, 0.5), Load(0.0, 0.25)], [1, 0]),  # both have a slot: the emptier one
        ([Load(0.0, 0.5), None], [0]),
        ([None, None], []),
    ],
)
def test_the_least_wait_comes_first(loads: list[Load | None], order: list[int]) -> None:
    assert rank(loads, 0) == order


def test_equals_take_turns() -> None:
    equal = [Load(0.0, 0.0)] * 3
    assert [rank(equal, first) for first in range(3)] == [[0, 1, 2], [1, 2, 0], [2, 0, 1]]


def test_no_cluster_is_an_input_error() -> None:
    with pytest.raises(InputError, match="give at least one"):
        Replicas.connect([], KeyPair.generate())


def submit(request: int) -> Submit:
    prompt = (1, 2, 3)
    return Submit(request=request, client="a", prompt=prompt, max_tokens=9, sampling=Sampling())


def test_a_schedule_predicts_its_wait_from_how_long_slots_are_held() -> None:
    chain = Schedule(Limits(slots=2, context=32))
    assert chain.load() == Load(0.0, 0.0)
    chain.handle(submit(1))
    assert chain.load() == Load(0.0, 0.5)
    chain.handle(submit(2))
    chain.handle(Clock(4.0))
    assert chain.load() == Load(2.0, 1.0)  # two slots, held for four seconds each so far
    chain.handle(submit(3))
    assert chain.load() == Load(4.0, 1.5)


@pytest.mark.parametrize("event", [ChainFailed("x"), Drain("x")])
def test_a_chain_that_takes_nothing_has_no_load(event: ChainFailed | Drain) -> None:
    chain = Schedule(Limits(slots=2, context=32))
    chain.handle(event)
    assert chain.load() is None
