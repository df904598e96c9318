"""The schedule: slots, turns, chunks, ends."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeshard.runtime.schedule import Limits, Schedule
from edgeshard.runtime.schedule_events import (
    Blocked,
    Cancel,
    ChainFailed,
    Clock,
    Drain,
    Emit,
    Fail,
    Finish,
    RequestFailed,
    ScheduleInstruction,
    SendClose,
    SendOpen,
    SendStep,
    StepBack,
    Submit,
    TokenBack,
)
from edgeshard.runtime.schedule_limits import RUN_CHUNKS, chunk_size
from edgeshard.runtime.wire import MAX_ROWS, Kept, Sampling

settings.register_profile("runtime", derandomize=True, deadline=None, max_examples=300)


def schedule(
    slots: int = 1,
    context: int = 32,
    chunk: int = 4,
    window: int = 2,
    waiting: int = 4,
    in_rounds: bool = False,
) -> Schedule:
    limits = Limits(
        slots=slots,
        context=context,
        chunk_tokens=chunk,
        window=window,
        max_waiting=waiting,
        in_rounds=in_rounds,
    )
    return Schedule(limits)


def submit(request: int, num_prompt: int = 3, client: str = "a", max_tokens: int = 8) -> Submit:
    return Submit(
        request=request,
        client=client,
        prompt=tuple(range(num_prompt)),
        max_tokens=max_tokens,
        sampling=Sampling(),
    )


def drawn(instructions: list[ScheduleInstruction]) -> str:
    """Instructions as a line: open O, rows request@position+tokens, close C, emit E, end."""
    words = []
    for one in instructions:
        match one:
            case SendOpen():
                words.append(f"O{one.request}")
            case SendStep():
                mark = "!" if one.wants_token else ""
                rows = [f"{row.request}@{row.position}+{len(row.tokens)}" for row in one.rows]
                words.append("&".join(rows) + mark)
            case SendClose():
                words.append(f"C{one.request}")
            case Emit():
                words.append(f"E{one.request}.{one.index}")
            case Finish():
                words.append(f"{one.reason}{one.request}")
            case Fail():
                words.append(f"fail{one.request}")
    return " ".join(words)


def back(
    chain: Schedule, request: int, token: int | None, ends: bool = False
) -> list[ScheduleInstruction]:
    """The oldest step of a request comes back, with that row alone."""
    numbers = [number for number, requests in chain.in_flight().items() if request in requests]
    return chain.handle(StepBack(min(numbers, default=99), (TokenBack(request, token, ends),)))


def test_the_life_of_a_request() -> None:
    chain = schedule()
    assert drawn(chain.handle(submit(1, num_prompt=6, max_tokens=3))) == "O1 1@0+4 1@4+2!"
    assert drawn(back(chain, 1, None)) == ""
    assert drawn(back(chain, 1, 50)) == "1@6+1! E1.0"
    assert drawn(back(chain, 1, 51)) == "1@7+1! E1.1"
    assert drawn(back(chain, 1, 52)) == "E1.2 C1 length1"
    assert chain.num_running == 0


def test_an_end_in_the_text_stops() -> None:
    chain = schedule()
    chain.handle(submit(1))
    assert drawn(back(chain, 1, 50, ends=True)) == "E1.0 C1 stop1"


def test_a_full_context_ends_with_length() -> None:
    chain = schedule(context=4)
    chain.handle(submit(1, num_prompt=3, max_tokens=99))
    assert drawn(back(chain, 1, 50)) == "1@3+1! E1.0"
    assert drawn(back(chain, 1, 51)) == "E1.1 C1 length1"


@pytest.mark.parametrize("num_prompt", [0, 33])
def test_a_prompt_that_does_not_fit_is_refused(num_prompt: int) -> None:
    (refusal,) = schedule().handle(submit(1, num_prompt))
    assert isinstance(refusal, Fail)
    assert refusal.kind == "InputError"
    assert str(num_prompt or "no tokens") in refusal.reason


def test_two_requests_share_the_chain_each_at_its_own_pace() -> None:
    chain = schedule(slots=2)
    assert drawn(chain.handle(submit(1))) == "O1 1@0+3!"
    assert drawn(chain.handle(submit(2))) == "O2 2@0+3!"
    assert drawn(back(chain, 1, 50)) == "1@3+1! E1.0"
    assert drawn(back(chain, 1, 51)) == "1@4+1! E1.1"
    assert drawn(back(chain, 2, 60)) == "2@3+1! E2.0"


def test_in_rounds_all_next_tokens_leave_together() -> None:
    chain = schedule(slots=2, in_rounds=True)
    chain.handle(submit(1))
    chain.handle(submit(2))
    assert drawn(back(chain, 1, 50)) == "E1.0"
    assert drawn(back(chain, 2, 60)) == "1@3+1! 2@3+1! E2.0"
    assert drawn(back(chain, 2, 61)) == "E2.1"
    assert drawn(back(chain, 1, 51)) == "1@4+1! 2@4+1! E1.1"


@pytest.mark.parametrize(
    "end", [Cancel(2), RequestFailed(2, "kernel"), StepBack(1, (TokenBack(2, 9, True),))]
)
def test_a_round_does_not_wait_for_a_request_that_is_over(
    end: Cancel | RequestFailed | StepBack,
) -> None:
    chain = schedule(slots=2, in_rounds=True)
    chain.handle(submit(1))
    chain.handle(submit(2))
    back(chain, 1, 50)
    assert "1@3+1!" in drawn(chain.handle(end))


def test_a_round_forgets_the_token_of_a_request_that_is_over() -> None:
    chain = schedule(slots=2, in_rounds=True)
    chain.handle(submit(1))
    chain.handle(submit(2))
    back(chain, 1, 50)
    assert drawn(chain.handle(Cancel(1))) == "C1 cancelled1"
    assert drawn(back(chain, 2, 60)) == "2@3+1! E2.0"


def test_long_prompts_take_turns_and_leave_room_for_others() -> None:
    chain = schedule(slots=3, window=2)
    assert drawn(chain.handle(submit(1, 12))) == "O1 1@0+4 1@4+4"
    assert drawn(chain.handle(submit(2, 8))) == "O2"
    assert drawn(chain.handle(submit(3, 2))) == "O3"
    assert drawn(back(chain, 1, None)) == "1@8+4!"
    assert drawn(back(chain, 1, None)) == "2@0+4"
    assert drawn(back(chain, 1, 50)) == "1@12+1! E1.0 3@0+2!"


def test_beside_a_decode_a_chunk_leaves_behind_each_of_its_steps() -> None:
    """However many the window would take: no token is to wait for two chunks at a stage."""
    chain = schedule(slots=2, window=3)
    chain.handle(submit(1))
    assert drawn(back(chain, 1, 50)) == "1@3+1! E1.0"
    assert drawn(chain.handle(submit(2, 20))) == "O2 2@0+4"
    assert drawn(back(chain, 1, 51)) == "1@4+1! E1.1 2@4+4"
    assert drawn(back(chain, 2, None)) == ""
    assert drawn(back(chain, 1, 52)) == "1@5+1! E1.2 2@8+4"
    assert drawn(back(chain, 1, 53)) == "1@6+1! E1.3 2@12+4"
    assert drawn(back(chain, 1, 54)) == "1@7+1! E1.4"  # the window is full
    assert drawn(back(chain, 2, None)) == "2@16+4!"


def test_chunks_are_smaller_beside_a_decode() -> None:
    chain = Schedule(Limits(slots=2, context=64, chunk_tokens=8, beside_tokens=5))
    assert drawn(chain.handle(submit(1, 12))) == "O1 1@0+8"
    assert drawn(back(chain, 1, None)) == "1@8+4!"
    assert drawn(back(chain, 1, 50)) == "1@12+1! E1.0"
    assert drawn(chain.handle(submit(2, 20, client="b"))) == "O2 2@0+4"
    assert drawn(back(chain, 2, None)) == ""
    assert drawn(back(chain, 1, 51)) == "1@13+1! E1.1 2@4+4"
    assert drawn(chain.handle(Cancel(1))) == "C1 cancelled1"
    assert drawn(back(chain, 2, None)) == "2@8+8"


def test_behind_a_run_of_chunks_the_others_have_steps_to_themselves() -> None:
    limits = Limits(slots=2, context=99, chunk_tokens=4, window=2, beside_steps=2)
    chain = Schedule(limits)
    chain.handle(submit(1, max_tokens=99))
    back(chain, 1, 50)
    chain.handle(submit(2, 80, client="b"))
    had_chunk = []
    for _ in range(RUN_CHUNKS + 4):
        back(chain, 2, None)
        had_chunk.append("2@" in drawn(back(chain, 1, 51)))
    assert had_chunk == [True] * (RUN_CHUNKS - 1) + [False] * 2 + [True] * 3


def test_the_last_one_that_decodes_leaves_the_window_to_the_prompt() -> None:
    chain = schedule(slots=2, window=2)
    chain.handle(submit(1))
    back(chain, 1, 50)
    assert drawn(chain.handle(submit(2, 16))) == "O2 2@0+4"
    assert drawn(back(chain, 2, None)) == ""
    assert drawn(back(chain, 1, 51, ends=True)) == "E1.1 C1 stop1 2@4+4 2@8+4"


def test_beside_several_groups_a_chunk_leaves_behind_a_step_of_each() -> None:
    chain = schedule(slots=3, window=3)
    for request in (1, 2):
        chain.handle(submit(request))
        back(chain, request, 50)
    assert drawn(chain.handle(submit(3, 16))) == "O3"  # 1 has sent none since the chunk of 2
    assert drawn(back(chain, 1, 51)) == "1@4+1! E1.1 3@0+4"
    assert drawn(back(chain, 1, 52)) == "1@5+1! E1.2"
    assert drawn(back(chain, 2, 51)) == "2@4+1! E2.1 3@4+4"
    assert drawn(back(chain, 2, 52)) == "2@5+1! E2.2"
    assert drawn(back(chain, 1, 53)) == "1@6+1! E1.3 3@8+4"


def test_clients_take_turns_however_much_one_asks() -> None:
    chain = schedule(slots=1, waiting=9)
    chain.handle(submit(1, client="a"))
    for request in (2, 3, 4):
        chain.handle(submit(request, client="a"))
    chain.handle(submit(5, client="b"))
    chain.handle(submit(6, client="c"))
    order = []
    for _ in range(5):
        (running,) = next(iter(chain.in_flight().values()))
        given = back(chain, running, 50, ends=True)
        order += [one.request for one in given if isinstance(one, SendOpen)]
    assert order == [2, 5, 6, 3, 4]


def test_a_full_queue_refuses() -> None:
    chain = schedule(waiting=1)
    chain.handle(submit(1))
    chain.handle(submit(2))
    (refusal,) = chain.handle(submit(3))
    assert isinstance(refusal, Fail)
    assert refusal.kind == "BusyError"
    assert "at most 1 may; ask again in" in refusal.reason


def limited(max_waiting_tokens: int) -> Schedule:
    limits = Limits(slots=1, context=32, max_waiting_tokens=max_waiting_tokens)
    return Schedule(limits)


def test_a_queue_of_many_prompt_tokens_refuses() -> None:
    chain = limited(20)
    for request in (1, 2):
        chain.handle(submit(request, 15))
    (refusal,) = chain.handle(submit(3, 6))
    assert isinstance(refusal, Fail)
    assert refusal.kind == "BusyError"
    assert "15 prompt tokens wait already and 6 come, at most 20 may" in refusal.reason
    assert chain.handle(submit(4, 5)) == []


def test_a_prompt_longer_than_the_queue_may_wait_alone() -> None:
    chain = limited(4)
    chain.handle(submit(1))
    assert chain.handle(submit(2, 30)) == []


def test_a_refusal_says_when_the_queue_is_through_at_the_rate_of_late() -> None:
    chain = schedule(slots=2, waiting=1)
    chain.handle(Clock(100.0))
    for request in (1, 2):
        chain.handle(submit(request))
    chain.handle(Clock(104.0))
    back(chain, 1, 50, ends=True)
    back(chain, 2, 50, ends=True)
    for request in (3, 4, 5):
        chain.handle(submit(request))
    (refusal,) = chain.handle(submit(6))
    assert isinstance(refusal, Fail)
    assert refusal.retry_seconds == 4.0  # two turns of 4 s over two slots
    assert chain.busy() is not None


def test_before_anything_ended_the_age_of_what_runs_is_the_guess() -> None:
    chain = schedule(waiting=1)
    chain.handle(submit(1))
    chain.handle(submit(2))
    chain.handle(Clock(3.0))
    (refusal,) = chain.handle(submit(3))
    assert isinstance(refusal, Fail)
    assert refusal.retry_seconds == 6.0


def with_deadline(request: int, seconds: float) -> Submit:
    return dataclasses.replace(submit(request), deadline_seconds=seconds)


def test_a_deadline_ends_a_request_that_runs_and_one_that_waits() -> None:
    chain = schedule()
    chain.handle(Clock(10.0))
    chain.handle(with_deadline(1, 2.0))
    chain.handle(with_deadline(2, 3.0))
    assert chain.handle(Clock(11.9)) == []
    assert drawn(chain.handle(Clock(12.0))) == "C1 deadline1 O2 2@0+3!"
    assert drawn(chain.handle(Clock(13.0))) == "C2 deadline2"
    assert chain.num_running == chain.num_waiting == 0


def test_a_deadline_that_passes_in_the_queue_ends_there() -> None:
    chain = schedule()
    chain.handle(submit(1))
    chain.handle(with_deadline(2, 1.0))
    assert drawn(chain.handle(Clock(1.0))) == "deadline2"


def test_cancel_frees_the_slot_for_the_next() -> None:
    chain = schedule()
    chain.handle(submit(1))
    chain.handle(submit(2))
    assert drawn(chain.handle(Cancel(1))) == "C1 cancelled1 O2 2@0+3!"
    assert drawn(back(chain, 1, 50)) == ""


def test_cancel_while_waiting() -> None:
    chain = schedule()
    chain.handle(submit(1))
    chain.handle(submit(2))
    assert drawn(chain.handle(Cancel(2))) == "cancelled2"
    assert chain.num_waiting == 0


def test_cancel_of_a_prompt_on_its_way_gives_its_window_back() -> None:
    chain = schedule(slots=2, window=1)
    chain.handle(submit(1, 12))
    assert drawn(chain.handle(submit(2))) == "O2"
    assert drawn(chain.handle(Cancel(1))) == "C1 cancelled1 2@0+3!"


def test_a_stage_may_give_up_one_request_alone() -> None:
    chain = schedule(slots=2)
    chain.handle(submit(1))
    chain.handle(submit(2))
    assert drawn(chain.handle(RequestFailed(1, "kernel"))) == "C1 fail1"
    assert chain.num_running == 1


def test_a_failed_chain_ends_everything_and_refuses_what_comes() -> None:
    chain = schedule()
    chain.handle(submit(1))
    chain.handle(submit(2))
    assert drawn(chain.handle(ChainFailed("stage 1 on phone died"))) == "fail1 fail2"
    (refusal,) = chain.handle(submit(3))
    assert isinstance(refusal, Fail)
    assert refusal.reason == "stage 1 on phone died; deploy again"
    assert chain.handle(ChainFailed("again")) == []


def test_draining_finishes_what_was_taken() -> None:
    chain = schedule()
    chain.handle(submit(1))
    chain.handle(submit(2))
    chain.handle(Drain("phone is stopping"))
    assert drawn(chain.handle(submit(3))) == "fail3"
    assert drawn(back(chain, 1, 50, ends=True)) == "E1.0 C1 stop1 O2 2@0+3!"


def test_while_stage_0_takes_nothing_no_request_and_no_step_is_started() -> None:
    one = schedule(slots=2)
    assert drawn(one.handle(submit(1))) == "O1 1@0+3!"
    assert drawn(one.handle(Blocked(True))) == ""
    assert drawn(one.handle(submit(2))) == ""  # a slot is free, it waits all the same
    assert one.num_waiting == 1
    assert drawn(back(one, 1, 9)) == "E1.0"

    assert drawn(one.handle(Blocked(False))) == "O2 1@3+1! 2@0+3!"


def test_a_queue_fills_up_while_stage_0_takes_nothing() -> None:
    one = schedule(slots=2, waiting=1)
    one.handle(Blocked(True))
    assert drawn(one.handle(submit(1))) == ""
    assert drawn(one.handle(submit(2))) == "fail2"
    assert drawn(one.handle(Cancel(1))) == "cancelled1"


@pytest.mark.parametrize(("chunk", "beside"), [(2, 8), (8, 2)])
def test_chunks_too_small_to_avoid_single_tokens_are_refused(chunk: int, beside: int) -> None:
    with pytest.raises(ValueError, match="has 2 tokens at most, at least 3"):
        Schedule(Limits(slots=1, context=32, chunk_tokens=chunk, beside_tokens=beside))


@settings(settings.get_profile("runtime"))
@given(st.integers(1, 2000), st.integers(3, 600))
def test_no_chunk_has_one_token_unless_the_prompt_has(num_prompt: int, chunk: int) -> None:
    sizes, left = [], num_prompt
    while left:
        sizes.append(chunk_size(left, chunk))
        left -= sizes[-1]
    assert sum(sizes) == num_prompt
    assert max(sizes) <= chunk
    assert min(sizes) > 1 or num_prompt == 1


def grouped(slots: int, num_groups: int) -> Schedule:
    return Schedule(Limits(slots=slots, context=32, window=2, num_groups=num_groups))


def test_few_requests_go_to_different_groups() -> None:
    chain = grouped(slots=4, num_groups=2)
    slots = [
        one.slot
        for request in (1, 2, 3, 4)
        for one in chain.handle(submit(request))
        if isinstance(one, SendOpen)
    ]
    assert slots == [0, 2, 1, 3]


def test_a_group_steps_together_and_a_new_request_joins_at_its_next_step() -> None:
    chain = grouped(slots=2, num_groups=1)
    chain.handle(submit(1))
    assert drawn(back(chain, 1, 50)) == "1@3+1! E1.0"
    chain.handle(submit(2))
    assert drawn(back(chain, 2, 60)) == "E2.0"
    assert drawn(back(chain, 1, 51)) == "1@4+1&2@3+1! E1.1"
    (number,) = chain.in_flight()
    rows = (TokenBack(1, 52), TokenBack(2, 61, ends=True))
    assert drawn(chain.handle(StepBack(number, rows))) == "1@5+1! E1.2 E2.1 C2 stop2"


def test_rows_whose_slots_do_not_touch_go_in_steps_of_their_own() -> None:
    chain = grouped(slots=3, num_groups=1)
    for request in (1, 2, 3):
        chain.handle(submit(request))
    chain.handle(Cancel(2))
    assert drawn(back(chain, 1, 50)) == "1@3+1! E1.0"
    assert drawn(back(chain, 3, 70)) == "E3.0"
    assert drawn(back(chain, 1, 51)) == "1@4+1! 3@3+1! E1.1"


def test_a_group_waits_for_all_of_its_steps() -> None:
    chain = grouped(slots=3, num_groups=1)
    for request in (1, 2, 3):
        chain.handle(submit(request))
    chain.handle(Cancel(2))
    for request in (1, 3, 1):
        back(chain, request, 50)
    assert drawn(back(chain, 3, 51)) == "E3.1"
    assert drawn(back(chain, 1, 52)) == "1@5+1! 3@4+1! E1.2"


def test_a_row_that_a_stage_gave_up_does_not_hold_its_group() -> None:
    chain = grouped(slots=2, num_groups=1)
    chain.handle(submit(1))
    chain.handle(submit(2))
    back(chain, 1, 50)
    back(chain, 2, 60)
    assert drawn(back(chain, 1, 51)) == "1@4+1&2@3+1! E1.1"
    assert drawn(chain.handle(RequestFailed(2, "kernel"))) == "C2 fail2"
    assert drawn(back(chain, 1, 52)) == "1@5+1! E1.2"


def test_a_step_whose_requests_are_all_over_is_not_waited_for() -> None:
    chain = grouped(slots=2, num_groups=1)
    chain.handle(submit(1))
    chain.handle(submit(2))
    back(chain, 1, 50)
    back(chain, 2, 60)
    assert drawn(chain.handle(Cancel(1))) == "C1 cancelled1 2@3+1!"


def test_a_prompt_that_a_free_slot_holds_is_not_computed_again() -> None:
    chain = Schedule(Limits(slots=2, context=64, chunk_tokens=32))
    chain.handle(submit(1, num_prompt=24))
    assert drawn(back(chain, 1, 50, ends=True)) == "E1.0 C1 stop1"
    opened, sent = chain.handle(submit(2, num_prompt=30))
    assert opened == SendOpen(2, 0, Sampling(), Kept(1, 0, 24))
    assert drawn([sent]) == "2@24+6!"
    finish = back(chain, 2, 51, ends=True)[-1]
    assert finish == Finish(2, "stop", 1, 24)


def test_a_free_slot_that_keeps_nothing_is_taken_before_one_that_does() -> None:
    chain = Schedule(Limits(slots=2, context=64, chunk_tokens=32))
    chain.handle(submit(1, num_prompt=24))
    back(chain, 1, 50, ends=True)
    chain.handle(submit(2, num_prompt=24, client="b"))
    opened = chain.handle(submit(3, num_prompt=24))[0]
    assert opened == SendOpen(3, 0, Sampling(), Kept(1, 0, 22))


def test_a_slot_whose_request_failed_keeps_nothing() -> None:
    chain = Schedule(Limits(slots=1, context=64, chunk_tokens=32))
    chain.handle(submit(1, num_prompt=24))
    chain.handle(RequestFailed(1, "kernel"))
    assert chain.handle(submit(2, num_prompt=24))[0] == SendOpen(2, 0, Sampling())


def test_a_cancelled_prompt_keeps_what_was_sent() -> None:
    chain = Schedule(Limits(slots=1, context=64, chunk_tokens=20))
    chain.handle(submit(1, num_prompt=30))
    chain.handle(Cancel(1))
    assert chain.handle(submit(2, num_prompt=30))[0] == SendOpen(2, 0, Sampling(), Kept(1, 0, 20))


def test_a_group_has_no_more_rows_than_a_message_takes() -> None:
    assert Limits(slots=1000, context=8, num_groups=1).group_slots == MAX_ROWS


@settings(settings.get_profile("runtime"))
@given(st.data())
def test_every_request_ends_once_and_slots_are_never_shared(data: st.DataObject) -> None:
    limits = Limits(
        slots=4,
        context=20,
        chunk_tokens=4,
        window=2,
        max_waiting=3,
        in_rounds=data.draw(st.booleans()),
        num_groups=data.draw(st.sampled_from([None, 1, 2, 3])),
    )
    chain = Schedule(limits)
    pipe: list[SendStep] = []
    holder: dict[int, int] = {}
    ends: dict[int, int] = {}
    next_request = 0

    def come_back(step: SendStep, ends: bool) -> StepBack:
        token = 50 if step.wants_token else None
        rows = [row for row in step.rows if row.request in holder.values()]
        return StepBack(step.number, tuple(TokenBack(row.request, token, ends) for row in rows))

    def apply(instructions: list[ScheduleInstruction]) -> None:
        for one in instructions:
            match one:
                case SendOpen():
                    assert one.slot not in holder
                    holder[one.slot] = one.request
                case SendStep():
                    slots = range(one.slot, one.slot + len(one.rows))
                    assert [holder[slot] for slot in slots] == [row.request for row in one.rows]
                    assert len({slot // limits.group_slots for slot in slots}) == 1
                    pipe.append(one)
                case SendClose():
                    assert holder.pop(one.slot) == one.request
                case Finish() | Fail():
                    ends[one.request] = ends.get(one.request, 0) + 1

    for action in data.draw(st.lists(st.sampled_from("sstttttcf"), max_size=60)):
        if action == "s":
            next_request += 1
            size, client = data.draw(st.integers(0, 21)), data.draw(st.sampled_from("abc"))
            apply(chain.handle(submit(next_request, size, client, data.draw(st.integers(1, 5)))))
        elif action == "t" and pipe:
            apply(chain.handle(come_back(pipe.pop(0), data.draw(st.booleans()))))
        elif action in "cf" and next_request:
            request = data.draw(st.integers(1, next_request))
            event = Cancel(request) if action == "c" else RequestFailed(request, "x")
            apply(chain.handle(event))
    while pipe:
        apply(chain.handle(come_back(pipe.pop(0), ends=False)))
    assert ends == dict.fromkeys(range(1, next_request + 1), 1)
    assert holder == {}
