"""Split the units over the devices: which devices, in which order, cut where, on which provider.

    latency      smallest sum of stages and hops, from the coordinator to the last stage and back
    throughput   smallest bottleneck: the slowest stage, or the longest that a frame keeps a link
                 busy; of equal ones, a small sum

Over interval mappings: unit 0 on the source, contiguous stages, each device at most once. The
provider of a stage is the fastest one that fits, as nothing outside the stage depends on it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from edgeshard.errors import PlanError
from edgeshard.planner.bottleneck import any_chain, smallest_bottleneck
from edgeshard.planner.chains import Costs, Link
from edgeshard.planner.cheapest import EXACT, Effort, cheapest_chain
from edgeshard.planner.costs import CostTable, DeviceCosts
from edgeshard.planner.groups import DeviceTable, group, name_devices, name_groups
from edgeshard.planner.memory import missing_table
from edgeshard.planner.relaxation import potentials, through
from edgeshard.planner.shortage import shortage
from edgeshard.schemas.common import Objective

TIE_EFFORT = Effort(num_values=2e7, num_rounds=1)
"""What is spent on the sum where the bottleneck decides."""


@dataclass(frozen=True, slots=True)
class Span:
    """Units `[start, stop)` on a device with a provider, both by their index in the cost table."""

    device: int
    provider: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Partition:
    """The best spans found, in the order of the chain.

    Attributes:
        seconds: the objective: time of a token, or of its slowest stage or link.
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


@dataclass(frozen=True, slots=True, eq=False)
class Hosts:
    """The devices that can host a unit, by their indices, and what stages and links cost there."""

    devices: tuple[int, ...]
    table: DeviceTable
    provider: npt.NDArray[np.intp]

    def spans(self, chain: tuple[Link, ...]) -> tuple[Span, ...]:
        """The spans that a chain over the hosts is."""
        kinds = self.table.class_of
        return tuple(
            Span(self.devices[host], int(self.provider[kinds[host], i, j]), i, j)
            for host, i, j in chain
        )

    def partition(
        self, costs: CostTable, chain: tuple[Link, ...], seconds: float, bound: float, each: Costs
    ) -> Partition:
        """The partition that a chain over the hosts is."""
        seconds_with = np.full(len(costs.devices), math.inf)
        seconds_with[list(self.devices)] = np.maximum(each, bound)
        return Partition(
            spans=self.spans(chain),
            seconds=seconds,
            token_seconds=costs.entry_seconds + self.table.total(chain),
            bound_seconds=bound,
            seconds_with=tuple(seconds_with.tolist()),
        )


def best_partition(
    costs: CostTable, objective: Objective, effort: Effort | None = None
) -> Partition:
    """Find the best partition, or a good one and how much better another could be at most.

    Args:
        costs: what everything costs.
        objective: what to make small.
        effort: how long to look where it is hard; None: some seconds at most for 100 devices.

    Raises:
        PlanError: nothing fits in memory.
    """
    hosts = hosts_of(costs)
    solve = _best_latency if objective == "latency" else _best_throughput
    return solve(costs, hosts, effort or Effort())


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
    return hosts.partition(costs, chain, entry + best.cost, entry + best.bound, entry + each)


def _best_throughput(costs: CostTable, hosts: Hosts, effort: Effort) -> Partition:
    best = smallest_bottleneck(hosts.table, effort)
    if best.chain is None and math.isfinite(best.bound):
        raise _undecided(hosts)
    if best.chain is None:
        raise PlanError(shortage(costs))
    problem, members = group(hosts.table.within(best.seconds * (1 + EXACT)))
    known = name_groups(best.chain, members)
    chain = cheapest_chain(problem, TIE_EFFORT, known).chain or known
    each = _least_bottlenecks(hosts.table)
    return hosts.partition(costs, name_devices(chain, members), best.seconds, best.bound, each)


def _least_bottlenecks(table: DeviceTable) -> Costs:
    """Lower bound of the bottleneck of a chain that uses a device, axes `[D]`."""
    problem, members = group(table)
    reached = np.isfinite(through(problem, potentials(problem, np.zeros(problem.num_groups))))
    least = table.stage.min(axis=(1, 2))[table.class_of]
    apart = np.where(np.eye(len(table.busy), dtype=np.bool_), np.inf, table.busy)
    inward = np.where(np.arange(len(least)) == table.source, 0.0, apart.min(axis=0))
    onward = np.where(np.isfinite(table.way_back), 0.0, apart.min(axis=1))
    bottleneck: Costs = np.maximum(least, np.maximum(inward, onward))
    for devices, is_reached in zip(members, reached, strict=True):
        if not is_reached:
            bottleneck[list(devices)] = np.inf
    return bottleneck


def hosts_of(costs: CostTable) -> Hosts:
    """Stages of equal devices are computed once; who can host nothing is left out."""
    kinds: dict[tuple[DeviceCosts, bool], int] = {}
    kind_of = [
        kinds.setdefault((_kind(device), index == costs.source), len(kinds))
        for index, device in enumerate(costs.devices)
    ]
    first = [kind_of.index(kind) for kind in range(len(kinds))]
    stages, providers = zip(*(_stages(costs, device) for device in first), strict=True)
    can_host = [bool(np.isfinite(stage).any()) for stage in stages]
    if not can_host[kind_of[costs.source]]:
        raise PlanError(shortage(costs))
    devices = [device for device, kind in enumerate(kind_of) if can_host[kind]]
    pairs = np.ix_(devices, devices)
    table = DeviceTable(
        stage=np.stack(stages),
        class_of=np.array([kind_of[device] for device in devices], np.intp),
        hop=costs.mean(costs.hop_seconds, costs.prefill_hop_seconds)[pairs],
        busy=costs.busy_seconds[pairs],
        way_back=costs.return_seconds[devices],
        source=devices.index(costs.source),
    )
    return Hosts(tuple(devices), table, np.stack(providers))


def _kind(device: DeviceCosts) -> DeviceCosts:
    """Equal for devices whose stages cost the same."""
    return replace(device, name="", loopback_seconds=0.0)


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
                _compute_seconds(costs, place, index),
                np.inf,
            )
            for index in range(len(place.providers))
        ]
    )
    fastest = by_provider.argmin(axis=0)
    return by_provider.min(axis=0), fastest


def _compute_seconds(costs: CostTable, place: DeviceCosts, provider: int) -> Costs:
    """Seconds of every interval; those of an unmeasured first unit are never allowed."""
    units = place.providers[provider]
    seconds = costs.mean(np.array(units.decode_seconds), np.array(units.prefill_seconds))
    sums = np.concatenate([np.zeros(1), np.cumsum(np.where(np.isfinite(seconds), seconds, 0.0))])
    differences: Costs = sums[None, :] - sums[:, None]
    return place.step_overhead_seconds + differences


def _undecided(hosts: Hosts) -> PlanError:
    return PlanError(
        f"no plan over {len(hosts.devices)} devices was found, nor a proof that there is none; "
        "memory is tight: try a smaller context, fewer slots or int4 weights, or add devices"
    )
