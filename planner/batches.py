"""How slots form groups, and which grouping gives the highest rate.

    slots 6   6 groups of 1 row │ 3 of 2 │ 2 of 3 │ 1 of 6

The runtime steps a group's requests together, one row each (docs/adr/0011-groups-of-slots.md). More
groups overlap on more stages, larger ones share a pass over the weights: what a step of so many
rows takes is measured, so the planner tries every grouping that the profile knows the batch of.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from edgeshard.errors import PlanError
from edgeshard.planner.blocking import least_transfers
from edgeshard.planner.bottleneck import first_with_room, limits_of
from edgeshard.planner.cheapest import Effort
from edgeshard.planner.costs import CostTable
from edgeshard.planner.groups import DeviceTable, group
from edgeshard.planner.hosts import Span, hosts_of
from edgeshard.planner.partition import Partition, best_partition
from edgeshard.planner.relaxation import potentials
from edgeshard.planner.stages import Pace, pace_of

MOST_ROWS = 64
"""Requests that a step can carry."""


@dataclass(frozen=True, slots=True)
class Grouping:
    """Groups of slots, and rows of a full group's step."""

    groups: int
    rows: int


@dataclass(frozen=True, slots=True)
class Chosen:
    """The partition with the highest rate found.

    Attributes:
        seconds: between tokens, of all requests together.
        bound_seconds: no partition in any grouping is faster.
    """

    costs: CostTable
    partition: Partition
    grouping: Grouping
    seconds: float
    bound_seconds: float


def groupings(slots: int, rows: int | None) -> tuple[Grouping, ...]:
    """Every way to group the slots, the most groups first; the one of `rows` where it is given."""
    if rows is not None:
        return (Grouping(-(-slots // rows), rows),)
    numbers = {-(-slots // one): one for one in range(min(slots, MOST_ROWS), 0, -1)}
    return tuple(Grouping(groups, numbers[groups]) for groups in sorted(numbers, reverse=True))


class CostTables:
    """Cost tables by the rows of a step; made once each."""

    def __init__(self, make: Callable[[int], CostTable]) -> None:
        """Take what makes one; it raises `PlanError` where the source was not measured so."""
        self._make = make
        self._made: dict[int, CostTable | None] = {}

    def of(self, rows: int) -> CostTable | None:
        """The table, or None where the profile does not know such a batch."""
        if rows not in self._made:
            try:
                self._made[rows] = self._make(rows)
            except PlanError:
                self._made[rows] = None
        return self._made[rows]


def best_rate(
    tables: CostTables, slots: int, rows: int | None, effort: Effort | None = None
) -> Chosen:
    """The best partition over all groupings.

    Args:
        tables: what everything costs, by the rows of a step.
        slots: sequences that are held at once.
        rows: of a step, where they are given.
        effort: how long to look where it is hard, for each grouping.

    Raises:
        PlanError: nothing fits.
    """
    tried = []
    problems: list[PlanError] = []  # a batch may be known of providers that do not fit
    for grouping in groupings(slots, rows):
        costs = tables.of(grouping.rows)
        if costs is not None:
            try:
                table = least_transfers(hosts_of(costs, "throughput").table)
            except PlanError as problem:
                problems.append(problem)
                continue
            floor = floor_seconds(table, costs.entry_seconds, grouping, slots)
            tried.append((floor, grouping, costs))
    best: Chosen | None = None
    bound = np.inf
    for floor, grouping, costs in sorted(tried, key=lambda one: one[0]):
        if best is not None and floor >= best.seconds:
            break
        try:
            found = best_partition(costs, "throughput", effort, grouping.groups)
        except PlanError as problem:
            problems.append(problem)
            continue
        share = grouping.groups / slots
        bound = min(bound, found.bound_seconds * share)
        if best is None or found.seconds * share < best.seconds:
            best = Chosen(costs, found, grouping, found.seconds * share, 0.0)
    if best is None:
        raise problems[0]
    return replace(best, bound_seconds=min(bound, best.seconds))


def floor_seconds(
    table: DeviceTable, entry_seconds: float, grouping: Grouping, slots: int
) -> float:
    """Seconds between tokens that no chain is below: each way alone, and room in all."""
    problem, _ = group(table)
    way = entry_seconds + potentials(problem, np.zeros(problem.num_groups)).root(problem)
    limits = limits_of(table)
    place = first_with_room(table, limits)
    slowest = float(limits[place]) if place < len(limits) else np.inf
    return max(way, grouping.groups * slowest) / slots


def best_grouping(
    tables: CostTables, costs: CostTable, spans: tuple[Span, ...], slots: int, rows: int | None
) -> tuple[Grouping, Pace]:
    """The grouping that gives spans of one table the highest rate, and their pace then."""
    found = []
    for grouping in groupings(slots, rows):
        other = tables.of(grouping.rows)
        moved = None if other is None else _moved(costs, other, spans)
        if other is not None and moved is not None:
            found.append((grouping, pace_of(other, moved)))
    return min(found, key=lambda one: one[1].cycle_seconds(one[0].groups))


def _moved(costs: CostTable, other: CostTable, spans: tuple[Span, ...]) -> tuple[Span, ...] | None:
    """The same spans in another table; None where it lacks one of their devices or providers."""
    places = {device.name: index for index, device in enumerate(other.devices)}
    moved = []
    for span in spans:
        device = costs.devices[span.device]
        index = places.get(device.name)
        if index is None:
            return None
        names = [one.name for one in other.devices[index].providers]
        name = device.providers[span.provider].name
        if name not in names:
            return None
        moved.append(replace(span, device=index, provider=names.index(name)))
    return tuple(moved)
