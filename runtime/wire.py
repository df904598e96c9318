"""Messages of the chain, and how every message becomes bytes.

    header  "ES" major minor [number] msgpack    at most 4 KiB; 32 KiB towards the source
    payload raw little-endian tensor             at most one; its length follows from our manifest

    coordinator ── Open Seen Bias Step Halt Close Trace ──► stage 0 ──► … ──► last stage
         ▲                                                    ▲               │  │
         └─────────────────── Token Fault Trace ──────────────┼───────────────┘  │
                                                              └── Token, of steps that run ahead

Headers on these ways carry a number of 8 bytes, their place among the messages of the hop, and the
receiver answers with an Ack now and then (`flow.py`); a Knock asks for one.

Rule: a message is one of the types below or it is refused. Unknown fields are refused, an unknown
major version is refused by name, and no size is believed that we can work out ourselves.
"""

from __future__ import annotations

import struct
from typing import Annotated, Generic, TypeVar

import msgspec
from msgspec import Meta

from edgeshard.errors import LinkError
from edgeshard.schemas.common import Activation

MAJOR = 9
MINOR = 0
MAX_HEADER_BYTES = 4096
MAX_ROWS = 64
MAX_RETURN_BYTES = 32 * 1024  # of log-probabilities for each row of a step
MAX_SEEN = 512  # token ids of a message
MAX_BIASES = 256  # biases of a message
MAX_LIKELY = 20  # alternatives of a token
MAX_TEXT = 400
MAX_AHEAD = 255
MAX_TIMED_STAGES = 48  # what fits into a header beside the rows
_PREFIX = bytes([ord("E"), ord("S"), MAJOR, MINOR])
_MARK = _PREFIX[:3]  # minor versions understand each other
_NUMBER = struct.Struct("<Q")
_NUMBERED_BYTES = len(_PREFIX) + _NUMBER.size

Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Positive = Annotated[int, Meta(ge=1, le=2**31)]
TokenId = Annotated[int, Meta(ge=0, le=2**31)]
Text = Annotated[str, Meta(max_length=MAX_TEXT)]
Clock = Annotated[float, Meta(ge=0, le=1e12)]


class ProtocolError(LinkError):
    """A message that is not what the protocol says."""


class Message(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True, tag=str.lower
):
    """Base of every message; the tag is the type's name in lower case."""


class Sampling(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """How the last stage chooses a token; temperature 0 takes the likeliest.

    Attributes:
        top_k: candidates at most; 0: all.
        top_p: smallest set of candidates with this probability; 1: all.
        repetition: divides positive logits, and multiplies negative ones, of tokens in the prompt
            or the answer; 1: none.
        presence: taken from the logit of a token that is in the answer.
        frequency: taken for each time that it is.
        logprobs: alternatives whose log-probabilities come back with the token's own; None: not
            even that.
    """

    temperature: Annotated[float, Meta(ge=0, le=100)] = 0.0
    top_k: Annotated[int, Meta(ge=0, le=2**31)] = 0
    top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 0
    repetition: Annotated[float, Meta(gt=0, le=100)] = 1.0
    presence: Annotated[float, Meta(ge=-2, le=2)] = 0.0
    frequency: Annotated[float, Meta(ge=-2, le=2)] = 0.0
    logprobs: Annotated[int, Meta(ge=0, le=MAX_LIKELY)] | None = None


class Kept(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """The first positions of another request, still in its slot."""

    request: Count
    slot: Count
    length: Positive


class Open(Message, frozen=True):
    """A request takes a slot on every stage.

    Attributes:
        kept: what of another request is the start of this one, whose steps begin behind it: of the
            slot's last one, or of one in another slot, from which it is copied.
        num_seen: token ids that come in `Seen` before the first token is drawn.
        num_biases: biases that come in `Bias` before it.
    """

    epoch: Count
    request: Count
    slot: Count
    sampling: Sampling
    kept: Kept | None = None
    num_seen: Count = 0
    num_biases: Count = 0


class Seen(Message, frozen=True):
    """Ids of tokens in a request's prompt, each once: the last stage penalises their repetition."""

    epoch: Count
    request: Count
    slot: Count
    tokens: Annotated[tuple[TokenId, ...], Meta(min_length=1, max_length=MAX_SEEN)]


class Bias(Message, frozen=True):
    """What the last stage adds to logits of a request, by token id."""

    epoch: Count
    request: Count
    slot: Count
    biases: Annotated[
        tuple[tuple[TokenId, Annotated[float, Meta(ge=-100, le=100)]], ...],
        Meta(min_length=1, max_length=MAX_BIASES),
    ]


class Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """A request's part of a step, and how many positions it holds before it."""

    request: Count
    position: Count


class Marks(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """When a stage did what for a step, in seconds by its own clock, which counts from anywhere.

    Attributes:
        free: the step before was computed; the stage could not have taken this one earlier.
        taken: the message was here, its header read.
        started: its payload was an array, and computing began.
        computed: it ended.
        written: the result was bytes again; packing the header and sending come behind it.
    """

    free: Clock
    taken: Clock
    started: Clock
    computed: Clock
    written: Clock


MarksOfStages = Annotated[tuple[Marks, ...], Meta(max_length=MAX_TIMED_STAGES)]


class Step(Message, frozen=True):
    """Run `num_tokens` positions of each row; carries a payload, row behind row.

    Attributes:
        number: of the step, given by the schedule; its `Token` has the same.
        slot: of the first row; the others hold the slots behind it.
        wants_token: whether the last stage samples; without, it answers that the step is done.
        compute_seconds: what the stages before spent computing.
        marks: of the stages before, in their order; None: the step is not traced.
        states: how the payload holds hidden states; stage 0 gets token ids instead.
        ahead: steps that stage 0 may add by itself, one token each, as the last stage gives it the
            tokens; they have the numbers behind this one's. Only of one row that wants a token.
    """

    epoch: Count
    number: Count
    slot: Count
    rows: Annotated[tuple[Row, ...], Meta(min_length=1, max_length=MAX_ROWS)]
    num_tokens: Positive
    wants_token: bool
    compute_seconds: float = 0.0
    marks: MarksOfStages | None = None
    states: Activation = "fp32"
    ahead: Annotated[int, Meta(ge=0, le=MAX_AHEAD)] = 0

    def onward(self, seconds: float, marks: MarksOfStages | None, states: Activation) -> Step:
        """The same step for the next stage; given whole, as changing a copy costs more."""
        number, rows, num_tokens = self.number, self.rows, self.num_tokens
        place = (self.epoch, number, self.slot, rows, num_tokens, self.wants_token)
        return Step(*place, seconds, marks, states, self.ahead)


class Halt(Message, frozen=True):
    """Stage 0 adds one more step of a request at most, and then leaves it to the source."""

    epoch: Count
    request: Count
    slot: Count


class Close(Message, frozen=True):
    """A request gives its slot back on every stage."""

    epoch: Count
    request: Count
    slot: Count


class Fault(Message, frozen=True):
    """A stage cannot go on with a request; travels down the chain and back to the source."""

    epoch: Count
    request: Count
    stage: Count
    reason: Text


class Trace(Message, frozen=True):
    """Goes once around the chain: each stage counts itself, the last one returns it."""

    epoch: Count
    nonce: Count
    num_stages: Count


class Likely(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """A token and its log-probability by the model's own logits."""

    token: TokenId
    logprob: float


class Sampled(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """The token of a request; None where none was wanted.

    Attributes:
        logprob: of the token, where the request asks for it.
        likely: the likeliest tokens at its place, the first one first.
    """

    request: Count
    token: TokenId | None
    logprob: float | None = None
    likely: Annotated[tuple[Likely, ...], Meta(max_length=MAX_LIKELY)] = ()


class Token(Message, frozen=True):
    """A step is done on the last stage.

    Attributes:
        rows: of the step, without those of requests that a stage gave up.
        compute_seconds: what all stages spent computing the step.
        marks: of all stages, in their order; None: the step is not traced.
        ahead: steps that stage 0 still adds by itself, beginning with this token; it has it too.
    """

    epoch: Count
    number: Count
    rows: Annotated[tuple[Sampled, ...], Meta(max_length=MAX_ROWS)]
    compute_seconds: float
    marks: MarksOfStages | None = None
    ahead: Annotated[int, Meta(ge=0, le=MAX_AHEAD)] = 0


class Ack(Message, frozen=True):
    """Against the hop's direction: how many messages were taken so far, and their bytes."""

    epoch: Count
    messages: Count
    taken_bytes: Count


class Knock(Message, frozen=True):
    """Nothing but its number: whether all before it have come.

    Attributes:
        of_tokens: on the way of tokens to stage 0.
    """

    epoch: Count
    of_tokens: bool = False


StageMessage = Open | Seen | Bias | Step | Halt | Token | Close | Fault | Trace | Knock
ReturnMessage = Token | Fault | Trace | Knock

T = TypeVar("T")
_encoder = msgspec.msgpack.Encoder()


def encode(message: msgspec.Struct) -> bytes:
    """The header bytes of a message."""
    return _PREFIX + _encoder.encode(message)


def encode_numbered(number: int, message: msgspec.Struct) -> bytes:
    """The header bytes of a message on a hop that counts them."""
    return _PREFIX + _NUMBER.pack(number) + _encoder.encode(message)


class Codec(Generic[T]):
    """Reads the messages of one direction."""

    def __init__(self, kinds: object, max_bytes: int = MAX_HEADER_BYTES) -> None:
        """Read messages of `kinds`, a union of structs, of at most `max_bytes`."""
        self._decoder: msgspec.msgpack.Decoder[T] = msgspec.msgpack.Decoder(kinds)
        self._max_bytes = max_bytes

    def decode(self, header: bytes | memoryview) -> T:
        """The message of a header.

        Raises:
            ProtocolError: too long, of another version, or not one of our messages.
        """
        return self._read(header, len(_PREFIX))

    def decode_numbered(self, header: bytes | memoryview) -> tuple[int, T]:
        """Number and message of a header on a hop that counts them.

        Raises:
            ProtocolError: as `decode`.
        """
        message = self._read(header, _NUMBERED_BYTES)
        return _NUMBER.unpack_from(header, len(_PREFIX))[0], message

    def _read(self, header: bytes | memoryview, start: int) -> T:
        if len(header) > self._max_bytes:
            raise ProtocolError(f"header has {len(header)} bytes, at most {self._max_bytes} may be")
        if header[: len(_MARK)] != _MARK or len(header) < start:
            raise ProtocolError(_mark_problem(bytes(header[:4])))
        try:
            return self._decoder.decode(header[start:])
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise ProtocolError(f"message is not what the protocol says: {error}") from error


def _mark_problem(prefix: bytes) -> str:
    if prefix[:2] != b"ES" or len(prefix) < 4 or prefix[2] == MAJOR:
        return "message does not start with the protocol's mark, or ends there"
    return (
        f"peer speaks protocol {prefix[2]}.{prefix[3]}, this version speaks "
        f"{MAJOR}.{MINOR}: install the same edgeshard on both"
    )


stage_codec: Codec[StageMessage] = Codec(StageMessage)
return_codec: Codec[ReturnMessage] = Codec(ReturnMessage, MAX_RETURN_BYTES)
ack_codec: Codec[Ack] = Codec(Ack)


def split(frames: list[memoryview], max_payloads: int = 1) -> tuple[memoryview, memoryview | None]:
    """Header and payload of a message.

    Raises:
        ProtocolError: another number of parts.
    """
    if not 1 <= len(frames) <= 1 + max_payloads:
        raise ProtocolError(f"message has {len(frames)} parts, at most {1 + max_payloads} may be")
    return frames[0], frames[1] if len(frames) > 1 else None
