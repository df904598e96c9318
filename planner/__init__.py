"""Profile and manifest to plan: pure functions over frozen values.

interpolate ─► units ─► costs ─► partition (chains, memory) ─► plan ─► table
"""

from __future__ import annotations

from edgeshard.planner.costs import CostTable, build_costs
from edgeshard.planner.hosts import Span
from edgeshard.planner.partition import Partition, best_partition
from edgeshard.planner.plan import make_plan
from edgeshard.planner.table import plan_rows, plan_summary, plan_table
from edgeshard.planner.units import Workload

__all__ = [
    "CostTable",
    "Partition",
    "Span",
    "Workload",
    "best_partition",
    "build_costs",
    "make_plan",
    "plan_rows",
    "plan_summary",
    "plan_table",
]
