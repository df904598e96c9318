"""The stages that given spans are, what they are predicted to take, and which of them is slowest.

A device that hosts two stages (the source, with the head pinned to it) works for both of them.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

from edgeshard.planner.costs import CostTable
from edgeshard.planner.hosts import Span
from edgeshard.planner.memory import stage_memory
from edgeshard.schemas.common import changed
from edgeshard.schemas.plan import Stage


def stages_of(costs: CostTable, spans: tuple[Span, ...]) -> tuple[Stage, ...]:
    """The stages of a plan; of two on one device each has the room that the other one leaves."""
    stages = [
        _stage(costs, span, following)
        for span, following in itertools.zip_longest(spans, spans[1:])
    ]
    first, last = stages[0], stages[-1]
    if len(stages) > 1 and first.device == last.device:
        stages[0], stages[-1] = _beside(first, last), _beside(last, first)
    return tuple(stages)


def _stage(costs: CostTable, span: Span, following: Span | None) -> Stage:
    device = costs.devices[span.device]
    provider = device.providers[span.provider]
    units = slice(span.start, span.stop)
    hop, busy, prefill_hop = _hop(costs, span, following)
    return Stage(
        device=device.name,
        provider=provider.provider,
        start=span.start,
        stop=span.stop,
        decode_seconds=device.step_overhead_seconds + sum(provider.decode_seconds[units]),
        prefill_seconds=device.step_overhead_seconds + sum(provider.prefill_seconds[units]),
        hop_seconds=hop,
        hop_busy_seconds=busy,
        prefill_hop_seconds=prefill_hop,
        memory=stage_memory(costs, span.device, span.provider, span.start, span.stop),
    )


def _beside(stage: Stage, other: Stage) -> Stage:
    limit_bytes = stage.memory.limit_bytes - other.memory.total_bytes
    return changed(stage, memory=changed(stage.memory, limit_bytes=limit_bytes))


def _hop(costs: CostTable, span: Span, following: Span | None) -> tuple[float, float, float]:
    """Seconds from a span to the next, or back: a token's, the part that is busy, the prompt's."""
    if following is None:
        back = float(costs.return_seconds[span.device])
        return back, 0.0, back
    tables = (costs.hop_seconds, costs.hop_busy_seconds, costs.prefill_hop_seconds)
    hop, busy, prefill = (float(table[span.device, following.device]) for table in tables)
    return hop, busy, prefill


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast tokens can follow each other.

    Attributes:
        token_seconds: from one token of a request to its next; a share of the prompt's time in it
            where the answer's length is known.
        slowest_seconds: the slowest device or link, for a step of each group.
        slowest: its name.
    """

    token_seconds: float
    slowest_seconds: float
    slowest: str

    def cycle_seconds(self, groups: int) -> float:
        """In which every one of the groups takes a step: each slot's next token."""
        return max(self.token_seconds, groups * self.slowest_seconds)

    @property
    def full_groups(self) -> int:
        """Groups that keep the slowest busy."""
        return math.ceil(self.token_seconds / self.slowest_seconds - 1e-9)


def pace_of(costs: CostTable, spans: tuple[Span, ...]) -> Pace:
    """The pace of given spans under full load."""
    decode_share, prefill_share = costs.workload.shares("throughput")
    stages = stages_of(costs, spans)
    busy: dict[str, float] = {}
    for stage in stages:
        names = [i for i, other in enumerate(stages) if other.device == stage.device]
        where = f"stage {' and '.join(map(str, names))} on {stage.device}"
        seconds = decode_share * stage.decode_seconds + prefill_share * stage.prefill_seconds
        busy[where] = busy.get(where, 0.0) + seconds
    if costs.workload.transfers == "blocking":
        busy = _with_hops(stages, busy, decode_share, prefill_share)
    else:
        links = costs.busy_seconds("throughput")
        for left, right in itertools.pairwise(spans):
            name = f"link {costs.devices[left.device].name} -> {costs.devices[right.device].name}"
            busy[name] = float(links[left.device, right.device])
    slowest = max(busy, key=lambda name: busy[name])
    token_seconds, first_token_seconds = seconds_of(costs, stages)
    mean_seconds = decode_share * token_seconds + prefill_share * first_token_seconds
    return Pace(mean_seconds, busy[slowest], slowest)


def _with_hops(
    stages: tuple[Stage, ...], busy: dict[str, float], decode_share: float, prefill_share: float
) -> dict[str, float]:
    """What each stage takes with receiving and sending; a device has one stage."""
    sent = [
        decode_share * stage.hop_seconds + prefill_share * (stage.prefill_hop_seconds or 0.0)
        for stage in stages
    ]
    return {
        f"{name} with its transfers": seconds + received + out
        for (name, seconds), received, out in zip(
            busy.items(), [0.0, *sent[:-1]], sent, strict=True
        )
    }


def seconds_of(costs: CostTable, stages: tuple[Stage, ...]) -> tuple[float, float]:
    """From one token to the next, and from a request to its first token; of one request alone."""
    way_in = costs.entry_seconds
    token = sum(stage.decode_seconds + stage.hop_seconds for stage in stages)
    first = sum(stage.prefill_seconds + (stage.prefill_hop_seconds or 0.0) for stage in stages)
    return way_in + token, way_in + first
