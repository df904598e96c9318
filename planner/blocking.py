"""Transfers that stop both ends: a device computes, or sends, or receives.

    interval(chain)  =  max over stages (way in + stage + way out),  time of a token / groups

What a stage takes then depends on its neighbours. With each stage's least way in and out it does
not, which bounds every chain from below and is a problem that `paced.py` solves; where all links of
a device are alike, nothing is lost. Elsewhere branch and bound, on the hops of the slowest stage:

    chains without the hop into it │ with it, without the hop out of it │ with both

A hop that is taken is the only one out of its sender and into its receiver.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from edgeshard.planner.chains import Costs, Link
from edgeshard.planner.cheapest import EXACT, Effort
from edgeshard.planner.groups import DeviceTable
from edgeshard.planner.paced import Paced, best_paced, interval

MOST_NODES = 1000
"""Problems that are branched on at most."""
NODE_VALUES = 200_000
"""Stages of all devices in the problems that are branched on: for large ones there are few."""


def least_transfers(table: DeviceTable) -> DeviceTable:
    """A problem in which every stage has its least way in and out; no interval is longer.

    Equal to the table itself where its transfers do not block.
    """
    if not table.is_blocking:
        return table
    apart = np.where(np.eye(len(table.hop), dtype=np.bool_), np.inf, table.hop)
    apart[:, table.source] = np.inf
    inward, onward = apart.min(axis=0), apart.min(axis=1)
    inward[table.source] = 0.0
    ends = np.column_stack([table.class_of, inward, onward, table.way_back])
    kinds, first, class_of = np.unique(ends, axis=0, return_index=True, return_inverse=True)
    stage = table.stage[table.class_of[first]]
    held = stage + kinds[:, 1, None, None]
    held[:, :, :-1] += kinds[:, 2, None, None]
    held[:, :, -1] += kinds[:, 3, None]
    shortest = stage.min(axis=(1, 2))[class_of]
    sender, receiver = inward + shortest, shortest + np.minimum(onward, table.way_back)
    busy = apart + np.maximum(sender[:, None], receiver[None, :])
    return DeviceTable(
        stage=np.where(np.isfinite(held), stage, np.inf),
        class_of=class_of.ravel(),
        hop=np.where(np.isfinite(busy), table.hop, np.inf),
        busy=busy,
        way_back=table.way_back,
        source=table.source,
        stage_busy=held,
    )


def best_blocking(
    table: DeviceTable, entry_seconds: float, groups: int | None, effort: Effort
) -> Paced:
    """Find the shortest interval where transfers block; arguments as of `best_paced`."""
    search = _Search(table, entry_seconds, groups)
    search.look(table, effort)
    short = replace(effort, num_values=effort.num_values / 8, num_rounds=2)
    num_stages = len(table.hop) * table.stage.shape[1] ** 2
    for _ in range(min(MOST_NODES, NODE_VALUES // num_stages)):
        node = search.pop()
        if node is None:
            break
        for child in search.children(node):
            search.look(child, short)
    return search.result()


@dataclass(frozen=True, order=True, slots=True)
class _Node:
    """A problem with what is forbidden in it, and the chain that its least transfers give."""

    bound: float
    number: int
    table: DeviceTable = field(compare=False)
    chain: tuple[Link, ...] = field(compare=False)


class _Search:
    """The best chain so far, the problems that could hold a better one, and what the rest costs."""

    def __init__(self, table: DeviceTable, entry_seconds: float, groups: int | None) -> None:
        self._table, self._entry, self._groups = table, entry_seconds, groups
        self._open: list[_Node] = []
        self._numbers = itertools.count()
        self._least = np.inf  # bound of the problems that were given up
        self._chain: tuple[Link, ...] | None = None
        self._seconds = np.inf

    def look(self, table: DeviceTable, effort: Effort) -> None:
        """Bound a problem, and take its chain where it is the best so far."""
        found = best_paced(least_transfers(table), self._entry, self._groups, effort)
        if found.chain is None:
            self._least = min(self._least, found.bound)
            return
        self._take(found.chain)
        self._take(recut(self._table, found.chain))
        own = interval(self._table, found.chain, self._groups, self._entry)
        if own <= found.bound * (1 + EXACT):
            return  # nothing in it is better than its own chain
        if self._table.slowest(found.chain) <= found.seconds * (1 + EXACT):
            self._least = min(self._least, found.bound)  # its transfers are not what is unknown
        else:
            node = _Node(found.bound, next(self._numbers), table, found.chain)
            heapq.heappush(self._open, node)

    def pop(self) -> _Node | None:
        """The problem with the least bound; None where none holds anything better."""
        if not self._open or self._open[0].bound >= self._seconds * (1 - EXACT):
            return None
        return heapq.heappop(self._open)

    def children(self, node: _Node) -> Iterator[DeviceTable]:
        """Problems that together hold every chain of a node's, each chain once."""
        held = self._table.held_by(node.chain)
        place = held.index(max(held))
        devices = [device for device, _, _ in node.chain]
        table = node.table
        for hop in itertools.pairwise(devices[max(place - 1, 0) : place + 2]):
            yield _without(table, *hop)
            table = _with(table, *hop)
        yield table

    def result(self) -> Paced:
        """The best chain, and the bound of all that was not looked at."""
        bound = min(self._least, *(node.bound for node in self._open), np.inf)
        if bound >= self._seconds * (1 - EXACT):
            bound = self._seconds
        return Paced(self._chain, self._seconds, bound)

    def _take(self, chain: tuple[Link, ...]) -> None:
        """Keep the chain where its interval is shorter, or as long and its way shorter."""
        seconds = interval(self._table, chain, self._groups, self._entry)
        if self._chain is None or seconds < self._seconds * (1 - EXACT):
            is_better = seconds < np.inf
        else:
            is_equal = seconds <= self._seconds * (1 + EXACT)
            is_better = is_equal and self._table.total(chain) < self._table.total(self._chain)
        if is_better:
            self._chain, self._seconds = chain, seconds


def _without(table: DeviceTable, sender: int, receiver: int) -> DeviceTable:
    """The chains that do not take a hop."""
    hop = table.hop.copy()
    hop[sender, receiver] = np.inf
    return replace(table, hop=hop)


def _with(table: DeviceTable, sender: int, receiver: int) -> DeviceTable:
    """The chains that take a hop, and some that use neither of its ends."""
    hop, way_back = table.hop.copy(), table.way_back.copy()
    taken = hop[sender, receiver]
    hop[sender, :] = hop[:, receiver] = way_back[sender] = np.inf
    hop[sender, receiver] = taken
    return replace(table, hop=hop, way_back=way_back)


def recut(table: DeviceTable, chain: tuple[Link, ...]) -> tuple[Link, ...]:
    """The cuts with the least slowest stage, for the order of devices as it is."""
    devices = [device for device, _, _ in chain]
    ways = [0.0, *(float(table.hop[a, b]) for a, b in itertools.pairwise(devices))]
    ways.append(float(table.way_back[devices[-1]]))
    num_places = table.stage.shape[1]
    done: Costs = np.full(num_places, np.inf)
    done[0] = 0.0
    begun = []
    for device, (way_in, way_out) in zip(devices, itertools.pairwise(ways), strict=True):
        held = table.stage[table.class_of[device]] + way_in + way_out
        worst = np.maximum(done[:, None], held)
        begun.append(worst.argmin(axis=0))
        done = worst.min(axis=0)
    stop, cut = num_places - 1, []
    for device, starts in zip(reversed(devices), reversed(begun), strict=True):
        cut.append((device, int(starts[stop]), stop))
        stop = int(starts[stop])
    return tuple(reversed(cut))
