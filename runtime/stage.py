"""The protocol core of a stage: messages in, what to do out. No socket, no clock, no tensor.

    Open  ─► takes the slot           ─► forward
    Step  ─► position == length ?     ─► compute, then forward or sample
             lower: duplicate, dropped
             higher: gap, the request is given up
    Close ─► frees the slot           ─► forward

Rule: a step is applied once and in order, or not at all. What does not fit our own manifest, slots
and context is refused and counted; it never reaches the session.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from edgeshard.runtime.wire import (
    MAX_TEXT,
    Close,
    Fault,
    Open,
    Sampling,
    StageMessage,
    Step,
    Trace,
)


@dataclass(frozen=True, kw_only=True)
class StageShape:
    """What a stage may be asked to do.

    Attributes:
        index: of the stage in its chain.
        chunk_tokens: most positions of one step.
        takes_tokens: payloads are token ids instead of hidden states.
        is_last: no stage follows.
    """

    epoch: int
    index: int
    slots: int
    context: int
    chunk_tokens: int
    hidden_size: int
    takes_tokens: bool
    is_last: bool

    def payload_bytes(self, num_tokens: int) -> int:
        """Bytes of a step's payload: int64 token ids, or float32 hidden states."""
        return num_tokens * (8 if self.takes_tokens else 4 * self.hidden_size)


@dataclass(frozen=True, slots=True)
class Compute:
    """Run a step; sample with `sampling` where the step wants a token."""

    step: Step
    sampling: Sampling


@dataclass(frozen=True, slots=True)
class Forward:
    """Pass a message on: to the next stage, or from the last one to the source."""

    message: StageMessage


Instruction = Compute | Forward


@dataclass(slots=True)
class _Held:
    request: int
    sampling: Sampling
    length: int = 0


class StageCore:
    """Which request holds which slot, and how far it is.

    Attributes:
        counts: messages that were not applied, by why.
        problems: why the latest of them were refused, for the log; emptied by the reader.
    """

    def __init__(self, shape: StageShape) -> None:
        self.shape = shape
        self.counts: Counter[str] = Counter()
        self.problems: list[str] = []
        self._slots: dict[int, _Held] = {}

    @property
    def open_slots(self) -> int:
        """Slots that requests hold."""
        return len(self._slots)

    def handle(self, message: StageMessage, payload_bytes: int = 0) -> list[Instruction]:
        """Apply one message.

        Args:
            message: what arrived.
            payload_bytes: length of its payload.

        Returns:
            What to do, in order. Empty where the message was dropped.
        """
        if message.epoch != self.shape.epoch:
            self.counts["stale epoch"] += 1
            return []
        match message:
            case Step():
                return self._step(message, payload_bytes)
            case Open():
                return self._open(message)
            case Close():
                return self._close(message)
            case Fault():
                self._free(message.request)
                return [Forward(message)]
            case Trace():
                return [
                    Forward(Trace(message.epoch, message.nonce, message.num_stages + 1)),
                ]

    def give_up(self, request: int, reason: str) -> list[Instruction]:
        """End a request here and tell the source through the stages behind us."""
        self._free(request)
        fault = Fault(self.shape.epoch, request, self.shape.index, reason[:MAX_TEXT])
        return [Forward(fault)]

    def _open(self, message: Open) -> list[Instruction]:
        if message.slot >= self.shape.slots:
            return self._refuse(
                message.request, f"slot {message.slot} is not below {self.shape.slots}"
            )
        held = self._slots.get(message.slot)
        if held is not None:
            if held.request == message.request:
                self.counts["duplicate"] += 1
                return []
            return self._refuse(
                message.request, f"slot {message.slot} is held by request {held.request}"
            )
        self._slots[message.slot] = _Held(message.request, message.sampling)
        return [] if self.shape.is_last else [Forward(message)]

    def _step(self, step: Step, payload_bytes: int) -> list[Instruction]:
        held = self._slots.get(step.slot)
        if held is None or held.request != step.request:
            self.counts["stale request"] += 1
            return []
        shape = self.shape
        end = step.position + step.num_tokens
        if step.num_tokens > shape.chunk_tokens or end > shape.context:
            return self._refuse(
                step.request,
                f"step of {step.num_tokens} positions ending at {end}; at most "
                f"{shape.chunk_tokens} a step and {shape.context} in all",
            )
        if payload_bytes != shape.payload_bytes(step.num_tokens):
            return self._refuse(
                step.request,
                f"payload of {payload_bytes} bytes; {step.num_tokens} positions have "
                f"{shape.payload_bytes(step.num_tokens)}",
            )
        if step.position < held.length:
            self.counts["duplicate"] += 1
            return []
        if step.position > held.length:
            return self._refuse(
                step.request, f"step at position {step.position} after {held.length}: one is lost"
            )
        held.length = end
        return [Compute(step, held.sampling)]

    def _close(self, message: Close) -> list[Instruction]:
        held = self._slots.get(message.slot)
        if held is not None and held.request == message.request:
            del self._slots[message.slot]
        return [] if self.shape.is_last else [Forward(message)]

    def _refuse(self, request: int, reason: str) -> list[Instruction]:
        self.counts["refused"] += 1
        self.problems.append(reason)
        return self.give_up(request, f"protocol error: {reason}")

    def _free(self, request: int) -> None:
        for slot, held in list(self._slots.items()):
            if held.request == request:
                del self._slots[slot]
