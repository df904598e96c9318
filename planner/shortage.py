"""Say what is missing where no partition fits: the closest attempt, by the bytes it lacks.

The closest attempt comes from the same search as a plan, with the bytes that a stage lacks in place
of its seconds.
"""

from __future__ import annotations

import numpy as np

from edgeshard.planner.chains import Link
from edgeshard.planner.cheapest import Effort, cheapest_chain
from edgeshard.planner.costs import CostTable
from edgeshard.planner.groups import DeviceTable, group, name_devices, name_groups
from edgeshard.planner.memory import MIB, missing_bytes, missing_table, stage_memory
from edgeshard.schemas.plan import MemoryUse

SHORT = Effort(num_values=5e7, num_rounds=3)


def shortage(costs: CostTable) -> str:
    """One line: the device and the bytes that the closest attempt lacks, and the next step."""
    workload = costs.workload
    asked = f"context {workload.context} x {workload.slots} slots"
    source = costs.devices[costs.source].name
    needed = [costs.unit_names[0]] + [costs.unit_names[-1]] * workload.head_at_source
    first = _at_source(costs, 1)
    if missing_bytes(first):
        return (
            f"no plan fits {asked}: source {source} must hold {' and '.join(needed)} and lacks "
            f"{_amount(missing_bytes(first))}: {_parts(first)}; {_next_step(costs, first)}"
        )
    attempt = [
        (device, _at_source(costs, stop))
        if device == costs.source
        else (device, _least(costs, device, start, stop))
        for device, start, stop in _closest(costs)
    ]
    total = sum(missing_bytes(memory) for _, memory in attempt)
    worst, memory = max(attempt, key=lambda pair: missing_bytes(pair[1]))
    names = ", ".join(costs.devices[device].name for device, _ in attempt)
    rest = "" if missing_bytes(memory) == total else f", {_amount(total)} in all"
    unused = "".join(f"; {left.device} cannot take part: {left.reason}" for left in costs.left_out)
    return (
        f"no plan fits {asked}: the closest, over {names}, lacks {_amount(missing_bytes(memory))} "
        f"on {costs.devices[worst].name}{rest}: {_parts(memory)}; "
        f"{_next_step(costs, memory)}, or add a device{unused}"
    )


def _at_source(costs: CostTable, stop: int) -> MemoryUse:
    """What units `[0, stop)` hold on the source, and the head with them where it is pinned."""
    head = costs.num_units - 1
    if not costs.workload.head_at_source:
        return _least(costs, costs.source, 0, stop)
    if stop >= head:
        return _least(costs, costs.source, 0, costs.num_units)
    one, other = (
        _least(costs, costs.source, 0, stop),
        _least(costs, costs.source, head, costs.num_units),
    )
    return MemoryUse(
        baseline_bytes=one.baseline_bytes + other.baseline_bytes,
        weights_bytes=one.weights_bytes + other.weights_bytes,
        kv_bytes=one.kv_bytes + other.kv_bytes,
        workspace_bytes=one.workspace_bytes + other.workspace_bytes,
        limit_bytes=one.limit_bytes,
    )


def _closest(costs: CostTable) -> tuple[Link, ...]:
    """The chain that lacks the fewest bytes, as far as a short search finds it."""
    num_units = costs.num_units - costs.workload.head_at_source
    num_places = num_units + 1
    stage = np.full((len(costs.devices), num_places, num_places), np.inf)
    allowed = np.triu(np.ones((num_places, num_places), np.bool_), 1)
    for device, place in enumerate(costs.devices):
        tables = [missing_table(costs, device, index) for index in range(len(place.providers))]
        missing = np.stack(tables).min(axis=0)[:num_places, :num_places]
        rows = slice(0, 1) if device == costs.source else slice(1, None)
        stage[device, rows] = np.where(allowed, missing, np.inf)[rows]
    stage[costs.source, 0, 1:] = [
        missing_bytes(_at_source(costs, stop)) for stop in range(1, num_places)
    ]
    kinds, class_of = np.unique(stage, axis=0, return_inverse=True)
    hop = np.where(np.isfinite(costs.hop_seconds), 0.0, np.inf)
    way_back = np.where(np.isfinite(costs.return_seconds), 0.0, np.inf)
    if costs.workload.head_at_source:
        way_back = hop[:, costs.source].copy()
        way_back[costs.source] = 0.0
    table = DeviceTable(kinds, class_of.ravel(), hop, hop, way_back, costs.source)
    problem, members = group(table)
    alone = ((costs.source, 0, num_units),)  # lacks bytes but no link
    chain = cheapest_chain(problem, SHORT, name_groups(alone, members)).chain
    return name_devices(chain or name_groups(alone, members), members)


def _least(costs: CostTable, device: int, start: int, stop: int) -> MemoryUse:
    """The memory of a stage on the provider that holds the least."""
    providers = range(len(costs.devices[device].providers))
    return min(
        (stage_memory(costs, device, provider, start, stop) for provider in providers),
        key=lambda memory: memory.total_bytes,
    )


def _amount(size_bytes: int) -> str:
    return f"{size_bytes} bytes ({size_bytes / MIB:.1f} MiB)"


def _parts(memory: MemoryUse) -> str:
    return (
        f"weights {memory.weights_bytes / MIB:.1f} + KV {memory.kv_bytes / MIB:.1f} + "
        f"runtime {(memory.baseline_bytes + memory.workspace_bytes) / MIB:.1f} = "
        f"{memory.total_bytes / MIB:.1f} of at most {memory.limit_bytes / MIB:.1f} MiB"
    )


def _next_step(costs: CostTable, memory: MemoryUse) -> str:
    steps = ["a smaller context or fewer slots"] if memory.kv_bytes else []
    steps += ["int4 weights"] if all(one.precision != "int4" for one in costs.models) else []
    steps += ["a higher memory limit there"]
    return "try " + " or ".join(steps)
