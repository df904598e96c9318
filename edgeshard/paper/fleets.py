"""Random fleets: how often, and by how much, each baseline is worse than the exact planner.

A fleet is drawn from its number alone: 3 to 7 devices; speed, memory and links each over about two
orders of magnitude, evenly in their logarithm; a model of 34 units with the trace's sizes.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from statistics import median

import numpy as np

from edgeshard.errors import PlanError
from edgeshard.paper.testbed import GIB, TRACED, unit_bytes, unit_names, unit_seconds
from edgeshard.planner.baselines import Method, baseline
from edgeshard.planner.costs import CostTable, DeviceCosts
from edgeshard.planner.partition import best_partition
from edgeshard.planner.predict import bottleneck_seconds, latency_seconds
from edgeshard.planner.units import ModelCosts, ProviderCosts, Workload
from edgeshard.schemas.common import Objective

SIZES = (3, 4, 5, 6, 7)
ACTIVATION_BYTES = 16384
WORSE = 1 + 1e-6
COMPARED: dict[Objective, tuple[Method, ...]] = {
    "latency": (
        "edge-solo",
        "cloud-edge-even",
        "cloud-edge-opt",
        "cloud-edge-opt-relay",
        "edgeshard-even",
        "algorithm-1",
    ),
    "throughput": (
        "edge-solo",
        "cloud-edge-even",
        "cloud-edge-opt",
        "cloud-edge-opt-relay",
        "edgeshard-even",
        "algorithm-2",
    ),
}


@dataclass(frozen=True)
class Compared:
    """A baseline's objective by the exact one on a fleet; infinity where it finds no plan."""

    fleet: int
    objective: Objective
    method: Method
    ratio: float


@dataclass(frozen=True)
class Summary:
    """A baseline over many fleets that the exact planner has a plan for.

    Attributes:
        num_without: fleets for which the baseline finds no plan.
        num_worse, num_better: by more than rounding; better is possible only for Algorithm 1, which
            may come back to a device.
        median_ratio, ninth_ratio, worst_ratio: of the fleets for which it finds one.
    """

    objective: Objective
    method: Method
    num_fleets: int
    num_without: int
    num_worse: int
    num_better: int
    median_ratio: float
    ninth_ratio: float
    worst_ratio: float


def fleet(number: int) -> CostTable:
    """The fleet of a number; device 0 is the source."""
    draw = random.Random(number)

    def spread(low: float, high: float) -> float:
        return math.exp(draw.uniform(math.log(low), math.log(high)))

    size = range(draw.choice(SIZES))
    names = unit_names(TRACED)
    weights = unit_bytes(TRACED)
    devices = []
    for index in size:
        seconds = unit_seconds(TRACED, "agx-orin", spread(0.1, 10.0))
        devices.append(
            DeviceCosts(
                name=f"device-{index}",
                step_overhead_seconds=spread(1e-5, 1e-3),
                loopback_seconds=0.0,
                baseline_bytes=0,
                workspace_bytes=0,
                limit_bytes=int(spread(2.0, 60.0) * GIB),
                providers=(ProviderCosts("drawn", seconds, seconds, weights),),
            )
        )
    elsewhere = 1.0 - np.eye(len(size))
    latency = elsewhere * [[spread(1e-4, 1e-2) for _ in size] for _ in size]
    busy = elsewhere * [[8 * ACTIVATION_BYTES / spread(1e6, 1e9) for _ in size] for _ in size]
    hop = latency + busy
    return CostTable(
        source=0,
        workload=Workload(context=128, slots=1, prompt_tokens=1, decode_context=0),
        unit_names=names,
        models=(ModelCosts("fp32", (0,) * len(names), ()),),
        devices=tuple(devices),
        hop_seconds=hop,
        hop_busy_seconds=busy,
        prefill_hop_seconds=hop,
        return_seconds=latency[:, 0],
        left_out=(),
    )


def compare(number: int) -> Iterator[Compared]:
    """Every baseline on a fleet; nothing where the model does not fit it."""
    costs = fleet(number)
    for objective, methods in COMPARED.items():
        worth = latency_seconds if objective == "latency" else bottleneck_seconds
        try:
            best = worth(costs, best_partition(costs, objective).spans)
        except PlanError:
            return
        for method in methods:
            try:
                ratio = worth(costs, baseline(costs, method, objective)) / best
            except PlanError:
                ratio = math.inf
            yield Compared(number, objective, method, ratio)


def summarise(compared: Iterable[Compared]) -> tuple[Summary, ...]:
    """A line for each objective and baseline."""
    groups: dict[tuple[Objective, Method], list[float]] = {}
    for one in compared:
        groups.setdefault((one.objective, one.method), []).append(one.ratio)
    lines = []
    for (objective, method), ratios in groups.items():
        found = sorted(ratio for ratio in ratios if math.isfinite(ratio))
        lines.append(
            Summary(
                objective=objective,
                method=method,
                num_fleets=len(ratios),
                num_without=len(ratios) - len(found),
                num_worse=sum(ratio > WORSE for ratio in found),
                num_better=sum(ratio < 1 / WORSE for ratio in found),
                median_ratio=median(found) if found else math.nan,
                ninth_ratio=found[math.ceil(0.9 * len(found)) - 1] if found else math.nan,
                worst_ratio=found[-1] if found else math.nan,
            )
        )
    return tuple(lines)


def summary_markdown(lines: Iterable[Summary]) -> str:
    """The summary as a table; ratios are to the exact planner's objective, 1 is as good."""
    head = "objective | method | fleets | no plan | worse | better | median | 9 of 10 below | worst"
    rows = [f"| {head} |", "|---|---|" + "--:|" * 7]
    for one in lines:
        ratios = (one.median_ratio, one.ninth_ratio, one.worst_ratio)
        counts = (one.num_fleets, one.num_without, one.num_worse, one.num_better)
        cells = [one.objective, one.method, *map(str, counts), *(f"{r:.3f}" for r in ratios)]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"
