"""Messages between an agent and those who may command it.

    operator, source ── request(id) ──► agent
                     ◄── Progress(id) … one reply(id)

Operators may send everything; the source's coordinator may only ask (`Ping`, `Status`). A `Pong`
also comes unasked, to everyone who pinged lately, whenever the stage's state changes.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from edgeshard.errors import (
    ArtifactError,
    BusyError,
    DeviceError,
    EdgeShardError,
    InputError,
    LinkError,
    PlanError,
)
from edgeshard.runtime.remarks import Remarks
from edgeshard.runtime.wire import Clock, Codec, Count, Positive
from edgeshard.schemas.common import Activation, Blob, Name
from edgeshard.schemas.profile import LinkProfile

MAX_CONTROL_BYTES = 4 * 2**20
CHUNK_BYTES = 2**20
QUEUE = 256

StageState = Literal["loading", "ready", "blocked", "failed"]


class Control(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=str.lower, kw_only=True):
    """Base of every control message; a reply has its request's id."""

    id: Count


class Ping(Control, frozen=True):
    """Are you and your stage there?"""


class Status(Control, frozen=True):
    """What are you, what do you run?"""


class Missing(Control, frozen=True):
    """Which of these blobs does your store lack?"""

    blobs: tuple[Blob, ...]


class PutChunk(Control, frozen=True):
    """The next bytes of a blob, as payload; offset 0 begins it anew."""

    blob: Blob
    offset: Count


class RunProfile(Control, frozen=True):
    """Measure units; the payload is the profiler's own JSON."""


class OpenEcho(Control, frozen=True):
    """Answer link probes of a device on the data port until told otherwise."""

    sender: Name


class CloseEcho(Control, frozen=True):
    """Stop answering link probes."""


class MeasureLink(Control, frozen=True):
    """Measure the way to a device that echoes.

    Attributes:
        frame_bytes: size of a decode step's frame.
    """

    target: Name
    frame_bytes: Positive
    num_samples: Annotated[int, Meta(ge=1, le=1000)] = 50


class Load(Control, frozen=True):
    """Run a stage.

    Attributes:
        previous: device before it; the source for stage 0.
        following: device after it; the source for the last stage.
        predicted_bytes: what the plan says it will hold.
        takes, gives: how hidden states come from the device before and go to the one behind.
        ends: devices of the first and the last stage.
    """

    epoch: Count
    index: Count
    shard: Blob
    provider: str
    previous: Name
    following: Name
    context: Positive
    slots: Positive
    chunk_tokens: Positive
    predicted_bytes: Count
    ends: tuple[Name, Name]
    takes: Activation = "fp32"
    gives: Activation = "fp32"


class StartCoordinator(Control, frozen=True):
    """Serve clients over the chain of these devices.

    Attributes:
        beside_steps, copies_slots, share_prompts: see the schedule's `Limits`.
        remarks: what answers are flagged with.
    """

    epoch: Count
    model: Blob
    devices: tuple[Name, ...]
    context: Positive
    slots: Positive
    chunk_tokens: Positive
    beside_steps: Count = 0
    max_waiting: Positive = 64
    num_groups: Positive = 1
    silence_seconds: float = 30.0
    copies_slots: bool = False
    share_prompts: bool = False
    remarks: Remarks = Remarks()


class Stop(Control, frozen=True):
    """Stop everything that runs here, requests first given `drain_seconds` to finish."""

    drain_seconds: Annotated[float, Meta(ge=0, le=3600)] = 0.0


Request = (
    Ping
    | Status
    | Missing
    | PutChunk
    | RunProfile
    | OpenEcho
    | CloseEcho
    | MeasureLink
    | Load
    | StartCoordinator
    | Stop
)
ASKING = (Ping, Status)


class StageView(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What an agent says of its stage."""

    epoch: Count
    index: Count
    start: Count
    stop: Count
    state: StageState
    reason: str = ""
    resident_bytes: Count = 0
    open_slots: Count = 0


class AgentStatus(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What an agent says of itself.

    Attributes:
        cluster: digest of what its cluster file says; equal where two agree.
        limit_bytes: most that its stage may hold; None: what is free.
        coordinator: state of the coordinator, "" where it hosts none.
        pid: of the agent, for a person at that machine.
        stage_pid: of the stage's worker; 0: none.
    """

    name: Name
    version: str
    cluster: str
    onnxruntime: str
    providers: tuple[str, ...]
    threads: Positive
    free_bytes: Count
    limit_bytes: Count | None
    stage: StageView | None
    coordinator: str
    draining: bool
    pid: Count
    stage_pid: Count
    coordinator_pid: Count


class Pong(Control, frozen=True):
    """Here; id 0 where nobody asked.

    Attributes:
        clock_seconds: what the device's clock says, which its stage's marks are in.
    """

    stage: StageView | None
    draining: bool
    clock_seconds: Clock = 0.0


class StatusReply(Control, frozen=True):
    """Answers `Status`."""

    status: AgentStatus


class MissingReply(Control, frozen=True):
    """Answers `Missing`."""

    blobs: tuple[Blob, ...]


class Ok(Control, frozen=True):
    """Done; a profile's JSON is the payload."""


class LinkReply(Control, frozen=True):
    """Answers `MeasureLink`."""

    link: LinkProfile


class Loaded(Control, frozen=True):
    """Answers `Load` once the stage can take steps."""

    resident_bytes: Count
    load_seconds: float


class Progress(Control, frozen=True):
    """What a long request does now."""

    text: str


class Refused(Control, frozen=True):
    """The request failed; `kind` is the name of the error's class."""

    kind: str
    reason: str


Reply = Pong | StatusReply | MissingReply | Ok | LinkReply | Loaded | Progress | Refused

request_codec: Codec[Request] = Codec(Request, MAX_CONTROL_BYTES)
reply_codec: Codec[Reply] = Codec(Reply, MAX_CONTROL_BYTES)

_KINDS: dict[str, type[EdgeShardError]] = {
    kind.__name__: kind
    for kind in (InputError, ArtifactError, PlanError, DeviceError, LinkError, BusyError)
}


def error_of(kind: str, reason: str) -> EdgeShardError:
    """The error that a peer reported."""
    return _KINDS.get(kind, DeviceError)(reason)


def kind_of(error: EdgeShardError) -> str:
    """The name under which an error travels."""
    return next((kind.__name__ for kind in type(error).__mro__ if kind.__name__ in _KINDS), "")
