"""The protocol core of a stage: messages in, what to do out. No socket, no clock, no tensor.

    Open  ─► takes the slot           ─► copy what another slot holds of it, forward
    Seen, Bias ─► the last stage notes them; the others forward
    Step  ─► each row: position == length ?  ─► compute, then forward or sample
             lower: duplicate, dead
             higher: gap, the request is given up, dead
    Close ─► frees the slot           ─► forward
    Token ─► stage 0 adds the step that it belongs to, where the last one may run ahead

Rule: a row is applied once and in order, or not at all. What does not fit our own manifest, slots
and context is refused and counted; it never reaches the session. A dead row among live ones keeps
its place in the payload and is computed where nothing of its slot is lost, at the slot's next free
position; nobody gets a token of it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from msgspec import Struct, structs

from edgeshard.runtime.parameters import MAX_BIASES
from edgeshard.runtime.wire import (
    MAX_ROWS,
    MAX_TEXT,
    Bias,
    Close,
    Fault,
    Halt,
    Knock,
    Open,
    Row,
    Seen,
    StageMessage,
    Step,
    Token,
    Trace,
)
from edgeshard.runtime.wishes import Wishes
from edgeshard.schemas.activation import state_bytes
from edgeshard.schemas.common import Activation


@dataclass(frozen=True, kw_only=True)
class StageShape:
    """What a stage may be asked to do.

    Attributes:
        index: of the stage in its chain.
        chunk_tokens: most positions of one step.
        takes_tokens: payloads are token ids instead of hidden states.
        takes: how hidden states come.
        is_last: no stage follows.
    """

    epoch: int
    index: int
    slots: int
    context: int
    chunk_tokens: int
    hidden_size: int
    vocab_size: int
    takes_tokens: bool
    is_last: bool
    takes: Activation = "fp32"

    def payload_bytes(self, num_tokens: int) -> int:
        """Bytes of one row's payload: int64 token ids, or hidden states as they come here."""
        return num_tokens * (8 if self.takes_tokens else state_bytes(self.hidden_size, self.takes))

    @property
    def largest_payload_bytes(self) -> int:
        """Bytes of the longest payload: a prompt chunk, or a token for each slot."""
        return self.payload_bytes(max(self.chunk_tokens, min(self.slots, MAX_ROWS)))


class Compute(Struct, frozen=True):
    """Run a step; sample where it wants a token.

    Attributes:
        positions: of each row, where the session is to write.
        wishes: of each row; None: the row is dead.
        token: to run, of a step that this stage adds by itself; None: a payload came.
    """

    step: Step
    positions: tuple[int, ...]
    wishes: tuple[Wishes | None, ...]
    token: int | None = None


class Copy(Struct, frozen=True):
    """Copy the first positions of a slot to the start of a request's."""

    request: int
    source: int
    target: int
    length: int


class Forward(Struct, frozen=True):
    """Pass a message on: to the next stage, or from the last one to the source."""

    message: StageMessage


Instruction = Compute | Copy | Forward


@dataclass(slots=True)
class _Held:
    request: int
    wishes: Wishes
    length: int = 0
    leading: Step | None = None  # on stage 0: the latest step, where more may follow by themselves


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
        self._kept: dict[int, _Held] = {}  # what free slots hold of their last request

    @property
    def open_slots(self) -> int:
        """Slots that requests hold."""
        return len(self._slots)

    @property
    def held_positions(self) -> int:
        """Positions of the requests that hold slots."""
        return sum(held.length for held in self._slots.values())

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
            case Seen() | Bias():
                return self._note(message)
            case Halt():
                return self._halt(message)
            case Token():
                return self._run_ahead(message)
            case Close():
                return self._close(message)
            case Fault():
                self._free(message.request)
                return [Forward(message)]
            case Knock():
                return []
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
        if message.num_seen > self.shape.context or message.num_biases > MAX_BIASES:
            return self._refuse(
                message.request,
                f"{message.num_seen} tokens and {message.num_biases} biases are announced; at most "
                f"{self.shape.context} and {MAX_BIASES} are taken",
            )
        kept = message.kept
        last = None if kept is None else self._slots.get(kept.slot) or self._kept.get(kept.slot)
        if kept is not None and (
            last is None or last.request != kept.request or last.length < kept.length
        ):
            return self._refuse(
                message.request,
                f"slot {kept.slot} does not hold {kept.length} positions of request "
                f"{kept.request} any more",
            )
        self._kept.pop(message.slot, None)
        wishes = Wishes(
            message.sampling, missing_seen=message.num_seen, missing_biases=message.num_biases
        )
        given: list[Instruction] = [] if self.shape.is_last else [Forward(message)]
        if kept is None:
            self._slots[message.slot] = _Held(message.request, wishes)
            return given
        self._slots[message.slot] = _Held(message.request, wishes, kept.length)
        if kept.slot != message.slot:
            given.append(Copy(message.request, kept.slot, message.slot, kept.length))
        return given

    def _note(self, message: Seen | Bias) -> list[Instruction]:
        held = self._slots.get(message.slot)
        if held is None or held.request != message.request:
            self.counts["stale request"] += 1
            return []
        if not self.shape.is_last:
            return [Forward(message)]
        if isinstance(message, Seen):
            largest, is_announced = max(message.tokens), held.wishes.add_seen(message.tokens)
        else:
            largest = max(token for token, _ in message.biases)
            is_announced = held.wishes.add_biases(message.biases)
        if largest >= self.shape.vocab_size:
            return self._refuse(
                message.request, f"token {largest} is not below {self.shape.vocab_size}"
            )
        if not is_announced:
            return self._refuse(message.request, "more tokens or biases than were announced")
        return []

    def _step(self, step: Step, payload_bytes: int) -> list[Instruction]:
        problem = self._misfit(step, payload_bytes)
        if problem is not None:
            return [one for row in step.rows for one in self._refuse(row.request, problem)]
        faults: list[Instruction] = []
        positions: list[int] = []
        wishes: list[Wishes | None] = []
        for slot, row in enumerate(step.rows, step.slot):
            held = self._slots.get(slot)
            given_up = self._check(held, row, step)
            faults += given_up or []
            is_live = held is not None and given_up is None
            if held is None or not is_live:
                positions.append(self._harmless(slot, step.num_tokens))
                wishes.append(None)
            else:
                held.length += step.num_tokens
                held.leading = step if step.ahead and self.shape.takes_tokens else None
                positions.append(row.position)
                wishes.append(held.wishes)
        if any(one is not None for one in wishes):
            return [*faults, Compute(step, tuple(positions), tuple(wishes))]
        return faults

    def _halt(self, message: Halt) -> list[Instruction]:
        held = self._slots.get(message.slot)
        if held is None or held.request != message.request:
            self.counts["stale request"] += 1
        elif held.leading is not None and held.leading.ahead > 1:
            held.leading = structs.replace(held.leading, ahead=1)
        return []

    def _run_ahead(self, token: Token) -> list[Instruction]:
        """The step behind one whose token came from the last stage."""
        steps = (held.leading for held in self._slots.values())
        last = next((one for one in steps if one is not None and one.number == token.number), None)
        row = token.rows[0] if token.rows else None
        if last is None or row is None or row.token is None or row.request != last.rows[0].request:
            self.counts["stale request"] += 1
            return []
        position = last.rows[0].position + last.num_tokens
        step = structs.replace(
            last,
            number=last.number + 1,
            rows=(Row(row.request, position),),
            num_tokens=1,
            ahead=last.ahead - 1,
        )
        return [
            structs.replace(one, token=row.token) if isinstance(one, Compute) else one
            for one in self._step(step, self.shape.payload_bytes(1))
        ]

    def _harmless(self, slot: int, num_tokens: int) -> int:
        """Where a dead row may write: behind what the slot holds or keeps."""
        last = self._slots.get(slot) or self._kept.get(slot)
        place = min(last.length if last is not None else 0, self.shape.context - num_tokens)
        if slot in self._kept:
            self._kept[slot].length = place
        return place

    def _misfit(self, step: Step, payload_bytes: int) -> str | None:
        """Why a step as a whole is not one for this stage."""
        shape, num_rows = self.shape, len(step.rows)
        if step.marks is not None and len(step.marks) != shape.index:
            return f"marks of {len(step.marks)} stages at stage {shape.index}"
        if step.ahead and (num_rows > 1 or not step.wants_token or step.marks is not None):
            return f"a step of {num_rows} rows may not run ahead; one untraced row may"
        if step.num_tokens > min(shape.chunk_tokens, shape.context):
            return (
                f"step of {step.num_tokens} positions; at most {shape.chunk_tokens} a step and "
                f"{shape.context} in all"
            )
        if step.slot + num_rows > shape.slots:
            return f"slots [{step.slot}, {step.slot + num_rows}) are not below {shape.slots}"
        if step.states != shape.takes and not shape.takes_tokens:
            return (
                f"hidden states come as {step.states}, stage {shape.index} was deployed to take "
                f"{shape.takes}; deploy the plan again"
            )
        if payload_bytes != num_rows * shape.payload_bytes(step.num_tokens):
            return (
                f"payload of {payload_bytes} bytes; {num_rows} rows of {step.num_tokens} positions "
                f"have {num_rows * shape.payload_bytes(step.num_tokens)}"
            )
        return None

    def _check(self, held: _Held | None, row: Row, step: Step) -> list[Instruction] | None:
        """None: the row is to be computed; else it is dead, with what is to be said about it."""
        num_tokens = step.num_tokens
        if held is None or held.request != row.request:
            self.counts["stale request"] += 1
            return []
        if row.position < held.length:
            self.counts["duplicate"] += 1
            return []
        if row.position > held.length:
            return self._refuse(
                row.request, f"step at position {row.position} after {held.length}: one is lost"
            )
        if row.position + num_tokens > self.shape.context:
            return self._refuse(
                row.request,
                f"step of {num_tokens} positions ending at {row.position + num_tokens}; the "
                f"context holds {self.shape.context}",
            )
        wishes = held.wishes
        if self.shape.is_last and step.wants_token and not wishes.is_complete:
            return self._refuse(
                row.request,
                f"{wishes.missing_seen} tokens and {wishes.missing_biases} biases have not come",
            )
        return None

    def _close(self, message: Close) -> list[Instruction]:
        held = self._slots.get(message.slot)
        if held is not None and held.request == message.request:
            self._kept[message.slot] = self._slots.pop(message.slot)
        return [] if self.shape.is_last else [Forward(message)]

    def _refuse(self, request: int, reason: str) -> list[Instruction]:
        self.counts["refused"] += 1
        self.problems.append(reason)
        return self.give_up(request, f"protocol error: {reason}")

    def _free(self, request: int) -> None:
        for slot, held in list(self._slots.items()):
            if held.request == request:
                del self._slots[slot]
