"""Make a chain cheaper by small changes: other devices, another order, other cuts.

    swap two stages' devices │ turn a run of devices around │ move a device elsewhere in the order
    take an unused device in one's place │ cut anew for the order of devices as it is

Each round takes the best change, until none helps. It proves nothing; the bound does.

Axes: M move, K stage of the chain.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import cache

import numpy as np

from edgeshard.planner.chains import ChainProblem, Costs, Indices, Link, chain_cost, visits

MOST_ROUNDS = 60
LEAST_GAIN = 1e-10
"""A smaller relative gain is rounding."""


def polish(problem: ChainProblem, chain: tuple[Link, ...]) -> tuple[Link, ...]:
    """A chain that costs no more and that no single change makes cheaper."""
    moves = _orders(len(chain) - 1)
    for _ in range(MOST_ROUNDS):
        cost = chain_cost(problem, chain)
        candidates = [_reordered(problem, chain, moves), _recut(problem, chain)]
        best = min(candidates, key=lambda candidate: chain_cost(problem, candidate))
        if chain_cost(problem, best) >= cost * (1 - LEAST_GAIN):
            break
        chain = best
    return chain


@cache
def _orders(num_places: int) -> Indices:
    """Every swap, reversal and move of places behind the source, axes `[M, K]`."""
    orders = {tuple(range(num_places))}
    for i, j in itertools.combinations(range(num_places), 2):
        orders |= set(_changes(num_places, i, j))
    return np.array(sorted(orders), np.intp).reshape(len(orders), num_places)


def _changes(num_places: int, i: int, j: int) -> Iterator[tuple[int, ...]]:
    before, between, after = range(i), range(i + 1, j), range(j + 1, num_places)
    yield (*before, j, *between, i, *after)
    yield (*before, j, *reversed(between), i, *after)
    yield (*before, *between, j, i, *after)
    yield (*before, j, i, *between, *after)


def _reordered(problem: ChainProblem, chain: tuple[Link, ...], orders: Indices) -> tuple[Link, ...]:
    """The cheapest of all orders of the chain's devices, and of one unused device each."""
    groups = np.array([link[0] for link in chain], np.intp)
    spare = np.flatnonzero(visits(problem, chain) < problem.count)
    places = np.repeat(np.arange(1, len(chain)), len(spare))
    replaced = np.repeat(groups[None], len(places), axis=0)
    replaced[np.arange(len(places)), places] = np.tile(spare, len(chain) - 1)
    ordered = np.column_stack([np.full(len(orders), problem.source), groups[1:][orders]])
    tried = np.concatenate([ordered, replaced])
    best = tried[int(_costs(problem, chain, tried).argmin())]
    return tuple((int(g), start, stop) for g, (_, start, stop) in zip(best, chain, strict=True))


def _costs(problem: ChainProblem, chain: tuple[Link, ...], tried: Indices) -> Costs:
    """Cost of the chain with other groups in its places, axes `[M]`."""
    starts, stops = (np.array([link[end] for link in chain], np.intp) for end in (1, 2))
    stages = problem.stage[:, starts, stops][problem.class_of]  # [G, K]
    total: Costs = stages[tried, np.arange(len(chain))].sum(axis=1)
    total += problem.hop[tried[:, :-1], tried[:, 1:]].sum(axis=1)
    total += problem.way_back[tried[:, -1]]
    return total


def _recut(problem: ChainProblem, chain: tuple[Link, ...]) -> tuple[Link, ...]:
    """The cheapest cuts for the order of devices as it is."""
    groups = [group for group, _, _ in chain]
    done = problem.stage[problem.class_of[groups[0]], 0]
    begun: list[Indices] = []
    for group in groups[1:]:
        choices = done[:, None] + problem.stage[problem.class_of[group]]
        begun.append(choices.argmin(axis=0))
        done = choices.min(axis=0)
    stop, cut = problem.num_units, []
    for group, starts in zip(reversed(groups[1:]), reversed(begun), strict=True):
        cut.append((group, int(starts[stop]), stop))
        stop = int(starts[stop])
    return ((groups[0], 0, stop), *reversed(cut))
