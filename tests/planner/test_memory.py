"""What a stage holds, alone and for every interval at once."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings

from edgeshard.errors import PlanError
from edgeshard.planner.costs import CostTable, build_costs
from edgeshard.planner.memory import missing_bytes, missing_table, stage_memory
from edgeshard.planner.units import Workload
from support.planner_cases import Case, cases, make_device, make_model, make_profile, measured


def tied_costs(memory_bytes: int) -> CostTable:
    """Units of 100 bytes; embedding and head share 40 of theirs. KV 2 x 16 x 4 x 10 per block."""
    model = make_model(2, weights_bytes=60, tied_bytes=40)
    device = make_device(
        "a", measured(model, 1.0), memory_bytes, baseline_bytes=7, workspace_bytes=5
    )
    return build_costs(model, make_profile([device]), "a", Workload(10, 1, 1, 0))


def test_a_tied_blob_counts_once_in_a_stage_with_both_users() -> None:
    costs = tied_costs(10**6)
    assert stage_memory(costs, 0, 0, 0, 4).weights_bytes == 100 + 60 + 60 + 60


def test_a_tied_blob_counts_in_each_stage_with_one_user() -> None:
    costs = tied_costs(10**6)
    assert stage_memory(costs, 0, 0, 0, 3).weights_bytes == 100 + 60 + 60
    assert stage_memory(costs, 0, 0, 1, 4).weights_bytes == 60 + 60 + 100


def test_a_stage_holds_runtime_weights_and_keys_and_values() -> None:
    memory = stage_memory(tied_costs(10**6), 0, 0, 0, 2)
    assert (memory.baseline_bytes, memory.workspace_bytes) == (7, 5)
    assert (memory.weights_bytes, memory.kv_bytes) == (160, 1280)
    assert memory.total_bytes == 7 + 5 + 160 + 1280


def test_missing_bytes_are_those_above_the_limit() -> None:
    need = 7 + 5 + 160 + 1280
    assert missing_bytes(stage_memory(tied_costs(need), 0, 0, 0, 2)) == 0
    assert missing_bytes(stage_memory(tied_costs(need - 3), 0, 0, 0, 2)) == 3


@settings(max_examples=50, deadline=None, derandomize=True)
@given(cases(tight=True))
def test_the_table_equals_every_stage(case: Case) -> None:
    try:
        costs = build_costs(case.model, case.profile, "a", Workload(case.context, case.slots, 1, 0))
    except PlanError:
        return
    for device, place in enumerate(costs.devices):
        for provider in range(len(place.providers)):
            table = missing_table(costs, device, provider)
            for start, stop in zip(*np.triu_indices(costs.num_units + 1, 1), strict=True):
                memory = stage_memory(costs, device, provider, int(start), int(stop))
                assert table[start, stop] == missing_bytes(memory)
