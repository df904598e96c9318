"""A chain of stages over groups of equal devices, and what it costs.

    source ─► [0, a) on the source ─► [a, b) on a device ─► … ─► [z, N) on a device ─► source

Devices that nothing tells apart form a group, so that a solver counts them instead of naming them.
A group hosts at most as many stages as it has devices.

Axes: C stage class, G group, N units done.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Costs = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int32]
Indices = npt.NDArray[np.intp]
Mask = npt.NDArray[np.bool_]

Link = tuple[int, int, int]
"""A stage of a chain: `(group or device, start, stop)`."""


@dataclass(frozen=True, slots=True, eq=False)
class ChainProblem:
    """Costs of every stage and hop, all at least 0; infinity forbids.

    Attributes:
        stage: `[C, start, stop]`; finite only from unit 0 for the source's class, and only beyond
            for others.
        class_of: `[G]`, the stage class of a group.
        count: `[G]`, devices of a group; 1 for the source.
        hop: `[G from, G to]`; on the diagonal, between two devices of the group.
        way_back: `[G]`, from the last stage to the source.
        source: the group of the first stage.
        most_stages: longer chains do not count.
    """

    stage: Costs
    class_of: Indices
    count: Counts
    hop: Costs
    way_back: Costs
    source: int
    most_stages: int = 1 << 30

    @property
    def num_groups(self) -> int:
        """Groups of equal devices."""
        return len(self.count)

    @property
    def num_units(self) -> int:
        """Units of the whole model."""
        return int(self.stage.shape[1]) - 1


def chain_cost(problem: ChainProblem, chain: Sequence[Link]) -> float:
    """The sum over a chain's stages, hops and way back."""
    stages = sum(float(problem.stage[problem.class_of[g], i, j]) for g, i, j in chain)
    hops = sum(float(problem.hop[a, b]) for (a, _, _), (b, _, _) in itertools.pairwise(chain))
    return stages + hops + float(problem.way_back[chain[-1][0]])


def is_within(problem: ChainProblem, chain: Sequence[Link]) -> bool:
    """Whether no group hosts more stages than it has devices, and they are not too many."""
    if len(chain) > problem.most_stages:
        return False
    return bool((visits(problem, chain) <= problem.count).all())


def visits(problem: ChainProblem, chain: Sequence[Link]) -> Counts:
    """Stages on each group, axes `[G]`."""
    groups = np.array([group for group, _, _ in chain], np.intp)
    return np.bincount(groups, minlength=problem.num_groups).astype(np.int32)
