"""The coordinator's desk: takes what clients ask, gives them their text.

    Generate ─► tokens ─► Submit            Token ─► text, end? ─► TokenBack
    Cancel   ─► Cancel                      Emit, Finish, Fail ─► Piece, Finished, Failed

Rule: the desk knows clients and text, the schedule knows neither; they meet in request numbers.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from edgeshard.errors import EdgeShardError
from edgeshard.runtime import ask, control, wire
from edgeshard.runtime import schedule_events as events
from edgeshard.runtime.channel import Arrival, Listener
from edgeshard.runtime.parameters import Parameters, Settled, check, derived_seed, settled
from edgeshard.runtime.remarks import Remarks
from edgeshard.runtime.text import Answer, TextModel
from edgeshard.runtime.tracing import Tracer
from edgeshard.schemas.model import Generation

MAX_TURN_ASKS = 64
PROBE_SECONDS = 0.5
OWED_SECONDS = 60.0
MAX_OWED = 1024


@dataclass
class _Asked:
    """What a client asked, with one answer or several."""

    peer: bytes
    id: int
    parameters: Parameters
    has_failed: bool = False


@dataclass
class _Stream:
    """What a client with a request was sent, and has told to have taken."""

    sent_bytes: int = 0
    taken_bytes: int = 0


@dataclass
class _Live:
    """An answer that is not over."""

    asked: _Asked
    number: int  # of several answers to the same
    answer: Answer
    text: str = ""
    sampled: wire.Sampled | None = None
    decode_seconds: float = 0.0
    num_tokens: int = 0


class Desk:
    """The requests of all clients."""

    def __init__(
        self,
        clients: Listener,
        text: TextModel,
        eos_token_ids: Collection[int],
        vocab_size: int,
        remarks: Remarks | None = None,
        tracer: Tracer | None = None,
        defaults: Generation | None = None,
    ) -> None:
        self._clients = clients
        self._text = text
        self._vocab_size = vocab_size
        self._eos = frozenset(eos_token_ids)
        self._remarks = remarks or Remarks()
        self._defaults = defaults or Generation()
        self._tracer = tracer or Tracer(())
        self._live: dict[int, _Live] = {}
        self._busy: Callable[[], tuple[str, float] | None] = lambda: None
        self._refused: Callable[[str], None] = lambda kind: None
        self._load: Callable[[], ask.Load | None] = lambda: None
        self._streams: dict[bytes, _Stream] = {}
        self._next_probe = 0.0
        self._owed: deque[tuple[float, bytes, ask.Event]] = deque(maxlen=MAX_OWED)
        self._next_request = 1

    @property
    def is_idle(self) -> bool:
        """Whether no request is live."""
        return not self._live

    def refuse_when(
        self,
        busy: Callable[[], tuple[str, float] | None],
        refused: Callable[[str], None] = lambda kind: None,
    ) -> None:
        """Refuse at once, before the prompt costs anything, while `busy` says why and how long.

        `refused` is told the kind of error of each request that is not submitted.
        """
        self._busy, self._refused = busy, refused

    def tell_load(self, load: Callable[[], ask.Load | None]) -> None:
        """Tell clients that ask how full the chain is."""
        self._load = load

    def probe(self, now: float) -> list[events.Cancel]:
        """Look twice a second whether every client with a request is still there.

        A connection that is gone, or that takes nothing, cannot be sent a sign of life. Ends that a
        client did not take are tried again for a while, so that one who reads again learns of them.
        """
        if now < self._next_probe:
            return []
        self._next_probe = now + PROBE_SECONDS
        for _ in range(len(self._owed)):
            since, peer, event = self._owed.popleft()
            since = since or now
            if now - since < OWED_SECONDS and not self._say(peer, event):
                self._owed.append((since, peer, event))
        self._forget_streams()
        peers = dict.fromkeys(live.asked.peer for live in self._live.values())
        gone = [peer for peer in peers if not self._say(peer, ask.Pong())]
        return [events.Cancel(one) for peer in gone for one in self._requests_of(peer)]

    def _forget_streams(self) -> None:
        live = {live.asked.peer for live in self._live.values()}
        live |= {peer for _, peer, _ in self._owed}
        self._streams = {peer: one for peer, one in self._streams.items() if peer in live}

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
                self._refuse(arrival.peer, ask.Failed(0, "LinkError", str(error)))
                continue
            match message:
                case ask.Generate():
                    yield from self._generate(arrival, message)
                case ask.Cancel():
                    for request in self._requests_of(arrival.peer, message.id):
                        yield events.Cancel(request)
                case ask.Ping():
                    stream = self._streams.get(arrival.peer)
                    if stream is not None:
                        stream.taken_bytes = min(message.taken_bytes, stream.sent_bytes)
                    self._say(arrival.peer, ask.Pong(self._load()))

    def _generate(self, arrival: Arrival, message: ask.Generate) -> Iterator[events.Submit]:
        parameters = message.parameters
        busy = self._busy()
        if busy is not None:
            self._refuse(arrival.peer, ask.Failed(message.id, "BusyError", *busy))
            return
        try:
            if self._requests_of(arrival.peer, message.id):
                raise wire.ProtocolError(f"request {message.id} of this connection still runs")
            check(parameters, self._vocab_size)
            if parameters.trace:
                self._tracer.check()
            if message.prompt is not None:
                prompt = self._text.encode_raw(message.prompt)
            else:
                prompt = self._text.encode_chat(message.messages)
        except EdgeShardError as error:
            kind = control.kind_of(error)
            self._refuse(arrival.peer, ask.Failed(message.id, kind, str(error)))
            return
        asked = _Asked(arrival.peer, message.id, parameters)
        self._streams.setdefault(arrival.peer, _Stream())
        own = settled(parameters, self._defaults)
        seed = secrets.randbits(63) if parameters.seed is None else parameters.seed
        for number in range(parameters.n):
            request, self._next_request = self._next_request, self._next_request + 1
            answer = Answer(self._text, prompt, parameters.stop)
            self._live[request] = _Live(asked, number, answer)
            if parameters.trace:
                self._tracer.begin(request, message.id)
            yield events.Submit(
                request=request,
                client=arrival.key,
                prompt=prompt,
                max_tokens=own.max_tokens,
                sampling=sampling_of(parameters, own, derived_seed(seed, number)),
                biases=tuple(parameters.logit_bias.items()),
                deadline_seconds=parameters.deadline_seconds,
                reuse_answers=parameters.reuse_answers,
                is_traced=parameters.trace,
            )
            if asked.has_failed:
                return
        self._say(asked.peer, ask.Started(asked.id, len(prompt), seed))

    def _refuse(self, peer: bytes, failed: ask.Failed) -> None:
        self._refused(failed.kind)
        self._say(peer, failed)

    def _requests_of(self, peer: bytes, number: int | None = None) -> list[int]:
        return [
            request
            for request, live in self._live.items()
            if live.asked.peer == peer and number in (None, live.asked.id)
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
        live.text, live.sampled = "", row
        if row.token is None:
            return False
        live.decode_seconds += compute_seconds if live.num_tokens else 0.0
        live.num_tokens += 1
        if row.token in self._eos and not live.asked.parameters.ignore_eos:
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
            Cancellations: where the client is gone or reads nothing any more, and of the other
            answers where one failed.
        """
        live = self._live[one.request]
        asked = live.asked
        match one:
            case events.Emit():
                text = live.text + (live.answer.flush() if is_last else "")
                if not self._say(asked.peer, self._piece(live, one, text)):
                    return [events.Cancel(request) for request in self._requests_of(asked.peer)]
                for timed in self._tracer.take(one.request):
                    self._say(asked.peer, timed)
                return []
            case events.Finish():
                end: ask.Event = ask.Finished(
                    asked.id,
                    one.reason,
                    one.num_tokens,
                    live.decode_seconds,
                    one.num_kept,
                    live.number,
                    one.num_reused,
                    self._remarks,
                )
            case events.Fail():
                end = ask.Failed(asked.id, one.kind, one.reason, one.retry_seconds)
        del self._live[one.request]
        if asked.has_failed:
            return []
        for event in (*self._tracer.end(one.request), end):
            if not self._say(asked.peer, event):
                self._owed.append((0.0, asked.peer, event))
        if isinstance(one, events.Finish):
            return []
        asked.has_failed = True
        return [events.Cancel(request) for request in self._requests_of(asked.peer, asked.id)]

    def _piece(self, live: _Live, one: events.Emit, text: str) -> ask.Piece:
        sampled = live.sampled
        likely = sampled.likely if sampled is not None else ()
        return ask.Piece(
            live.asked.id,
            one.index,
            one.token,
            text,
            live.number,
            sampled.logprob if sampled is not None else None,
            tuple(
                ask.Alternative(each.token, self._text.decode([each.token]), each.logprob)
                for each in likely
            ),
        )

    def _say(self, peer: bytes, event: ask.Event) -> bool:
        """Send; False where the client is gone, or has not read too much."""
        data = wire.encode(event)
        stream = self._streams.get(peer)
        if stream is None:
            return self._clients.send(peer, [data])
        if stream.sent_bytes - stream.taken_bytes + len(data) > ask.MAX_UNREAD_BYTES:
            return False
        is_sent = self._clients.send(peer, [data])
        stream.sent_bytes += len(data) if is_sent else 0
        return is_sent


def sampling_of(parameters: Parameters, own: Settled, seed: int) -> wire.Sampling:
    """What the last stage is told of a request's parameters."""
    return wire.Sampling(
        own.temperature,
        own.top_k,
        own.top_p,
        seed,
        own.repetition_penalty,
        parameters.presence_penalty,
        parameters.frequency_penalty,
        parameters.logprobs,
    )
