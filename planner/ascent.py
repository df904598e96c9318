"""Raise the bound: prices go up where groups are used too often, down where too little.

Subgradient steps with momentum, their length after Polyak: the distance from the best known chain's
cost over the slope's square, halved where nothing is gained for long.
"""

from __future__ import annotations

import numpy as np

from edgeshard.planner.chains import ChainProblem, Costs, Link, chain_cost, is_within, visits
from edgeshard.planner.relaxation import Potentials, potentials, walk

MOMENTUM = 0.95
"""Share of the last direction; high, as one way uses few of many devices that are alike."""
PATIENCE = 30
"""Steps without gain before the pace is halved."""
GAIN = 1e-4
"""A smaller relative gain counts as none."""
LEAST_PACE = 2e-3
"""Below this pace the ascent is over."""


class Ascent:
    """The prices on their way up, the best of them, and the cheapest chain that came by.

    Attributes:
        best: potentials of the best bound.
        bound: lower bound of every chain.
        chain: the cheapest way on the road that is a chain, if any was.
        is_over: whether more steps would gain nothing worth having.
    """

    def __init__(self, problem: ChainProblem, start: Potentials) -> None:
        self._problem = problem
        self._spread = _spread(problem)
        self._duals = np.zeros(len(self._spread))
        self._duals[-problem.num_groups :] = start.price
        self._drift = np.zeros(len(self._spread))
        self._best_duals = self._duals
        self._current = self.best = start
        self._pace, self._stale = 1.0, 0
        self.bound = start.root(problem)
        self.chain: tuple[Link, ...] | None = None
        self.is_over = False

    def climb(self, num_steps: int, cost: float, enough: float = np.inf) -> float:
        """Go some steps up; the cost of the best chain known after them.

        Args:
            num_steps: most steps.
            cost: of the best chain known, which the steps aim at; infinity where there is none.
            enough: a bound to stop at.
        """
        problem = self._problem
        for _ in range(num_steps):
            way = walk(problem, self._current)
            if is_within(problem, way):
                way_cost = chain_cost(problem, way)
                if way_cost < cost:
                    self.chain, cost = way, way_cost
            if self.bound >= min(cost * (1 - 1e-12), enough) or not self._step(way, cost):
                self.is_over = True
            if self.is_over:
                break
        return cost

    def _step(self, way: tuple[Link, ...], cost: float) -> bool:
        problem, here = self._problem, self._current.root(self._problem)
        overuse = (visits(problem, way) - problem.count).astype(np.float64)
        overuse[problem.source] = 0.0
        slope = self._spread @ overuse
        slope[(self._duals <= 0) & (slope < 0)] = 0.0
        self._drift = slope + MOMENTUM * self._drift
        length = float(self._drift @ self._drift)
        if length == 0.0:
            return False
        aim = cost if cost < np.inf else here + 0.2 * abs(here) + 1e-12
        step = self._pace * max(aim - here, 1e-6 * abs(aim)) / length
        self._duals = np.maximum(self._duals + step * self._drift, 0.0)
        price = self._duals @ self._spread
        price[problem.source] = 0.0
        self._current = potentials(problem, price)
        gain = self._current.root(problem) - self.bound
        if gain > 0:
            self.best, self._best_duals, self.bound = self._current, self._duals, self.bound + gain
        self._stale = 0 if gain > GAIN * abs(self.bound) else self._stale + 1
        if self._stale >= PATIENCE:
            self._pace, self._stale = self._pace / 2, 0
            self._current, self._duals = self.best, self._best_duals
            self._drift = np.zeros(len(self._duals))
        return self._pace >= LEAST_PACE


def _spread(problem: ChainProblem) -> Costs:
    """Groups of each dual, axes `[dual, G]`: those of a class together, and each one by itself.

    Devices of one class whose links differ replace each other, so that a price on one of them alone
    achieves little.
    """
    classes, sizes = np.unique(problem.class_of, return_counts=True)
    together = (problem.class_of == classes[sizes > 1][:, None]).astype(np.float64)
    return np.concatenate([together, np.eye(problem.num_groups)])
