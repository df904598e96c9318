"""Split the units over the devices: which devices, in which order, cut where, on which provider.

    latency      smallest sum of stages and hops, from the coordinator to the last stage and back
    throughput   shortest interval between steps of the groups of requests on their way: the slowest
                 stage or link (where transfers block: stage with its hops), or the sum over the
                 groups; of equal ones, a small sum

Over interval mappings: unit 0 on the source, contiguous stages, each device at most once; where it
is asked for, the head on the source as well, as a stage of its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from edgeshard.errors import PlanError
from edgeshard.planner.blocking import best_blocking, least_transfers
from edgeshard.planner.bottleneck import any_chain
from edgeshard.planner.chains import Costs, Link
from edgeshard.planner.cheapest import Effort, cheapest_chain
from edgeshard.planner.costs import CostTable
from edgeshard.planner.groups import DeviceTable, group, name_devices, name_groups
from edgeshard.planner.hosts import Hosts, Span, hosts_of
from edgeshard.planner.paced import best_paced
from edgeshard.planner.relaxation import potentials, through
from edgeshard.planner.shortage import shortage
from edgeshard.schemas.common import Objective


@dataclass(frozen=True, slots=True)
class Partition:
    """The best spans found, in the order of the chain.

    Attributes:
        seconds: the objective: time of a token, or the interval between steps of the groups.
        token_seconds: time of a token, whatever the objective.
        bound_seconds: no partition is better than this; equal to `seconds` where none is better.
        seconds_with: per device, no partition that uses it is better than this; infinity where
            there is none.
    """

    spans: tuple[Span, ...]
    seconds: float
    token_seconds: float
    bound_seconds: float
    seconds_with: tuple[float, ...]


def best_partition(
    costs: CostTable,
    objective: Objective,
    effort: Effort | None = None,
    groups: int | None = None,
) -> Partition:
    """Find the best partition, or a good one and how much better another could be at most.

    Args:
        costs: what everything costs.
        objective: what to make small.
        effort: how long to look where it is hard; None: some seconds at most for 100 devices.
        groups: for throughput, groups of requests that step through the chain, each by itself;
            None: as many as keep the slowest stage or link busy.

    Raises:
        PlanError: nothing fits in memory.
    """
    hosts = hosts_of(costs, objective)
    if objective == "latency":
        return _best_latency(costs, hosts, effort or Effort())
    return _best_throughput(costs, hosts, effort or Effort(), groups)


def _best_latency(costs: CostTable, hosts: Hosts, effort: Effort) -> Partition:
    problem, members = group(hosts.table)
    best = cheapest_chain(problem, effort)
    if best.chain is None and math.isfinite(best.bound):
        known = any_chain(hosts.table, effort)
        if known.chain is not None:
            best = cheapest_chain(problem, effort, name_groups(known.chain, members))
        elif not known.is_certain:
            raise _undecided(hosts)
    if best.chain is None:
        raise PlanError(shortage(costs))
    each = np.empty(len(hosts.devices))
    for devices, least in zip(members, through(problem, best.found), strict=True):
        each[list(devices)] = least
    entry = costs.entry_seconds
    chain = name_devices(best.chain, members)
    return _partition(costs, hosts, chain, entry + best.cost, entry + best.bound, entry + each)


def _best_throughput(
    costs: CostTable, hosts: Hosts, effort: Effort, groups: int | None
) -> Partition:
    find = best_blocking if hosts.table.is_blocking else best_paced
    best = find(hosts.table, costs.entry_seconds, groups, effort)
    if best.chain is None and math.isfinite(best.bound):
        raise _undecided(hosts)
    if best.chain is None:
        raise PlanError(shortage(costs))
    each = _least_intervals(hosts.table, costs.entry_seconds, groups)
    return _partition(costs, hosts, best.chain, best.seconds, best.bound, each)


def _least_intervals(table: DeviceTable, entry_seconds: float, groups: int | None) -> Costs:
    """Lower bound of the interval of a chain that uses a device, axes `[D]`."""
    table = least_transfers(table)
    problem, members = group(table)
    ways = through(problem, potentials(problem, np.zeros(problem.num_groups)))
    held = np.where(np.isfinite(table.stage), table.held, np.inf)
    least = held.min(axis=(1, 2))[table.class_of]
    apart = np.where(np.eye(len(table.busy), dtype=np.bool_), np.inf, table.busy)
    inward = np.where(np.arange(len(least)) == table.source, 0.0, apart.min(axis=0))
    back = np.where(np.isfinite(table.way_back), table.held_back, np.inf)
    onward = np.minimum(back, apart.min(axis=1))
    interval: Costs = np.maximum(least, np.maximum(inward, onward))
    for devices, way in zip(members, ways, strict=True):
        at_least = (entry_seconds + way) / groups if groups and np.isfinite(way) else 0.0
        interval[list(devices)] = np.maximum(interval[list(devices)], at_least)
        if np.isinf(way):
            interval[list(devices)] = np.inf
    return interval


def _partition(
    costs: CostTable,
    hosts: Hosts,
    chain: tuple[Link, ...],
    seconds: float,
    bound: float,
    each: Costs,
) -> Partition:
    """The partition that a chain over the hosts is."""
    seconds_with = np.full(len(costs.devices), math.inf)
    seconds_with[list(hosts.devices)] = np.maximum(each, bound)
    return Partition(
        spans=hosts.spans(chain),
        seconds=seconds,
        token_seconds=costs.entry_seconds + hosts.table.total(chain),
        bound_seconds=bound,
        seconds_with=tuple(seconds_with.tolist()),
    )


def _undecided(hosts: Hosts) -> PlanError:
    return PlanError(
        f"no plan over {len(hosts.devices)} devices was found, nor a proof that there is none; "
        "memory is tight: try a smaller context, fewer slots or int4 weights, or add devices"
    )
