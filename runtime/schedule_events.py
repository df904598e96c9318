"""What the schedule is told, and what it wants done.

Submit, StepBack, Cancel, RequestFailed, ChainFailed, Blocked, Drain, Clock
─► Schedule ─►
SendOpen, SendStep, SendHalt, SendClose (to the chain), Emit, Finish, Fail (to the client)
"""

from __future__ import annotations

from dataclasses import dataclass

from edgeshard.runtime.ask import FinishReason
from edgeshard.runtime.wire import Kept, Sampling


@dataclass(frozen=True, kw_only=True)
class Submit:
    """A client asks.

    Attributes:
        client: whom turns are counted by.
        biases: by token id.
        reuse_answers: start with what decode steps of earlier requests wrote, too.
        is_traced: every step starts at the source, where it is timed.
    """

    request: int
    client: str
    prompt: tuple[int, ...]
    max_tokens: int
    sampling: Sampling
    biases: tuple[tuple[int, float], ...] = ()
    deadline_seconds: float | None = None
    reuse_answers: bool = False
    is_traced: bool = False


@dataclass(frozen=True)
class TokenBack:
    """A request's row of a step is done; `ends` where the text says that the answer is complete."""

    request: int
    token: int | None
    ends: bool = False


@dataclass(frozen=True)
class StepBack:
    """A step came around, with the rows that no stage gave up.

    Attributes:
        ahead: steps that stage 0 adds by itself; the one with the next number is on its way.
    """

    number: int
    rows: tuple[TokenBack, ...]
    ahead: int = 0


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
class Blocked:
    """Whether stage 0 takes nothing for now: until it does, no request and no step is started."""

    is_blocked: bool


@dataclass(frozen=True)
class Drain:
    """Take no new requests; finish those that run or wait."""

    reason: str


@dataclass(frozen=True)
class Clock:
    """What time it is, in seconds since any moment; the schedule has no other clock."""

    now: float


ScheduleEvent = Submit | StepBack | Cancel | RequestFailed | ChainFailed | Blocked | Drain | Clock


@dataclass(frozen=True)
class SendOpen:
    """Open the slot on every stage.

    Attributes:
        kept: what of another request starts this one.
        seen: ids of tokens whose repetition is penalised from the start.
        biases: by token id.
    """

    request: int
    slot: int
    sampling: Sampling
    kept: Kept | None = None
    seen: tuple[int, ...] = ()
    biases: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Row:
    """A request's part of a step: its new positions, from `position` on."""

    request: int
    position: int
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class SendStep:
    """Send positions into the chain: rows of equal length, in neighbouring slots from `slot` on.

    Attributes:
        ahead: steps of one more token each that stage 0 may add by itself.
    """

    number: int
    slot: int
    rows: tuple[Row, ...]
    wants_token: bool
    ahead: int = 0


@dataclass(frozen=True)
class SendHalt:
    """Stage 0 is to add no more than one step of the request, and leave it to the source then."""

    request: int
    slot: int


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
    """The request is complete.

    Attributes:
        num_kept: positions of its prompt that were there already.
        num_reused: of these, that a decode step of an earlier request wrote, or that follow one.
    """

    request: int
    reason: FinishReason
    num_tokens: int
    num_kept: int = 0
    num_reused: int = 0


@dataclass(frozen=True)
class Fail:
    """The request is over; `kind` names the error's class.

    Attributes:
        retry_seconds: when to ask again, where there was no room.
    """

    request: int
    kind: str
    reason: str
    retry_seconds: float | None = None


ScheduleInstruction = SendOpen | SendStep | SendHalt | SendClose | Emit | Finish | Fail
