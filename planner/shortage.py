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
    first = _least(costs, costs.source, 0, 1)
    if missing_bytes(first):
        return (
            f"no plan fits {asked}: source {source} must hold {costs.unit_names[0]} and lacks "
            f"{_amount(missing_bytes(first))}: {_parts(first)}; {_next_step(costs, first)}"
        )
    attempt = [
        (device, _least(costs, device, start, stop)) for device, start, stop in _closest(costs)
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


def _closest(costs: CostTable) -> tuple[Link, ...]:
    """The chain that lacks the fewest bytes, as far as a short search finds it."""
    num_places = costs.num_units + 1
    stage = np.full((len(costs.devices), num_places, num_places), np.inf)
    allowed = np.triu(np.ones((num_places, num_places), np.bool_), 1)
    for device, place in enumerate(costs.devices):
        missing = [missing_table(costs, device, index) for index in range(len(place.providers))]
        rows = slice(0, 1) if device == costs.source else slice(1, None)
        stage[device, rows] = np.where(allowed, np.stack(missing).min(axis=0), np.inf)[rows]
    kinds, class_of = np.unique(stage, axis=0, return_inverse=True)
    hop = np.where(np.isfinite(costs.hop_seconds), 0.0, np.inf)
    way_back = np.where(np.isfinite(costs.return_seconds), 0.0, np.inf)
    table = DeviceTable(kinds, class_of.ravel(), hop, hop, way_back, costs.source)
    problem, members = group(table)
    chain = cheapest_chain(problem, SHORT, name_groups(_alone(costs), members)).chain
    return name_devices(chain or name_groups(_alone(costs), members), members)


def _alone(costs: CostTable) -> tuple[Link, ...]:
    """The source with everything: a chain that lacks bytes but no link."""
    return ((costs.source, 0, costs.num_units),)


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
    steps += ["int4 weights"] if costs.precision != "int4" else []
    steps += ["a higher memory limit there"]
    return "try " + " or ".join(steps)
