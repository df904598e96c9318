"""The paper's Algorithm 1: least latency, layer by layer. O(N·M²) for N layers and M devices.

    best(i, j) = min over k of best(i-1, k) + time of layer i on j + transfer from k to j

Source: Zhang et al., "EdgeShard" (2025), as public readings of the paper describe it. Kept as a
baseline, flaw included: a label (i, j) has the remaining memory of its one best path, so a slower
path that leaves more room is forgotten, and with tight memory the answer is often not the best, or
none is found. Without memory limits it is exact, over more than chains: a path may come back to a
device, which our runtime cannot run.
"""

from __future__ import annotations

import numpy as np

from edgeshard.planner.costs import CostTable
from edgeshard.planner.hosts import Span
from edgeshard.planner.layers import layer_table, nothing_found, spans_of


def algorithm1(costs: CostTable) -> tuple[Span, ...]:
    """Spans of the path that the algorithm finds; a device may host several of them.

    Raises:
        PlanError: every label ran out of memory.
    """
    table = layer_table(costs)
    num_devices, num_units = table.seconds.shape
    devices = np.arange(num_devices)
    best = np.full(num_devices, np.inf)
    room = np.repeat(table.room_bytes[None, :], num_devices, axis=0)  # [D label, D device]
    room[table.source, table.source] -= table.unit_bytes[table.source, 0]
    if room[table.source, table.source] >= 0:
        best[table.source] = table.start_seconds + table.seconds[table.source, 0]
    parents = np.zeros((num_units, num_devices), np.intp)
    for unit in range(1, num_units):
        fits = room >= table.unit_bytes[:, unit][None, :]
        arrived = np.where(fits, best[:, None] + table.enter, np.inf)
        parents[unit] = arrived.argmin(axis=0)
        best = arrived[parents[unit], devices] + table.seconds[:, unit]
        room = room[parents[unit]]
        room[devices, devices] -= table.unit_bytes[:, unit]
    total = best + table.way_back
    if np.isinf(total.min()):
        raise nothing_found("algorithm-1")
    hosts = [int(total.argmin())]
    for unit in range(num_units - 1, 0, -1):
        hosts.append(int(parents[unit, hosts[-1]]))
    return spans_of(table, hosts[::-1])
