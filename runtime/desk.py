"""The coordinator's desk: takes what clients ask, gives them their text.

    Generate ─► tokens ─► Submit            Token ─► text, end? ─► TokenBack
    Cancel   ─► Cancel                      Emit, Finish, Fail ─► Piece, Finished, Failed

Rule: the desk knows clients and text, the schedule knows neither; they meet in request numbers.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from edgeshard.errors import EdgeShardError
from edgeshard.runtime import ask, control, wire
from edgeshard.runtime import schedule_events as events
from edgeshard.runtime.channel import Arrival, Listener
from edgeshard.runtime.text import Answer, TextModel
from edgeshard.runtime.tracing import Tracer

MAX_TURN_ASKS = 64


@dataclass
class _Live:
    """A request that is not over."""

    peer: bytes
    id: int
    answer: Answer
    num_prompt: int
    ignore_eos: bool
    is_started: bool = False
    text: str = ""
    decode_seconds: float = 0.0
    num_tokens: int = 0


class Desk:
    """The requests of all clients."""

    def __init__(
        self,
        clients: Listener,
        text: TextModel,
        eos_token_ids: Collection[int],
        is_mixed: bool = False,
        tracer: Tracer | None = None,
    ) -> None:
        self._clients = clients
        self._text = text
        self._eos = frozenset(eos_token_ids)
        self._is_mixed = is_mixed
        self._tracer = tracer or Tracer(())
        self._live: dict[int, _Live] = {}
        self._next_request = 1

    @property
    def is_idle(self) -> bool:
        """Whether no request is live."""
        return not self._live

    # From clients

    def take(self) -> Iterator[events.ScheduleEvent]:
        """What clients ask now; the schedule handles each event before the next is taken."""
        for _ in range(MAX_TURN_ASKS):
            arrival = self._clients.receive()
            if arrival is None:
                return
            try:
                message = ask.ask_codec.decode(wire.split(arrival.frames, 0)[0])
            except wire.ProtocolError as error:
                self._say(arrival.peer, ask.Failed(0, "LinkError", str(error)))
                continue
            match message:
                case ask.Generate():
                    yield from self._generate(arrival, message)
                case ask.Cancel():
                    for request in self._requests_of(arrival.peer, message.id):
                        yield events.Cancel(request)
                case ask.Ping():
                    self._say(arrival.peer, ask.Pong())

    def _generate(self, arrival: Arrival, message: ask.Generate) -> Iterator[events.Submit]:
        try:
            if self._requests_of(arrival.peer, message.id):
                raise wire.ProtocolError(f"request {message.id} of this connection still runs")
            if message.trace:
                self._tracer.check()
            if message.prompt is not None:
                prompt = self._text.encode_raw(message.prompt)
            else:
                prompt = self._text.encode_chat(message.messages)
        except EdgeShardError as error:
            self._say(arrival.peer, ask.Failed(message.id, control.kind_of(error), str(error)))
            return
        request, self._next_request = self._next_request, self._next_request + 1
        answer = Answer(self._text, prompt, message.stop)
        self._live[request] = _Live(
            arrival.peer, message.id, answer, len(prompt), message.ignore_eos
        )
        if message.trace:
            self._tracer.begin(request, message.id)
        seed = secrets.randbits(63) if message.seed is None else message.seed
        yield events.Submit(
            request=request,
            client=arrival.key,
            prompt=prompt,
            max_tokens=message.max_tokens,
            sampling=wire.Sampling(message.temperature, message.top_k, message.top_p, seed),
        )
        live = self._live.get(request)
        if live is not None:  # it was not refused
            self._say(live.peer, ask.Started(live.id, live.num_prompt))

    def _requests_of(self, peer: bytes, number: int | None = None) -> list[int]:
        return [
            request
            for request, live in self._live.items()
            if live.peer == peer and number in (None, live.id)
        ]

    # From the chain

    def read(self, row: wire.Sampled, compute_seconds: float) -> bool:
        """Turn a token into text, to be given out with its `Emit`.

        Args:
            row: of a request that is live.
            compute_seconds: what the stages spent on its step.

        Returns:
            Whether the answer ends with it: an end token or a stop string.
        """
        live = self._live[row.request]
        live.text = ""
        if row.token is None:
            return False
        live.decode_seconds += compute_seconds if live.num_tokens else 0.0
        live.num_tokens += 1
        if row.token in self._eos and not live.ignore_eos:
            live.text = live.answer.flush()
            return True
        live.text, is_stopped = live.answer.push(row.token)
        return is_stopped

    def give(
        self, one: events.Emit | events.Finish | events.Fail, *, is_last: bool = False
    ) -> list[events.Cancel]:
        """Tell a client.

        Args:
            one: what the schedule says.
            is_last: the answer is cut here by its length; what is held back comes too.

        Returns:
            Cancellations, where the client is gone or reads nothing any more.
        """
        live = self._live[one.request]
        match one:
            case events.Emit():
                text = live.text + (live.answer.flush() if is_last else "")
                if not self._say(live.peer, ask.Piece(live.id, one.index, one.token, text)):
                    return [events.Cancel(request) for request in self._requests_of(live.peer)]
                for timed in self._tracer.take(one.request):
                    self._say(live.peer, timed)
                return []
            case events.Finish():
                end: ask.Event = ask.Finished(
                    live.id,
                    one.reason,
                    one.num_tokens,
                    live.decode_seconds,
                    one.num_kept,
                    self._is_mixed,
                )
            case events.Fail():
                end = ask.Failed(live.id, one.kind, one.reason)
        del self._live[one.request]
        for event in (*self._tracer.end(one.request), end):
            self._say(live.peer, event)
        return []

    def _say(self, peer: bytes, event: ask.Event) -> bool:
        return self._clients.send(peer, [wire.encode(event)])
