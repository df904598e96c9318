"""The best chain of stages over a set of devices: exact dynamic programming.

    source ─► [0, a) on the source ─► [a, b) on a device ─► … ─► [z, N) on a device ─► source

Every device hosts at most one interval, so a chain is known by the units that are done, the set of
devices that it used and the last of them:

    best[used, last, done] = min over (previous, begun) of
        best[used - last, previous, begun] join hop[previous, last] join stage[last, begun, done]

`join` is the sum (latency, bytes) or the maximum (bottleneck). 2^(M-1) x M x N^2 steps for M
devices and N units; the N^2 is one array operation.

Axes: U used set (bit i: the i-th device beside the source), D device, N units done.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Costs = npt.NDArray[np.float64]
Join = Callable[[Costs, Costs], Costs]
Link = tuple[int, int, int]

MAX_DEVICES = 14
"""Most devices of a problem: time and memory double with each one."""


@dataclass(frozen=True, slots=True, eq=False)
class ChainProblem:
    """Costs of every stage and hop; infinity forbids.

    Attributes:
        stage: `[D, start, stop]`; finite only from unit 0 on the source, and only beyond elsewhere.
        hop: `[D from, D to]`.
        way_back: `[D]`, from the last stage to the source.
        source: the device of the first stage.
        join: how the costs of a chain come together, `numpy.add` or `numpy.maximum`.
    """

    stage: Costs
    hop: Costs
    way_back: Costs
    source: int
    join: Join


@dataclass(frozen=True, slots=True, eq=False)
class ChainTable:
    """The solved problem: `best[U, D, N]`, and the device of each bit of U."""

    problem: ChainProblem
    best: Costs
    others: tuple[int, ...]


def solve_chains(problem: ChainProblem) -> ChainTable:
    """Find the best chain for every used set, last device and number of units done."""
    num_devices, num_places, _ = problem.stage.shape
    assert num_devices <= MAX_DEVICES
    others = tuple(device for device in range(num_devices) if device != problem.source)
    best = np.full((1 << len(others), num_devices, num_places), np.inf)
    best[0, problem.source] = problem.stage[problem.source, 0]
    arriving = problem.hop.T[:, :, None]
    for used in range(1, 1 << len(others)):
        for bit, device in enumerate(others):
            if used >> bit & 1:
                before = best[used ^ (1 << bit)]
                begun = problem.join(before, arriving[device]).min(axis=0)
                best[used, device] = problem.join(begun[:, None], problem.stage[device]).min(axis=0)
    return ChainTable(problem, best, others)


def chain_cost(table: ChainTable, device: int | None = None) -> float:
    """Cost of the best chain, or of the best one that uses `device`; infinity where none exists."""
    return float(_totals(table, device).min())


def best_chain(table: ChainTable) -> tuple[Link, ...]:
    """The best chain as `(device, start, stop)`: of equal ones, one of the fewest devices.

    The chain must exist.
    """
    problem = table.problem
    totals = _totals(table, None)
    sizes = [(used.bit_count(), used) for used in range(len(totals))]
    cost = totals.min()
    used = next(used for _, used in sorted(sizes) if totals[used].min() == cost)
    device, stop = int(totals[used].argmin()), problem.stage.shape[1] - 1
    chain = []
    while used:
        used ^= 1 << table.others.index(device)
        arrived = problem.join(table.best[used], problem.hop[:, device, None])
        choices = problem.join(arrived, problem.stage[None, device, :, stop])
        previous, start = divmod(int(choices.argmin()), choices.shape[1])
        chain.append((device, start, stop))
        device, stop = previous, start
    chain.append((problem.source, 0, stop))
    return tuple(reversed(chain))


def _totals(table: ChainTable, device: int | None) -> Costs:
    """Cost of the best whole chain of each used set and last device, axes `[U, D]`."""
    totals = table.problem.join(table.best[:, :, -1], table.problem.way_back[None, :])
    if device is None or device == table.problem.source:
        return totals
    bit = 1 << table.others.index(device)
    unused = (np.arange(len(totals)) & bit) == 0
    return np.where(unused[:, None], np.inf, totals)
