"""A second opinion on the best chain: a mixed-integer program, solved by HiGHS through SciPy.

    x[d, i, j]   device d computes units [i, j)           binary
    y[d, e, i]   the hidden states before unit i go d ─► e   follows from x

Every device once, the flow of hidden states conserved at every cut. No code of the planner is used.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import lil_matrix

from edgeshard.planner.groups import DeviceTable


@dataclass(frozen=True)
class Verdict:
    """The optimum, infinite where there is no chain; None where the time limit came first."""

    seconds: float | None


def best_by_milp(
    table: DeviceTable,
    is_latency: bool,
    limit_seconds: float = 120.0,
    groups: int | None = None,
    entry_seconds: float = 0.0,
) -> Verdict:
    """The smallest sum, or the smallest slowest stage or link.

    With `groups`, the latter is at least the sum, with `entry_seconds` more, over the groups.
    """
    num_devices, num_units = len(table.hop), table.stage.shape[1] - 1
    stages = [
        (d, i, j)
        for d in range(num_devices)
        for i, j in zip(*np.nonzero(np.isfinite(table.stage[table.class_of[d]])), strict=True)
        if j < num_units or math.isfinite(table.way_back[d])
    ]
    hops = [
        (d, e, i)
        for d in range(num_devices)
        for e in range(num_devices)
        if d != e and e != table.source and math.isfinite(table.hop[d, e])
        for i in range(1, num_units)
    ]
    slowest = len(stages) + len(hops)
    rows: defaultdict[object, dict[int, float]] = defaultdict(dict)
    low: dict[object, float] = {}
    high: dict[object, float] = {}
    cost = np.zeros(slowest + 1)
    for x, (d, i, j) in enumerate(stages):
        seconds = float(table.stage[table.class_of[d], i, j])
        rows["once", d][x] = 1.0
        rows["begin", d, i][x] = -1.0
        rows["end", d, j][x] = -1.0
        rows["slow", d][x] = -seconds
        cost[x] = seconds + (float(table.way_back[d]) if j == num_units else 0.0)
    for y, (d, e, i) in enumerate(hops, len(stages)):
        rows["begin", e, i][y] = 1.0
        rows["end", d, i][y] = 1.0
        rows["busy", d, e][y] = -float(table.busy[d, e])
        cost[y] = float(table.hop[d, e])
    del rows["begin", table.source, 0]
    for d in range(num_devices):
        rows.pop(("end", d, num_units), None)
    for key in rows:
        kind = key[0] if isinstance(key, tuple) else key
        low[key], high[key] = (0.0, 0.0) if kind in ("begin", "end") else (-np.inf, 1.0)
        if kind in ("slow", "busy"):
            rows[key][slowest] = 1.0
            low[key], high[key] = 0.0, np.inf
    low["once", table.source] = 1.0
    if groups is not None:
        ways = np.flatnonzero(cost)
        rows["way"] = {int(column): -float(cost[column]) for column in ways} | {slowest: groups}
        low["way"], high["way"] = entry_seconds, np.inf
    if not is_latency:
        cost = np.zeros(slowest + 1)
        cost[slowest] = 1.0
    matrix = lil_matrix((len(rows), slowest + 1))
    for row, entries in enumerate(rows.values()):
        for column, value in entries.items():
            matrix[row, column] = value
    upper = np.ones(slowest + 1)
    upper[slowest] = np.inf
    integral = np.zeros(slowest + 1)
    integral[: len(stages)] = 1
    solved = milp(
        cost,
        constraints=LinearConstraint(
            matrix.tocsr(), [low[key] for key in rows], [high[key] for key in rows]
        ),
        bounds=Bounds(np.zeros(slowest + 1), upper),
        integrality=integral,
        options={"time_limit": limit_seconds, "mip_rel_gap": 1e-9},
    )
    if solved.status == 2:
        return Verdict(math.inf)
    return Verdict(float(solved.fun) if solved.status == 0 else None)
