"""What an agent tells a coordinator of the chain that it is to serve."""

from __future__ import annotations

import msgspec

from edgeshard.runtime.remarks import Remarks
from edgeshard.schemas.common import Blob


class StagePeer(msgspec.Struct, frozen=True):
    """A stage's device: its name, its agent's endpoint and its key."""

    device: str
    control_endpoint: str
    key: str


class CoordinatorConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an agent tells a coordinator; paths, never secrets.

    Attributes:
        first_endpoint: data port of stage 0.
        client_keys: who may generate.
        num_groups: micro-batches that keep every stage busy.
        silence_seconds: how long a step may take before it counts as lost.
        remarks: what answers are flagged with.
        beside_steps, copies_slots, share_prompts: see the schedule's `Limits`.
        tells_figures: the agent wants to know what is counted here.
    """

    store: str
    model: Blob
    key: str
    epoch: int
    stages: tuple[StagePeer, ...]
    first_endpoint: str
    listen_return: str
    listen_clients: str
    client_keys: tuple[str, ...]
    context: int
    slots: int
    chunk_tokens: int
    beside_steps: int
    max_waiting: int
    num_groups: int
    silence_seconds: float
    copies_slots: bool = False
    share_prompts: bool = False
    remarks: Remarks = Remarks()
    tells_figures: bool = False
