"""The front against every chain, and what it says where one device is best."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from edgeshard.errors import PlanError
from edgeshard.planner.costs import build_costs
from edgeshard.planner.front import front
from edgeshard.planner.units import Workload
from support.planner_brute_force import every_chain
from support.planner_cases import Case, cases, make_device, make_model, make_profile, measured


@settings(max_examples=40, deadline=None, derandomize=True)
@given(cases(tight=True, plain=True))
def test_no_chain_beats_a_choice_and_every_best_one_is_there(case: Case) -> None:
    chains = [
        (len(one.devices), one.latency_seconds, one.bottleneck_seconds)
        for one in every_chain(case.model, case.profile, "a", case.context, case.slots)
        if not one.missing_bytes
    ]
    costs = build_costs(case.model, case.profile, "a", Workload(case.context, case.slots, 1, 0))
    try:
        choices = front(costs)
    except PlanError:
        assert not chains
        return
    rounded = {
        (one.num_devices, round(one.token_seconds, 9), round(one.slowest_seconds, 9))
        for one in choices
    }
    every = {(size, round(total, 9), round(slow, 9)) for size, total, slow in chains}
    best = {
        one
        for one in every
        if not any(
            other != one and all(a <= b for a, b in zip(other, one, strict=True)) for other in every
        )
    }
    assert rounded == best
    assert all(one.is_proven for one in choices)


def test_one_device_can_be_best_in_everything() -> None:
    model = make_model()
    devices = [make_device("a", measured(model, 0.001)), make_device("b", measured(model, 1.0))]
    costs = build_costs(model, make_profile(devices), "a", Workload(64, 1, 1, 0))
    (only,) = front(costs)
    assert only.num_devices == 1
    assert only.token_seconds == pytest.approx(0.006)
