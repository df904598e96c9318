"""The coordinator's schedule: what the chain does next. No socket, no clock, no text.

    four slots in two groups, four requests: prompts (p), then decode steps (d) of two rows each

    stage 0   A.p B.p C.p D.p AC.d BD.d AC.d BD.d …
    stage 1       A.p B.p C.p D.p  AC.d BD.d AC.d …
                              ▲ a group's next step leaves as soon as its last one is back,
                                or, `in_rounds`, all of them once nothing is on its way

Slots lie in groups of neighbours, and the requests of a group step together: one row each, in one
batch where their slots touch. A new request takes a slot in the group with the fewest, so few
requests overlap on the stages and many share a pass over the weights. It joins its group at the
group's next step.

A request that starts with the same tokens as an earlier one, over or not, skips them on every stage
(`slots.py`); so do several answers to one prompt.

Requests beyond the slots wait, clients taking turns; where too many wait, or too much, a request is
refused with a guess when there will be room (`waiting.py`). Time comes in through `Clock`; a
request that is over its deadline ends as it is.

A prompt goes in chunks, at most `window` of all requests' chunks at once, so that stages overlap.
While others decode, chunks are small and keep to the pace of their steps (`pace.py`).

Rule: every submitted request ends with exactly one `Finish` or `Fail`. A prompt is cut at even
positions, and a chunk never has exactly one token unless the prompt has one: kernels give other
bits for a single row, and a prompt's result must not depend on how it was cut.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from edgeshard.runtime.ask import FinishReason, Load
from edgeshard.runtime.live_request import Request, neighbours
from edgeshard.runtime.pace import Pace
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
    Row,
    ScheduleEvent,
    ScheduleInstruction,
    SendClose,
    SendHalt,
    SendOpen,
    SendStep,
    StepBack,
    Submit,
)
from edgeshard.runtime.schedule_limits import MIN_CHUNK_TOKENS, chunk_size
from edgeshard.runtime.schedule_limits import Limits as Limits
from edgeshard.runtime.slots import Slots
from edgeshard.runtime.waiting import Waiting


@dataclass
class _Step:
    """A step on its way.

    Attributes:
        group: None for a prompt's.
        ahead: steps that stage 0 may still add to it.
        is_added: stage 0 did; whether it began is known once the step is back.
    """

    group: int | None
    requests: set[int]
    ahead: int = 0
    is_added: bool = False
    is_halted: bool = False


class Schedule:
    """Requests in their slots and in the queue."""

    def __init__(self, limits: Limits) -> None:
        """Start idle.

        Raises:
            ValueError: chunks would be too small to never leave a single token.
        """
        least = min(limits.chunk_tokens, limits.beside_tokens)
        if least < MIN_CHUNK_TOKENS:
            raise ValueError(f"a chunk has {least} tokens at most, at least {MIN_CHUNK_TOKENS}")
        self.limits = limits
        self._slots = Slots(limits)
        self._waiting = Waiting(limits)
        self._prefilling: deque[Request] = deque()
        self._pace = Pace(limits)
        self._steps: dict[int, _Step] = {}
        self._next_number = 0
        self._failed: str | None = None
        self._draining: str | None = None
        self._now = 0.0
        self.is_blocked = False

    @property
    def num_running(self) -> int:
        """Requests that hold a slot."""
        return len(self._slots.running)

    @property
    def num_waiting(self) -> int:
        """Requests that wait for one."""
        return len(self._waiting)

    @property
    def failed(self) -> str | None:
        """Why nothing can run, if so."""
        return self._failed

    def expects(self, number: int) -> frozenset[int]:
        """The requests that wait for a step to come back; none where nobody does any more."""
        step = self._steps.get(number)
        return frozenset(step.requests) if step is not None else frozenset()

    def in_flight(self) -> dict[int, frozenset[int]]:
        """Steps on their way, by number, with the requests that wait for them."""
        return {number: frozenset(step.requests) for number, step in self._steps.items()}

    def handle(self, event: ScheduleEvent) -> list[ScheduleInstruction]:
        """Apply one event and say what to do, in order."""
        return [*self._apply(event), *self._decode(), *self._prefill()]

    def _apply(self, event: ScheduleEvent) -> list[ScheduleInstruction]:
        match event:
            case StepBack():
                return [*self._step_back(event)]
            case Submit():
                return [*self._submit(event)]
            case Cancel():
                return [*self._finish_early(event.request, "cancelled")]
            case RequestFailed():
                return [*self._given_up(event.request, event.reason)]
            case ChainFailed():
                return [*self._chain_failed(event.reason)]
            case Blocked():
                self.is_blocked = event.is_blocked
                return [*self._admit()]
            case Drain():
                self._draining = event.reason
                return []
            case Clock():
                return [*self._clock(event.now)]

    def _submit(self, ask: Submit) -> Iterator[ScheduleInstruction]:
        refusal = self._refusal(ask)
        if refusal is not None:
            yield Fail(ask.request, *refusal)
            return
        busy = self.busy(len(ask.prompt))
        if busy is not None:
            yield Fail(ask.request, "BusyError", *busy)
            return
        self._waiting.add(Request(ask, submitted=self._now))
        yield from self._admit()

    def _refusal(self, ask: Submit) -> tuple[str, str] | None:
        limits = self.limits
        if self._failed is not None:
            return "DeviceError", f"{self._failed}; deploy again"
        if self._draining is not None:
            return "DeviceError", f"{self._draining}; no new requests are taken"
        if not ask.prompt:
            return "InputError", "the prompt has no tokens; write something"
        if len(ask.prompt) > limits.context:
            return "InputError", (
                f"the prompt has {len(ask.prompt)} tokens, the context holds {limits.context}; "
                "shorten it or plan with a larger --context"
            )
        return None

    def busy(self, num_prompt: int = 0) -> tuple[str, float] | None:
        """Why a request cannot even wait now, and in how many seconds to ask again."""
        return None if self._has_room else self._waiting.full(num_prompt, self._ages())

    @property
    def _has_room(self) -> bool:
        """Whether a request may start now."""
        return self._slots.has_free and not self.is_blocked

    def load(self) -> Load | None:
        """How full the chain is; None where it takes no requests."""
        if self._failed is not None or self._draining is not None:
            return None
        wait = 0.0 if self._has_room else self._waiting.seconds(self._ages())
        return Load(wait, (self.num_running + self.num_waiting) / self.limits.slots)

    def _ages(self) -> list[float]:
        return [self._now - one.admitted for one in self._slots.running.values()]

    def _clock(self, now: float) -> Iterator[ScheduleInstruction]:
        self._now = now
        for request in [*self._slots.running.values(), *self._waiting]:
            limit = request.ask.deadline_seconds
            if limit is not None and now - request.submitted >= limit:
                yield from self._finish_early(request.ask.request, "deadline")

    def _admit(self) -> Iterator[ScheduleInstruction]:
        while self._has_room and len(self._waiting):
            request = self._waiting.next()
            self._slots.give(request)
            request.admitted = self._now
            self._prefilling.append(request)
            yield from self._halt()
            if not self._slots.waits(request):
                yield self._open(request)

    def _open(self, request: Request) -> SendOpen:
        kept, ask = self._slots.open(request), request.ask
        seen = tuple(dict.fromkeys(ask.prompt)) if ask.sampling.repetition != 1 else ()
        return SendOpen(ask.request, request.slot, ask.sampling, kept, seen, ask.biases)

    def _halt(self) -> Iterator[ScheduleInstruction]:
        """Whoever runs ahead comes back to the source, where its group's steps are made up."""
        for step in self._steps.values():
            if step.ahead and not step.is_halted:
                step.is_halted = True
                for request in step.requests:
                    yield SendHalt(request, self._slots.running[request].slot)

    def _prefill(self) -> Iterator[ScheduleInstruction]:
        """Chunks as far as the window goes; while others decode, one for each of their steps."""
        if self.is_blocked or not self._prefilling:
            return
        on_their_way = sum(1 for step in self._steps.values() if step.group is None)
        decoding = {self._group(one) for one in self._slots.running.values() if one.answer}
        largest = self._pace.chunk_tokens(decoding)
        num_passed = 0
        while (
            num_passed < len(self._prefilling)
            and on_their_way < self.limits.window
            and self._pace.allows(decoding)
        ):
            request = self._prefilling.popleft()
            if self._slots.waits(request):
                self._prefilling.append(request)
                num_passed += 1
                continue
            if not request.is_open:
                yield self._open(request)
            size = chunk_size(request.num_prompt - request.sent, largest)
            tokens = request.ask.prompt[request.sent : request.sent + size]
            is_whole = request.sent + size == request.num_prompt
            if not is_whole:
                self._prefilling.append(request)  # prompts take turns, chunk by chunk
            yield self._send(None, [(request, tokens)], wants_token=is_whole)
            on_their_way += 1
            num_passed = 0
            self._pace.note_chunk(decoding)

    def _decode(self) -> Iterator[ScheduleInstruction]:
        """The next step of each group that has tokens to send and nothing on its way."""
        if self.is_blocked or (self.limits.in_rounds and self._steps):
            return
        busy = {step.group for step in self._steps.values()}
        groups: dict[int, list[Request]] = {}
        for request in self._slots.running.values():
            if request.next_token is not None:
                groups.setdefault(self._group(request), []).append(request)
        for group, requests in groups.items():
            if group not in busy:
                self._pace.note_step(group)
                for run in neighbours(sorted(requests, key=lambda request: request.slot)):
                    rows = [(request, (request.next_token or 0,)) for request in run]
                    yield self._send(group, rows, wants_token=True, ahead=self._ahead(run[0]))

    def _group(self, request: Request) -> int:
        return request.slot // self.limits.group_slots

    def _ahead(self, one: Request) -> int:
        """Steps that stage 0 may add by itself: none where others share the chain."""
        if len(self._slots.running) > 1 or one.ask.is_traced:
            return 0
        left = min(one.ask.max_tokens - len(one.answer), self.limits.context - one.sent)
        return min(self.limits.ahead, left - 1)

    def _send(
        self,
        group: int | None,
        rows: Sequence[tuple[Request, tuple[int, ...]]],
        *,
        wants_token: bool,
        ahead: int = 0,
    ) -> SendStep:
        number, self._next_number = self._next_number, self._next_number + 1 + ahead
        sent = []
        for request, tokens in rows:
            sent.append(Row(request.ask.request, request.sent, tokens))
            request.sent += len(tokens)
            request.next_token = None
        self._steps[number] = _Step(group, {row.request for row in sent}, ahead)
        return SendStep(number, rows[0][0].slot, tuple(sent), wants_token, ahead)

    def _step_back(self, back: StepBack) -> Iterator[ScheduleInstruction]:
        step = self._steps.pop(back.number, None)
        if step is None:
            return
        news = [
            (self._slots.running[row.request], row)
            for row in back.rows
            if row.request in step.requests and row.token is not None
        ]
        ending: list[tuple[Request, FinishReason]] = []
        for request, row in news:
            request.sent += step.is_added
            request.answer.append(row.token or 0)
            is_full = request.sent >= self.limits.context
            if row.ends:
                ending.append((request, "stop"))
            elif is_full or len(request.answer) >= request.ask.max_tokens:
                ending.append((request, "length"))
            elif 0 < back.ahead <= step.ahead:
                added = _Step(step.group, {row.request}, back.ahead - 1, True, step.is_halted)
                self._steps[back.number + 1] = added
            else:
                request.next_token = row.token
        yield from self._decode()
        for request, row in news:
            yield Emit(row.request, row.token or 0, len(request.answer) - 1)
        for request, reason in ending:
            yield from self._leave(request)
            yield _finish(request, reason)
        if ending:
            yield from self._admit()

    def _finish_early(self, number: int, reason: FinishReason) -> Iterator[ScheduleInstruction]:
        request = self._take(number)
        if request is None:
            return
        yield from self._leave(request)
        yield _finish(request, reason)
        yield from self._admit()

    def _given_up(self, number: int, reason: str) -> Iterator[ScheduleInstruction]:
        """A stage gave a request up; one whose start may have been gone there computes it."""
        request = self._take(number)
        if request is None:
            return
        if request.num_kept and not request.answer:
            yield from self._withdraw(request)
            ask, slot, since = request.ask, request.slot, request.submitted
            again = Request(ask, since, request.admitted, slot, starts_anew=True)
            self._slots.replace(again)
            self._prefilling.append(again)
            yield self._open(again)
            return
        yield from self._leave(request, is_trusted=False)  # the stages hold unequal parts of it
        yield Fail(number, "DeviceError", reason)
        yield from self._admit()

    def _chain_failed(self, reason: str) -> Iterator[ScheduleInstruction]:
        if self._failed is not None:
            return
        self._failed = reason
        everyone = [*self._slots.running.values(), *self._waiting]
        self._slots.clear()
        self._steps.clear()
        self._waiting.clear()
        self._prefilling.clear()
        for request in everyone:
            yield Fail(request.ask.request, "DeviceError", reason)

    def _take(self, number: int) -> Request | None:
        """The request, taken out of the queue where it waits."""
        return self._slots.running.get(number) or self._waiting.take(number)

    def _leave(self, request: Request, *, is_trusted: bool = True) -> Iterator[ScheduleInstruction]:
        """Free the slot, where the request has one."""
        if request.ask.request not in self._slots.running:
            return
        self._slots.leave(request, is_trusted=is_trusted)
        self._waiting.note_held(self._now - request.admitted)
        yield from self._withdraw(request)

    def _withdraw(self, request: Request) -> Iterator[ScheduleInstruction]:
        """Close it; steps on their way are dropped by the stages once they see the Close."""
        for number, step in list(self._steps.items()):
            step.requests.discard(request.ask.request)
            if not step.requests:
                del self._steps[number]
        if request in self._prefilling:
            self._prefilling.remove(request)
        if request.is_open:
            yield SendClose(request.ask.request, request.slot)


def _finish(request: Request, reason: FinishReason) -> Finish:
    numbers = len(request.answer), request.num_kept, request.num_reused
    return Finish(request.ask.request, reason, *numbers)
