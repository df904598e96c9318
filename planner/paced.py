"""The chain that `groups` groups of requests keep stepping through at the shortest interval.

    interval(chain)  =  max(slowest stage or link, time of a token / groups)

A group's next step leaves when its last one is back, so few groups in a long chain wait for the way
and not for the slowest. Two extremes bound it from below: the smallest bottleneck, and the
cheapest chain over the groups. Where they do not meet, limits on the slowest are tried:

    chains within limit v          cost at least  cheapest(v) / groups
    chains beyond limit v          cost at least  the next value after v

Each limit that was tried cuts the chains in two, so the bound is the least over the pieces.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from edgeshard.planner.bottleneck import limits_of, smallest_bottleneck
from edgeshard.planner.chains import Link
from edgeshard.planner.cheapest import EXACT, Cheapest, Effort, cheapest_chain
from edgeshard.planner.groups import DeviceTable, group, name_devices, name_groups

TIE_EFFORT = Effort(num_values=2e7, num_rounds=1)
"""What is spent on the sum where the slowest stage or link decides."""
MOST_LIMITS = 16
"""Limits that are tried at most; each halves what is left."""


@dataclass(frozen=True, slots=True)
class Paced:
    """The chain with the shortest interval found, over devices, and its lower bound.

    Attributes:
        chain: None where none was found.
        seconds: infinity where none was found.
        bound: infinity where it is certain that there is none.
    """

    chain: tuple[Link, ...] | None
    seconds: float
    bound: float


def best_paced(
    table: DeviceTable, entry_seconds: float, groups: int | None, effort: Effort
) -> Paced:
    """Find the shortest interval.

    Args:
        table: what stages and hops cost.
        entry_seconds: what every token takes beside its chain.
        groups: steps on their way at once; None: so many that only the slowest counts.
        effort: how long to look where it is hard.
    """
    slow = smallest_bottleneck(table, effort)
    if slow.chain is None:
        return Paced(None, np.inf, slow.bound)
    search = _Search(table, entry_seconds, groups, slow.chain)
    search.note(slow.seconds, TIE_EFFORT)
    if search.seconds <= slow.seconds * (1 + EXACT):
        return Paced(search.chain, slow.seconds, slow.bound)
    search.note(np.inf, effort)
    search.halve(slow.bound, replace(effort, num_values=effort.num_values / 8, num_rounds=2))
    bound, seconds = search.bound(slow.bound), search.seconds
    return Paced(search.chain, seconds, seconds if bound >= seconds * (1 - EXACT) else bound)


def interval(
    table: DeviceTable, chain: tuple[Link, ...], groups: int | None, entry: float
) -> float:
    """Seconds between steps: the slowest stage's, or its share of the way where groups are few."""
    slowest = table.slowest(chain)
    return slowest if groups is None else max(slowest, (entry + table.total(chain)) / groups)


class _Search:
    """Limits that were tried, the best chain so far, and what the other chains cost at least."""

    def __init__(
        self, table: DeviceTable, entry_seconds: float, groups: int | None, chain: tuple[Link, ...]
    ) -> None:
        self._table, self._entry, self._groups = table, entry_seconds, groups
        self._values = limits_of(table)
        self._least: dict[float, float] = {}  # by limit: no chain within it is cheaper
        self.chain, self.seconds = chain, interval(self._table, chain, self._groups, self._entry)

    def note(self, limit: float, effort: Effort) -> float:
        """Find the cheapest chain within a limit; the interval that its way alone asks for."""
        problem, members = group(self._table.within(limit * (1 + EXACT)))
        known = None
        if self._table.slowest(self.chain) <= limit * (1 + EXACT):
            known = name_groups(self.chain, members)
        best: Cheapest = cheapest_chain(problem, effort, known)
        self._least[limit] = best.bound
        if best.chain is not None:
            chain = name_devices(best.chain, members)
            self._take(chain)
        return (self._entry + best.cost) / (self._groups or 1)

    def halve(self, low: float, effort: Effort) -> None:
        """Try limits in the middle of those that could hold something better."""
        values = self._values[(self._values >= low) & (self._values < self.seconds)]
        begin, end = 0, len(values)
        for _ in range(MOST_LIMITS):
            if begin >= end or self.bound(low) >= self.seconds * (1 - EXACT):
                return
            middle = (begin + end) // 2
            if self.note(float(values[middle]), effort) <= values[middle]:
                end = middle
            else:
                begin = middle + 1

    def bound(self, low: float) -> float:
        """No chain has a shorter interval; all slowest stages and links take `low` or more."""
        least, slowest = np.inf, low
        for limit in sorted(self._least):
            way = (self._entry + self._least[limit]) / (self._groups or 1)
            least = min(least, max(slowest, way))
            beyond = self._values[self._values > limit * (1 + EXACT)]
            if not len(beyond):
                break  # no chain is slower than this
            slowest = max(low, float(beyond[0]))
        return least

    def _take(self, chain: tuple[Link, ...]) -> None:
        """Keep the chain where its interval is shorter, or as long and its way shorter."""
        seconds = interval(self._table, chain, self._groups, self._entry)
        if abs(seconds - self.seconds) > EXACT * self.seconds:
            is_better = seconds < self.seconds
        else:
            is_better = self._table.total(chain) < self._table.total(self.chain)
        if is_better:
            self.chain, self.seconds = chain, seconds
