"""The cheapest way to the end where devices may be used again, at a price per use.

Without prices this is a lower bound of every chain. Prices make it tighter: a chain uses a group at
most `count` times, so with prices p >= 0

    cost(chain)  >=  cost(chain) + p · uses(chain) - p · count  >=  relaxed(p) - p · count

(Lagrangian relaxation of the counts; Held and Karp 1971). Potentials are the same from any point:

    arrived[g, i] = min over j of  stage[g, i, j] + done[g, j]
    done[g, i]    = min over h of  hop[g, h] + price[h] + arrived[h, i];   done[g, N] = way_back[g]

N x (G x N + G x G) steps; both inner minima are array operations.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgeshard.planner.chains import ChainProblem, Costs, Link


@dataclass(frozen=True, slots=True, eq=False)
class Potentials:
    """Least cost to the end, with the prices of the groups yet to come.

    Attributes:
        price: `[G]`.
        arrived: `[G, N + 1]`, a group has the hidden states and its own price is paid.
        done: `[G, N + 1]`, a group has computed the units before.
    """

    price: Costs
    arrived: Costs
    done: Costs

    def root(self, problem: ChainProblem) -> float:
        """Lower bound of every chain."""
        return float(self.arrived[problem.source, 0] - self.price @ problem.count)


def potentials(problem: ChainProblem, price: Costs) -> Potentials:
    """Solve the relaxation for given prices; the source's must be 0."""
    num_places = problem.num_units + 1
    arrived = np.full((problem.num_groups, num_places), np.inf)
    done = np.full((problem.num_groups, num_places), np.inf)
    done[:, -1] = problem.way_back
    hop = problem.hop + price
    classes = np.arange(len(problem.stage))
    by_class = len(classes) == problem.num_groups and (problem.class_of == classes).all()
    for place in range(num_places - 2, 0, -1):
        stage = problem.stage[:, place, place + 1 :]
        if not by_class:
            stage = stage[problem.class_of]
        here = (stage + done[:, place + 1 :]).min(axis=1)
        arrived[:, place] = here
        done[:, place] = (hop + here).min(axis=1)
    first = problem.stage[problem.class_of[problem.source], 0]
    arrived[problem.source, 0] = (first + done[problem.source]).min()
    return Potentials(price, arrived, done)


def walk(problem: ChainProblem, found: Potentials) -> tuple[Link, ...]:
    """A way to the end that costs what the potentials say; it must exist."""
    group, place = problem.source, 0
    way: list[Link] = []
    while True:
        stop = int((problem.stage[problem.class_of[group], place] + found.done[group]).argmin())
        way.append((group, place, stop))
        if stop == problem.num_units:
            return tuple(way)
        onward = problem.hop[group] + found.price + found.arrived[:, stop]
        group, place = int(onward.argmin()), stop


def through(problem: ChainProblem, found: Potentials) -> Costs:
    """Lower bound of the chains that use a group, axes `[G]`; infinity where there is none."""
    done = np.full(found.done.shape, np.inf)
    done[problem.source] = problem.stage[problem.class_of[problem.source], 0]
    least = np.full(problem.num_groups, np.inf)
    for place in range(1, problem.num_units):
        arrived = (done[:, place, None] + problem.hop).min(axis=0) + found.price
        least = np.minimum(least, arrived + found.arrived[:, place])
        stage = problem.stage[problem.class_of, place, place + 1 :]
        onward = done[:, place + 1 :]
        np.minimum(onward, arrived[:, None] + stage, out=onward)
    least[problem.source] = found.arrived[problem.source, 0]
    return least - found.price @ problem.count
