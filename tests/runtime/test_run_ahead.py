"""Stage 0 runs ahead of the source: what the two agree on, whatever comes between them."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from edgeshard.runtime.schedule import Limits, Schedule
from edgeshard.runtime.schedule_events import (
    Cancel,
    Emit,
    Finish,
    ScheduleInstruction,
    SendClose,
    SendHalt,
    SendOpen,
    SendStep,
    StepBack,
    Submit,
    TokenBack,
)
from edgeshard.runtime.stage import Compute, Forward, StageCore, StageShape
from edgeshard.runtime.wire import Close, Fault, Halt, Open, Row, Sampled, Sampling, Step, Token

EPOCH = 7
CONTEXT = 40
AHEAD = 6


def first_stage(slots: int = 2) -> StageCore:
    """Of a chain whose head is elsewhere."""
    return StageCore(
        StageShape(
            epoch=EPOCH,
            index=0,
            slots=slots,
            context=CONTEXT,
            chunk_tokens=8,
            hidden_size=4,
            vocab_size=1000,
            takes_tokens=True,
            is_last=False,
        )
    )


def submit(request: int, num_prompt: int = 4, max_tokens: int = 12, traced: bool = False) -> Submit:
    return Submit(
        request=request,
        client=str(request),
        prompt=tuple(range(num_prompt)),
        max_tokens=max_tokens,
        sampling=Sampling(),
        is_traced=traced,
    )


@dataclass
class Chain:
    """A schedule and stage 0; messages between them wait until they are delivered, in order.

    The rest of the chain gives each step the token 100 + its last position.
    """

    schedule: Schedule
    stage: StageCore = field(default_factory=first_stage)
    to_stage: deque[object] = field(default_factory=deque)
    tokens_to_stage: deque[Token] = field(default_factory=deque)
    to_source: deque[Token] = field(default_factory=deque)
    computed: list[tuple[int, int, int]] = field(default_factory=list)  # request, position, count
    added: int = 0
    answers: dict[int, list[int]] = field(default_factory=dict)
    over: dict[int, str] = field(default_factory=dict)

    def act(self, instructions: list[ScheduleInstruction]) -> None:
        for one in instructions:
            match one:
                case SendOpen():
                    kept = one.kept
                    self.to_stage.append(Open(EPOCH, one.request, one.slot, one.sampling, kept))
                case SendStep():
                    rows = tuple(Row(row.request, row.position) for row in one.rows)
                    size = len(one.rows[0].tokens)
                    step = Step(EPOCH, one.number, one.slot, rows, size, one.wants_token)
                    self.to_stage.append(_ahead(step, one.ahead))
                case SendHalt():
                    self.to_stage.append(Halt(EPOCH, one.request, one.slot))
                case SendClose():
                    self.to_stage.append(Close(EPOCH, one.request, one.slot))
                case Emit():
                    self.answers.setdefault(one.request, []).append(one.token)
                case Finish():
                    assert one.request not in self.over
                    self.over[one.request] = one.reason

    def to_stage_0(self) -> bool:
        """Deliver the source's oldest message."""
        if not self.to_stage:
            return False
        message = self.to_stage.popleft()
        size = message.num_tokens * 8 * len(message.rows) if isinstance(message, Step) else 0
        self._apply(self.stage.handle(message, size))  # type: ignore[arg-type]  # all are messages
        return True

    def token_to_stage_0(self) -> bool:
        """Deliver the last stage's oldest token."""
        if not self.tokens_to_stage:
            return False
        before = len(self.computed)
        self._apply(self.stage.handle(self.tokens_to_stage.popleft()))
        self.added += len(self.computed) - before
        return True

    def token_to_source(self, ends: bool = False) -> bool:
        """Deliver it to the source."""
        if not self.to_source:
            return False
        token = self.to_source.popleft()
        expected = self.schedule.expects(token.number)
        rows = tuple(
            TokenBack(row.request, row.token, ends) for row in token.rows if row.request in expected
        )
        self.act(self.schedule.handle(StepBack(token.number, rows, token.ahead)))
        return True

    def _apply(self, instructions: Sequence[object]) -> None:
        for one in instructions:
            assert not (isinstance(one, Forward) and isinstance(one.message, Fault)), one
            if isinstance(one, Compute):
                step, rows = one.step, []
                for row, wishes in zip(step.rows, one.wishes, strict=True):
                    if wishes is not None:
                        self.computed.append((row.request, row.position, step.num_tokens))
                        token = 100 + row.position + step.num_tokens
                        rows.append(Sampled(row.request, token if step.wants_token else None))
                back = Token(EPOCH, step.number, tuple(rows), 0.0, None, step.ahead)
                if back.ahead:
                    self.tokens_to_stage.append(back)
                self.to_source.append(back)

    def settle(self) -> None:
        """Deliver everything, until nothing moves."""
        while self.to_stage_0() or self.token_to_stage_0() or self.token_to_source():
            pass


def _ahead(step: Step, ahead: int) -> Step:
    values = (step.epoch, step.number, step.slot, step.rows, step.num_tokens, step.wants_token)
    return Step(*values, ahead=ahead)


def chain(slots: int = 2, ahead: int = AHEAD) -> Chain:
    limits = Limits(slots=slots, context=CONTEXT, chunk_tokens=8, window=2, ahead=ahead)
    return Chain(Schedule(limits), first_stage(slots))


def test_a_request_that_is_alone_runs_ahead_and_gets_the_same_tokens() -> None:
    alone, plain = chain(), chain(ahead=0)
    for one in (alone, plain):
        one.act(one.schedule.handle(submit(1)))
        one.settle()

    assert alone.answers == plain.answers == {1: [104 + i for i in range(12)]}
    assert alone.computed == plain.computed
    assert (plain.added, alone.added) == (0, 9)  # of 11 decode steps, 2 start at the source


def test_nothing_is_computed_beyond_max_tokens_or_the_context() -> None:
    for max_tokens in (1, 2, 3, 100):
        one = chain()
        one.act(one.schedule.handle(submit(1, max_tokens=max_tokens)))
        one.settle()

        assert len(one.answers[1]) == min(max_tokens, CONTEXT - 4 + 1)
        assert len(one.computed) == len(one.answers[1])
        assert one.over == {1: "length"}


def test_a_traced_request_starts_each_step_at_the_source() -> None:
    one = chain()
    one.act(one.schedule.handle(submit(1, traced=True)))
    one.settle()

    assert (one.added, len(one.answers[1])) == (0, 12)


def test_a_newcomer_halts_it_and_both_step_together_from_then_on() -> None:
    one = chain()
    one.schedule.limits = Limits(
        slots=2, context=CONTEXT, chunk_tokens=8, window=2, ahead=AHEAD, num_groups=1
    )
    one.act(one.schedule.handle(submit(1)))
    while one.added < 2:
        assert one.to_stage_0() or one.token_to_stage_0() or one.token_to_source()
    one.act(one.schedule.handle(submit(2)))
    one.settle()

    assert one.answers == {1: [104 + i for i in range(12)], 2: [104 + i for i in range(12)]}
    # the step that was on its way when the Halt came, and those of whoever was alone at the end
    assert sorted(one.over.items()) == [(1, "length"), (2, "length")]


def test_a_step_of_several_rows_may_not_run_ahead() -> None:
    stage = first_stage()
    stage.handle(Open(EPOCH, 1, 0, Sampling()))
    stage.handle(Open(EPOCH, 2, 1, Sampling()))
    step = _ahead(Step(EPOCH, 0, 0, (Row(1, 0), Row(2, 0)), 1, True), 3)

    given = stage.handle(step, 16)

    assert all(isinstance(one, Forward) and isinstance(one.message, Fault) for one in given)
    assert stage.problems[0] == "a step of 2 rows may not run ahead; one untraced row may"


def test_a_token_that_fits_no_step_adds_none() -> None:
    stage = first_stage()
    stage.handle(Open(EPOCH, 1, 0, Sampling()))
    stage.handle(_ahead(Step(EPOCH, 0, 0, (Row(1, 0),), 2, True), 3), 16)

    def token(number: int, request: int, value: int | None = 9) -> Token:
        return Token(EPOCH, number, (Sampled(request, value),), 0.0, None, 3)

    assert stage.handle(token(5, 1)) == []  # another step
    assert stage.handle(token(0, 2)) == []  # another request
    assert stage.handle(token(0, 1, None)) == []  # no token
    assert stage.handle(Token(EPOCH, 0, (), 0.0, None, 3)) == []  # given up
    assert stage.counts["stale request"] == 4
    (added,) = stage.handle(token(0, 1))
    assert isinstance(added, Compute)
    assert (added.token, added.positions, added.step.number, added.step.ahead) == (9, (2,), 1, 2)
    assert stage.handle(token(0, 1)) == []  # the same token again


def test_a_closed_request_is_not_continued() -> None:
    stage = first_stage()
    stage.handle(Open(EPOCH, 1, 0, Sampling()))
    stage.handle(_ahead(Step(EPOCH, 0, 0, (Row(1, 0),), 2, True), 3), 16)
    stage.handle(Close(EPOCH, 1, 0))

    assert stage.handle(Token(EPOCH, 0, (Sampled(1, 9),), 0.0, None, 3)) == []


@given(
    slots=st.integers(1, 3),
    events=st.lists(
        st.sampled_from(["submit", "cancel", "end", "stage", "token", "source"]), max_size=60
    ),
)
@settings(settings.get_profile("default"), derandomize=True, deadline=None, max_examples=300)
def test_whatever_the_order_each_answer_is_whole_and_no_stage_is_asked_for_what_it_lacks(
    slots: int, events: list[str]
) -> None:
    one = chain(slots)
    cancelled: set[int] = set()
    ended: set[int] = set()
    number = 0
    for event in events:
        match event:
            case "submit":
                one.act(one.schedule.handle(submit(number, 4 + number % 3, 3 + number % 9)))
                number += 1
            case "cancel" if number:
                cancelled.add(number - 1)
                one.act(one.schedule.handle(Cancel(number - 1)))
            case "end":
                waiting = one.schedule.expects(one.to_source[0].number) if one.to_source else ()
                ended.update(waiting)
                one.token_to_source(ends=True)
            case "stage":
                one.to_stage_0()
            case "token":
                one.token_to_stage_0()
            case "source":
                one.token_to_source()
    one.settle()

    assert set(one.over) == set(range(number))
    for request in range(number):
        answer = one.answers.get(request, [])
        first = 100 + 4 + request % 3
        assert answer == [first + i for i in range(len(answer))]
        if request not in cancelled | ended:
            assert (len(answer), one.over[request]) == (3 + request % 9, "length")
