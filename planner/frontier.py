"""Search chains stage by stage: dynamic programming over the counts used, pruned by bounds.

A state of level k is `(devices used of each group, last group)` after k stages; it holds a row: the
least cost for every number of units done. From level to level:

    arrived[used + h, h, i] = min over last g of  row[used, g, i] + hop[g, h]
    row[used + h, h, j]     = min over i of       arrived[used + h, h, i] + stage[h, i, j]

An entry lives while its cost with the relaxation's potential stays below the limit, so nothing that
could be better is lost, except where a level holds more than `width` states: then the least bound
of those dropped is a lower bound of all that was not looked at.

Axes: S state, G group, N units done.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgeshard.planner.chains import ChainProblem, Costs, Counts, Indices, Link
from edgeshard.planner.relaxation import Potentials

CHUNK = 1 << 22
"""Values of a temporary array at most."""


@dataclass(frozen=True, slots=True, eq=False)
class Level:
    """States after a number of stages: `used [S, G]`, `last [S]`, `row [S, N + 1]`."""

    used: Counts
    last: Indices
    row: Costs


@dataclass(frozen=True, slots=True)
class Found:
    """What a search saw.

    Attributes:
        chain: the best chain below the limit, if any was found.
        cost: its cost, or the limit.
        dropped: no chain that was not looked at costs less; infinity where all were.
    """

    chain: tuple[Link, ...] | None
    cost: float
    dropped: float


def search(
    problem: ChainProblem, found: Potentials, limit: float, width: int, first: bool = False
) -> Found:
    """Find the best chain that costs less than `limit`.

    Args:
        problem: what stages and hops cost.
        found: potentials that prune.
        limit: chains of this cost or more do not count.
        width: most states of a level that are followed.
        first: any chain will do; stop at the first level that has one.
    """
    levels: list[Level] = []
    best: tuple[int, int] | None = None
    dropped = np.inf
    level = _first_level(problem)
    while len(level.last) and len(levels) < problem.most_stages:
        levels.append(level)
        totals = level.row[:, -1] + problem.way_back[level.last]
        state = int(totals.argmin())
        if totals[state] < limit:
            limit, best = float(totals[state]), (len(levels) - 1, state)
            if first:
                break
        level, least = _next_level(problem, found, level, limit, width)
        dropped = min(dropped, least)
    chain = None if best is None else _trace(problem, levels[: best[0] + 1], best[1])
    return Found(chain, limit, dropped)


def _first_level(problem: ChainProblem) -> Level:
    used = np.zeros((1, problem.num_groups), np.int32)
    used[0, problem.source] = 1
    row = problem.stage[problem.class_of[problem.source], 0]
    return Level(used, np.array([problem.source]), row[None].copy())


def _next_level(
    problem: ChainProblem, found: Potentials, level: Level, limit: float, width: int
) -> tuple[Level, float]:
    """The states one stage further, and the least bound of those that were dropped."""
    spare = (problem.count - level.used) @ found.price
    row = level.row.copy()
    row[row + found.done[level.last] - spare[:, None] >= limit] = np.inf
    row[:, -1] = np.inf
    bound = _bounds(problem, found, level, row, spare)
    state, group = np.nonzero(bound < limit)
    dropped = np.inf
    if len(state) > width:
        order = np.argsort(bound[state, group], kind="stable")
        dropped = float(bound[state, group][order[width]])
        kept = np.sort(order[:width])
        state, group = state[kept], group[kept]
    used, last, arrived = _merge(problem, level, row, state, group)
    done = _compute(problem, last, arrived)
    spare = (problem.count - used) @ found.price
    done[done + found.done[last] - spare[:, None] >= limit] = np.inf
    alive = np.isfinite(done).any(axis=1)
    return Level(used[alive], last[alive], done[alive]), dropped


def _bounds(
    problem: ChainProblem, found: Potentials, level: Level, row: Costs, spare: Costs
) -> Costs:
    """Lower bound of going on from each state to each group, axes `[S, G]`."""
    bound = np.empty((len(row), problem.num_groups))
    size = max(1, CHUNK // found.arrived.size)
    for begin in range(0, len(row), size):
        part = slice(begin, begin + size)
        bound[part] = (row[part, None, :] + found.arrived).min(axis=2)
    bound += problem.hop[level.last] + found.price - spare[:, None]
    bound[level.used >= problem.count] = np.inf
    return bound


def _merge(
    problem: ChainProblem, level: Level, row: Costs, state: Indices, group: Indices
) -> tuple[Counts, Indices, Costs]:
    """Arrivals at the same group with the same devices used, as one: the cheapest per place."""
    used = level.used[state]
    used[np.arange(len(state)), group] += 1
    keyed = np.ascontiguousarray(np.column_stack([used, group.astype(np.int32)]))
    keys = keyed.view(np.dtype((np.void, keyed.shape[1] * keyed.itemsize))).ravel()
    _, where, inverse = np.unique(keys, return_index=True, return_inverse=True)
    order = np.argsort(inverse, kind="stable")
    arrived = row[state] + problem.hop[level.last[state], group][:, None]
    if len(where) < len(state):
        starts = np.searchsorted(inverse[order], np.arange(len(where)))
        arrived = np.minimum.reduceat(arrived[order], starts, axis=0)
    else:
        arrived = arrived[order]
    return used[where], group[where], arrived


def _compute(problem: ChainProblem, last: Indices, arrived: Costs) -> Costs:
    """Add a stage on the last group, by the number of its units; infinity where it cannot be."""
    done = np.full_like(arrived, np.inf)
    classes = problem.class_of[last]
    for kind in np.unique(classes):
        stage, rows = problem.stage[kind], np.flatnonzero(classes == kind)
        begun, out = arrived[rows], done[rows]
        for length in range(1, _longest(stage) + 1):
            cost = np.diagonal(stage, length)
            np.minimum(out[:, length:], begun[:, :-length] + cost, out=out[:, length:])
        done[rows] = out
    return done


def _longest(stage: Costs) -> int:
    """Units of the longest stage that is allowed."""
    starts, stops = np.nonzero(np.isfinite(stage))
    return int((stops - starts).max(initial=0))


def _trace(problem: ChainProblem, levels: list[Level], state: int) -> tuple[Link, ...]:
    """Walk back from a state of the last level that has done everything."""
    level, stop = levels[-1], problem.num_units
    used, group = level.used[state].copy(), int(level.last[state])
    chain: list[Link] = []
    for level in reversed(levels[:-1]):
        used[group] -= 1
        (states,) = np.nonzero((level.used == used).all(axis=1))
        arrived = level.row[states] + problem.hop[level.last[states], group][:, None]
        choices = arrived + problem.stage[problem.class_of[group], :, stop]
        which, start = divmod(int(choices.argmin()), choices.shape[1])
        chain.append((group, start, stop))
        group, stop = int(level.last[states[which]]), start
    chain.append((problem.source, 0, stop))
    return tuple(reversed(chain))
