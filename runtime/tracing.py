"""What the coordinator notes of requests that are traced. No socket, no thread; clocks come in.

    begin ─► sent, back, sent, back … ─► take: a `Timed` for each step   ─► end: the rest, `Clocks`
       └──► asks: pings to every agent ─► answered: how far its clock is from ours

Rule: where no request is traced, nothing is noted, asked or sent.

How far a clock is off is known as NTP knows it: the agent's clock was read somewhere between our
ping and its pong, so it is off by its reading less the middle of the two, give or take half of the
time between them. The quickest ping since tracing began counts.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from edgeshard.errors import InputError
from edgeshard.runtime import ask, wire

FIRST_PINGS = 16
FIRST_PING_SECONDS = 0.005
PING_SECONDS = 0.25
LOST_SECONDS = 1.0


@dataclass
class _Agent:
    """Pings to the agent of one stage."""

    device: str
    next_ask: float = 0.0
    num_answers: int = 0
    asked: dict[int, float] = field(default_factory=dict)
    offset_seconds: float | None = None
    error_seconds: float = 0.0

    @property
    def is_new(self) -> bool:
        return self.num_answers < FIRST_PINGS


@dataclass
class _Traced:
    id: int
    waiting: list[ask.Timed] = field(default_factory=list)
    num_steps: int = 0


@dataclass(frozen=True)
class _Left:
    at: float
    num_tokens: int
    requests: tuple[int, ...]


class Tracer:
    """The traced requests of all clients.

    Attributes:
        free: when the coordinator last had nothing to do.
    """

    def __init__(self, devices: Sequence[str]) -> None:
        """Trace a chain of stages on these devices."""
        self._devices = tuple(devices)
        self._agents: list[_Agent] = []
        self._traced: dict[int, _Traced] = {}
        self._left: dict[int, _Left] = {}
        self._next_ping = 1
        self.free = 0.0

    @property
    def is_active(self) -> bool:
        """Whether any request is traced."""
        return bool(self._traced)

    @property
    def turn_seconds(self) -> float:
        """How long to wait at most before `asks` is called again."""
        is_new = any(agent.is_new for agent in self._agents)
        return FIRST_PING_SECONDS if is_new else PING_SECONDS

    def check(self) -> None:
        """Whether this chain can be traced.

        Raises:
            InputError: it has too many stages.
        """
        if len(self._devices) > wire.MAX_TIMED_STAGES:
            raise InputError(
                f"the chain has {len(self._devices)} stages, at most {wire.MAX_TIMED_STAGES} can "
                "be traced; ask without a trace"
            )

    def begin(self, request: int, number: int) -> None:
        """Trace a request, which its client knows by `number`."""
        if not self._traced:  # clocks drift: what was known of them is forgotten
            self._agents = [_Agent(device) for device in self._devices]
        self._traced[request] = _Traced(number)

    # Steps

    def leaves(
        self, number: int, num_tokens: int, requests: Collection[int], now: float
    ) -> tuple[wire.Marks, ...] | None:
        """A step is about to be sent; the marks to send with it."""
        traced = tuple(request for request in requests if request in self._traced)
        if not traced:
            return None
        self._left[number] = _Left(now, num_tokens, traced)
        return ()

    def back(self, message: wire.Token, now: float) -> None:
        """A step came back."""
        left = self._left.pop(message.number, None)
        if left is None or message.marks is None or len(message.marks) != len(self._devices):
            return
        tokens = {row.request: row.token for row in message.rows}
        for request in left.requests:
            traced = self._traced.get(request)
            if traced is None or request not in tokens:
                continue
            traced.waiting.append(
                ask.Timed(
                    traced.id,
                    traced.num_steps,
                    left.num_tokens,
                    tokens[request] is not None,
                    left.at,
                    message.marks,
                    self.free,
                    now,
                )
            )
            traced.num_steps += 1

    def take(self, request: int) -> list[ask.Event]:
        """What came back of a request since the last call."""
        traced = self._traced.get(request)
        if traced is None:
            return []
        timed: list[ask.Event] = [*traced.waiting]
        traced.waiting.clear()
        return timed

    def end(self, request: int) -> list[ask.Event]:
        """A request is over: the rest of it, and the clocks."""
        rest = self.take(request)
        traced = self._traced.pop(request, None)
        if traced is None:
            return []
        clocks = tuple(
            ask.StageClock(one.device, one.offset_seconds, one.error_seconds)
            for one in self._agents
        )
        if not self._traced:
            self._agents.clear()
            self._left.clear()
        return [*rest, ask.Clocks(traced.id, clocks)]

    # Clocks

    def asks(self, now: float) -> list[tuple[int, int]]:
        """Stages whose agents are to be pinged now, and the id of each ping."""
        pings = []
        for index, agent in enumerate(self._agents):
            if now < agent.next_ask:
                continue
            agent.next_ask = now + (FIRST_PING_SECONDS if agent.is_new else PING_SECONDS)
            number, self._next_ping = self._next_ping, self._next_ping + 1
            agent.asked = {
                one: at for one, at in agent.asked.items() if now - at < LOST_SECONDS
            } | {number: now}
            pings.append((index, number))
        return pings

    def answered(self, index: int, number: int, clock: float, now: float) -> None:
        """A pong came."""
        if index >= len(self._agents):
            return
        agent = self._agents[index]
        asked = agent.asked.pop(number, None)
        if asked is None:
            return
        agent.num_answers += 1
        error = (now - asked) / 2
        if agent.offset_seconds is None or error < agent.error_seconds:
            agent.offset_seconds = clock - (asked + now) / 2
            agent.error_seconds = error
