"""The cheapest chain, with a proof or with how far from the cheapest it can be at most.

    relaxation ─► is it a chain already? then it is the cheapest
        │ no: a narrow search for a first chain
        ▼
    rounds: prices against the overused groups, a search that they prune, small changes to its chain
        ▼
    a last wide search; a search that drops nothing is a proof

The effort is counted in values and steps, not seconds: equal inputs give equal chains.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from edgeshard.planner.ascent import Ascent
from edgeshard.planner.chains import ChainProblem, Link, chain_cost
from edgeshard.planner.frontier import search
from edgeshard.planner.polish import polish
from edgeshard.planner.relaxation import Potentials, potentials

EXACT = 1e-9
"""Costs that differ by less, relatively, differ by rounding only."""
TIE = 1e-12
"""What a hop costs beside its cost, relative to the bound: of equal chains the shortest wins."""
NARROW = 32
"""States that a first search follows."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How long to look, in numbers and not in seconds.

    Attributes:
        num_values: values that the widest search may compute.
        num_rounds: most rounds of price steps with a search behind each.
        num_steps: price steps of a round.
    """

    num_values: float = 3e8
    num_rounds: int = 6
    num_steps: int = 100


@dataclass(frozen=True, slots=True, eq=False)
class Cheapest:
    """The best chain found and a lower bound of all chains.

    Attributes:
        chain: None where none was found.
        cost: infinity where none was found.
        bound: infinity where it is certain that there is none; the cost where nothing is cheaper.
        found: the potentials behind the bound.
    """

    chain: tuple[Link, ...] | None
    cost: float
    bound: float
    found: Potentials


def cheapest_chain(
    problem: ChainProblem, effort: Effort, known: tuple[Link, ...] | None = None
) -> Cheapest:
    """Find the cheapest chain.

    Args:
        problem: what stages and hops cost.
        effort: how long to look where it is hard.
        known: a chain to begin with.
    """
    free = potentials(problem, np.zeros(problem.num_groups))
    floor = free.root(problem)
    if np.isinf(floor):
        return Cheapest(None, np.inf, np.inf, free)
    nudged = replace(problem, hop=problem.hop + TIE * floor)
    climb = _Climb(nudged, potentials(nudged, free.price), known)
    climb.run(effort)
    if climb.chain is None:
        return Cheapest(None, np.inf, climb.bound, climb.ascent.best)
    cost = chain_cost(problem, climb.chain)
    bound = cost if climb.is_settled else min(climb.bound, cost)
    return Cheapest(climb.chain, cost, bound, climb.ascent.best)


class _Climb:
    """The best chain from above and the bound from below, until they meet."""

    def __init__(
        self, problem: ChainProblem, free: Potentials, known: tuple[Link, ...] | None
    ) -> None:
        self.problem = problem
        self.ascent = Ascent(problem, free)
        self.chain: tuple[Link, ...] | None = None
        self.cost, self.bound = np.inf, self.ascent.bound
        if known is not None:
            self._take(polish(problem, known))

    @property
    def is_settled(self) -> bool:
        return self.bound >= self.cost * (1 - EXACT)

    def run(self, effort: Effort) -> None:
        problem = self.problem
        num_levels = min(int(problem.count.sum()), problem.num_units)
        num_values = problem.num_groups * (problem.num_units + 1) * num_levels
        widest = max(NARROW, int(effort.num_values / num_values))
        self._raise(1)
        self._look(NARROW)
        for number in range(effort.num_rounds):
            if self.is_settled or self.ascent.is_over:
                break
            self._raise(effort.num_steps)
            self._look(min(NARROW * 4**number, max(NARROW, widest // 8)))
        self._look(widest)

    def _raise(self, num_steps: int) -> None:
        self.ascent.climb(num_steps, self.cost, self.cost * (1 - EXACT))
        self.bound = max(self.bound, self.ascent.bound)
        if self.ascent.chain is not None:
            self._take(self.ascent.chain)

    def _look(self, width: int) -> None:
        if self.is_settled:
            return
        seen = search(self.problem, self.ascent.best, self.cost, width)
        if seen.chain is not None:
            self._take(polish(self.problem, seen.chain))
        self.bound = max(self.bound, min(seen.dropped, self.cost))

    def _take(self, chain: tuple[Link, ...]) -> None:
        cost = chain_cost(self.problem, chain)
        if cost < self.cost:
            self.chain, self.cost = chain, cost
