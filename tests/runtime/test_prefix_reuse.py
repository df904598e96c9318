"""Prompts that start like others: what the schedule lets the stages copy, and when."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeshard.runtime.schedule import Limits, Schedule
from edgeshard.runtime.schedule_events import (
    Cancel,
    Fail,
    Finish,
    RequestFailed,
    ScheduleEvent,
    ScheduleInstruction,
    SendClose,
    SendOpen,
    SendStep,
    StepBack,
    Submit,
    TokenBack,
)
from edgeshard.runtime.wire import Kept, Sampling

settings.register_profile("runtime", derandomize=True, deadline=None, max_examples=300)

SYSTEM = tuple(range(24))
LIMITS = {"context": 64, "chunk_tokens": 8, "window": 1}


class Driven:
    """A schedule that remembers which of its steps want a token."""

    def __init__(self, limits: Limits) -> None:
        self.schedule = Schedule(limits)
        self._wants: dict[int, bool] = {}

    def handle(self, event: ScheduleEvent) -> list[ScheduleInstruction]:
        done = self.schedule.handle(event)
        self._wants |= {one.number: one.wants_token for one in done if isinstance(one, SendStep)}
        return done

    @property
    def is_idle(self) -> bool:
        return not self.schedule.in_flight()

    def back(self, token: int = 100, ends: bool = False) -> list[ScheduleInstruction]:
        """The oldest step comes back, with a token where it wants one."""
        number, requests = next(iter(self.schedule.in_flight().items()))
        found = token if self._wants[number] else None
        rows = tuple(TokenBack(one, found, ends and found is not None) for one in sorted(requests))
        return self.handle(StepBack(number, rows))

    def run_out(self) -> list[ScheduleInstruction]:
        """Let every step come back."""
        done: list[ScheduleInstruction] = []
        while not self.is_idle:
            done += self.back()
        return done


def schedule(slots: int = 3, **limits: object) -> Driven:
    return Driven(Limits(slots=slots, **(LIMITS | limits)))  # type: ignore[arg-type]


def submit(
    request: int, prompt: Iterable[int], client: str = "a", reuse_answers: bool = False
) -> Submit:
    return Submit(
        request=request,
        client=client,
        prompt=tuple(prompt),
        max_tokens=4,
        sampling=Sampling(),
        reuse_answers=reuse_answers,
    )


def opened(instructions: Iterable[ScheduleInstruction]) -> list[tuple[int, int, Kept | None]]:
    return [(o.request, o.slot, o.kept) for o in instructions if isinstance(o, SendOpen)]


def computed(instructions: Iterable[ScheduleInstruction], request: int) -> int:
    """Positions of a request that were sent."""
    steps = [one for one in instructions if isinstance(one, SendStep)]
    return sum(len(r.tokens) for one in steps for r in one.rows if r.request == request)


def test_a_prompt_is_copied_from_a_free_slot_that_keeps_more() -> None:
    chain = schedule()
    chain.handle(submit(1, (*SYSTEM, 50, 51)))
    chain.run_out()
    done = chain.handle(submit(2, (*SYSTEM, 60, 61, 62)))
    assert opened(done) == [(2, 1, Kept(1, 0, 24))]
    assert opened(chain.handle(submit(3, (*SYSTEM, 50, 51, 70, 71)))) == [(3, 0, Kept(1, 0, 26))]


def test_a_prompt_that_goes_on_where_a_free_slot_ends_takes_that_slot() -> None:
    chain = schedule()
    chain.handle(submit(1, SYSTEM))
    chain.run_out()
    assert opened(chain.handle(submit(2, (*SYSTEM, 60, 61)))) == [(2, 0, Kept(1, 0, 24))]


def test_the_slot_that_was_used_longest_ago_is_given_up_first() -> None:
    chain = schedule(slots=2)
    texts = [tuple(range(start, start + 20)) for start in (0, 100)]
    for request, text in enumerate(texts, 1):
        chain.handle(submit(request, (*text, 9)))
        chain.run_out()
    assert opened(chain.handle(submit(3, (*texts[1], 8)))) == [(3, 0, Kept(2, 1, 18))]
    chain.run_out()
    assert opened(chain.handle(submit(4, (*texts[0], 7, 7)))) == [(4, 1, None)]


def test_what_a_slot_held_before_its_request_is_gone() -> None:
    chain = schedule(slots=2)
    texts = [tuple(range(start, start + 20)) for start in (0, 100, 200)]
    for request, text in enumerate(texts[:2], 1):
        chain.handle(submit(request, text))
        chain.run_out()
    assert opened(chain.handle(submit(3, texts[2]))) == [(3, 0, None)]
    assert opened(chain.handle(submit(4, (*texts[0], 7, 7)))) == [(4, 1, None)]


def test_what_was_copied_counts_as_used() -> None:
    chain = schedule(slots=3)
    texts = [tuple(range(start, start + 20)) for start in (0, 100, 200)]
    for request, text in enumerate(texts, 1):
        chain.handle(submit(request, (*text, 9)))
        chain.run_out()
    chain.handle(submit(4, (*texts[1], 8, 8)))  # takes slot 0, and makes slot 2 the oldest
    chain.run_out()
    assert opened(chain.handle(submit(5, range(300, 320)))) == [(5, 2, None)]


def test_a_prompt_is_copied_from_one_that_runs() -> None:
    chain = schedule()
    chain.handle(submit(1, SYSTEM))
    for _ in range(3):
        done = chain.back()
    assert chain.schedule.num_running == 1
    done = chain.handle(submit(2, (*SYSTEM, 60, 61)))
    assert opened(done) == [(2, 1, Kept(1, 0, 24))]
    assert computed([*done, *chain.run_out()], 2) == 2 + 3


def test_a_prompt_waits_for_one_that_computes_its_start() -> None:
    chain = schedule()
    done = chain.handle(submit(1, (*SYSTEM, 50, 51)))
    assert chain.handle(submit(2, (*SYSTEM, 60, 61))) == []
    done += chain.run_out()
    assert opened(done) == [(1, 0, None), (2, 1, Kept(1, 0, 24))]
    assert (computed(done, 1), computed(done, 2)) == (26 + 3, 2 + 3)


def test_others_are_not_held_up_by_one_that_waits() -> None:
    chain = schedule()
    text = range(40)
    chain.handle(submit(1, text))
    assert chain.handle(submit(2, (*text, 60))) == []
    chain.handle(submit(3, range(200, 230)))
    sent = [one for _ in range(4) for one in chain.back() if isinstance(one, SendStep)]
    assert [row.request for one in sent for row in one.rows] == [1, 3, 1, 3]


def test_one_that_waits_computes_the_start_itself_where_the_first_is_cancelled() -> None:
    chain = schedule()
    chain.handle(submit(1, SYSTEM))
    chain.handle(submit(2, (*SYSTEM, 60, 61)))
    done = chain.handle(Cancel(1))
    assert opened(done) == [(2, 1, None)]  # eight were sent: too few to copy
    assert computed([*done, *chain.run_out()], 2) == 26 + 3


def test_one_that_waits_is_cancelled_without_a_word_to_the_stages() -> None:
    chain = schedule()
    chain.handle(submit(1, SYSTEM))
    chain.handle(submit(2, (*SYSTEM, 60, 61)))
    (finish,) = chain.handle(Cancel(2))
    assert finish == Finish(2, "cancelled", 0)
    assert chain.schedule.num_running == 1


def test_several_answers_compute_their_prompt_once() -> None:
    chain = schedule(slots=4, chunk_tokens=512)
    prompt = (*SYSTEM, 50)
    done = [one for request in range(1, 5) for one in chain.handle(submit(request, prompt))]
    done += chain.run_out()
    assert [kept for _, _, kept in opened(done)] == [None] + [Kept(1, 0, 22)] * 3
    assert [computed(done, request) for request in range(1, 5)] == [28, 6, 6, 6]
    assert [one.num_kept for one in done if isinstance(one, Finish)] == [0, 22, 22, 22]


def test_a_start_that_is_gone_on_a_stage_is_computed_in_the_same_slot() -> None:
    chain = schedule()
    chain.handle(submit(1, SYSTEM))
    chain.run_out()
    chain.handle(submit(2, (*SYSTEM, 60, 61)))
    done = chain.handle(RequestFailed(2, "slot 0 does not hold 24 positions any more"))
    assert [type(one) for one in done[:2]] == [SendClose, SendOpen]
    assert opened(done) == [(2, 0, None)]
    assert computed([*done, *chain.run_out()], 2) == 26 + 3
    assert chain.schedule.num_running == 0


def test_a_request_that_fails_again_is_over() -> None:
    chain = schedule()
    chain.handle(submit(1, SYSTEM))
    chain.run_out()
    chain.handle(submit(2, (*SYSTEM, 60, 61)))
    chain.handle(RequestFailed(2, "x"))
    assert chain.handle(RequestFailed(2, "x"))[-1] == Fail(2, "DeviceError", "x")


def test_one_that_waits_for_a_request_that_begins_again_does_not_wait_for_ever() -> None:
    chain = schedule(slots=4)
    chain.handle(submit(1, SYSTEM))
    chain.run_out()
    longer = (*SYSTEM, *range(60, 90))
    chain.handle(submit(2, longer))
    assert chain.handle(submit(3, (*longer, 7))) == []
    done = [*chain.handle(RequestFailed(2, "x")), *chain.run_out()]
    ends = [one.request for one in done if isinstance(one, SendOpen | Finish)]
    assert ends[:2] == [2, 3]  # both open before one is over
    assert sorted(ends[2:]) == [2, 3]


def test_answers_are_computed_again_unless_asked_for() -> None:
    for reuse, length, reused in ((False, 24, 0), (True, 26, 2)):
        chain = schedule()
        chain.handle(submit(1, SYSTEM))
        chain.run_out()
        turn = (*SYSTEM, 100, 100, 100, 100, 60, 61, 62)
        done = [*chain.handle(submit(2, turn, reuse_answers=reuse)), *chain.run_out()]
        assert opened(done) == [(2, 0, Kept(1, 0, length))]
        assert [o.num_reused for o in done if isinstance(o, Finish)] == [reused]


def test_what_is_exact_is_taken_before_what_an_answer_left() -> None:
    chain = schedule(slots=2)
    chain.handle(submit(1, SYSTEM))
    chain.handle(submit(2, (*SYSTEM, 100, 100, 50, 51)))
    chain.run_out()
    turn = (*SYSTEM, 100, 100, 60, 61)
    assert opened(chain.handle(submit(3, turn, reuse_answers=True))) == [(3, 0, Kept(2, 1, 26))]


def test_what_follows_a_reused_answer_is_not_exact_either() -> None:
    chain = schedule()
    chain.handle(submit(1, SYSTEM))
    chain.run_out()
    turn = (*SYSTEM, 100, 100, 100, 100, 60, 61, 62)
    chain.handle(submit(2, turn, reuse_answers=True))
    chain.run_out()
    assert opened(chain.handle(submit(3, turn)))[0][2] == Kept(2, 0, 24)


def test_one_client_meets_anothers_prompt_only_where_the_operator_allows_it() -> None:
    for share in (False, True):
        chain = schedule(share_prompts=share)
        chain.handle(submit(1, SYSTEM))
        chain.run_out()
        done = chain.handle(submit(2, (*SYSTEM, 60, 61), client="b"))
        assert opened(done) == [(2, 0, Kept(1, 0, 24)) if share else (2, 1, None)]


def test_where_a_stage_cannot_copy_a_slot_is_taken_for_what_it_keeps() -> None:
    chain = schedule(copies_slots=False)
    chain.handle(submit(1, (*SYSTEM, 50, 51)))
    chain.run_out()
    assert opened(chain.handle(submit(2, (*SYSTEM, 60, 61)))) == [(2, 0, Kept(1, 0, 24))]
    assert opened(chain.handle(submit(3, (*SYSTEM, 70, 71)))) == [(3, 1, None)]


@dataclass
class PaperStage:
    """What a stage's slots hold, position by position: a token and whether a chunk wrote it."""

    submits: dict[int, Submit] = field(default_factory=dict)
    held: dict[int, list[tuple[int, bool]]] = field(default_factory=dict)
    owner: dict[int, int] = field(default_factory=dict)
    open: dict[int, int] = field(default_factory=dict)

    def apply(self, one: SendOpen | SendStep | SendClose) -> None:
        match one:
            case SendOpen():
                self._open(one)
            case SendStep():
                for slot, row in enumerate(one.rows, one.slot):
                    assert self.open[slot] == row.request
                    self._write(self.held[slot], row.position, row.tokens, row.request)
            case SendClose():
                assert self.open.pop(one.slot) == one.request

    def _open(self, one: SendOpen) -> None:
        assert one.slot not in self.open
        ask, start = self.submits[one.request], []
        if one.kept is not None:
            assert self.owner[one.kept.slot] == one.kept.request
            start = self.held[one.kept.slot][: one.kept.length]
            assert len(start) == one.kept.length
            assert one.kept.length % 2 == 0
            assert one.kept.length <= len(ask.prompt) - 2
            assert tuple(token for token, _ in start) == ask.prompt[: len(start)]
            assert ask.reuse_answers or all(exact for _, exact in start)
            assert self.submits[one.kept.request].client == ask.client
        self.open[one.slot] = self.owner[one.slot] = one.request
        self.held[one.slot] = list(start)

    def _write(
        self,
        held: list[tuple[int, bool]],
        position: int,
        tokens: tuple[int, ...],
        request: int,
    ) -> None:
        prompt = self.submits[request].prompt
        assert position == len(held)
        is_prompt = position < len(prompt)
        if is_prompt:
            assert tokens == prompt[position : position + len(tokens)]
            assert position % 2 == 0
            assert len(tokens) > 1 or len(prompt) == 1
        is_exact = is_prompt and all(exact for _, exact in held)
        held += [(token, is_exact) for token in tokens]


@settings(settings.get_profile("runtime"))
@given(st.data())
def test_no_request_starts_with_what_its_own_chunks_would_not_have_written(
    data: st.DataObject,
) -> None:
    limits = Limits(
        slots=4,
        context=48,
        chunk_tokens=data.draw(st.sampled_from([3, 7, 8, 40])),
        window=data.draw(st.integers(1, 3)),
        max_waiting=5,
        num_groups=data.draw(st.sampled_from([None, 1, 2])),
        copies_slots=data.draw(st.booleans()),
    )
    chain, stage = Driven(limits), PaperStage()
    ends: dict[int, int] = {}

    def apply(instructions: Iterable[ScheduleInstruction]) -> None:
        for one in instructions:
            if isinstance(one, SendOpen | SendStep | SendClose):
                stage.apply(one)
            elif isinstance(one, Finish | Fail):
                ends[one.request] = ends.get(one.request, 0) + 1

    for action in data.draw(st.lists(st.sampled_from("sssttttttcf"), max_size=60)):
        if action == "s":
            request = len(stage.submits) + 1
            cut, more = data.draw(st.integers(0, 24)), data.draw(st.integers(1, 20))
            text = (*SYSTEM[:cut], *[data.draw(st.sampled_from([7, 8]))] * more)
            ask = submit(request, text, data.draw(st.sampled_from("ab")), data.draw(st.booleans()))
            stage.submits[request] = ask
            apply(chain.handle(ask))
        elif action == "t" and not chain.is_idle:
            apply(chain.back(7, data.draw(st.booleans())))
        elif action in "cf" and stage.submits:
            request = data.draw(st.integers(1, len(stage.submits)))
            event = Cancel(request) if action == "c" else RequestFailed(request, "x")
            apply(chain.handle(event))
    while not chain.is_idle:
        apply(chain.back(7))
    assert ends == dict.fromkeys(stage.submits, 1)
    assert stage.open == {}


@pytest.mark.parametrize("num_tokens", [1, 2, 17])
def test_a_short_prompt_is_computed_by_each_answer(num_tokens: int) -> None:
    chain = schedule(slots=2)
    done = [one for request in (1, 2) for one in chain.handle(submit(request, SYSTEM[:num_tokens]))]
    assert [kept for _, _, kept in opened([*done, *chain.run_out()])] == [None, None]
