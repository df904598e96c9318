"""Say what is missing where no partition fits: the closest attempt, by the bytes it lacks.

The closest attempt comes from the same dynamic programming as a plan, with the bytes that a stage
lacks in place of its seconds.
"""

from __future__ import annotations

import numpy as np

from edgeshard.planner.chains import (
    MAX_DEVICES,
    ChainProblem,
    Link,
    best_chain,
    solve_chains,
)
from edgeshard.planner.costs import CostTable
from edgeshard.planner.memory import MIB, missing_bytes, missing_table, stage_memory
from edgeshard.schemas.plan import MemoryUse


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
    """The chain that lacks the fewest bytes; where devices are many, over the roomiest ones."""

    def room(device: int) -> tuple[bool, int]:
        place = costs.devices[device]
        free_bytes = place.limit_bytes - place.baseline_bytes - place.workspace_bytes
        return device == costs.source, free_bytes

    devices = sorted(sorted(range(len(costs.devices)), key=room, reverse=True)[:MAX_DEVICES])
    source = devices.index(costs.source)
    num_places = costs.num_units + 1
    allowed = np.triu(np.ones((num_places, num_places), np.bool_), 1)
    stage = np.full((len(devices), num_places, num_places), np.inf)
    for index, device in enumerate(devices):
        providers = range(len(costs.devices[device].providers))
        missing = np.stack([missing_table(costs, device, p) for p in providers]).min(axis=0)
        rows = slice(0, 1) if index == source else slice(1, None)
        stage[index, rows] = np.where(allowed, missing, np.inf)[rows]
    pairs = np.ix_(devices, devices)
    hop = np.where(np.isfinite(np.array(costs.hop_seconds)[pairs]), 0.0, np.inf)
    way_back = np.where(np.isfinite(np.array(costs.return_seconds)[devices]), 0.0, np.inf)
    chain = best_chain(solve_chains(ChainProblem(stage, hop, way_back, source, np.add)))
    return tuple((devices[index], start, stop) for index, start, stop in chain)


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
