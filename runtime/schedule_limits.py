"""What a chain can take, as the schedule is told, and how a prompt is cut by it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from edgeshard.runtime.wire import MAX_ROWS
from edgeshard.schemas.plan import Plan

MIN_CHUNK_TOKENS = 3
# As fast as 512 on a CPU; tokens of others wait half as long (docs/benchmarks.md).
CHUNK_TOKENS = 256
BESIDE_TOKENS = 16  # beside a decode: tokens pass soon and prompts lose little (ibid.)
RUN_CHUNKS = 16  # of these between two rests; a rest costs a prompt about a chunk more
RUN_AHEAD = 32  # a newcomer ends it: more would spare little, and a lost token costs as many
NUM_HELD = 32  # the latest requests, whose slot times say how fast the queue moves
MAX_RETRY_SECONDS = 600.0


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the chain can take.

    Attributes:
        chunk_tokens: prompt positions of one step at most; at least 3.
        beside_tokens: the same while another request decodes.
        beside_steps: of each group that decodes, without a chunk, behind every `RUN_CHUNKS` chunks.
        window: prompt chunks on their way at once.
        max_waiting: requests that wait for a slot at most.
        max_waiting_tokens: of their prompts together; one prompt alone may always wait.
        ahead: steps that stage 0 may add by itself for a request that is alone, as its tokens come
            from the last stage; 0: each step starts at the source.
        num_groups: of slots; None: each slot is its own, so that nothing is batched.
        in_rounds: next tokens wait until nothing is on its way and go out together, with the
            bubbles that this makes; else each leaves as soon as its own last one is back.
        copies_slots: every stage can copy keys and values from slot to slot.
        share_prompts: a client's prompt may start with what another's left, of which the time to a
            first token then tells.
    """

    slots: int
    context: int
    chunk_tokens: int = CHUNK_TOKENS
    beside_tokens: int = BESIDE_TOKENS
    beside_steps: int = 0
    window: int = 1
    max_waiting: int = 64
    max_waiting_tokens: int = 2**18
    in_rounds: bool = False
    num_groups: int | None = None
    copies_slots: bool = True
    share_prompts: bool = False
    ahead: int = 0

    @property
    def group_slots(self) -> int:
        """Slots of a group; the last one may have fewer."""
        groups = min(self.num_groups or self.slots, self.slots)
        return min(MAX_ROWS, -(-self.slots // groups))


def chunk_size(num_left: int, chunk_tokens: int) -> int:
    """Positions of the next chunk of a prompt: even, unless it is the last.

    Never one, unless one is all there is.
    """
    if num_left <= chunk_tokens:
        return num_left
    even = chunk_tokens - chunk_tokens % 2
    return even - 2 if num_left - even == 1 else even


def num_groups(plan: Plan) -> int:
    """Micro-batches that the plan says; by its times where it does not.

    A group comes back after `token_seconds`, and the slowest is done with it after its own part of
    that; more groups than keep it busy would only make each of them smaller.
    """
    if plan.groups:
        return min(plan.slots, plan.groups)
    slowest = max(max(stage.decode_seconds, stage.hop_busy_seconds or 0.0) for stage in plan.stages)
    needed = math.ceil(plan.token_seconds / slowest) if slowest > 0 else 1
    return max(1, min(plan.slots, needed))
