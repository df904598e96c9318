"""The source's process: clients on one side, the chain on the other.

    clients ── ROUTER ─► Desk ─► Schedule ─► DEALER ── stage 0 … last stage ── ROUTER ─► Schedule
       ▲                                                                                    │
       └──────────────────────────────────── Desk ◄─────────────────────────────────────────┘

Rule: one thread, one wait, and the next step leaves before the client is served. Every request ends
with Finished or Failed, also when a stage, an agent or this process ends.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import msgspec
import numpy as np

from edgeshard.errors import DeviceError, LinkError
from edgeshard.runtime import ask, control, log, schedule, wire
from edgeshard.runtime import schedule_events as events
from edgeshard.runtime.chain_watch import ChainWatch
from edgeshard.runtime.channel import PULSE_MS, Network, Poller
from edgeshard.runtime.child import Line
from edgeshard.runtime.coordinator_config import CoordinatorConfig
from edgeshard.runtime.desk import Desk
from edgeshard.runtime.figures import Due
from edgeshard.runtime.inlet import Inlet
from edgeshard.runtime.outlet import Outlet, sending
from edgeshard.runtime.request_counts import RequestCounts
from edgeshard.runtime.schedule_limits import RUN_AHEAD
from edgeshard.runtime.text import TextModel
from edgeshard.runtime.tracing import Tracer
from edgeshard.runtime.waker import Waker
from edgeshard.schemas.model import ModelManifest

START_SECONDS = 15.0
TURN_SECONDS = 0.25
CLOCK_SECONDS = 0.05  # at most between looks at deadlines and failures where only tokens come
MAX_TURN_MESSAGES = 64


class Stopped(Exception):  # noqa: N818  # not an error: the way out of the loop
    """The process is to end, and why."""


class Coordinator:
    """The chain's sockets, the schedule, and the desk where clients are served."""

    def __init__(
        self, config: CoordinatorConfig, network: Network, manifest: ModelManifest, text: TextModel
    ) -> None:
        """Bind the return port and dial stage 0 and every agent."""
        self._config = config
        self._network = network
        self._manifest = manifest
        self._text = text
        self._waker = Waker()
        self._poller = Poller(self._waker)
        self._return = network.listen(
            config.listen_return,
            domain="return",
            admitted=[config.stages[-1].key],
            max_bytes=wire.MAX_RETURN_BYTES,
            queue=1024,
        )
        self._inlet = Inlet(self._return, config.epoch, wire.MAX_RETURN_BYTES)
        most_tokens = max(config.chunk_tokens, min(config.slots, wire.MAX_ROWS))
        self._outlet = Outlet(
            network,
            config.first_endpoint,
            config.stages[0].key,
            flow=sending(config.epoch, 8 * most_tokens),
            queue=64 + 4 * config.slots,
            poller=self._poller,
        )
        self._agents = [
            network.dial(
                stage.control_endpoint,
                stage.key,
                max_bytes=control.MAX_CONTROL_BYTES,
                queue=control.QUEUE,
                silence_ms=PULSE_MS,
            )
            for stage in config.stages
        ]
        self._poller.watch(self._return)
        for agent in self._agents:
            self._poller.watch(agent)
        now = time.monotonic()
        self._watch = ChainWatch([stage.device for stage in config.stages], config.epoch, now)
        self._counts, self._due = RequestCounts(), Due()
        self._tracer = Tracer([stage.device for stage in config.stages])
        self._schedule = schedule.Schedule(
            schedule.Limits(
                slots=config.slots,
                context=config.context,
                chunk_tokens=config.chunk_tokens,
                beside_steps=config.beside_steps,
                window=len(config.stages),
                max_waiting=config.max_waiting,
                num_groups=config.num_groups,
                copies_slots=config.copies_slots,
                share_prompts=config.share_prompts,
                ahead=RUN_AHEAD,
            )
        )
        self._sent: dict[int, float] = {}  # when a step left, by number
        self._heard = self._next_clock = now
        self._is_traced = False
        self._stop: str | None = None
        self._drain: str | None = None

    # What a signal handler or another thread may call

    def stop(self, reason: str) -> None:
        """End soon; every client is told why."""
        self._stop = reason
        self._waker.wake()

    def drain(self, reason: str) -> None:
        """Take no new requests; end once the running ones are over."""
        self._drain = reason
        self._waker.wake()

    # The life of the process

    def connect(self) -> float:
        """Wait until every stage is ready and a trace came around the chain.

        Returns:
            Seconds that the trace took.

        Raises:
            DeviceError: a stage is not ready.
            LinkError: the trace did not come back.
            Stopped: told to end.
        """
        deadline = time.monotonic() + START_SECONDS
        while not self._watch.is_ready:
            self._turn(None)
            if time.monotonic() > deadline:
                problem = self._watch.problem(time.monotonic()) or "an agent does not answer"
                raise DeviceError(
                    f"the chain did not start within {START_SECONDS:.0f} s: {problem}"
                )
        started = time.monotonic()
        self._outlet.send(wire.Trace(self._config.epoch, 1, 0))
        while time.monotonic() < started + START_SECONDS:
            self._turn(None)
            if self._is_traced:
                return time.monotonic() - started
        raise LinkError(
            f"nothing comes around the chain within {START_SECONDS:.0f} s though every stage is "
            "ready: check that each device reaches the data port of the next"
        )

    def serve(self, tell: Callable[[Line], None]) -> None:
        """Serve clients; returns once a drain is over.

        Args:
            tell: takes what is counted here, where the agent wants to know.

        Raises:
            Stopped: told to end; every client was told.
        """
        clients = self._network.listen(
            self._config.listen_clients,
            domain="client",
            admitted=self._config.client_keys,
            max_bytes=ask.MAX_ASK_BYTES,
            queue=4096,
            unread=ask.MAX_UNREAD_EVENTS,
        )
        self._poller.watch(clients)
        model = self._manifest
        desk = Desk(
            clients,
            self._text,
            model.eos_token_ids,
            model.vocab_size,
            self._config.remarks,
            self._tracer,
            model.generation,
        )
        desk.refuse_when(self._schedule.busy, self._counts.refuse)
        desk.tell_load(self._schedule.load)
        try:
            while not (self._drain is not None and desk.is_idle):
                self._turn(desk)
                if self._config.tells_figures and self._due.at(time.monotonic()):
                    blocked = self._outlet.blocked_seconds()
                    tell(Line(figures=self._counts.read(self._schedule, blocked)))
        except Stopped as stopped:
            self._handle(desk, events.ChainFailed(str(stopped)))
            raise

    def _turn(self, desk: Desk | None) -> None:
        turn_seconds = TURN_SECONDS
        if self._tracer.is_active:
            turn_seconds = self._ask_clocks(time.perf_counter())
        ready = self._poller.wait(turn_seconds)
        if self._return in ready:
            self._take_returns(desk)
        self._outlet.flush()
        now = time.monotonic()
        is_whole = ready != {self._return} or now >= self._next_clock
        if desk is not None and is_whole:
            self._next_clock = now + CLOCK_SECONDS
            self._handle(desk, events.Clock(now))
            for gone in desk.probe(now):
                self._handle(desk, gone)
            for event in desk.take():
                self._handle(desk, event)
        for index, agent in enumerate(self._agents):
            if agent in ready:
                self._take_pongs(index)
        if self._waker in ready:
            self._waker.clear()
        if self._stop is not None:
            raise Stopped(self._stop)
        self._look(time.monotonic())
        if desk is not None and is_whole:
            self._check(desk, time.monotonic())

    def _look(self, now: float) -> None:
        """Ask the agents for signs of life, and see which of them are connected."""
        if self._watch.asks(now):
            for agent in self._agents:
                agent.send([wire.encode(control.Ping(id=0))])
        self._inlet.acknowledge(now)
        if self._watch.looks(now):
            self._outlet.look(now)
            for index, agent in enumerate(self._agents):
                self._watch.saw(index, agent.is_connected, now)

    def _ask_clocks(self, now: float) -> float:
        """Ping agents whose clocks are wanted; seconds to wait at most for more of it."""
        for index, number in self._tracer.asks(now):
            self._agents[index].send([wire.encode(control.Ping(id=number))])
        self._tracer.free = time.perf_counter()
        return self._tracer.turn_seconds

    def _check(self, desk: Desk, now: float) -> None:
        draining = self._drain or self._watch.draining()
        if draining is not None:
            self._handle(desk, events.Drain(draining))
        if self._schedule.failed is not None:
            return
        problem = self._watch.problem(now) or self._silence(desk, now)
        if problem is not None:
            log.warn("chain.failed", f"the chain has failed: {problem}")
            self._handle(desk, events.ChainFailed(problem))

    def _silence(self, desk: Desk, now: float) -> str | None:
        """End requests whose step was lost; say so where the whole chain is silent."""
        if problem := self._outlet.problem(now):
            return f"{self._name(0)} cannot be reached: {problem}"
        if self._inlet.problem:
            last = self._name(len(self._config.stages) - 1)
            return f"{last} cannot be followed: {self._inlet.problem}"
        limit = self._config.silence_seconds
        in_flight = self._schedule.in_flight()
        self._sent = {number: self._sent[number] for number in in_flight}
        lost = [
            one
            for number, requests in in_flight.items()
            if now - self._sent[number] > limit
            for one in requests
        ]
        if lost and now - self._heard > limit:
            return f"no stage has finished a step for {limit:.0f} s"
        for request in lost:
            reason = f"a step was lost on its way: nothing came back for {limit:.0f} s; ask again"
            self._handle(desk, events.RequestFailed(request, reason))
        return None

    # From the chain and the agents

    def _take_returns(self, desk: Desk | None) -> None:
        for _ in range(MAX_TURN_MESSAGES):
            arrival = self._return.receive()
            if arrival is None:
                return
            try:
                number, message = wire.return_codec.decode_numbered(
                    wire.split(arrival.frames, 0)[0]
                )
                if not self._inlet.take(arrival, message.epoch, number):
                    continue
            except wire.ProtocolError as error:
                log.warn("return.refused", f"the last stage sent what is refused: {error}")
                continue
            self._heard = time.monotonic()
            if isinstance(message, wire.Trace):
                self._is_traced = True
            elif desk is not None and isinstance(message, wire.Fault):
                reason = f"{self._name(message.stage)}: {message.reason}"
                self._handle(desk, events.RequestFailed(message.request, reason))
            elif desk is not None and isinstance(message, wire.Token):
                self._step_back(desk, message)

    def _step_back(self, desk: Desk, message: wire.Token) -> None:
        if message.marks is not None:
            self._tracer.back(message, time.perf_counter())
        expected = self._schedule.expects(message.number)
        rows = tuple(
            events.TokenBack(row.request, row.token, desk.read(row, message.compute_seconds))
            for row in message.rows
            if row.request in expected  # the others are over
        )
        if message.ahead:
            self._sent[message.number + 1] = time.monotonic()
        self._handle(desk, events.StepBack(message.number, rows, message.ahead))

    def _name(self, index: int) -> str:
        stages = self._config.stages
        return f"stage {index} on {stages[index].device}" if index < len(stages) else "a stage"

    def _take_pongs(self, index: int) -> None:
        while (frames := self._agents[index].receive()) is not None:
            try:
                reply = control.reply_codec.decode(wire.split(frames)[0])
            except wire.ProtocolError as error:
                log.warn("pong.refused", f"the agent of {self._name(index)}: {error}")
                continue
            if isinstance(reply, control.Pong):
                self._watch.heard(index, reply.stage, reply.draining, time.monotonic())
                if self._tracer.is_active:
                    now = time.perf_counter()
                    self._tracer.answered(index, reply.id, reply.clock_seconds, now)

    # What the schedule wants done

    def _handle(self, desk: Desk, event: events.ScheduleEvent) -> None:
        self._pass_on(desk, event)
        if self._outlet.is_blocked != self._schedule.is_blocked:
            self._pass_on(desk, events.Blocked(self._outlet.is_blocked))

    def _pass_on(self, desk: Desk, event: events.ScheduleEvent) -> None:
        instructions = self._schedule.handle(event)
        cancels = self._do(desk, instructions)
        self._counts.note(event, instructions, time.monotonic())
        for cancel in cancels:
            self._handle(desk, cancel)

    def _do(
        self, desk: Desk, instructions: Sequence[events.ScheduleInstruction]
    ) -> list[events.Cancel]:
        epoch = self._config.epoch
        cancels: list[events.Cancel] = []
        finished = [one for one in instructions if isinstance(one, events.Finish)]
        cut = {one.request for one in finished if one.reason == "length"}
        for one in instructions:
            match one:
                case events.SendStep():
                    self._sent[one.number] = time.monotonic()
                    rows = tuple(wire.Row(row.request, row.position) for row in one.rows)
                    tokens = np.array([row.tokens for row in one.rows], np.int64)
                    place = (one.number, one.slot, rows)
                    step = wire.Step(
                        epoch, *place, tokens.shape[1], one.wants_token, ahead=one.ahead
                    )
                    self._outlet.send(self._traced_step(step), tokens.tobytes())
                case events.SendOpen():
                    self._open(one)
                case events.SendHalt():
                    self._outlet.send(wire.Halt(epoch, one.request, one.slot))
                case events.SendClose():
                    self._outlet.send(wire.Close(epoch, one.request, one.slot))
                case events.Emit():
                    cancels += desk.give(one, is_last=one.request in cut)
                case events.Finish() | events.Fail():
                    cancels += desk.give(one)
                    log.request_over(one)
        return cancels

    def _open(self, one: events.SendOpen) -> None:
        """Send an Open and the lists that do not fit into it."""
        place = (self._config.epoch, one.request, one.slot)
        counts = len(one.seen), len(one.biases)
        self._outlet.send(wire.Open(*place, one.sampling, one.kept, *counts))
        for start in range(0, len(one.seen), wire.MAX_SEEN):
            self._outlet.send(wire.Seen(*place, one.seen[start : start + wire.MAX_SEEN]))
        for start in range(0, len(one.biases), wire.MAX_BIASES):
            self._outlet.send(wire.Bias(*place, one.biases[start : start + wire.MAX_BIASES]))

    def _traced_step(self, step: wire.Step) -> wire.Step:
        if not self._tracer.is_active:
            return step
        requests, now = [row.request for row in step.rows], time.perf_counter()
        marks = self._tracer.leaves(step.number, step.num_tokens, requests, now)
        return msgspec.structs.replace(step, marks=marks)
