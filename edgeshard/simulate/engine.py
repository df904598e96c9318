"""Discrete events under the runtime's schedule: what leaves when, and how long everything is busy.

    arrival ─► Schedule ─► entry ─► stage 0 ─► link ─► stage 1 ─► … ─► link ─► Schedule
                                    (device)  (wire)

A device computes one step at a time, a wire carries one frame at a time, both in order. Transfers
overlap with computing, or they block: then sender and receiver both stand still for a frame. Equal
inputs and seed give equal runs; there is no clock here.
"""

from __future__ import annotations

import random
from collections.abc import Generator, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import simpy

from edgeshard.errors import InputError
from edgeshard.runtime.schedule import Limits, Schedule
from edgeshard.runtime.schedule_events import (
    Emit,
    Fail,
    Row,
    ScheduleInstruction,
    SendStep,
    StepBack,
    Submit,
    TokenBack,
)
from edgeshard.runtime.wire import Sampling
from edgeshard.schemas.common import Transfers
from edgeshard.simulate.chain import SimulatedChain

Events = Generator[simpy.Event, Any, None]
Shared = Literal["none", "device", "medium"]
ANY_TOKEN = 0


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the simulated world is like.

    Attributes:
        transfers: whether a device computes while it sends or receives.
        shared: what frames compete for: each directed link by itself, each device's one radio, or
            one medium for all.
        row_cost: what each further sequence of a step adds to its compute, as a share of what one
            alone takes; 1: as if one after the other, 0: for nothing.
        jitter: every duration is multiplied by a number drawn evenly from 1 - jitter to 1 + jitter.
        seed: of the jitter.
    """

    transfers: Transfers = "overlapped"
    shared: Shared = "none"
    row_cost: float = 1.0
    jitter: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class Arrival:
    """A request, and when it comes."""

    at_seconds: float
    prompt_tokens: int
    new_tokens: int


@dataclass(frozen=True)
class Busy:
    """Something was busy for a step; `where` is a device, or a link `a -> b`.

    Attributes:
        request: the first of those that the step has a row of.
    """

    where: str
    kind: Literal["prompt", "token", "transfer"]
    request: int
    start: float
    stop: float


@dataclass(frozen=True)
class TokenAt:
    """A token reached the source."""

    request: int
    index: int
    seconds: float


@dataclass(frozen=True)
class Run:
    """Everything that happened, in the order of time."""

    chain: SimulatedChain
    arrivals: tuple[Arrival, ...]
    tokens: tuple[TokenAt, ...]
    busy: tuple[Busy, ...]


def simulate(
    chain: SimulatedChain, limits: Limits, arrivals: Sequence[Arrival], options: Options | None
) -> Run:
    """Run requests through a chain until all are over.

    Raises:
        InputError: the schedule refuses a request, or blocking transfers meet a chain that comes
            back to a device.
    """
    world = _World(chain, limits, arrivals, options or Options())
    world.env.run()
    assert world.is_over
    return Run(chain, tuple(arrivals), tuple(world.tokens), tuple(world.busy))


@dataclass(frozen=True)
class _Step:
    instruction: SendStep
    is_prompt: bool

    @property
    def rows(self) -> tuple[Row, ...]:
        return self.instruction.rows

    @property
    def num_positions(self) -> int:
        return sum(len(row.tokens) for row in self.rows)


class _World:
    def __init__(
        self, chain: SimulatedChain, limits: Limits, arrivals: Sequence[Arrival], options: Options
    ) -> None:
        self.env = simpy.Environment()
        self.tokens: list[TokenAt] = []
        self.busy: list[Busy] = []
        self._chain = chain
        self._arrivals = arrivals
        self._schedule = Schedule(limits)
        self._is_blocking = options.transfers == "blocking"
        self._row_cost = options.row_cost
        self._jitter = options.jitter
        self._random = random.Random(options.seed)
        names = [stage.device for stage in chain.stages]
        if self._is_blocking and len(set(names)) < len(names):
            raise InputError("a chain that comes back to a device cannot be simulated as blocking")
        self._devices = {name: simpy.Resource(self.env) for name in names}
        self._wires = self._make_wires(options.shared)
        self._inbox: list[simpy.Store] = [simpy.Store(self.env) for _ in names]
        self._outbox: list[simpy.Store] = [simpy.Store(self.env) for _ in names]
        self._flying: list[simpy.Store] = [simpy.Store(self.env) for _ in names]
        for index in range(len(names)):
            self.env.process(self._compute_all(index))
            self.env.process(self._send_all(index))
            self.env.process(self._land_all(index))
        for request in range(len(arrivals)):
            self.env.process(self._arrive(request))

    def _make_wires(self, shared: Shared) -> list[list[simpy.Resource]]:
        """What a frame behind each stage has to hold."""
        known: dict[tuple[str, ...], simpy.Resource] = {}
        wires = []
        for index, stage in enumerate(self._chain.stages):
            source, target = stage.device, self._chain.target(index)
            keys: dict[str, list[tuple[str, ...]]] = {
                "none": [(source, target)],
                "device": [(name,) for name in sorted({source, target})],  # sorted: no deadlock
                "medium": [()],
            }
            wires.append([known.setdefault(key, simpy.Resource(self.env)) for key in keys[shared]])
        return wires

    @property
    def is_over(self) -> bool:
        """Whether no request runs or waits any more."""
        return not self._schedule.num_running and not self._schedule.num_waiting

    # The coordinator

    def _arrive(self, request: int) -> Events:
        arrival = self._arrivals[request]
        yield self.env.timeout(arrival.at_seconds)
        prompt = (ANY_TOKEN,) * arrival.prompt_tokens
        submit = Submit(
            request=request,
            client=str(request),
            prompt=prompt,
            max_tokens=arrival.new_tokens,
            sampling=Sampling(),
        )
        self._act(self._schedule.handle(submit))

    def _act(self, instructions: Iterable[ScheduleInstruction]) -> None:
        for one in instructions:
            match one:
                case SendStep():
                    row = one.rows[0]
                    is_prompt = row.position < self._arrivals[row.request].prompt_tokens
                    self.env.process(self._enter(_Step(one, is_prompt)))
                case Emit():
                    self.tokens.append(TokenAt(one.request, one.index, self.env.now))
                case Fail():
                    raise InputError(f"request {one.request} cannot be simulated: {one.reason}")

    def _enter(self, step: _Step) -> Events:
        yield self.env.timeout(self._chain.entry_seconds)
        yield self._inbox[0].put(step)

    def _come_back(self, step: _Step) -> None:
        sent = step.instruction
        token = ANY_TOKEN if sent.wants_token else None
        back = StepBack(sent.number, tuple(TokenBack(row.request, token) for row in step.rows))
        self._act(self._schedule.handle(back))

    # A stage and the wire behind it

    def _compute_all(self, index: int) -> Events:
        device = self._chain.stages[index].device
        while True:
            step: _Step = yield self._inbox[index].get()
            seconds = self._chain.compute_seconds(
                index,
                step.num_positions,
                is_prompt=step.is_prompt,
                row_cost=self._row_cost,
            )
            with self._devices[device].request() as turn:
                yield turn
                start = self.env.now
                yield self.env.timeout(self._drawn(seconds))
                self._note(device, "prompt" if step.is_prompt else "token", step, start)
                if self._is_blocking:
                    yield from self._send_blocking(index, step)
            if not self._is_blocking:
                yield self._outbox[index].put(step)

    def _send_all(self, index: int) -> Events:
        while True:
            step: _Step = yield self._outbox[index].get()
            latency = yield from self._carry(index, step)
            yield self._flying[index].put((self.env.now + latency, step))

    def _land_all(self, index: int) -> Events:
        """Frames arrive in the order in which they were sent."""
        while True:
            at, step = yield self._flying[index].get()
            yield self.env.timeout(max(0.0, at - self.env.now))
            yield from self._deliver(index, step)

    def _send_blocking(self, index: int, step: _Step) -> Events:
        with ExitStack() as held:
            if index + 1 < len(self._chain.stages):
                receiver = self._devices[self._chain.stages[index + 1].device]
                yield held.enter_context(receiver.request())
            latency = yield from self._carry(index, step)
            yield self.env.timeout(latency)
            yield from self._deliver(index, step)

    def _carry(self, index: int, step: _Step) -> Generator[simpy.Event, Any, float]:
        """Keep the wire busy; returns the latency that is still to come."""
        hop = self._chain.stages[index].hop
        seconds = self._drawn(hop.busy(step.num_positions))
        with ExitStack() as held:
            for wire in self._wires[index] if seconds else []:
                yield held.enter_context(wire.request())
            start = self.env.now
            yield self.env.timeout(seconds)
        if seconds:
            link = f"{self._chain.stages[index].device} -> {self._chain.target(index)}"
            self._note(link, "transfer", step, start)
        return self._drawn(hop.latency_seconds)

    def _deliver(self, index: int, step: _Step) -> Events:
        if index + 1 < len(self._chain.stages):
            yield self._inbox[index + 1].put(step)
        else:
            self._come_back(step)

    def _drawn(self, seconds: float) -> float:
        if not self._jitter:
            return seconds
        return seconds * (1 + self._jitter * self._random.uniform(-1, 1))

    def _note(
        self, where: str, kind: Literal["prompt", "token", "transfer"], step: _Step, start: float
    ) -> None:
        self.busy.append(Busy(where, kind, step.rows[0].request, start, self.env.now))
