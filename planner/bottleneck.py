"""The smallest bottleneck: the least threshold that some chain keeps on every stage and link.

    candidates   every cost that a stage or a link can have, in order
    threshold    forbids what is slower; what is left to find is a chain at all, at no cost
    room         a device carries at most so many units at a threshold: too few in all is a proof

For each threshold the answer is yes (a chain), no (all was looked at, or prices prove that the
devices do not suffice) or unknown. Between the largest no and the smallest yes lies the gap. At a
threshold only what is allowed matters, so devices that differ a little become equal.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgeshard.planner.ascent import Ascent
from edgeshard.planner.chains import Costs, Counts, Link, Mask
from edgeshard.planner.cheapest import NARROW, Effort
from edgeshard.planner.frontier import search
from edgeshard.planner.groups import DeviceTable, group, name_devices
from edgeshard.planner.relaxation import potentials

NOTHING = 1e-9
"""A bound above this, of chains that cost nothing, is no rounding."""
AIM = 0.5
"""What the prices aim at, in units of the model; all below 0 is possible, all above 0 is proof."""


@dataclass(frozen=True, slots=True)
class Bottleneck:
    """The smallest bottleneck found, of a chain over devices, and its lower bound.

    Attributes:
        chain: None where none was found.
        seconds: infinity where none was found.
        bound: infinity where it is certain that there is none.
    """

    chain: tuple[Link, ...] | None
    seconds: float
    bound: float


@dataclass(frozen=True, slots=True)
class Answer:
    """Whether a chain exists: here it is, or certainly not, or unknown."""

    chain: tuple[Link, ...] | None
    is_certain: bool


def smallest_bottleneck(table: DeviceTable, effort: Effort) -> Bottleneck:
    """Find the smallest maximum over the stages and links of a chain."""
    thresholds = _Thresholds(table, effort)
    thresholds.gallop()
    thresholds.lower_the_yes()
    thresholds.raise_the_no()
    values, low, high = thresholds.values, thresholds.low, thresholds.high
    return Bottleneck(
        chain=thresholds.chain,
        seconds=float(values[high]) if thresholds.chain is not None else np.inf,
        bound=float(values[low]) if low < len(values) else np.inf,
    )


def limits_of(table: DeviceTable) -> Costs:
    """What a slowest stage or link can take, in order."""
    linked = np.isfinite(table.hop) & ~np.eye(len(table.hop), dtype=np.bool_)
    back = table.held_back[np.isfinite(table.way_back)]
    costs = [table.held[np.isfinite(table.stage)], table.busy[linked], back]
    values: Costs = np.unique(np.concatenate(costs))
    return values


class _Thresholds:
    """Candidates in order: below `low` certainly no, from `high` on yes, unknown between."""

    def __init__(self, table: DeviceTable, effort: Effort) -> None:
        self._table, self._effort = table, effort
        self._asked: set[int] = set()
        self.values = limits_of(table)
        self.low, self.high = first_with_room(table, self.values), len(self.values)
        self.chain: tuple[Link, ...] | None = None

    def gallop(self) -> None:
        """Look upwards in growing steps for a first yes."""
        place, stride = self.low, 1
        while place < len(self.values):
            if self._ask(place):
                return
            at_end = place == len(self.values) - 1
            place, stride = min(place + stride, len(self.values) - 1), 2 * stride
            if at_end:
                return

    def lower_the_yes(self) -> None:
        """Halve what lies below the yes; unknown counts as no."""
        low = self.low
        while low < self.high and self.chain is not None:
            middle = (low + self.high) // 2
            if not self._ask(middle):
                low = middle + 1

    def raise_the_no(self) -> None:
        """Halve what lies above the no; unknown counts as yes."""
        high = self.high
        while self.low < high:
            middle = (self.low + high) // 2
            self._ask(middle)
            if self.low <= middle:
                high = middle

    def _ask(self, place: int) -> bool:
        if place >= self.high or place in self._asked:
            return place >= self.high
        self._asked.add(place)
        answer = any_chain(self._table.within(float(self.values[place])), self._effort)
        if answer.chain is not None and place < self.high:
            slowest = self._table.slowest(answer.chain)
            self.chain, self.high = answer.chain, int(np.searchsorted(self.values, slowest))
        elif answer.is_certain and answer.chain is None:
            self.low = max(self.low, place + 1)
        return answer.chain is not None


def first_with_room(table: DeviceTable, limits: Costs) -> int:
    """The place of the first limit at which the devices could hold all units, links aside."""
    sizes = np.bincount(table.class_of, minlength=len(table.stage))
    low, high = 0, len(limits)
    while low < high:
        middle = (low + high) // 2
        allowed = np.isfinite(table.stage) & (table.held <= limits[middle])
        if _longest(allowed) @ sizes >= table.stage.shape[1] - 1:
            high = middle
        else:
            low = middle + 1
    return low


def any_chain(table: DeviceTable, effort: Effort) -> Answer:
    """Whether there is a chain at all; costs count only by whether they are finite."""
    problem, members = group(_costless(table))
    price = _longest(np.isfinite(problem.stage))[problem.class_of].astype(np.float64)
    price[problem.source] = 0.0
    start = potentials(problem, price)
    if not start.root(problem) <= NOTHING:
        return Answer(None, True)
    ascent = Ascent(problem, start)
    num_levels = min(int(problem.count.sum()), problem.num_units)
    num_values = problem.num_groups * (problem.num_units + 1) * num_levels
    widest = max(NARROW, int(effort.num_values / num_values))
    for width, num_steps in ((NARROW, 1), (min(8 * NARROW, widest), effort.num_steps), (widest, 1)):
        ascent.climb(num_steps, AIM, NOTHING)
        if ascent.chain is not None:
            return Answer(name_devices(ascent.chain, members), True)
        if ascent.bound > NOTHING:
            return Answer(None, True)
        seen = search(problem, ascent.best, NOTHING, width, first=True)
        if seen.chain is not None:
            return Answer(name_devices(seen.chain, members), True)
        if seen.dropped > NOTHING:
            return Answer(None, True)
    return Answer(None, False)


def _costless(table: DeviceTable) -> DeviceTable:
    """What is allowed costs 0, and classes that allow the same become one."""
    stage = np.where(np.isfinite(table.stage), 0.0, np.inf)
    kinds: dict[bytes, int] = {}
    kind_of = np.array([kinds.setdefault(one.tobytes(), len(kinds)) for one in stage], np.intp)
    first = [int(np.argmax(kind_of == kind)) for kind in range(len(kinds))]
    return DeviceTable(
        stage=stage[first],
        class_of=kind_of[table.class_of],
        hop=np.where(np.isfinite(table.hop), 0.0, np.inf),
        busy=table.busy,
        way_back=np.where(np.isfinite(table.way_back), 0.0, np.inf),
        source=table.source,
    )


def _longest(allowed: Mask) -> Counts:
    """Units of the longest stage that is allowed, axes `[C]`, from `[C, start, stop]`."""
    places = np.arange(allowed.shape[1])
    lengths = np.where(allowed, places[None, :] - places[:, None], 0)
    longest: Counts = lengths.max(axis=(1, 2))
    return longest
