"""What a stage holds: baseline + weights + KV + workspace, beside the device's limit.

Over all intervals `[start, stop)` at once, as arrays `[start, stop]`:

    weights[start, stop] = sum of the units' bytes - blobs that two of them share

Shared blobs (a tied embedding in the embedding and in the head) are held once by a stage that has
both users, and once by each of two stages that have one user each.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from edgeshard.planner.costs import CostTable
from edgeshard.schemas.plan import MemoryUse

MIB = 2**20

Bytes = npt.NDArray[np.int64]


def stage_memory(costs: CostTable, device: int, provider: int, start: int, stop: int) -> MemoryUse:
    """What units `[start, stop)` hold on a device with one of its providers."""
    place = costs.devices[device]
    units = place.providers[provider]
    model = costs.models[units.model]
    unit_bytes = units.weights_bytes[start:stop]
    shared = sum(
        blob.size_bytes for blob in model.shared if start <= blob.first and blob.second < stop
    )
    return MemoryUse(
        baseline_bytes=place.baseline_bytes,
        weights_bytes=sum(unit_bytes) - shared,
        kv_bytes=sum(model.kv_bytes[start:stop]),
        workspace_bytes=place.workspace_bytes,
        limit_bytes=place.limit_bytes,
    )


def missing_bytes(memory: MemoryUse) -> int:
    """Bytes that the device lacks; 0 where the stage fits."""
    return max(0, memory.total_bytes - memory.limit_bytes)


def held_table(costs: CostTable, device: int, provider: int) -> Bytes:
    """Bytes that each interval holds, axes `[start, stop]`, where start < stop.

    Equal to the total of `stage_memory` of every interval.
    """
    place = costs.devices[device]
    units = place.providers[provider]
    model = costs.models[units.model]
    held = _intervals(units.weights_bytes) + _intervals(model.kv_bytes)
    for blob in model.shared:
        held[: blob.first + 1, blob.second + 1 :] -= blob.size_bytes
    return held + (place.baseline_bytes + place.workspace_bytes)


def missing_table(costs: CostTable, device: int, provider: int) -> Bytes:
    """Bytes that the device lacks for each interval, axes `[start, stop]`, where start < stop."""
    limit_bytes = costs.devices[device].limit_bytes
    missing: Bytes = np.maximum(held_table(costs, device, provider) - limit_bytes, 0)
    return missing


def _intervals(values: Sequence[int]) -> Bytes:
    sums = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.array(values, np.int64))])
    differences: Bytes = sums[None, :] - sums[:, None]
    return differences
