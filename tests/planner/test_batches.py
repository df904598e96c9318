"""Groups of slots: which are tried, what their batches cost, and that the best of all is taken."""

from __future__ import annotations

import itertools

import pytest

from edgeshard.planner.baselines import Method
from edgeshard.planner.batches import Grouping, groupings
from edgeshard.planner.plan import make_plan
from edgeshard.schemas.common import Objective, changed
from edgeshard.schemas.plan import Plan
from edgeshard.schemas.profile import DecodePoint, Profile
from edgeshard.simulate import chain_of_plan, figures
from support.planner_cases import (
    digest,
    make_device,
    make_link,
    make_model,
    make_profile,
    measured,
    timing,
)
from support.simulated_chain import run_chain

MODEL = make_model()


def profile_of(
    each_row: float, num_devices: int = 2, rows_alike: dict[str, bool] | None = None
) -> Profile:
    """Devices that take 10 ms for a unit, and `each_row` times that for each further row.

    `rows_alike` by the kind of unit; of others it was not measured.
    """
    batch_4 = DecodePoint(context=64, batch=4, time=timing(0.010 * (1 + 3 * each_row)))
    alike = rows_alike or {}
    units = tuple(
        changed(unit, decode=(*unit.decode, batch_4), rows_alike=alike.get(unit.kind))
        for unit in measured(MODEL, 0.010)
    )
    names = "abcd"[:num_devices]
    links = [make_link(x, y, 0.010, 1e9) for x in names for y in names if x != y]
    return make_profile([make_device(name, units) for name in names], links)


def plan_of(
    profile: Profile,
    slots: int,
    objective: Objective = "throughput",
    batch: int | None = None,
    method: Method | None = None,
) -> Plan:
    return make_plan(
        MODEL, digest("m"), profile, "a", objective, 64, slots, 32, batch=batch, method=method
    )


def test_groupings_are_all_that_differ_most_groups_first() -> None:
    assert groupings(6, None) == (
        Grouping(6, 1),
        Grouping(3, 2),
        Grouping(2, 3),
        Grouping(1, 6),
    )
    assert groupings(5, 2) == (Grouping(3, 2),)
    assert all(one.rows <= 64 for one in groupings(1000, None))


def test_rows_that_cost_nothing_are_taken_all_at_once() -> None:
    plan = plan_of(profile_of(0.0, 1), 8)
    assert (plan.groups, plan.batch) == (1, 8)
    assert plan.tokens_per_second == pytest.approx(8 / 0.060)


def test_rows_that_cost_as_much_as_alone_are_spread_over_the_stages() -> None:
    plan = plan_of(profile_of(1.0), 8)
    assert plan.batch == 1
    assert len(plan.stages) == 2
    assert plan.tokens_per_second == pytest.approx(1 / 0.030)


@pytest.mark.parametrize(("slots", "each_row"), [*itertools.product([1, 2, 3, 6], [0.0, 0.3, 1.0])])
def test_the_rate_is_the_best_of_every_batch(slots: int, each_row: float) -> None:
    profile = profile_of(each_row, 3)
    best = plan_of(profile, slots)
    each = [plan_of(profile, slots, batch=rows) for rows in range(1, slots + 1)]
    assert best.tokens_per_second == pytest.approx(max(one.tokens_per_second for one in each))
    assert best.certificate is not None
    assert best.certificate.is_optimal
    assert best.certificate.seconds == pytest.approx(1 / best.tokens_per_second)


@pytest.mark.parametrize(("slots", "each_row"), [*itertools.product([2, 6], [0.0, 0.3, 1.0])])
def test_the_schedule_reaches_the_rate(slots: int, each_row: float) -> None:
    plan = plan_of(profile_of(each_row, 3), slots)
    run = run_chain(chain_of_plan(plan), slots, 60, num_groups=plan.groups)
    found = figures(run).steady_tokens_per_second
    assert found == pytest.approx(plan.tokens_per_second, rel=0.03)


def test_a_latency_plans_rate_counts_shared_steps() -> None:
    alone = plan_of(profile_of(0.0, 1), 1, "latency")
    shared = plan_of(profile_of(0.0, 1), 8, "latency")
    assert shared.token_seconds == alone.token_seconds
    assert shared.batch == 1
    assert shared.groups == 1
    assert shared.tokens_per_second == pytest.approx(8 * alone.tokens_per_second)


DIFFERENT = {"embedding": True, "block": False, "head": True}


def test_a_rate_with_rows_that_differ_in_company_says_where() -> None:
    plan = plan_of(profile_of(0.0, rows_alike=DIFFERENT), 8)
    assert plan.depends_on_company
    assert plan.company == tuple(stage.device for stage in plan.stages)


def test_a_stage_whose_rows_are_alike_is_not_named() -> None:
    plan = plan_of(profile_of(0.0, 1, {"embedding": True, "block": True, "head": True}), 8)
    assert (plan.groups, plan.company) == (1, ())
    only_head = plan_of(profile_of(0.0, rows_alike={"head": False}), 8)
    assert only_head.company == (only_head.stages[-1].device,)


def test_what_was_not_measured_of_rows_is_not_held_against_them() -> None:
    assert plan_of(profile_of(0.0, 1), 8).company == ()


def test_one_slot_has_no_company() -> None:
    assert plan_of(profile_of(0.0, 1, DIFFERENT), 1).company == ()


@pytest.mark.parametrize("objective", ["latency", "throughput"])
def test_one_row_a_step_is_never_in_company(objective: Objective) -> None:
    plan = plan_of(profile_of(0.0, 1, DIFFERENT), 8, objective, batch=1)
    assert (plan.groups, plan.company, plan.depends_on_company) == (8, ("a",), False)


def test_a_latency_plan_keeps_rows_apart_that_differ_in_company_unless_told() -> None:
    profile = profile_of(0.0, 1, DIFFERENT)
    plan = plan_of(profile, 8, "latency")
    assert (plan.groups, plan.depends_on_company) == (8, False)
    told = plan_of(profile, 8, "latency", batch=4)
    assert (told.groups, told.depends_on_company) == (2, True)


def test_a_baseline_for_throughput_shares_steps_as_the_best_plan_does() -> None:
    profile = profile_of(0.0, 1, DIFFERENT)
    plan = plan_of(profile, 8, method="edge-solo")
    assert (plan.groups, plan.depends_on_company) == (1, True)
    assert plan_of(profile, 8, "latency", method="edge-solo").groups == 8


def test_one_slot_is_planned_for_its_latency() -> None:
    plan = plan_of(profile_of(1.0), 1)
    assert [stage.device for stage in plan.stages] == ["a"]


def test_without_measured_batches_every_slot_is_a_group() -> None:
    units = measured(MODEL, 0.010)
    profile = make_profile([make_device(name, units) for name in "ab"])
    plan = plan_of(profile, 6)
    assert (plan.groups, plan.batch) == (6, 1)
