"""What given spans cost: time of a token, and the busiest device or link. No choice is made here.

Spans need not be a chain that our runtime runs: a device that hosts several of them works for all.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence

from edgeshard.planner.costs import CostTable
from edgeshard.planner.hosts import Span


def stage_seconds(costs: CostTable, span: Span) -> float:
    """Compute of one decode step of a span."""
    device = costs.devices[span.device]
    units = device.providers[span.provider].decode_seconds[span.start : span.stop]
    return device.step_overhead_seconds + sum(units)


def latency_seconds(costs: CostTable, spans: Sequence[Span]) -> float:
    """From one token of a single request to the next: way in, stages, hops and way back."""
    hops = sum(
        float(costs.hop_seconds[left.device, right.device])
        for left, right in itertools.pairwise(spans)
    )
    compute = sum(stage_seconds(costs, span) for span in spans)
    return costs.entry_seconds + compute + hops + float(costs.return_seconds[spans[-1].device])


def bottleneck_seconds(costs: CostTable, spans: Sequence[Span]) -> float:
    """What the busiest device or link needs for each token, transfers beside computing."""
    busy: defaultdict[tuple[int, ...], float] = defaultdict(float)
    for span in spans:
        busy[span.device,] += stage_seconds(costs, span)
    for left, right in itertools.pairwise(spans):
        busy[left.device, right.device] += float(costs.hop_busy_seconds[left.device, right.device])
    return max(busy.values())
