"""Why a device is not in the plan, with the figure that decided."""

from __future__ import annotations

import math

import numpy as np

from edgeshard.planner.costs import CostTable
from edgeshard.planner.memory import MIB, stage_memory
from edgeshard.planner.partition import Partition
from edgeshard.schemas.common import Objective
from edgeshard.schemas.plan import LeftOut


def why_left_out(
    costs: CostTable, partition: Partition, objective: Objective, share: float = 1.0
) -> tuple[LeftOut, ...]:
    """Every device without a stage, and why: unmeasured ones first, then in the table's order.

    Args:
        costs: what everything costs.
        partition: the best one.
        objective: what it was chosen for.
        share: of its seconds that one token takes.
    """
    used = {span.device for span in partition.spans}
    unused = [device for device in range(len(costs.devices)) if device not in used]
    return costs.left_out + tuple(
        LeftOut(
            device=costs.devices[device].name,
            reason=_reason(costs, partition, objective, device, share),
        )
        for device in unused
    )


def _reason(
    costs: CostTable, partition: Partition, objective: Objective, device: int, share: float
) -> str:
    last = costs.num_units - costs.workload.head_at_source
    least = min(
        stage_memory(costs, device, provider, unit, unit + 1).total_bytes
        for provider in range(len(costs.devices[device].providers))
        for unit in range(1, last)
    )
    limit = costs.devices[device].limit_bytes
    if least > limit:
        return f"its smallest stage needs {least / MIB:.1f} MiB, it may hold {limit / MIB:.1f} MiB"
    best = partition.seconds_with[device]
    if math.isinf(best):
        return _no_chain(costs, device)
    what = "a token takes" if objective == "latency" else "a token, with all slots in use, takes"
    with_it, without = f"{best * share * 1000:.2f}", f"{partition.seconds * share * 1000:.2f}"
    if with_it == without:
        return f"it would not help: {what} {without} ms with it too"
    return f"with it {what} {with_it} ms at best, without it {without} ms"


def _no_chain(costs: CostTable, device: int) -> str:
    others = np.arange(len(costs.devices)) != device
    if np.isinf(costs.hop_seconds[others, device]).all():
        return "no link to it was measured"
    onward = costs.hop_seconds[device, others & (np.arange(len(others)) != costs.source)]
    if np.isinf(onward).all() and math.isinf(costs.return_seconds[device]):
        return "no link from it was measured"
    return "no chain through it has measured links and fits in memory"
