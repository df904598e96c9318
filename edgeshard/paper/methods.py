"""The rows of the paper's tables, and two that it lacks: which spans each one chooses.

EdgeShard   the paper's Algorithm 1 for latency, its Algorithm 2 for throughput
exact       the planner of this project
relay       Cloud-Edge-Opt with one device allowed between the two
"""

from __future__ import annotations

from functools import cache
from typing import Literal, get_args

from edgeshard.errors import PlanError
from edgeshard.paper.testbed import Setting, cost_table
from edgeshard.planner.baselines import Method, Spans, baseline
from edgeshard.planner.costs import CostTable
from edgeshard.planner.partition import best_partition
from edgeshard.runtime.schedule import Limits
from edgeshard.schemas.common import Objective
from edgeshard.simulate import Arrival, Figures, chain_of_spans, figures, simulate

Row = Literal[
    "edge-solo",
    "cloud-edge-even",
    "cloud-edge-opt",
    "cloud-edge-opt-relay",
    "edgeshard-even",
    "edgeshard",
    "exact",
    "exact-latency-plan",
]
ROWS: tuple[Row, ...] = get_args(Row)
LATENCY_ROWS = ROWS[:-1]
NEW_TOKENS = 96
"""Tokens of each simulated sequence: the paper's workload."""


@cache
def planned(setting: Setting, row: Row, objective: Objective) -> tuple[CostTable, Spans | None]:
    """An experiment's costs and the spans of a row; kept, as studies have experiments in common."""
    costs = cost_table(setting)
    return costs, choose(costs, row, objective)


def choose(costs: CostTable, row: Row, objective: Objective) -> Spans | None:
    """The spans of a row; None where they do not fit."""
    try:
        if row == "exact" or row == "exact-latency-plan":
            wanted = objective if row == "exact" else "latency"
            return best_partition(costs, wanted).spans
        method: Method = (
            ("algorithm-1" if objective == "latency" else "algorithm-2")
            if row == "edgeshard"
            else row
        )
        clouds = [i for i, device in enumerate(costs.devices) if device.name.startswith("rtx-")]
        return baseline(costs, method, objective, cloud=clouds[0])
    except PlanError:
        return None


def run(costs: CostTable, spans: Spans, in_flight: int, *, in_rounds: bool = False) -> Figures:
    """Simulate `in_flight` sequences, or batches that travel together, through given spans.

    The trace has one time for prompt and token, so a sequence is equal steps.
    """
    limits = Limits(
        slots=in_flight,
        context=2 * NEW_TOKENS,
        window=len(spans),
        max_waiting=in_flight,
        in_rounds=in_rounds,
    )
    arrivals = [Arrival(0.0, 1, NEW_TOKENS)] * in_flight
    return figures(simulate(chain_of_spans(costs, spans), limits, arrivals, None))


def token_milliseconds(costs: CostTable, spans: Spans) -> float:
    """Time between tokens of one batch alone."""
    found = run(costs, spans, 1).token_seconds
    assert found is not None
    return found * 1e3


def tokens_per_second(
    costs: CostTable, spans: Spans, batch: int, in_flight: int, *, in_rounds: bool = False
) -> float:
    """Rate with several batches in flight, away from the beginning and the end of the run."""
    found = run(costs, spans, in_flight, in_rounds=in_rounds).steady_tokens_per_second
    assert found is not None
    return found * batch
