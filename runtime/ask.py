"""Messages between a client and the coordinator.

    Generate(id)  ──►  queued, or Failed at once
                  ◄──  Started(id): the prompt was accepted
                  ◄──  Piece(id, index, …): one per token, in order in each answer
                  ◄──  if traced: Timed(id, step, …): one per step, and Clocks(id) before the end
                  ◄──  Finished(id, answer) for each answer, or one Failed(id), ends every request
    Cancel(id)    ──►  ends with Finished(cancelled)
    Ping(taken)   ──►  Pong; silence beyond a few seconds means that the coordinator is gone, and
                       whoever has not taken `MAX_UNREAD_BYTES` of what it was sent gets no more

Rule: a client is told of every request how it ended, or finds out itself by the silence.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from edgeshard.runtime.parameters import MAX_ANSWERS, Parameters
from edgeshard.runtime.remarks import Remarks
from edgeshard.runtime.wire import (
    MAX_LIKELY,
    MAX_TIMED_STAGES,
    Clock,
    Codec,
    Count,
    MarksOfStages,
    Message,
    TokenId,
)
from edgeshard.schemas.common import Name

MAX_ASK_BYTES = 512 * 1024
MAX_EVENT_BYTES = 512 * 1024
MAX_UNREAD_BYTES = 1024 * 1024  # of events to a client that it has not told to have taken
MAX_UNREAD_EVENTS = MAX_UNREAD_BYTES // 16  # none is as short, so bytes are what cuts a client off
ACK_BYTES = 128 * 1024  # taken bytes after which a client tells at once

FinishReason = Literal["stop", "length", "cancelled", "deadline"]
AnswerIndex = Annotated[int, Meta(ge=0, lt=MAX_ANSWERS)]


class ChatMessage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One message of a conversation."""

    role: Annotated[str, Meta(min_length=1, max_length=64)]
    content: str


class Generate(Message, frozen=True):
    """Continue a text, or answer a conversation.

    Attributes:
        prompt: raw text to continue; None where there are messages.
        messages: a conversation, rendered by the model's chat template.
        parameters: their ranges are checked by the desk, which says what is wrong by name.
    """

    id: Count
    prompt: str | None
    messages: tuple[ChatMessage, ...]
    parameters: Parameters


class Cancel(Message, frozen=True):
    """Stop a request of this connection."""

    id: Count


class Ping(Message, frozen=True):
    """Are you there?

    Attributes:
        taken_bytes: of events, that the client has read on this connection.
    """

    taken_bytes: Count = 0


class Load(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """How full a chain is.

    Attributes:
        wait_seconds: after which a request that comes now has a slot, by how long slots were held
            of late; 0 where one is free.
        num_per_slot: requests that run or wait, over the slots.
    """

    wait_seconds: Annotated[float, Meta(ge=0)]
    num_per_slot: Annotated[float, Meta(ge=0)]


class Pong(Message, frozen=True):
    """Yes.

    Attributes:
        load: of the chain; None where it takes no requests, or nobody asked.
    """

    load: Load | None = None


class Started(Message, frozen=True):
    """The prompt was accepted and waits for a slot.

    Attributes:
        seed: of the first answer; drawn by the coordinator where none was given.
    """

    id: Count
    prompt_tokens: Count
    seed: Count = 0


class Alternative(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """A token that could have come, with its own text and log-probability."""

    token: TokenId
    text: str
    logprob: float


class Piece(Message, frozen=True):
    """One token with the text that it completes; "" while a character or stop text is unfinished.

    An end token comes too, as the last piece, with the text that was still held back.

    Attributes:
        answer: of several; from 0.
        logprob: of the token, where it was asked for.
        alternatives: the likeliest tokens at its place, the first one first.
    """

    id: Count
    index: Count
    token: Count
    text: str
    answer: AnswerIndex = 0
    logprob: float | None = None
    alternatives: Annotated[tuple[Alternative, ...], Meta(max_length=MAX_LIKELY)] = ()


class Timed(Message, frozen=True):
    """A step of a traced request, from the source and back.

    Attributes:
        step: of the request, from 0.
        num_tokens: positions that it ran.
        has_token: it gave a token; the prompt's but the last do not.
        sent: when it left the source, in seconds by the source's clock, as are `free`, when the
            source last had nothing else to do, and `returned`.
        marks: of every stage, each by its own clock.
    """

    id: Count
    step: Count
    num_tokens: Count
    has_token: bool
    sent: Clock
    marks: MarksOfStages
    free: Clock
    returned: Clock


class StageClock(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """The clock of a stage's device beside the source's.

    Attributes:
        offset_seconds: it shows so much more; None where no ping came back.
        error_seconds: the offset is right within this, either way.
    """

    device: Name
    offset_seconds: Annotated[float, Meta(ge=-1e12, le=1e12)] | None
    error_seconds: Clock


class Clocks(Message, frozen=True):
    """The clocks that a traced request's marks are in, stage by stage."""

    id: Count
    stages: Annotated[tuple[StageClock, ...], Meta(max_length=MAX_TIMED_STAGES)]


class Finished(Message, frozen=True):
    """An answer is over.

    Attributes:
        compute_seconds: what all stages spent on decode steps, the prompt not included.
        kept_tokens: of the prompt, that the stages held already from an earlier one.
        answer: which one of several.
        reused_tokens: of the kept ones, that decode steps wrote, or that follow such.
        remarks: what may have changed its tokens.
    """

    id: Count
    reason: FinishReason
    num_tokens: Count
    compute_seconds: float
    kept_tokens: Count = 0
    answer: AnswerIndex = 0
    reused_tokens: Count = 0
    remarks: Remarks = Remarks()


class Failed(Message, frozen=True):
    """The request is over without being complete.

    Attributes:
        kind: name of the error's class.
        retry_seconds: when to ask again, where it was refused for want of room.
    """

    id: Count
    kind: str
    reason: str
    retry_seconds: float | None = None


Ask = Generate | Cancel | Ping
Event = Started | Piece | Timed | Clocks | Finished | Failed | Pong

ask_codec: Codec[Ask] = Codec(Ask, MAX_ASK_BYTES)
event_codec: Codec[Event] = Codec(Event, MAX_EVENT_BYTES)
