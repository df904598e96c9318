"""Who can host which stage, and what it costs there: the table that the solvers work on.

    a stage's provider   the fastest one that fits: nothing outside the stage depends on it
    head at the source   the source runs [0, a) and the head, a stage of its own, or everything

With the head at the source the chain that is looked for ends before the head: its way back is the
hop to the head, and what the source does for a token is one figure, however it is cut.

Axes: C class of equal stages, D device; `[start, stop]` in units of the chain that is looked for.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np

from edgeshard.errors import PlanError
from edgeshard.planner.chains import Costs, Indices, Link
from edgeshard.planner.costs import CostTable, DeviceCosts
from edgeshard.planner.groups import DeviceTable
from edgeshard.planner.memory import held_table, missing_table
from edgeshard.planner.shortage import shortage
from edgeshard.schemas.common import Objective


@dataclass(frozen=True, slots=True)
class Span:
    """Units `[start, stop)` on a device with a provider, both by their index in the cost table."""

    device: int
    provider: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True, eq=False)
class Hosts:
    """The devices that can host a unit, by their indices, and what stages and links cost there.

    Attributes:
        num_units: of the model; the table has one fewer where the head is at the source.
        provider: `[C, start, stop]`, of each stage.
        head_provider: `[stop]`, of the head where the source's first stage ends; None: no pin.
    """

    devices: tuple[int, ...]
    table: DeviceTable
    num_units: int
    provider: Indices
    head_provider: Indices | None = None

    def spans(self, chain: tuple[Link, ...]) -> tuple[Span, ...]:
        """The spans that a chain over the hosts is."""
        kinds = self.table.class_of
        spans = [
            Span(self.devices[host], int(self.provider[kinds[host], i, j]), i, j)
            for host, i, j in chain
        ]
        if self.head_provider is None:
            return tuple(spans)
        if len(spans) == 1:
            return (replace(spans[0], stop=self.num_units),)
        head = int(self.head_provider[spans[0].stop])
        return (*spans, Span(spans[0].device, head, self.num_units - 1, self.num_units))


def hosts_of(costs: CostTable, objective: Objective) -> Hosts:
    """Stages of equal devices are computed once; who can host nothing is left out.

    Raises:
        PlanError: the source cannot hold what it has to.
    """
    kinds: dict[tuple[DeviceCosts, bool], int] = {}
    kind_of = [
        kinds.setdefault((_kind(device), index == costs.source), len(kinds))
        for index, device in enumerate(costs.devices)
    ]
    first = [kind_of.index(kind) for kind in range(len(kinds))]
    stages, providers = map(list, zip(*(_stages(costs, d, objective) for d in first), strict=True))
    head_provider = None
    if costs.workload.head_at_source:
        place = first.index(costs.source)
        stages = [stage[:-1, :-1] for stage in stages]
        providers = [provider[:-1, :-1].copy() for provider in providers]
        stages[place], providers[place][0], head_provider = _with_head(costs, objective)
    can_host = [bool(np.isfinite(stage).any()) for stage in stages]
    if not can_host[kind_of[costs.source]]:
        raise PlanError(shortage(costs))
    devices = [device for device, kind in enumerate(kind_of) if can_host[kind]]
    class_of = np.array([kind_of[device] for device in devices], np.intp)
    table = _table(costs, objective, devices, np.stack(stages), class_of)
    return Hosts(tuple(devices), table, costs.num_units, np.stack(providers), head_provider)


def _table(
    costs: CostTable, objective: Objective, devices: list[int], stage: Costs, class_of: Indices
) -> DeviceTable:
    pairs = np.ix_(devices, devices)
    hop = costs.mean(costs.hop_seconds, costs.prefill_hop_seconds, objective)
    busy = costs.busy_seconds(objective)
    way_back, busy_back = costs.return_seconds[devices], None
    if costs.workload.head_at_source:
        home = costs.return_seconds[costs.source]
        is_source = np.array(devices) == costs.source
        way_back = np.where(is_source, home, hop[devices, costs.source] + home)
        busy_back = np.where(is_source, 0.0, busy[devices, costs.source])
    return DeviceTable(
        stage=stage,
        class_of=class_of,
        hop=hop[pairs],
        busy=busy[pairs],
        way_back=way_back,
        source=devices.index(costs.source),
        busy_back=busy_back,
        is_blocking=costs.workload.transfers == "blocking",
    )


def _kind(device: DeviceCosts) -> DeviceCosts:
    """Equal for devices whose stages cost the same."""
    return replace(device, name="", loopback_seconds=0.0)


def _stages(costs: CostTable, device: int, objective: Objective) -> tuple[Costs, Indices]:
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
                _compute_seconds(costs, place, index, objective),
                np.inf,
            )
            for index in range(len(place.providers))
        ]
    )
    fastest = by_provider.argmin(axis=0)
    return by_provider.min(axis=0), fastest


def _with_head(costs: CostTable, objective: Objective) -> tuple[Costs, Indices, Indices]:
    """The source's stages with the head at the source.

    Returns:
        Seconds `[start, stop]` of the first stage and the head, the whole model at the last stop;
        the first stage's provider and the head's, `[stop]`.
    """
    place, num_units = costs.devices[costs.source], costs.num_units
    indices = range(len(place.providers))
    held = [held_table(costs, costs.source, index) for index in indices]
    seconds = [_compute_seconds(costs, place, index, objective) for index in indices]
    stage = np.full((num_units, num_units), np.inf)
    first = np.zeros(num_units, np.intp)
    head = np.zeros(num_units, np.intp)
    stops = np.arange(1, num_units - 1)
    for one, other in itertools.product(indices, indices):
        total = seconds[one][0, stops] + seconds[other][-2, -1]
        fits = held[one][0, stops] + held[other][-2, -1] <= place.limit_bytes
        better = stops[fits & (total < stage[0, stops])]
        stage[0, better] = total[better - 1]
        first[better], head[better] = one, other
    for one in indices:
        if held[one][0, -1] <= place.limit_bytes and seconds[one][0, -1] < stage[0, -1]:
            stage[0, -1], first[-1] = seconds[one][0, -1], one
    return stage, first, head


def _compute_seconds(
    costs: CostTable, place: DeviceCosts, provider: int, objective: Objective
) -> Costs:
    """Seconds of every interval; those of an unmeasured first unit are never allowed."""
    units = place.providers[provider]
    decode, prefill = np.array(units.decode_seconds), np.array(units.prefill_seconds)
    seconds = costs.mean(decode, prefill, objective)
    sums = np.concatenate([np.zeros(1), np.cumsum(np.where(np.isfinite(seconds), seconds, 0.0))])
    differences: Costs = sums[None, :] - sums[:, None]
    return place.step_overhead_seconds + differences
