"""The coordinator's schedule: what the chain does next. No socket, no clock, no text.

    two slots, three requests of two prompt chunks (p) and decode steps (d); c: Close

    stage 0   A.p B.p A.p B.p A.d B.d A.d B.d … A.c C.p C.p …
                              ▲ each request's next step goes out as soon as its token is back,
                                or, `in_rounds`, all of them once nothing is on its way

Requests beyond the slots wait, clients taking turns. A prompt goes in chunks, at most `window` of
all requests' chunks at once, so that stages overlap and decode steps of others pass in between.

Rule: every submitted request ends with exactly one `Finish` or `Fail`. A chunk never has exactly
one token unless the prompt has one: kernels give other bits for a single row, and a prompt's result
must not depend on how it was cut.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from edgeshard.runtime.ask import FinishReason
from edgeshard.runtime.wire import Sampling

MIN_CHUNK_TOKENS = 3


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the chain can take.

    Attributes:
        chunk_tokens: prompt positions of one step at most; at least 3.
        window: prompt chunks on their way at once.
        max_waiting: requests that wait for a slot at most.
        in_rounds: next tokens wait until nothing is on its way and go out together, with the
            bubbles that this makes; else each leaves as soon as its own last one is back.
    """

    slots: int
    context: int
    chunk_tokens: int = 512
    window: int = 1
    max_waiting: int = 64
    in_rounds: bool = False


@dataclass(frozen=True, kw_only=True)
class Submit:
    """A client asks; `client` is whom turns are counted by."""

    request: int
    client: str
    prompt: tuple[int, ...]
    max_tokens: int
    sampling: Sampling


@dataclass(frozen=True)
class TokenBack:
    """A step is done; `ends` where the text says that the answer is complete."""

    request: int
    position: int
    token: int | None
    ends: bool = False


@dataclass(frozen=True)
class Cancel:
    """The client wants no more, or is gone."""

    request: int


@dataclass(frozen=True)
class RequestFailed:
    """A stage gave one request up."""

    request: int
    reason: str


@dataclass(frozen=True)
class ChainFailed:
    """A stage is gone; nothing can run until the chain is deployed again."""

    reason: str


@dataclass(frozen=True)
class Drain:
    """Take no new requests; finish those that run or wait."""

    reason: str


ScheduleEvent = Submit | TokenBack | Cancel | RequestFailed | ChainFailed | Drain


@dataclass(frozen=True)
class SendOpen:
    """Open the slot on every stage."""

    request: int
    slot: int
    sampling: Sampling


@dataclass(frozen=True)
class SendStep:
    """Send positions into the chain."""

    request: int
    slot: int
    position: int
    tokens: tuple[int, ...]
    wants_token: bool


@dataclass(frozen=True)
class SendClose:
    """Free the slot on every stage."""

    request: int
    slot: int


@dataclass(frozen=True)
class Emit:
    """A token for the client."""

    request: int
    token: int
    index: int


@dataclass(frozen=True)
class Finish:
    """The request is complete."""

    request: int
    reason: FinishReason
    num_tokens: int


@dataclass(frozen=True)
class Fail:
    """The request is over; `kind` names the error's class."""

    request: int
    kind: str
    reason: str


ScheduleInstruction = SendOpen | SendStep | SendClose | Emit | Finish | Fail


@dataclass
class _Request:
    ask: Submit
    slot: int = -1
    sent: int = 0
    generated: int = 0
    in_flight: deque[int] = field(default_factory=deque)  # position after each step on its way

    @property
    def num_prompt(self) -> int:
        return len(self.ask.prompt)

    def chunks_in_flight(self) -> int:
        return sum(1 for end in self.in_flight if end <= self.num_prompt)


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
        self._free = list(range(limits.slots))
        self._running: dict[int, _Request] = {}
        self._waiting: dict[str, deque[_Request]] = {}
        self._prefilling: deque[_Request] = deque()
        self._held: dict[int, int] = {}  # tokens back that wait for the round to end, by request
        self._failed: str | None = None
        self._draining: str | None = None

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

    def expects(self, request: int, position: int) -> bool:
        """Whether a step of a request that ends at `position` is the next one to come back."""
        running = self._running.get(request)
        return running is not None and bool(running.in_flight) and running.in_flight[0] == position

    def in_flight(self) -> list[int]:
        """Requests of which a step is on its way."""
        return [request for request, running in self._running.items() if running.in_flight]

    def handle(self, event: ScheduleEvent) -> list[ScheduleInstruction]:
        """Apply one event and say what to do, in order."""
        instructions = self._apply(event)
        if self._held and not self.in_flight():
            instructions += self._next_round()
        return instructions

    def _apply(self, event: ScheduleEvent) -> list[ScheduleInstruction]:
        match event:
            case TokenBack():
                return [*self._token_back(event)]
            case Submit():
                return [*self._submit(event)]
            case Cancel():
                return [*self._cancel(event.request)]
            case RequestFailed():
                return [*self._end(event.request, "DeviceError", event.reason)]
            case ChainFailed():
                return [*self._chain_failed(event.reason)]
            case Drain():
                self._draining = event.reason
                return []

    def _submit(self, ask: Submit) -> Iterator[ScheduleInstruction]:
        refusal = self._refusal(ask)
        if refusal is not None:
            yield Fail(ask.request, *refusal)
            return
        self._waiting.setdefault(ask.client, deque()).append(_Request(ask))
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
        if not self._free and self.num_waiting >= limits.max_waiting:
            return "DeviceError", (
                f"{self.num_waiting} requests wait already, at most {limits.max_waiting} may; "
                "try again later"
            )
        return None

    def _admit(self) -> Iterator[ScheduleInstruction]:
        while self._free and self._waiting:
            client = next(iter(self._waiting))
            queue = self._waiting.pop(client)
            request = queue.popleft()
            if queue:
                self._waiting[client] = queue  # behind the other clients
            request.slot = self._free.pop(0)
            self._running[request.ask.request] = request
            self._prefilling.append(request)
            yield SendOpen(request.ask.request, request.slot, request.ask.sampling)
        yield from self._prefill()

    def _prefill(self) -> Iterator[ScheduleInstruction]:
        on_their_way = sum(request.chunks_in_flight() for request in self._running.values())
        while self._prefilling and on_their_way < self.limits.window:
            request = self._prefilling.popleft()
            size = chunk_size(request.num_prompt - request.sent, self.limits.chunk_tokens)
            tokens = request.ask.prompt[request.sent : request.sent + size]
            is_whole = request.sent + size == request.num_prompt
            if not is_whole:
                self._prefilling.append(request)  # prompts take turns, chunk by chunk
            yield self._step(request, tokens, wants_token=is_whole)
            on_their_way += 1

    def _step(self, request: _Request, tokens: tuple[int, ...], *, wants_token: bool) -> SendStep:
        position = request.sent
        request.sent += len(tokens)
        request.in_flight.append(request.sent)
        return SendStep(request.ask.request, request.slot, position, tokens, wants_token)

    def _token_back(self, back: TokenBack) -> Iterator[ScheduleInstruction]:
        if not self.expects(back.request, back.position):
            return
        request = self._running[back.request]
        request.in_flight.popleft()
        if back.token is not None:
            request.generated += 1
            is_full = back.position >= self.limits.context
            is_last = back.ends or is_full or request.generated >= request.ask.max_tokens
            if not is_last and self.limits.in_rounds:
                self._held[back.request] = back.token
            elif not is_last:
                yield self._step(request, (back.token,), wants_token=True)
            yield Emit(back.request, back.token, request.generated - 1)
            if is_last:
                yield from self._leave(request)
                reason: FinishReason = "stop" if back.ends else "length"
                yield Finish(back.request, reason, request.generated)
                yield from self._admit()
                return
        yield from self._prefill()

    def _next_round(self) -> Iterator[ScheduleInstruction]:
        held, self._held = self._held, {}
        for request, token in held.items():
            yield self._step(self._running[request], (token,), wants_token=True)

    def _cancel(self, number: int) -> Iterator[ScheduleInstruction]:
        request = self._take(number)
        if request is None:
            return
        yield from self._leave(request)
        yield Finish(number, "cancelled", request.generated)
        yield from self._admit()

    def _end(self, number: int, kind: str, reason: str) -> Iterator[ScheduleInstruction]:
        request = self._take(number)
        if request is None:
            return
        yield from self._leave(request)
        yield Fail(number, kind, reason)
        yield from self._admit()

    def _chain_failed(self, reason: str) -> Iterator[ScheduleInstruction]:
        if self._failed is not None:
            return
        self._failed = reason
        waiting = [request for queue in self._waiting.values() for request in queue]
        everyone = [*self._running.values(), *waiting]
        self._running.clear()
        self._held.clear()
        self._waiting.clear()
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
        self._held.pop(request.ask.request, None)
        if request in self._prefilling:
            self._prefilling.remove(request)
        self._free.append(request.slot)
        yield SendClose(request.ask.request, request.slot)


def chunk_size(num_left: int, chunk_tokens: int) -> int:
    """Positions of the next chunk of a prompt: never one, unless one is all there is."""
    if num_left <= chunk_tokens:
        return num_left
    return chunk_tokens - 1 if num_left - chunk_tokens == 1 else chunk_tokens
