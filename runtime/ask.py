"""Messages between a client and the coordinator.

    Generate(id)  ──►  queued, or Failed at once
                  ◄──  Started(id): the prompt was accepted
                  ◄──  Piece(id, index, …): one per token, in order
                  ◄──  exactly one of Finished(id) and Failed(id) ends every request
    Cancel(id)    ──►  ends with Finished(cancelled)
    Ping          ──►  Pong; silence beyond a few seconds means that the coordinator is gone

Rule: a client is told of every request how it ended, or finds out itself by the silence.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from edgeshard.runtime.wire import Codec, Count, Message

MAX_ASK_BYTES = 512 * 1024
MAX_EVENT_BYTES = 512 * 1024

FinishReason = Literal["stop", "length", "cancelled"]
StopText = Annotated[str, Meta(min_length=1, max_length=256)]


class ChatMessage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One message of a conversation."""

    role: Annotated[str, Meta(min_length=1, max_length=64)]
    content: str


class Generate(Message, frozen=True):
    """Continue a text, or answer a conversation.

    Attributes:
        prompt: raw text to continue; None where there are messages.
        messages: a conversation, rendered by the model's chat template.
        seed: None: the coordinator draws one.
        ignore_eos: go on after an end token; for measuring.
    """

    id: Count
    prompt: str | None
    messages: tuple[ChatMessage, ...]
    max_tokens: Annotated[int, Meta(ge=1, le=2**31)]
    temperature: Annotated[float, Meta(ge=0, le=100)]
    top_k: Annotated[int, Meta(ge=0, le=2**31)]
    top_p: Annotated[float, Meta(gt=0, le=1)]
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] | None
    stop: Annotated[tuple[StopText, ...], Meta(max_length=16)]
    ignore_eos: bool


class Cancel(Message, frozen=True):
    """Stop a request of this connection."""

    id: Count


class Ping(Message, frozen=True):
    """Are you there?"""


class Pong(Message, frozen=True):
    """Yes."""


class Started(Message, frozen=True):
    """The prompt was accepted and waits for a slot."""

    id: Count
    prompt_tokens: Count


class Piece(Message, frozen=True):
    """One token with the text that it completes; "" while a character or stop text is unfinished.

    An end token comes too, as the last piece, with the text that was still held back.
    """

    id: Count
    index: Count
    token: Count
    text: str


class Finished(Message, frozen=True):
    """The request is over.

    Attributes:
        compute_seconds: what all stages spent on decode steps, the prompt not included.
        kept_tokens: of the prompt, that the stages held already from an earlier one.
        is_mixed: stages differ in provider, target or ONNX Runtime version, and so in rounding.
    """

    id: Count
    reason: FinishReason
    num_tokens: Count
    compute_seconds: float
    kept_tokens: Count = 0
    is_mixed: bool = False


class Failed(Message, frozen=True):
    """The request is over without being complete.

    Attributes:
        kind: name of the error's class.
    """

    id: Count
    kind: str
    reason: str


Ask = Generate | Cancel | Ping
Event = Started | Piece | Finished | Failed | Pong

ask_codec: Codec[Ask] = Codec(Ask, MAX_ASK_BYTES)
event_codec: Codec[Event] = Codec(Event, MAX_EVENT_BYTES)
