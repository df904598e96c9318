"""Order and credit on a hop: whatever happens to messages and acks, no more is ever in flight."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeshard.runtime.flow import (
    CREDIT_MESSAGES,
    KNOCK_BYTES,
    KNOCK_SECONDS,
    LEAST_CREDIT_BYTES,
    Receiving,
    Sending,
    credit_bytes,
)
from edgeshard.runtime.link_watch import LOOK_SECONDS
from edgeshard.runtime.wire import MAX_HEADER_BYTES, Ack, Knock, ProtocolError, encode_numbered

EPOCH = 7
CREDIT = 1000
SETTINGS = settings(derandomize=True, deadline=None, max_examples=300)


def test_four_of_the_largest_messages_fit_into_the_credit() -> None:
    assert credit_bytes(0) == LEAST_CREDIT_BYTES
    largest = 2**20
    sender = Sending(EPOCH, credit_bytes(largest))
    for _ in range(CREDIT_MESSAGES - 1):
        sender.send(largest + MAX_HEADER_BYTES, 0.0)
    assert sender.has_room(largest + MAX_HEADER_BYTES - KNOCK_BYTES)


@given(events=st.lists(st.one_of(st.integers(1, 400), st.sampled_from(["take", "ack", "late"]))))
@SETTINGS
def test_never_more_bytes_in_flight_than_the_credit_and_each_message_once_in_order(
    events: list[int | str],
) -> None:
    sender, receiver = Sending(EPOCH, CREDIT), Receiving(EPOCH, CREDIT)
    hop: deque[tuple[int, int]] = deque()
    acks: deque[Ack] = deque()
    taken: list[int] = []
    now = 0.0
    for event in events:
        now += 0.1
        if isinstance(event, int) and sender.has_room(event):
            hop.append((sender.num_sent, event))
            sender.send(event, now)
        elif event == "take" and hop:
            number, size = hop.popleft()
            receiver.take(number, size)
            taken.append(number)
        elif event == "ack" and (ack := receiver.ack(now)) is not None:
            acks.append(ack)
        elif event == "late" and acks:
            sender.take(acks.popleft(), now)
        assert sum(size for _, size in hop) <= sender.in_flight_bytes <= CREDIT
    assert taken == list(range(len(taken)))
    assert not sender.problem
    assert not receiver.problem


def test_a_receiver_that_takes_nothing_stops_the_sender_and_an_ack_lets_it_go_on() -> None:
    sender = Sending(EPOCH, CREDIT)
    while sender.has_room(100):
        sender.send(100, 0.0)
    assert sender.num_sent == 9
    sender.take(Ack(EPOCH, 4, 400), 1.0)
    assert sender.in_flight_bytes == 500
    assert sender.has_room(100)


def test_an_older_ack_takes_nothing_back() -> None:
    sender = Sending(EPOCH, CREDIT)
    for _ in range(5):
        sender.send(100, 0.0)
    sender.take(Ack(EPOCH, 4, 400), 1.0)
    sender.take(Ack(EPOCH, 2, 200), 1.1)
    assert sender.in_flight_bytes == 100


@pytest.mark.parametrize(
    ("ack", "problem"),
    [
        (Ack(EPOCH + 1, 0, 0), "deployed anew"),
        (Ack(EPOCH, 3, 100), "3 messages of 100 bytes were acknowledged, 1 of 100 were sent"),
        (Ack(EPOCH, 1, 101), "1 messages of 101 bytes were acknowledged"),
    ],
)
def test_an_ack_that_cannot_be_true_breaks_the_hop(ack: Ack, problem: str) -> None:
    sender = Sending(EPOCH, CREDIT)
    sender.send(100, 0.0)
    sender.take(ack, 0.0)
    assert problem in sender.problem


@given(numbers=st.lists(st.integers(0, 6), max_size=12))
@SETTINGS
def test_whatever_numbers_come_only_the_next_is_taken_and_a_gap_ends_it(
    numbers: list[int],
) -> None:
    receiver, next_number, is_broken = Receiving(EPOCH, CREDIT), 0, False
    for number in numbers:
        if is_broken or number != next_number:
            is_broken = is_broken or number > next_number
            with pytest.raises(ProtocolError, match="lost on their way" if is_broken else "again"):
                receiver.take(number, 10)
        else:
            receiver.take(number, 10)
            next_number += 1
        assert bool(receiver.problem) == is_broken


def test_acks_come_after_half_the_credit_or_a_while() -> None:
    receiver = Receiving(EPOCH, CREDIT)
    assert receiver.ack(10.0) is None  # there is nothing to say
    receiver.take(0, 100)
    assert receiver.ack(10.0) == Ack(EPOCH, 1, 100)
    receiver.take(1, 499)
    assert receiver.ack(10.1) is None
    receiver.take(2, 1)
    assert receiver.ack(10.1) == Ack(EPOCH, 3, 600)
    receiver.take(3, 1)
    assert receiver.ack(10.1 + LOOK_SECONDS) == Ack(EPOCH, 4, 601)


def test_a_sender_knocks_once_for_what_is_not_acknowledged() -> None:
    sender = Sending(EPOCH, CREDIT)
    assert not sender.wants_knock(100.0)  # nothing is in flight
    sender.send(100, 100.0)
    assert not sender.wants_knock(100.0 + KNOCK_SECONDS / 2)
    assert sender.wants_knock(100.0 + KNOCK_SECONDS)
    sender.knock(KNOCK_BYTES, 100.0 + KNOCK_SECONDS)
    assert not sender.wants_knock(100.0 + 2 * KNOCK_SECONDS)
    sender.take(Ack(EPOCH, 2, 100 + KNOCK_BYTES), 102.0)
    sender.send(100, 110.0)
    assert sender.wants_knock(110.0 + KNOCK_SECONDS)


def test_a_knock_always_fits_into_the_credit() -> None:
    sender = Sending(EPOCH, CREDIT)
    while sender.has_room(1):
        sender.send(1, 0.0)
    sender.knock(KNOCK_BYTES, KNOCK_SECONDS)
    assert sender.in_flight_bytes == CREDIT
    longest = Knock(2**63 - 1, of_tokens=True)
    assert len(encode_numbered(2**63 - 1, longest)) <= KNOCK_BYTES
