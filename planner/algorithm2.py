"""The paper's Algorithm 2: least bottleneck. O(N²·2^M·M²) for N layers and M devices.

    g(j, S + u, u) = min over i, k of
        max(g(i, S, k), compute of layers [i, j) on u, output of layer i / bandwidth from k to u)

Source: Zhang et al., "EdgeShard" (2025), as public readings of the paper describe it. What it is as
a baseline: a device has one time for a layer, a transfer costs bytes over bandwidth, nothing is
said of the way back, and of plans with one bottleneck any may come out, however slow for a single
request. Its work doubles with each device.

Axes: S used set (bit u: the u-th device beside the source), D device, N layers done.
"""

from __future__ import annotations

import numpy as np

from edgeshard.errors import PlanError
from edgeshard.planner.costs import CostTable
from edgeshard.planner.hosts import Span
from edgeshard.planner.layers import Floats, LayerTable, layer_table, nothing_found

MAX_DEVICES = 15
"""Most devices that can host a layer: as many as the paper's testbed has."""


def algorithm2(costs: CostTable) -> tuple[Span, ...]:
    """Spans of a chain with the least bottleneck.

    Raises:
        PlanError: nothing fits, or too many devices could host a layer.
    """
    table = layer_table(costs)
    blocks = _blocks(table)
    devices = [device for device, block in enumerate(blocks) if np.isfinite(block).any()]
    if table.source not in devices:
        raise nothing_found("algorithm-2")
    if len(devices) > MAX_DEVICES:
        raise PlanError(
            f"algorithm-2 doubles its work with each device and takes at most {MAX_DEVICES}, "
            f"{len(devices)} could host a layer; plan without --method"
        )
    devices.sort(key=lambda device: device != table.source)  # the source first
    hop = np.array(costs.hop_busy_seconds)[np.ix_(devices, devices)]
    can_return = np.isfinite(table.way_back[devices])
    stages = _search(blocks[devices], hop, can_return)
    if not stages:
        raise nothing_found("algorithm-2")
    return tuple(
        Span(devices[u], table.provider[devices[u]], start, stop) for u, start, stop in stages
    )


def _blocks(table: LayerTable) -> Floats:
    """Seconds of every block of layers, infinite where it does not fit; axes `[D, start, stop]`."""
    num_devices, num_units = table.seconds.shape
    finite = np.where(np.isfinite(table.seconds), table.seconds, 0.0)
    first = np.zeros((num_devices, 1))
    sums = np.concatenate([first, finite.cumsum(axis=1)], axis=1)
    held = np.concatenate([first, table.unit_bytes.cumsum(axis=1)], axis=1)
    fits = held[:, None, :] - held[:, :, None] <= table.room_bytes[:, None, None]
    is_source = np.arange(num_devices) == table.source
    allowed = np.triu(np.ones((num_units + 1, num_units + 1), np.bool_), 1)[None] & fits
    allowed[:, 0] &= is_source[:, None]
    allowed[:, 1:] &= ~is_source[:, None, None]
    seconds = table.overhead[:, None, None] + sums[:, None, :] - sums[:, :, None]
    return np.where(allowed, seconds, np.inf)


def _search(
    block: Floats, hop: Floats, can_return: np.typing.NDArray[np.bool_]
) -> list[tuple[int, int, int]]:
    """The best chain as `(device, start, stop)`, source 0 first; empty where there is none."""
    num_devices, num_places, _ = block.shape
    best = np.full((1 << (num_devices - 1), num_devices, num_places), np.inf)
    best[0, 0] = block[0, 0]
    for used in range(1, len(best)):
        for u in range(1, num_devices):
            bit = 1 << (u - 1)
            if used & bit:
                arrived = np.maximum(best[used ^ bit], hop[:, u, None]).min(axis=0)
                best[used, u] = np.maximum(arrived[:, None], block[u]).min(axis=0)
    totals = np.where(can_return, best[:, :, -1], np.inf)
    if np.isinf(totals.min()):
        return []
    sizes = np.array([used.bit_count() for used in range(len(totals))])
    used = int(np.where(totals.min(axis=1) == totals.min(), sizes, num_devices).argmin())
    u, stop = int(totals[used].argmin()), num_places - 1
    stages = []
    while used:
        used ^= 1 << (u - 1)
        arrived = np.maximum(best[used], hop[:, u, None])
        choices = np.maximum(arrived, block[u, None, :, stop])
        k, start = divmod(int(choices.argmin()), num_places)
        stages.append((u, start, stop))
        u, stop = k, start
    stages.append((0, 0, stop))
    return stages[::-1]
