"""The process of one stage: takes steps, computes them, sends them on.

    previous ── ROUTER ─► decode ─► StageCore ─► session.run ─► DEALER ── next stage or source
                  ▲                                               │
                  └─ stage 0 ◄─ the token, where it may run ahead ┘

Rule: one thread, one wait. Nothing runs here while a step computes but libzmq's own thread, which
moves the bytes of the next ones (docs/adr/0002-one-loop-per-worker.md).
"""

from __future__ import annotations

import signal
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np
import psutil
from numpy.typing import NDArray

from edgeshard.errors import DeviceError, EdgeShardError
from edgeshard.runtime import log
from edgeshard.runtime.channel import BULK_MS, Arrival, Listener, Network, Poller
from edgeshard.runtime.child import Line, Parent, Ready, exit_now, settle
from edgeshard.runtime.figures import Due, StageCounts, StageFigures
from edgeshard.runtime.inlet import Inlet
from edgeshard.runtime.keys import load_keys
from edgeshard.runtime.link_watch import LOOK_SECONDS
from edgeshard.runtime.outlet import Outlet, sending
from edgeshard.runtime.sampler import draw
from edgeshard.runtime.stage import Compute, Copy, Forward, Instruction, StageCore, StageShape
from edgeshard.runtime.stage_config import OpenSession, Session, StageConfig, open_shard
from edgeshard.runtime.states import decode_states, encode_states, unsendable
from edgeshard.runtime.wire import (
    MAX_HEADER_BYTES,
    MAX_RETURN_BYTES,
    Knock,
    Marks,
    ProtocolError,
    Sampled,
    StageMessage,
    Step,
    Token,
    split,
    stage_codec,
)
from edgeshard.system import pin_thread

T = TypeVar("T")


class Worker:
    """One stage: its sockets, its protocol core and its session."""

    def __init__(self, config: StageConfig, network: Network, tell: Callable[[Line], None]) -> None:
        """Bind and dial; the session comes with `serve`."""
        self._config = config
        self._tell = tell
        shard = config.shard
        self._shape = StageShape(
            epoch=config.epoch,
            index=config.index,
            slots=config.slots,
            context=config.context,
            chunk_tokens=config.chunk_tokens,
            hidden_size=shard.hidden_size,
            vocab_size=shard.vocab_size,
            takes_tokens=shard.has_embedding,
            is_last=shard.has_head,
            takes=config.takes,
        )
        self._core = StageCore(self._shape)
        self._listener: Listener = network.listen(
            config.listen,
            domain="data",
            admitted=filter(None, [config.previous_key, config.last_key]),
            max_bytes=max(MAX_HEADER_BYTES, self._shape.largest_payload_bytes),
            queue=64 + 4 * config.slots,
            silence_ms=BULK_MS,
        )
        largest = self._shape.largest_payload_bytes
        self._previous = Inlet(self._listener, config.epoch, largest)
        self._last = Inlet(self._listener, config.epoch, 0)
        self._poller = Poller()  # for a next stage that takes nothing
        gives = replace(self._shape, takes=config.gives, takes_tokens=False)
        largest = MAX_RETURN_BYTES if shard.has_head else gives.largest_payload_bytes
        self._outlet = Outlet(
            network,
            config.next_endpoint,
            config.next_key,
            flow=sending(config.epoch, largest),
            queue=64 + 4 * config.slots,
            poller=self._poller,
        )
        self._first = self._dialed_first(network)
        self._outlets = [self._outlet, *filter(None, [self._first])]
        self._next_look = 0.0
        self._own: deque[Token] = deque()  # of steps that this stage is to add by itself
        self._problem = ""
        self._open_slots = 0
        self._counts, self._due = StageCounts(), Due()
        self._free = 0.0  # when the last step was computed

    def _dialed_first(self, network: Network) -> Outlet | None:
        if self._config.first_endpoint is None:
            return None
        endpoint, key = self._config.first_endpoint, self._config.first_key
        flow = sending(self._config.epoch, 0)
        return Outlet(network, endpoint, key, flow=flow, queue=64, of_tokens=True)

    def serve(self, session: Session) -> None:
        """Take steps until the process is told to end."""
        self._session = session
        while True:
            if self._outlet.is_blocked:
                self._poller.wait(LOOK_SECONDS)
                self._outlet.flush()
            else:
                arrival = self._listener.receive(0.0 if self._own else LOOK_SECONDS)
                if arrival is not None:
                    self._take(self._apply, arrival)
                elif self._own:
                    self._take(self._follow, self._own.popleft())
            self._look(time.monotonic())

    def _look(self, now: float) -> None:
        """What is due now and then, for the hops and for the agent."""
        self._previous.acknowledge(now)
        if now < self._next_look:
            return
        self._next_look = now + LOOK_SECONDS
        self._last.acknowledge(now)
        for outlet in self._outlets:
            outlet.look(now)
        self._report_problem(now)
        if self._config.tells_figures and self._due.at(now):
            self._tell(Line(figures=self._figures()))

    def _take(self, apply: Callable[[T], None], what: T) -> None:
        try:
            apply(what)
        except ProtocolError as error:
            self._core.counts["refused"] += 1
            self._core.problems.append(str(error))
        self._report()

    def _apply(self, arrival: Arrival) -> None:
        header, payload = split(arrival.frames)
        number, message = stage_codec.decode_numbered(header)
        self._counts.received_bytes += len(header) + (0 if payload is None else len(payload))
        is_traced = isinstance(message, Step) and message.marks is not None
        taken = time.perf_counter() if is_traced else 0.0
        if not self._hop(arrival, message).take(arrival, message.epoch, number):
            self._core.counts["stale epoch"] += 1
        elif not isinstance(message, Knock):
            self._handle(message, payload, taken)

    def _hop(self, arrival: Arrival, message: StageMessage) -> Inlet:
        """The way that a message came; each has its sender."""
        config = self._config
        is_token = isinstance(message, Token) or (isinstance(message, Knock) and message.of_tokens)
        if arrival.key and arrival.key != (config.last_key if is_token else config.previous_key):
            kind = type(message).__name__
            raise ProtocolError(f"the last stage sends tokens, the one before the rest; not {kind}")
        return self._last if is_token else self._previous

    def _handle(self, message: StageMessage, payload: memoryview | None, taken: float) -> None:
        for instruction in self._core.handle(message, len(payload) if payload is not None else 0):
            self._do(instruction, payload, taken)

    def _follow(self, token: Token) -> None:
        """Add the step that a token of our own head allows."""
        for instruction in self._core.handle(token):
            self._do(instruction, None, 0.0)

    def _do(self, instruction: Instruction, payload: memoryview | None, taken: float) -> None:
        if isinstance(instruction, Compute):
            if instruction.token is not None:
                payload = memoryview(instruction.token.to_bytes(8, "little"))
            if payload is not None:
                self._compute(instruction, payload, taken)
        elif isinstance(instruction, Copy):
            self._copy(instruction)
        else:
            self._forward(instruction)

    def _forward(self, instruction: Instruction) -> None:
        if isinstance(instruction, Forward):
            self._outlet.send(instruction.message)

    def _copy(self, work: Copy) -> None:
        try:
            self._session.copy(work.source, work.target, work.length)
        except Exception as error:  # it ends this request, not the stage
            self._give_up(work.request, error)

    def _give_up(self, request: int, error: Exception) -> None:
        text = f"stage {self._shape.index}: {type(error).__name__}: {error}"
        log.warn("request.given_up", text, request=request)
        for instruction in self._core.give_up(request, f"{error}"):
            self._forward(instruction)

    def _compute(self, work: Compute, payload: memoryview, taken: float) -> None:
        step = work.step
        try:
            values = self._values(step, payload)
            started = time.perf_counter()
            result = self._session.run(step.slot, work.positions, values)
            rows = self._sampled(work, result) if self._shape.is_last else ()
        except Exception as error:  # whatever a kernel raises ends these requests, not the stage
            for row in step.rows:
                self._give_up(row.request, error)
            return
        computed = time.perf_counter()
        seconds = step.compute_seconds + computed - started
        data = None if self._shape.is_last else self._encoded(work, result)
        marks = step.marks
        if marks is not None:
            marks += (Marks(self._free, taken, started, computed, time.perf_counter()),)
        self._free = computed
        if self._shape.is_last:
            self._give(Token(step.epoch, step.number, rows, seconds, marks, step.ahead))
        elif data is not None:
            self._outlet.send(step.onward(seconds, marks, self._config.gives), data)
        self._counts.step_seconds.add(computed - started)
        self._counts.positions += step.num_tokens * len(step.rows)

    def _give(self, token: Token) -> None:
        """Send a token to stage 0, where it may go on with it, and to the source."""
        if token.ahead and not token.rows:  # given up: nothing to go on with
            token = msgspec.structs.replace(token, ahead=0)
        if token.ahead and self._first is None:
            self._own.append(token)
        elif token.ahead and self._first is not None and not self._first.offer(token):
            token = msgspec.structs.replace(token, ahead=0)  # the source goes on
        self._outlet.send(token)

    def _sampled(self, work: Compute, logits: NDArray[np.float32]) -> tuple[Sampled, ...]:
        """Tokens of the live rows, drawn from logits `[B, vocab]`."""
        step, sampled = work.step, []
        for index, (row, wishes) in enumerate(zip(step.rows, work.wishes, strict=True)):
            if wishes is None:
                continue
            if not step.wants_token:
                sampled.append(Sampled(row.request, None))
                continue
            try:
                position = row.position + step.num_tokens
                sampled.append(draw(logits[index], row.request, wishes, position))
            except DeviceError as error:  # of this row's logits; the others go on
                self._give_up(row.request, error)
        return tuple(sampled)

    def _encoded(self, work: Compute, states: NDArray[np.float32]) -> memoryview | None:
        """The payload for the next stage; None where no live row can travel."""
        encoded = encode_states(states, self._config.gives)
        if not encoded.lost:
            return encoded.payload
        live = {index for index, wishes in enumerate(work.wishes) if wishes is not None}
        for index in sorted(live.intersection(encoded.lost)):
            self._give_up(work.step.rows[index].request, unsendable(self._config.gives))
        return None if live <= set(encoded.lost) else encoded.payload

    def _values(self, step: Step, payload: memoryview) -> NDArray[np.generic]:
        """The payload as an array: token ids `[B, S]`, or hidden states `[B, S, hidden]`."""
        num_rows = len(step.rows)
        if not self._shape.takes_tokens:
            shape = self._shape
            return decode_states(payload, shape.takes, num_rows, step.num_tokens, shape.hidden_size)
        tokens = np.frombuffer(payload, np.int64).copy()  # aligned now
        vocab_size = self._config.shard.vocab_size
        if tokens.view(np.uint64).max() >= vocab_size:  # so none is negative
            raise ProtocolError(f"a token id is not below {vocab_size}")
        return tokens.reshape(num_rows, -1)

    def _report(self) -> None:
        if self._core.open_slots != self._open_slots:
            self._open_slots = self._core.open_slots
            self._tell(Line(open_slots=self._open_slots))
        for problem in self._core.problems[:1]:
            text = f"stage {self._shape.index} refused a message: {problem}"
            log.warn("message.refused", text)
        self._core.problems.clear()

    def _figures(self) -> StageFigures:
        config, counts, core = self._config, self._counts, self._core
        return StageFigures(
            index=config.index,
            step_seconds=counts.step_seconds.read(),
            positions=counts.positions,
            received_bytes=counts.received_bytes,
            sent_bytes=self._outlet.flow.sent_bytes,
            in_flight_bytes=self._outlet.flow.in_flight_bytes,
            credit_bytes=self._outlet.flow.credit,
            blocked_seconds=self._outlet.blocked_seconds(),
            refused={**core.counts, "key not admitted": self._listener.refused},
            open_slots=core.open_slots,
            slots=config.slots,
            kv_bytes=config.shard.kv_bytes(core.held_positions, 1),
            kv_capacity_bytes=config.shard.kv_bytes(config.context, config.slots),
        )

    def _report_problem(self, now: float) -> None:
        problems = [self._previous.problem, self._last.problem]
        problems += [outlet.problem(now) for outlet in self._outlets]
        problem = next(filter(None, problems), "")
        if problem != self._problem:
            self._problem = problem
            self._tell(Line(blocked=problem))


def run_stage(open_session: OpenSession = open_shard) -> int:
    """The whole life of a worker process; its exit status."""
    parent = Parent()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        config = parent.config(StageConfig)
        log.set_up("worker", stage=config.index)
        if config.cores:
            pin_thread(config.cores[0])  # the threads of libzmq come after it and stay there
        parent.follow(lambda line: None, exit_now)
        with Network(load_keys(Path(config.key))) as network:
            worker = Worker(config, network, parent.tell)
            started = time.monotonic()
            parent.tell(Line(progress=f"opening units {config.shard.start}-{config.shard.stop}"))
            session = open_session(config)
            resident_bytes = psutil.Process().memory_info().rss
            seconds = time.monotonic() - started
            parent.tell(Line(ready=Ready(resident_bytes, seconds)))
            units = f"{config.shard.start}-{config.shard.stop}"
            log.note("stage.ready", "the stage takes steps", units=units, load_seconds=seconds)
            settle()
            try:
                worker.serve(session)
            finally:
                session.close()
    except EdgeShardError as error:
        parent.fail(error)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(run_stage())
