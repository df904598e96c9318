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

A free slot keeps the prompt of its last request, and a request that starts with the same tokens
skips them on every stage (`kept_prompts.py`).

Requests beyond the slots wait, clients taking turns; where too many wait, or too much, a request is
refused with a guess when there will be room, from how long slots were held of late. Time comes in
through `Clock`; a request that is over its deadline ends as it is.

A prompt goes in chunks, at most `window` of all requests' chunks at once, so that stages overlap
and decode steps of others pass in between.

Rule: every submitted request ends with exactly one `Finish` or `Fail`. A chunk never has exactly
one token unless the prompt has one: kernels give other bits for a single row, and a prompt's result
must not depend on how it was cut.
"""

from __future__ import annotations

import statistics
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from edgeshard.runtime.ask import FinishReason
from edgeshard.runtime.kept_prompts import KeptPrompts
from edgeshard.runtime.schedule_events import (
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
    SendOpen,
    SendStep,
    StepBack,
    Submit,
)
from edgeshard.runtime.schedule_limits import (
    MAX_RETRY_SECONDS,
    MIN_CHUNK_TOKENS,
    NUM_HELD,
    chunk_size,
)
from edgeshard.runtime.schedule_limits import Limits as Limits
from edgeshard.runtime.wire import Kept


@dataclass
class _Request:
    ask: Submit
    slot: int = -1
    sent: int = 0
    generated: int = 0
    next_token: int | None = None  # to be sent with its group's next step
    num_kept: int = 0
    submitted: float = 0.0
    admitted: float = 0.0

    @property
    def num_prompt(self) -> int:
        return len(self.ask.prompt)


@dataclass
class _Step:
    """A step on its way; `group` is None for a prompt's."""

    group: int | None
    requests: set[int]


class Schedule:
    """Requests in their slots and in the queue."""

    def __init__(self, limits: Limits) -> None:
        """Start idle.

        Raises:
            ValueError: chunks would be too small to never leave a single token.
        """
        if limits.chunk_tokens < MIN_CHUNK_TOKENS:
            raise ValueError(f"chunk_tokens is {limits.chunk_tokens}, at least {MIN_CHUNK_TOKENS}")
        self.limits = limits
        self._free = list(range(limits.slots))  # the one that was used longest ago first
        self._kept = KeptPrompts()
        self._running: dict[int, _Request] = {}
        self._waiting: dict[str, deque[_Request]] = {}
        self._prefilling: deque[_Request] = deque()
        self._steps: dict[int, _Step] = {}
        self._next_number = 0
        self._failed: str | None = None
        self._draining: str | None = None
        self._now = 0.0
        self._held: deque[float] = deque(maxlen=NUM_HELD)

    @property
    def num_running(self) -> int:
        """Requests that hold a slot."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """Requests that wait for one."""
        return sum(len(queue) for queue in self._waiting.values())

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
        return [*self._apply(event), *self._decode()]

    def _apply(self, event: ScheduleEvent) -> list[ScheduleInstruction]:
        match event:
            case StepBack():
                return [*self._step_back(event)]
            case Submit():
                return [*self._submit(event)]
            case Cancel():
                return [*self._finish_early(event.request, "cancelled")]
            case RequestFailed():
                return [*self._end(event.request, "DeviceError", event.reason)]
            case ChainFailed():
                return [*self._chain_failed(event.reason)]
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
        request = _Request(ask, submitted=self._now)
        self._waiting.setdefault(ask.client, deque()).append(request)
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
        limits, num_waiting = self.limits, self.num_waiting
        if self._free or not num_waiting:
            return None
        tokens = sum(len(one.ask.prompt) for queue in self._waiting.values() for one in queue)
        if num_waiting >= limits.max_waiting:
            allowed = f"at most {limits.max_waiting} may"
            return self._busy(f"{num_waiting} requests wait already, {allowed}")
        if tokens + num_prompt > limits.max_waiting_tokens:
            return self._busy(
                f"{tokens} prompt tokens wait already and {num_prompt} come, at most "
                f"{limits.max_waiting_tokens} may"
            )
        return None

    def _busy(self, reason: str) -> tuple[str, float]:
        ages = [self._now - one.admitted for one in self._running.values()]
        held = statistics.fmean(self._held) if self._held else max(ages, default=0.0)
        seconds = held * (self.num_waiting + 1) / self.limits.slots
        seconds = round(min(max(seconds, 0.1), MAX_RETRY_SECONDS), 1)
        return f"{reason}; ask again in {seconds} s", seconds

    def _clock(self, now: float) -> Iterator[ScheduleInstruction]:
        self._now = now
        waiting = [request for queue in self._waiting.values() for request in queue]
        for request in [*self._running.values(), *waiting]:
            limit = request.ask.deadline_seconds
            if limit is not None and now - request.submitted >= limit:
                yield from self._finish_early(request.ask.request, "deadline")

    def _admit(self) -> Iterator[ScheduleInstruction]:
        while self._free and self._waiting:
            client = next(iter(self._waiting))
            queue = self._waiting.pop(client)
            request = queue.popleft()
            if queue:
                self._waiting[client] = queue  # behind the other clients
            kept = self._take_slot(request)
            self._running[request.ask.request] = request
            request.admitted = self._now
            self._prefilling.append(request)
            ask = request.ask
            seen = tuple(dict.fromkeys(ask.prompt)) if ask.sampling.repetition != 1 else ()
            yield SendOpen(ask.request, request.slot, ask.sampling, kept, seen, ask.biases)
        yield from self._prefill()

    def _take_slot(self, request: _Request) -> Kept | None:
        """Give a request the slot that keeps most of its prompt; without one, see `_idle_slot`."""
        found = self._kept.match(request.ask.client, request.ask.prompt)
        if found is None:
            request.slot, kept = self._idle_slot(), None
        else:
            request.slot, kept = found
            request.sent = request.num_kept = kept.length
        self._free.remove(request.slot)
        self._kept.drop(request.slot)
        return kept

    def _idle_slot(self) -> int:
        """A free slot of the group with the fewest requests.

        There one that keeps nothing, or else the one that was used longest ago.
        """
        size = self.limits.group_slots
        used = Counter(request.slot // size for request in self._running.values())
        return min(self._free, key=lambda slot: (used[slot // size], slot in self._kept))

    def _prefill(self) -> Iterator[ScheduleInstruction]:
        on_their_way = sum(1 for step in self._steps.values() if step.group is None)
        while self._prefilling and on_their_way < self.limits.window:
            request = self._prefilling.popleft()
            size = chunk_size(request.num_prompt - request.sent, self.limits.chunk_tokens)
            tokens = request.ask.prompt[request.sent : request.sent + size]
            is_whole = request.sent + size == request.num_prompt
            if not is_whole:
                self._prefilling.append(request)  # prompts take turns, chunk by chunk
            yield self._send(None, [(request, tokens)], wants_token=is_whole)
            on_their_way += 1

    def _decode(self) -> Iterator[ScheduleInstruction]:
        """The next step of each group that has tokens to send and nothing on its way."""
        if self.limits.in_rounds and self._steps:
            return
        busy = {step.group for step in self._steps.values()}
        groups: dict[int, list[_Request]] = {}
        for request in self._running.values():
            if request.next_token is not None:
                groups.setdefault(request.slot // self.limits.group_slots, []).append(request)
        for group, requests in groups.items():
            if group not in busy:
                for run in neighbours(sorted(requests, key=lambda request: request.slot)):
                    rows = [(request, (request.next_token or 0,)) for request in run]
                    yield self._send(group, rows, wants_token=True)

    def _send(
        self,
        group: int | None,
        rows: Sequence[tuple[_Request, tuple[int, ...]]],
        *,
        wants_token: bool,
    ) -> SendStep:
        number, self._next_number = self._next_number, self._next_number + 1
        sent = []
        for request, tokens in rows:
            sent.append(Row(request.ask.request, request.sent, tokens))
            request.sent += len(tokens)
            request.next_token = None
        self._steps[number] = _Step(group, {row.request for row in sent})
        return SendStep(number, rows[0][0].slot, tuple(sent), wants_token)

    def _step_back(self, back: StepBack) -> Iterator[ScheduleInstruction]:
        step = self._steps.pop(back.number, None)
        if step is None:
            return
        news = [
            (self._running[row.request], row)
            for row in back.rows
            if row.request in step.requests and row.token is not None
        ]
        ending: list[tuple[_Request, FinishReason]] = []
        for request, row in news:
            request.generated += 1
            is_full = request.sent >= self.limits.context
            if row.ends:
                ending.append((request, "stop"))
            elif is_full or request.generated >= request.ask.max_tokens:
                ending.append((request, "length"))
            else:
                request.next_token = row.token
        yield from self._decode()
        for request, row in news:
            yield Emit(row.request, row.token or 0, request.generated - 1)
        for request, reason in ending:
            yield from self._leave(request)
            yield Finish(request.ask.request, reason, request.generated, request.num_kept)
        if ending:
            yield from self._admit()
        else:
            yield from self._prefill()

    def _finish_early(self, number: int, reason: FinishReason) -> Iterator[ScheduleInstruction]:
        request = self._take(number)
        if request is None:
            return
        yield from self._leave(request)
        yield Finish(number, reason, request.generated, request.num_kept)
        yield from self._admit()

    def _end(self, number: int, kind: str, reason: str) -> Iterator[ScheduleInstruction]:
        request = self._take(number)
        if request is None:
            return
        yield from self._leave(request)
        self._kept.drop(request.slot)  # the stages do not agree on what they hold
        yield Fail(number, kind, reason)
        yield from self._admit()

    def _chain_failed(self, reason: str) -> Iterator[ScheduleInstruction]:
        if self._failed is not None:
            return
        self._failed = reason
        waiting = [request for queue in self._waiting.values() for request in queue]
        everyone = [*self._running.values(), *waiting]
        self._running.clear()
        self._steps.clear()
        self._waiting.clear()
        self._kept.clear()
        self._prefilling.clear()
        for request in everyone:
            yield Fail(request.ask.request, "DeviceError", reason)

    def _take(self, number: int) -> _Request | None:
        """The request, taken out of the queue where it waits."""
        if number in self._running:
            return self._running[number]
        for client, queue in self._waiting.items():
            for request in queue:
                if request.ask.request == number:
                    queue.remove(request)
                    if not queue:
                        del self._waiting[client]
                    return request
        return None

    def _leave(self, request: _Request) -> Iterator[ScheduleInstruction]:
        """Free the slot; steps on their way are dropped by the stages once they see the Close."""
        if self._running.pop(request.ask.request, None) is None:
            return
        for number, step in list(self._steps.items()):
            step.requests.discard(request.ask.request)
            if not step.requests:
                del self._steps[number]
        if request in self._prefilling:
            self._prefilling.remove(request)
        self._free.append(request.slot)
        self._held.append(self._now - request.admitted)
        ask = request.ask
        self._kept.keep(request.slot, ask.request, ask.client, ask.prompt[: request.sent])
        yield SendClose(request.ask.request, request.slot)


def neighbours(requests: Sequence[_Request]) -> Iterator[list[_Request]]:
    """Split requests, sorted by slot, where their slots do not touch."""
    run: list[_Request] = []
    for request in requests:
        if run and request.slot != run[-1].slot + 1:
            yield run
            run = []
        run.append(request)
    if run:
        yield run
