"""The protocol core of a stage: a step is applied once and in order, or not at all."""

from __future__ import annotations

import dataclasses

import msgspec
import pytest

from edgeshard.runtime.stage import Compute, Copy, Forward, Instruction, StageCore, StageShape
from edgeshard.runtime.wire import (
    Bias,
    Close,
    Fault,
    Kept,
    Open,
    Row,
    Sampling,
    Seen,
    StageMessage,
    Step,
    Trace,
)
from edgeshard.runtime.wishes import Wishes
from edgeshard.schemas.common import Activation

GREEDY = Sampling()
WISHES = Wishes(GREEDY)


def core(*, is_last: bool = False) -> StageCore:
    return StageCore(
        StageShape(
            epoch=7,
            index=1,
            slots=2,
            context=16,
            chunk_tokens=8,
            hidden_size=4,
            vocab_size=100,
            takes_tokens=False,
            is_last=is_last,
        )
    )


def step(position: int, num_tokens: int = 1, request: int = 5, slot: int = 0) -> Step:
    return Step(7, 1, slot, (Row(request, position),), num_tokens, True)


def computed(step: Step, *positions: int) -> Compute:
    """What is to be computed where all rows are live and greedy."""
    places = positions or tuple(row.position for row in step.rows)
    return Compute(step, places, (WISHES,) * len(step.rows))


def feed(stage: StageCore, *messages: StageMessage) -> list[Instruction]:
    """Instructions of the last message, with payloads of the right size."""
    given: list[Instruction] = []
    for message in messages:
        size = 16 * message.num_tokens * len(message.rows) if isinstance(message, Step) else 0
        given = stage.handle(message, size)
    return given


def faults(instructions: list[Instruction]) -> list[str]:
    return [
        one.message.reason
        for one in instructions
        if isinstance(one, Forward) and isinstance(one.message, Fault)
    ]


def test_steps_in_order_are_computed() -> None:
    stage = core()
    opened = Open(7, 5, 0, GREEDY)
    assert feed(stage, opened) == [Forward(opened)]
    assert feed(stage, step(0, 4)) == [computed(step(0, 4))]
    assert feed(stage, step(4)) == [computed(step(4))]
    closed = Close(7, 5, 0)
    assert feed(stage, closed) == [Forward(closed)]
    assert stage.open_slots == 0


def test_the_last_stage_keeps_open_and_close_to_itself() -> None:
    stage = core(is_last=True)
    assert feed(stage, Open(7, 5, 0, GREEDY)) == []
    assert feed(stage, Close(7, 5, 0)) == []


def test_a_repeated_step_is_dropped() -> None:
    stage = core()
    assert feed(stage, Open(7, 5, 0, GREEDY), step(0, 4), step(0, 4)) == []
    assert stage.counts["duplicate"] == 1
    assert feed(stage, step(4)) == [computed(step(4))]


def test_a_gap_gives_the_request_up() -> None:
    stage = core()
    given = feed(stage, Open(7, 5, 0, GREEDY), step(0, 4), step(5))
    assert faults(given) == ["protocol error: step at position 5 after 4: one is lost"]
    assert feed(stage, step(4)) == []
    assert stage.open_slots == 0


@pytest.mark.parametrize(
    ("message", "size"),
    [
        (step(0, 9), 9 * 16),  # longer than a chunk
        (step(0, 4), 4 * 16 - 1),
        (step(0, 4), 4 * 16 + 1),
        (step(0, 4), 0),
        (step(0, 2**31), 0),
        (step(2**63 - 1, 1), 16),
        (step(12, 5), 5 * 16),  # beyond the context
        (Step(7, 1, 0, (Row(5, 0),), 1, True, 0.0, ()), 16),  # traced, but stage 0 left no marks
    ],
)
def test_what_does_not_fit_never_reaches_the_session(message: Step, size: int) -> None:
    stage = core()
    feed(stage, Open(7, 5, 0, GREEDY))
    assert len(faults(stage.handle(message, size))) == 1
    assert stage.counts["refused"] == 1


def test_a_slot_that_is_not_ours_is_refused() -> None:
    assert len(faults(feed(core(), Open(7, 5, 2, GREEDY)))) == 1


def test_a_held_slot_is_not_taken_over() -> None:
    stage = core()
    given = feed(stage, Open(7, 5, 0, GREEDY), Open(7, 6, 0, GREEDY))
    assert faults(given) == ["protocol error: slot 0 is held by request 5"]
    assert feed(stage, step(0)) == [computed(step(0))]


def test_another_request_cannot_use_a_slot() -> None:
    assert feed(core(), Open(7, 5, 0, GREEDY), step(0, request=6)) == []


@pytest.mark.parametrize(
    "message",
    [Open(6, 5, 0, GREEDY), Step(6, 1, 0, (Row(5, 0),), 1, True), Close(6, 5, 0), Trace(6, 1, 0)],
)
def test_an_old_epoch_changes_nothing(message: StageMessage) -> None:
    stage = core()
    feed(stage, Open(7, 5, 0, GREEDY))
    assert feed(stage, message) == []
    assert stage.counts["stale epoch"] == 1
    assert stage.open_slots == 1


def test_a_fault_passes_through_and_frees_the_slot() -> None:
    stage = core()
    fault = Fault(7, 5, 0, "kernel")
    assert feed(stage, Open(7, 5, 0, GREEDY), fault) == [Forward(fault)]
    assert stage.open_slots == 0


def test_a_trace_counts_the_stages() -> None:
    assert feed(core(), Trace(7, 9, 1)) == [Forward(Trace(7, 9, 2))]


def test_the_first_stage_takes_token_ids() -> None:
    shape = core().shape
    assert shape.payload_bytes(3) == 48
    import dataclasses

    assert dataclasses.replace(shape, takes_tokens=True).payload_bytes(3) == 24


def batch(*rows: tuple[int, int], slot: int = 0) -> Step:
    """A step of one token for each (request, position)."""
    return Step(7, 2, slot, tuple(Row(*row) for row in rows), 1, True)


def two_requests() -> StageCore:
    """Request 5 in slot 0 with 4 positions, request 6 in slot 1 with 2."""
    stage = core()
    opened = Open(7, 5, 0, GREEDY), Open(7, 6, 1, GREEDY)
    feed(stage, *opened, step(0, 4), step(0, 2, request=6, slot=1))
    return stage


def test_rows_of_a_step_are_computed_together() -> None:
    stage = two_requests()
    assert feed(stage, batch((5, 4), (6, 2))) == [computed(batch((5, 4), (6, 2)))]
    assert feed(stage, batch((5, 5), (6, 3))) == [computed(batch((5, 5), (6, 3)))]


def test_a_row_with_a_gap_is_given_up_and_the_others_go_on() -> None:
    stage = two_requests()
    given = feed(stage, batch((5, 5), (6, 2)))
    assert faults(given) == ["protocol error: step at position 5 after 4: one is lost"]
    assert given[-1] == Compute(batch((5, 5), (6, 2)), (0, 2), (None, WISHES))


def test_a_row_of_a_request_that_is_over_writes_where_nothing_is_lost() -> None:
    stage = two_requests()
    feed(stage, Close(7, 5, 0), Open(7, 8, 0, GREEDY), step(0, 3, request=8))
    given = feed(stage, batch((5, 4), (6, 2)))
    assert given == [Compute(batch((5, 4), (6, 2)), (3, 2), (None, WISHES))]
    assert feed(stage, step(3, request=8)) == [computed(step(3, request=8))]


def test_rows_that_are_all_over_are_not_computed() -> None:
    stage = two_requests()
    feed(stage, Close(7, 5, 0), Close(7, 6, 1))
    assert feed(stage, batch((5, 4), (6, 2))) == []


def test_rows_beyond_the_slots_are_refused() -> None:
    assert len(faults(feed(two_requests(), batch((6, 2), (9, 0), slot=1)))) == 2


def kept_request(length: int = 4) -> StageCore:
    """Request 5 is over and left `length` positions in slot 0."""
    stage = core()
    feed(stage, Open(7, 5, 0, GREEDY), step(0, length), Close(7, 5, 0))
    return stage


def test_a_request_goes_on_behind_what_its_slot_kept() -> None:
    stage = kept_request()
    opened = Open(7, 6, 0, GREEDY, Kept(5, 0, 3))
    assert feed(stage, opened) == [Forward(opened)]
    assert feed(stage, step(3, 2, request=6)) == [computed(step(3, 2, request=6))]


@pytest.mark.parametrize(
    "kept", [Kept(5, 0, 5), Kept(4, 0, 3), Kept(5, 1, 3), Kept(5, 99, 3), Kept(5, 2**62, 3)]
)
def test_what_a_slot_did_not_keep_is_refused(kept: Kept) -> None:
    given = feed(kept_request(), Open(7, 6, 0, GREEDY, kept))
    (reason,) = faults(given)
    assert f"{kept.length} positions of request {kept.request} any more" in reason


def test_what_was_kept_is_gone_once_the_slot_is_taken() -> None:
    stage = kept_request()
    feed(stage, Open(7, 6, 0, GREEDY), Close(7, 6, 0))
    assert len(faults(feed(stage, Open(7, 8, 0, GREEDY, Kept(5, 0, 3))))) == 1


def test_a_request_that_was_given_up_keeps_nothing() -> None:
    stage = core()
    feed(stage, Open(7, 5, 0, GREEDY), step(0, 4), step(6))
    assert len(faults(feed(stage, Open(7, 6, 0, GREEDY, Kept(5, 0, 3))))) == 1


def test_a_dead_row_writes_behind_what_its_slot_keeps() -> None:
    stage = two_requests()
    feed(stage, Close(7, 5, 0))
    given = feed(stage, batch((5, 4), (6, 2)))
    assert given == [Compute(batch((5, 4), (6, 2)), (4, 2), (None, WISHES))]


@pytest.mark.parametrize("is_over", [True, False])
def test_the_start_of_another_slot_is_copied(is_over: bool) -> None:
    stage = kept_request() if is_over else core()
    if not is_over:
        feed(stage, Open(7, 5, 0, GREEDY), step(0, 4))
    opened = Open(7, 6, 1, GREEDY, Kept(5, 0, 3))
    assert feed(stage, opened) == [Forward(opened), Copy(6, 0, 1, 3)]
    assert feed(stage, step(3, 2, request=6, slot=1)) == [computed(step(3, 2, request=6, slot=1))]


def test_what_another_slot_has_not_computed_yet_is_not_copied() -> None:
    stage = core()
    feed(stage, Open(7, 5, 0, GREEDY), step(0, 2))
    assert len(faults(feed(stage, Open(7, 6, 1, GREEDY, Kept(5, 0, 3))))) == 1


def penalised(num_seen: int = 3, num_biases: int = 1, *, is_last: bool = True) -> StageCore:
    stage = core(is_last=is_last)
    feed(stage, Open(7, 5, 0, GREEDY, None, num_seen, num_biases))
    return stage


def test_a_stage_in_the_middle_passes_tokens_and_biases_on() -> None:
    stage = penalised(is_last=False)
    for message in (Seen(7, 5, 0, (1, 2)), Bias(7, 5, 0, ((9, 1.5),))):
        assert feed(stage, message) == [Forward(message)]


def test_the_last_stage_draws_with_the_tokens_and_biases_that_came() -> None:
    stage = penalised()
    feed(stage, Seen(7, 5, 0, (1, 2)), Seen(7, 5, 0, (3,)), Bias(7, 5, 0, ((9, 1.5),)))
    given = feed(stage, step(0, 2))
    assert given == [Compute(step(0, 2), (0,), (Wishes(GREEDY, {1, 2, 3}, {9: 1.5}),))]


def test_no_token_is_drawn_before_everything_came() -> None:
    stage = penalised()
    given = feed(stage, Seen(7, 5, 0, (1, 2)), step(0, 2))
    assert faults(given) == ["protocol error: 1 tokens and 1 biases have not come"]


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (Seen(7, 5, 0, (1, 2, 3, 4)), "more tokens or biases than were announced"),
        (Bias(7, 5, 0, ((1, 0.5), (2, 0.5))), "more tokens or biases than were announced"),
        (Seen(7, 5, 0, (100,)), "token 100 is not below 100"),
        (Bias(7, 5, 0, ((2**31, 0.5),)), "token 2147483648 is not below 100"),
    ],
)
def test_what_was_not_announced_or_is_no_token_is_refused(
    message: Seen | Bias, reason: str
) -> None:
    assert faults(feed(penalised(), message)) == [f"protocol error: {reason}"]


@pytest.mark.parametrize("message", [Seen(7, 6, 0, (1,)), Seen(7, 5, 1, (1,)), Seen(6, 5, 0, (1,))])
def test_tokens_of_another_request_change_nothing(message: Seen) -> None:
    stage = penalised()
    assert feed(stage, message) == []
    assert stage.open_slots == 1


@pytest.mark.parametrize(("num_seen", "num_biases"), [(17, 0), (0, 1025), (2**62, 0)])
def test_lists_that_are_too_long_are_refused_when_announced(num_seen: int, num_biases: int) -> None:
    stage = core(is_last=True)
    given = feed(stage, Open(7, 5, 0, GREEDY, None, num_seen, num_biases))
    assert "at most 16 and 1024 are taken" in faults(given)[0]


def test_states_of_another_type_are_refused_by_name() -> None:
    stage = StageCore(_shape_taking("int8"))
    feed(stage, Open(7, 5, 0, GREEDY))
    sent = msgspec.structs.replace(step(0), states="fp16")
    size = stage.shape.payload_bytes(1)  # with 4 values a position, that of fp16 too
    assert size == 8
    (reason,) = faults(stage.handle(sent, size))
    assert "hidden states come as fp16, stage 1 was deployed to take int8" in reason


def test_the_size_of_a_payload_follows_from_the_type() -> None:
    stage = StageCore(_shape_taking("int8"))
    feed(stage, Open(7, 5, 0, GREEDY))
    sent = msgspec.structs.replace(step(0, 2), states="int8")
    (reason,) = faults(stage.handle(sent, 32))
    assert "payload of 32 bytes; 1 rows of 2 positions have 16" in reason


def _shape_taking(activation: Activation) -> StageShape:
    return dataclasses.replace(core().shape, takes=activation)
