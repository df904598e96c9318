"""The schedule: slots, turns, chunks, ends."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeshard.runtime.schedule import (
    Cancel,
    ChainFailed,
    Drain,
    Emit,
    Fail,
    Finish,
    Limits,
    RequestFailed,
    Schedule,
    ScheduleInstruction,
    SendClose,
    SendOpen,
    SendStep,
    Submit,
    TokenBack,
    chunk_size,
)
from edgeshard.runtime.wire import Sampling

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
    """Instructions as a line: open O, step request@position+tokens, close C, emit E, end."""
    words = []
    for one in instructions:
        match one:
            case SendOpen():
                words.append(f"O{one.request}")
            case SendStep():
                mark = "!" if one.wants_token else ""
                words.append(f"{one.request}@{one.position}+{len(one.tokens)}{mark}")
            case SendClose():
                words.append(f"C{one.request}")
            case Emit():
                words.append(f"E{one.request}.{one.index}")
            case Finish():
                words.append(f"{one.reason}{one.request}")
            case Fail():
                words.append(f"fail{one.request}")
    return " ".join(words)


def test_the_life_of_a_request() -> None:
    chain = schedule()
    assert drawn(chain.handle(submit(1, num_prompt=6, max_tokens=3))) == "O1 1@0+4 1@4+2!"
    assert drawn(chain.handle(TokenBack(1, 4, None))) == ""
    assert drawn(chain.handle(TokenBack(1, 6, 50))) == "1@6+1! E1.0"
    assert drawn(chain.handle(TokenBack(1, 7, 51))) == "1@7+1! E1.1"
    assert drawn(chain.handle(TokenBack(1, 8, 52))) == "E1.2 C1 length1"
    assert chain.num_running == 0


def test_an_end_in_the_text_stops() -> None:
    chain = schedule()
    chain.handle(submit(1))
    assert drawn(chain.handle(TokenBack(1, 3, 50, ends=True))) == "E1.0 C1 stop1"


def test_a_full_context_ends_with_length() -> None:
    chain = schedule(context=4)
    chain.handle(submit(1, num_prompt=3, max_tokens=99))
    assert drawn(chain.handle(TokenBack(1, 3, 50))) == "1@3+1! E1.0"
    assert drawn(chain.handle(TokenBack(1, 4, 51))) == "E1.1 C1 length1"


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
    assert drawn(chain.handle(TokenBack(1, 3, 50))) == "1@3+1! E1.0"
    assert drawn(chain.handle(TokenBack(1, 4, 51))) == "1@4+1! E1.1"
    assert drawn(chain.handle(TokenBack(2, 3, 60))) == "2@3+1! E2.0"


def test_in_rounds_all_next_tokens_leave_together() -> None:
    chain = schedule(slots=2, in_rounds=True)
    chain.handle(submit(1))
    chain.handle(submit(2))
    assert drawn(chain.handle(TokenBack(1, 3, 50))) == "E1.0"
    assert drawn(chain.handle(TokenBack(2, 3, 60))) == "E2.0 1@3+1! 2@3+1!"
    assert drawn(chain.handle(TokenBack(2, 4, 61))) == "E2.1"
    assert drawn(chain.handle(TokenBack(1, 4, 51))) == "E1.1 2@4+1! 1@4+1!"


@pytest.mark.parametrize("end", [Cancel(2), RequestFailed(2, "kernel"), TokenBack(2, 3, 9, True)])
def test_a_round_does_not_wait_for_a_request_that_is_over(
    end: Cancel | RequestFailed | TokenBack,
) -> None:
    chain = schedule(slots=2, in_rounds=True)
    chain.handle(submit(1))
    chain.handle(submit(2))
    chain.handle(TokenBack(1, 3, 50))
    assert drawn(chain.handle(end)).endswith("1@3+1!")


def test_a_round_forgets_the_token_of_a_request_that_is_over() -> None:
    chain = schedule(slots=2, in_rounds=True)
    chain.handle(submit(1))
    chain.handle(submit(2))
    chain.handle(TokenBack(1, 3, 50))
    assert drawn(chain.handle(Cancel(1))) == "C1 cancelled1"
    assert drawn(chain.handle(TokenBack(2, 3, 60))) == "E2.0 2@3+1!"


def test_long_prompts_take_turns_and_leave_room_for_others() -> None:
    chain = schedule(slots=3, window=2)
    assert drawn(chain.handle(submit(1, 12))) == "O1 1@0+4 1@4+4"
    assert drawn(chain.handle(submit(2, 8))) == "O2"
    assert drawn(chain.handle(submit(3, 2))) == "O3"
    assert drawn(chain.handle(TokenBack(1, 4, None))) == "1@8+4!"
    assert drawn(chain.handle(TokenBack(1, 8, None))) == "2@0+4"
    assert drawn(chain.handle(TokenBack(1, 12, 50))) == "1@12+1! E1.0 3@0+2!"


def test_clients_take_turns_however_much_one_asks() -> None:
    chain = schedule(slots=1, waiting=9)
    chain.handle(submit(1, client="a"))
    for request in (2, 3, 4):
        chain.handle(submit(request, client="a"))
    chain.handle(submit(5, client="b"))
    chain.handle(submit(6, client="c"))
    order = []
    for _ in range(5):
        running = chain.in_flight()[0]
        given = chain.handle(TokenBack(running, 3, 50, ends=True))
        order += [one.request for one in given if isinstance(one, SendOpen)]
    assert order == [2, 5, 6, 3, 4]


def test_a_full_queue_refuses() -> None:
    chain = schedule(waiting=1)
    chain.handle(submit(1))
    chain.handle(submit(2))
    (refusal,) = chain.handle(submit(3))
    assert isinstance(refusal, Fail)
    assert "at most 1 may" in refusal.reason


def test_cancel_frees_the_slot_for_the_next() -> None:
    chain = schedule()
    chain.handle(submit(1))
    chain.handle(submit(2))
    assert drawn(chain.handle(Cancel(1))) == "C1 cancelled1 O2 2@0+3!"
    assert drawn(chain.handle(TokenBack(1, 3, 50))) == ""


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
    assert drawn(chain.handle(TokenBack(1, 3, 50, ends=True))) == "E1.0 C1 stop1 O2 2@0+3!"


def test_chunks_too_small_to_avoid_single_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 3"):
        schedule(chunk=2)


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


@settings(settings.get_profile("runtime"))
@given(st.data())
def test_every_request_ends_once_and_slots_are_never_shared(data: st.DataObject) -> None:
    chain = schedule(slots=2, context=20, waiting=3, in_rounds=data.draw(st.booleans()))
    pipe: list[SendStep] = []
    holder: dict[int, int] = {}
    ends: dict[int, int] = {}
    next_request = 0

    def apply(instructions: list[ScheduleInstruction]) -> None:
        for one in instructions:
            match one:
                case SendOpen():
                    assert one.slot not in holder
                    holder[one.slot] = one.request
                case SendStep():
                    assert holder[one.slot] == one.request
                    pipe.append(one)
                case SendClose():
                    assert holder.pop(one.slot) == one.request
                    pipe[:] = [step for step in pipe if step.request != one.request]
                case Finish() | Fail():
                    ends[one.request] = ends.get(one.request, 0) + 1

    for action in data.draw(st.lists(st.sampled_from("sstttttcf"), max_size=60)):
        if action == "s":
            next_request += 1
            size, client = data.draw(st.integers(0, 21)), data.draw(st.sampled_from("abc"))
            apply(chain.handle(submit(next_request, size, client, data.draw(st.integers(1, 5)))))
        elif action == "t" and pipe:
            step = pipe.pop(0)
            token = 50 if step.wants_token else None
            end = step.position + len(step.tokens)
            apply(chain.handle(TokenBack(step.request, end, token, data.draw(st.booleans()))))
        elif action in "cf" and next_request:
            request = data.draw(st.integers(1, next_request))
            event = Cancel(request) if action == "c" else RequestFailed(request, "x")
            apply(chain.handle(event))
    while pipe:
        step = pipe.pop(0)
        token = 50 if step.wants_token else None
        apply(chain.handle(TokenBack(step.request, step.position + len(step.tokens), token)))
    assert ends == dict.fromkeys(range(1, next_request + 1), 1)
    assert holder == {}
