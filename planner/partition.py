"""Split the units over the devices: which devices, in which order, cut where, on which provider.

    latency      smallest sum of stages and hops, from the coordinator to the last stage and back
    throughput   smallest bottleneck: the slowest stage, or the longest that a frame keeps a link
                 busy; of equal ones, the smallest sum

Exact over interval mappings: unit 0 on the source, contiguous stages, each device at most once. The
provider of a stage is the fastest one that fits, as nothing outside the stage depends on it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgeshard.errors import PlanError
from edgeshard.planner.chains import (
    MAX_DEVICES,
    ChainProblem,
    ChainTable,
    Costs,
    best_chain,
    chain_cost,
    solve_chains,
)
from edgeshard.planner.costs import CostTable, DeviceCosts
from edgeshard.planner.memory import missing_table
from edgeshard.planner.shortage import shortage
from edgeshard.schemas.common import Objective

TIE = 1e-9
"""Bottlenecks that differ by less, relatively, differ by rounding only."""


@dataclass(frozen=True, slots=True)
class Span:
    """Units `[start, stop)` on a device with a provider, both by their index in the cost table."""

    device: int
    provider: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Partition:
    """The best spans in the order of the chain.

    Attributes:
        seconds: the objective: time of a token, or of its slowest stage or link.
        seconds_with: per device, the objective of the best partition that uses it; infinity where
            there is none.
    """

    spans: tuple[Span, ...]
    seconds: float
    seconds_with: tuple[float, ...]


@dataclass(frozen=True, slots=True, eq=False)
class _Hosts:
    """The devices that can host a unit, by their indices, and their costs as arrays."""

    devices: tuple[int, ...]
    source: int
    stage: Costs
    provider: npt.NDArray[np.intp]
    hop: Costs
    busy: Costs
    way_back: Costs


def best_partition(costs: CostTable, objective: Objective) -> Partition:
    """Find the best partition.

    Args:
        costs: what everything costs.
        objective: what to make small.

    Raises:
        PlanError: nothing fits in memory, or too many devices could host a unit.
    """
    hosts = _hosts(costs)
    if objective == "latency":
        table = decisive = _solve_latency(hosts, math.inf)
        entry = costs.entry_seconds
    else:
        decisive = _solve_bottleneck(hosts)
        table = _solve_latency(hosts, chain_cost(decisive) * (1 + TIE))
        entry = 0.0
    if math.isinf(chain_cost(table)):
        raise PlanError(shortage(costs))
    seconds_with = [math.inf] * len(costs.devices)
    for index, device in enumerate(hosts.devices):
        seconds_with[device] = entry + chain_cost(decisive, index)
    return Partition(
        spans=tuple(
            Span(hosts.devices[index], int(hosts.provider[index, start, stop]), start, stop)
            for index, start, stop in best_chain(table)
        ),
        seconds=entry + chain_cost(decisive),
        seconds_with=tuple(seconds_with),
    )


def _solve_latency(hosts: _Hosts, limit_seconds: float) -> ChainTable:
    """Smallest sums over chains whose stages and links all stay within the limit."""
    stage = np.where(hosts.stage <= limit_seconds, hosts.stage, np.inf)
    hop = np.where(hosts.busy <= limit_seconds, hosts.hop, np.inf)
    return solve_chains(ChainProblem(stage, hop, hosts.way_back, hosts.source, np.add))


def _solve_bottleneck(hosts: _Hosts) -> ChainTable:
    """Smallest maxima. A token on its way back keeps no link busy."""
    way_back = np.where(np.isfinite(hosts.way_back), 0.0, np.inf)
    return solve_chains(ChainProblem(hosts.stage, hosts.busy, way_back, hosts.source, np.maximum))


def _hosts(costs: CostTable) -> _Hosts:
    stages, providers = zip(
        *(_stages(costs, device) for device in range(len(costs.devices))), strict=True
    )
    devices = [device for device, stage in enumerate(stages) if np.isfinite(stage).any()]
    if costs.source not in devices:
        raise PlanError(shortage(costs))
    if len(devices) > MAX_DEVICES:
        raise PlanError(
            f"{len(devices)} devices could host a part of the model, at most {MAX_DEVICES} can be "
            "planned over; profile fewer devices"
        )
    pairs = np.ix_(devices, devices)
    return _Hosts(
        devices=tuple(devices),
        source=devices.index(costs.source),
        stage=np.stack([stages[device] for device in devices]),
        provider=np.stack([providers[device] for device in devices]),
        hop=np.array(costs.hop_seconds)[pairs],
        busy=np.array(costs.hop_busy_seconds)[pairs],
        way_back=np.array(costs.return_seconds)[devices],
    )


def _stages(costs: CostTable, device: int) -> tuple[Costs, npt.NDArray[np.intp]]:
    """Seconds of every interval on its fastest provider that fits, and that provider."""
    place = costs.devices[device]
    num_places = costs.num_units + 1
    allowed = np.triu(np.ones((num_places, num_places), np.bool_), 1)
    allowed[1:] &= device != costs.source
    allowed[0] &= device == costs.source
    by_provider = np.stack(
        [
            np.where(
                allowed & (missing_table(costs, device, index) == 0),
                _compute_seconds(place, index),
                np.inf,
            )
            for index in range(len(place.providers))
        ]
    )
    fastest = by_provider.argmin(axis=0)
    return by_provider.min(axis=0), fastest


def _compute_seconds(place: DeviceCosts, provider: int) -> Costs:
    """Decode seconds of every interval; those of an unmeasured first unit are never allowed."""
    seconds = np.array(place.providers[provider].decode_seconds)
    sums = np.concatenate([np.zeros(1), np.cumsum(np.where(np.isfinite(seconds), seconds, 0.0))])
    differences: Costs = sums[None, :] - sums[:, None]
    return place.step_overhead_seconds + differences
