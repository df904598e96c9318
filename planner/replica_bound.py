"""What no deal of devices to chains can do better: an upper bound of the tokens of all chains.

    chains    each no faster than the fastest chain from any source over all devices
    devices   weights w of the units, 1 in all. A chain of rate r does r tokens' worth of weights a
              second, so all chains together do no more than

                  sum over devices of  max over stages S it can host of  w(S) · rate(S)

The second holds for all weights; subgradient steps look for those with the least sum (they are the
prices of a linear program that shares out the devices' time).

Axes: C class of devices alike, D device; `[start, stop]` in units, N of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from edgeshard.errors import PlanError
from edgeshard.planner.batches import CostTables, Grouping, floor_seconds, groupings
from edgeshard.planner.blocking import least_transfers
from edgeshard.planner.chains import Costs, Indices
from edgeshard.planner.costs import CostTable
from edgeshard.planner.groups import DeviceTable, group
from edgeshard.planner.hands import can_start, hand_of
from edgeshard.planner.hosts import Hosts, hosts_of

NUM_STEPS = 300
"""Steps of the weights."""


@dataclass(frozen=True, slots=True)
class ReplicaBound:
    """Tokens per second that are out of reach.

    Attributes:
        own: of a chain from the plan's source.
        other: of a chain from any other device; 0 where none can be a source.
        devices: of all chains together, however many.
    """

    own: float
    other: float
    devices: float

    def of(self, num_chains: int) -> float:
        """No deal to so many chains does more."""
        return min(self.own + (num_chains - 1) * self.other, self.devices)


def replica_bound(tables: CostTables, slots: int, rows: int | None) -> ReplicaBound:
    """Bound chains that each have `slots`, by the groupings that the profile knows."""
    own = other = 0.0
    rates: list[Costs] = []
    devices: list[str] = []
    for grouping in groupings(slots, rows):
        costs = tables.of(grouping.rows)
        if costs is None:
            continue
        if not devices:
            devices = [device.name for device in costs.devices]
        try:
            rates.append(_rates(costs, devices, grouping.rows))
        except PlanError:  # a batch may be known of providers that do not fit
            continue
        for index, hosts in _sources(costs):
            rate = _fastest(hosts, costs, index, grouping, slots)
            if index == costs.source:
                own = max(own, rate)
            else:
                other = max(other, rate)
    stages = np.minimum(np.max(rates, axis=0), max(own, other))
    return ReplicaBound(own, other, _least_sum(stages))


def _sources(costs: CostTable) -> Iterable[tuple[int, Hosts]]:
    """The plan's source, and one of each group of devices alike that can be one."""
    _, members = group(_links(costs))
    for index in dict.fromkeys((costs.source, *(devices[0] for devices in members))):
        hosts = _hosts_from(costs, index)
        if hosts is not None:
            yield index, hosts


def _links(costs: CostTable) -> DeviceTable:
    """Devices told apart by what they are and their links, not by what they can host."""
    kinds: dict[object, int] = {}
    kind_of = [kinds.setdefault(replace(device, name=""), len(kinds)) for device in costs.devices]
    nothing = np.zeros((len(kinds), 2, 2))
    hop = costs.hop_seconds
    return DeviceTable(nothing, np.array(kind_of), hop, hop, costs.return_seconds, costs.source)


def _hosts_from(costs: CostTable, index: int) -> Hosts | None:
    """Who could host what if the device were the source; None where it cannot be."""
    if not can_start(costs.devices[index]):
        return None
    others = [device for device in range(len(costs.devices)) if device != index]
    try:
        return hosts_of(hand_of(costs, [index, *others]), "throughput")
    except PlanError:
        return None


def _fastest(hosts: Hosts, costs: CostTable, index: int, grouping: Grouping, slots: int) -> float:
    """Tokens per second of no more than the fastest chain from a source."""
    entry = costs.devices[index].loopback_seconds
    seconds = floor_seconds(least_transfers(hosts.table), entry, grouping, slots)
    return 1.0 / seconds if seconds > 0 else np.inf


def _rates(costs: CostTable, names: Sequence[str], rows: int) -> Costs:
    """Tokens per second of each device with each stage, 0 where it cannot; `[D, start, stop]`.

    Devices are those named; each may be a source or not. Hops are left out.
    """
    num_places = costs.num_units - costs.workload.head_at_source + 1
    rates = np.zeros((len(names), num_places, num_places))
    places = {name: place for place, name in enumerate(names)}
    kinds: dict[object, Costs] = {}
    for index, device in enumerate(costs.devices):
        kind = replace(device, name="", loopback_seconds=0.0)
        if kind not in kinds:
            hosts = _hosts_from(costs, index)
            kinds[kind] = (
                np.zeros(rates.shape[1:]) if hosts is None else _stage_rates(hosts, 0, rows)
            )
        rates[places[device.name]] = kinds[kind]
    behind = hosts_of(costs, "throughput")
    for host, index in enumerate(behind.devices):
        if index != costs.source:
            place = places[costs.devices[index].name]
            rates[place] = np.maximum(rates[place], _stage_rates(behind, host, rows))
    return rates


def _stage_rates(hosts: Hosts, host: int, rows: int) -> Costs:
    stage = hosts.table.stage[hosts.table.class_of[host]]
    rate: Costs = rows / np.maximum(stage, 1e-12)
    return rate


def _least_sum(stages: Costs) -> float:
    """The least sum over devices that weights of the units are found for."""
    kinds, counts = np.unique(stages, axis=0, return_counts=True)
    num_units = kinds.shape[1] - 1
    weights = np.full(num_units, 1.0 / num_units)
    best = np.inf
    for step in range(1, NUM_STEPS + 1):
        total, slope = _sum_and_slope(kinds, counts, weights)
        best = min(best, total)
        if not total > 0:
            break
        weights = weights * np.exp(-2.0 / np.sqrt(step) * slope / slope.max())
        weights /= weights.sum()
    return float(best)


def _sum_and_slope(kinds: Costs, counts: Indices, weights: Costs) -> tuple[float, Costs]:
    """The devices' sum for weights, and how much more of each unit's weight adds."""
    sums = np.concatenate([np.zeros(1), np.cumsum(weights)])
    worth = (kinds * np.maximum(sums[None, :] - sums[:, None], 0.0)).reshape(len(kinds), -1)
    places = worth.argmax(axis=1)
    starts, stops = np.divmod(places, kinds.shape[2])
    rates = kinds[np.arange(len(kinds)), starts, stops] * counts
    change = np.zeros(len(weights) + 1)
    np.add.at(change, starts, rates)
    np.subtract.at(change, stops, rates)
    total = float(worth[np.arange(len(kinds)), places] @ counts)
    return total, np.cumsum(change)[:-1]
