"""Plans by name, to compare the best one with: the paper's algorithms and what it compares them to.

    algorithm-1            the paper's latency plan; may come back to a device
    algorithm-2            the paper's throughput plan
    edge-solo              everything on the source
    cloud-edge-even        half of the units on the source, half on the cloud device
    cloud-edge-opt         the best chain over these two
    cloud-edge-opt-relay   the best chain over these two and any one device between them
    edgeshard-even         the devices of the paper's plan for the objective, as many units each

The cloud is the device that computes fastest beside the source, unless it is named. All of them
work on the cost table that the exact planner works on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from edgeshard.errors import PlanError
from edgeshard.planner.algorithm1 import algorithm1
from edgeshard.planner.algorithm2 import algorithm2
from edgeshard.planner.costs import CostTable
from edgeshard.planner.hosts import Span
from edgeshard.planner.layers import fastest_provider
from edgeshard.planner.memory import missing_bytes, stage_memory
from edgeshard.planner.partition import best_partition
from edgeshard.planner.predict import bottleneck_seconds, latency_seconds, stage_seconds
from edgeshard.schemas.common import Objective

Method = Literal[
    "algorithm-1",
    "algorithm-2",
    "edge-solo",
    "cloud-edge-even",
    "cloud-edge-opt",
    "cloud-edge-opt-relay",
    "edgeshard-even",
]
Spans = tuple[Span, ...]


def baseline(
    costs: CostTable, method: Method, objective: Objective, cloud: int | None = None
) -> Spans:
    """Spans by a named method, in the order in which a token passes them.

    Args:
        costs: what everything costs.
        method: see the module.
        objective: what the methods that optimise make small; the two algorithms have their own.
        cloud: index of the cloud device; None: the one that computes fastest.

    Raises:
        PlanError: the method's plan does not fit, or it finds none.
    """
    match method:
        case "algorithm-1":
            return algorithm1(costs)
        case "algorithm-2":
            return algorithm2(costs)
        case "edge-solo":
            return _place(costs, method, [(costs.source, 0, costs.num_units)])
        case "cloud-edge-even":
            return _place(costs, method, _evenly(costs, [costs.source, _cloud(costs, cloud)]))
        case "cloud-edge-opt":
            return _best_over(costs, objective, [costs.source, _cloud(costs, cloud)])
        case "cloud-edge-opt-relay":
            return _relayed(costs, objective, _cloud(costs, cloud))
        case "edgeshard-even":
            paper = algorithm1 if objective == "latency" else algorithm2
            devices = list(dict.fromkeys(span.device for span in paper(costs)))
            return _place(costs, method, _evenly(costs, devices))


def only(costs: CostTable, devices: Sequence[int]) -> CostTable:
    """The cost table of some of its devices, the source among them, in the order given."""
    pairs = np.ix_(devices, devices)
    return dataclasses.replace(
        costs,
        source=devices.index(costs.source),
        devices=tuple(costs.devices[device] for device in devices),
        hop_seconds=costs.hop_seconds[pairs],
        hop_busy_seconds=costs.hop_busy_seconds[pairs],
        prefill_hop_seconds=costs.prefill_hop_seconds[pairs],
        return_seconds=costs.return_seconds[list(devices)],
    )


def _cloud(costs: CostTable, cloud: int | None) -> int:
    if cloud is not None:
        return cloud
    others = [device for device in range(len(costs.devices)) if device != costs.source]
    if not others:
        raise PlanError("a cloud method needs a device beside the source; add one to the profile")

    def seconds(device: int) -> float:
        place = costs.devices[device]
        return sum(place.providers[fastest_provider(place)].decode_seconds[1:])

    return min(others, key=seconds)


def _best_over(costs: CostTable, objective: Objective, devices: Sequence[int]) -> Spans:
    best = best_partition(only(costs, devices), objective)
    return tuple(dataclasses.replace(span, device=devices[span.device]) for span in best.spans)


def _relayed(costs: CostTable, objective: Objective, cloud: int) -> Spans:
    """The best of one chain for each device between; of equal ones, the first found."""
    found: list[Spans] = []
    problem: PlanError | None = None
    for relay in range(len(costs.devices)):
        if relay not in {costs.source, cloud}:
            try:
                found.append(_best_over(costs, objective, [costs.source, relay, cloud]))
            except PlanError as error:
                problem = error
    if problem is not None and not found:
        raise problem
    if not found:
        return _best_over(costs, objective, [costs.source, cloud])
    worth: Callable[[CostTable, Spans], float] = (
        latency_seconds if objective == "latency" else bottleneck_seconds
    )
    return min(found, key=lambda spans: (worth(costs, spans), latency_seconds(costs, spans)))


def _evenly(costs: CostTable, devices: Sequence[int]) -> list[tuple[int, int, int]]:
    """Equal numbers of units, the first devices taking one more where they do not divide."""
    size, more = divmod(costs.num_units, len(devices))
    cuts = [index * size + min(index, more) for index in range(len(devices) + 1)]
    return [(device, cuts[i], cuts[i + 1]) for i, device in enumerate(devices)]


def _place(costs: CostTable, method: str, stages: Sequence[tuple[int, int, int]]) -> Spans:
    """Give every stage its device's fastest provider that fits."""
    spans = []
    for device, start, stop in stages:
        place = costs.devices[device]
        options = [Span(device, p, start, stop) for p in range(len(place.providers))]
        lacks = {
            span: missing_bytes(stage_memory(costs, device, span.provider, start, stop))
            for span in options
        }
        fitting = [span for span in options if not lacks[span]]
        if not fitting:
            raise PlanError(
                f"{method} puts units [{start}, {stop}) on {place.name}, which lacks "
                f"{min(lacks.values())} bytes; plan without --method"
            )
        spans.append(min(fitting, key=lambda span: stage_seconds(costs, span)))
    return tuple(spans)
