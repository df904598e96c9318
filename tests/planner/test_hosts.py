"""The head at the source: against every chain there is, in time and in memory."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from edgeshard.errors import InputError, PlanError
from edgeshard.planner.costs import build_costs
from edgeshard.planner.partition import best_partition
from edgeshard.planner.plan import make_plan
from edgeshard.planner.units import Workload
from edgeshard.schemas.common import Objective
from edgeshard.schemas.plan import Plan
from support.planner_brute_force import best_latency, best_throughput, every_chain
from support.planner_cases import (
    MIB,
    Case,
    cases,
    digest,
    make_device,
    make_model,
    make_profile,
    measured,
)

EXAMPLES = settings(max_examples=120, deadline=None, derandomize=True)
MODEL = make_model()


def check_against_every_chain(case: Case, objective: Objective) -> None:
    workload = Workload(case.context, case.slots, 1, 0, head_at_source=True)
    given_case = (case.model, case.profile, "a", case.context, case.slots)
    chains = list(every_chain(*given_case, head_at_source=True))
    fitting = [chain for chain in chains if chain.missing_bytes == 0]
    if not fitting:
        with pytest.raises(PlanError):
            best_partition(build_costs(case.model, case.profile, "a", workload), objective)
        return
    best = best_partition(build_costs(case.model, case.profile, "a", workload), objective)
    if objective == "latency":
        expected = best_latency(fitting)
    else:
        expected, latency = best_throughput(fitting)
        assert best.token_seconds == pytest.approx(latency, rel=1e-8)
    assert best.seconds == pytest.approx(expected, rel=1e-8)
    assert best.bound_seconds == best.seconds
    assert best.spans[-1].stop == len(case.model.units)
    assert best.spans[-1].device == best.spans[0].device


@EXAMPLES
@given(cases(tight=True))
def test_latency_with_the_head_at_the_source_equals_the_best_of_every_chain(case: Case) -> None:
    check_against_every_chain(case, "latency")


@EXAMPLES
@given(cases(tight=True))
def test_throughput_with_the_head_at_the_source_equals_the_best_of_every_chain(case: Case) -> None:
    check_against_every_chain(case, "throughput")


def plan_of(memory_bytes: int, objective: Objective = "latency", slots: int = 1) -> Plan:
    """Two devices; the source `a` is slow and small."""
    devices = [
        make_device("a", measured(MODEL, 0.1), memory_bytes=memory_bytes),
        make_device("b", measured(MODEL, 0.01)),
    ]
    return make_plan(
        MODEL,
        digest("m"),
        make_profile(devices),
        "a",
        objective,
        64,
        slots,
        32,
        head_at_source=True,
    )


def test_the_source_runs_the_first_units_and_the_head() -> None:
    plan = plan_of(3 * MIB)
    assert [(stage.device, stage.start, stage.stop) for stage in plan.stages] == [
        ("a", 0, 1),
        ("b", 1, 5),
        ("a", 5, 6),
    ]
    assert plan.head_at_source
    assert plan.token_seconds == pytest.approx(0.24 + 2 * (0.001 + 456 / 1e6))


def test_what_the_source_does_for_a_token_is_one_figure() -> None:
    plan = plan_of(3 * MIB, "throughput", slots=8)
    assert plan.bottleneck == "stage 0 and 2 on a, 200.00 ms per token"
    assert plan.tokens_per_second == pytest.approx(1 / 0.2)


def test_each_of_two_stages_has_the_room_that_the_other_leaves() -> None:
    first, _, head = plan_of(3 * MIB).stages
    assert first.memory.limit_bytes == 2 * MIB
    assert first.memory.limit_bytes - first.memory.total_bytes == MIB
    assert head.memory.limit_bytes - head.memory.total_bytes == MIB


def test_a_source_without_room_for_both_says_so() -> None:
    with pytest.raises(PlanError, match="source a must hold embedding and head and lacks"):
        plan_of(2 * MIB - 1)


def test_a_baseline_knows_no_head_at_the_source() -> None:
    with pytest.raises(InputError, match="edge-solo knows no head at the source"):
        make_plan(
            MODEL,
            digest("m"),
            make_profile([make_device("a", measured(MODEL, 0.1))]),
            "a",
            "latency",
            64,
            1,
            32,
            method="edge-solo",
            head_at_source=True,
        )
