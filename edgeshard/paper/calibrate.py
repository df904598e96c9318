"""One factor for each model without a trace: the exact latency plan takes what the paper reports.

All other figures of the model follow from it; the cell that it was taken from is marked.
"""

from __future__ import annotations

from edgeshard.paper.methods import choose
from edgeshard.paper.testbed import TRACED, Kind, Model, Setting, cost_table, testbed
from edgeshard.planner.predict import latency_seconds

ANCHOR = "edgeshard"
NUM_HALVINGS = 24


def factor_of(model: Model, kinds: tuple[Kind, ...] | None = None) -> float:
    """The factor of a model's unit times; 1 for the model that has a trace.

    Args:
        model: the model.
        kinds: devices beside the source; None: the whole testbed.

    The time of the best plan grows with the factor, without steps, so halving finds it.
    """
    if model == TRACED:
        return 1.0
    wanted = testbed()["reported"]["latency_ms_per_token"][model][ANCHOR]["value"] / 1e3
    low, high = 0.0, 64.0
    for _ in range(NUM_HALVINGS):
        middle = (low + high) / 2
        costs = cost_table(Setting(model=model, factor=middle, kinds=kinds))
        spans = choose(costs, "exact", "latency")
        assert spans is not None, f"{model} does not fit the testbed"
        low, high = (middle, high) if latency_seconds(costs, spans) < wanted else (low, middle)
    return (low + high) / 2
