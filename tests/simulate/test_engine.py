"""The simulator beside what a person works out, and beside what the planner predicts."""

from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from edgeshard.errors import InputError, PlanError
from edgeshard.planner import best_partition, build_costs
from edgeshard.planner.plan import make_plan
from edgeshard.planner.predict import bottleneck_seconds, latency_seconds
from edgeshard.planner.units import Workload
from edgeshard.runtime.schedule import Limits
from edgeshard.schemas.common import Transfers
from edgeshard.schemas.plan import Plan
from edgeshard.simulate import (
    Arrival,
    Options,
    chain_of_plan,
    chain_of_spans,
    figures,
    simulate,
)
from edgeshard.simulate.engine import Shared
from support.planner_cases import Case, cases, digest
from support.simulated_chain import make_chain, run_chain

EXAMPLES = settings(max_examples=25, deadline=None, derandomize=True)
TWO = make_chain([3.0, 5.0], 1.0, 0.5, return_seconds=0.25, entry_seconds=0.125)
ROUND_TRIP = 0.125 + 3 + 1.5 + 5 + 0.25


def plan_of(case: Case, slots: int = 1, transfers: Transfers = "overlapped") -> Plan:
    """A plan of a case; cases without one are left out."""
    try:
        return make_plan(
            case.model,
            digest("m"),
            case.profile,
            "a",
            "throughput",
            64,
            slots,
            prompt_tokens=9,
            transfers=transfers,
        )
    except (InputError, PlanError):
        assume(False)
        raise


def test_one_request_takes_the_sum_of_everything() -> None:
    found = figures(run_chain(TWO))
    assert found.token_seconds == pytest.approx(ROUND_TRIP)
    assert found.first_token_seconds == pytest.approx(ROUND_TRIP)
    assert found.tokens_per_second == pytest.approx(1 / ROUND_TRIP)


def test_many_requests_are_as_fast_as_the_slowest_stage() -> None:
    found = figures(run_chain(TWO, num_requests=6))
    assert found.steady_tokens_per_second == pytest.approx(1 / 5)


def test_a_link_can_be_the_slowest() -> None:
    found = figures(run_chain(make_chain([1.0, 1.0], 4.0, 9.0), num_requests=8))
    assert found.steady_tokens_per_second == pytest.approx(1 / 4)


def test_few_requests_do_not_fill_a_long_chain() -> None:
    found = figures(run_chain(make_chain([1.0] * 6), num_requests=2))
    assert found.steady_tokens_per_second == pytest.approx(2 / 6, rel=0.05)


def test_bubbles_by_hand() -> None:
    """Stage 1 is idle while the first request of a round comes to it, 4.625 s of each 14.875.

    stage 0   A A A B B B . . . . . . . . .
    stage 1   . . . . . A A A A A B B B B B
    """
    in_rounds = figures(run_chain(TWO, num_requests=2, in_rounds=True))
    freely = figures(run_chain(TWO, num_requests=2))
    assert in_rounds.token_seconds == pytest.approx(0.125 + 3 + 1.5 + 5 + 5 + 0.25)
    assert freely.token_seconds == pytest.approx(10.0)


@pytest.mark.parametrize(("row_cost", "compute"), [(0.0, 3 + 5), (1.0, 4 * (3 + 5))])
def test_a_group_steps_as_one_batch(row_cost: float, compute: float) -> None:
    """Four sequences in one step: one hop with four positions, 4 + 0.5 s, and one way back."""
    options = Options(row_cost=row_cost)
    found = figures(run_chain(TWO, 4, options=options, num_groups=1))
    together = 0.125 + compute + 4 * 1.0 + 0.5 + 0.25
    assert found.token_seconds == pytest.approx(together)
    assert found.steady_tokens_per_second == pytest.approx(4 / together, rel=0.03)


def test_groups_overlap_with_each_other() -> None:
    """Two batches of two, each 10.875 s around the chain: stage 1 is all but always busy."""
    found = figures(run_chain(TWO, 4, options=Options(row_cost=0.0), num_groups=2))
    around = 0.125 + 3 + 2.5 + 5 + 0.25
    assert found.steady_tokens_per_second == pytest.approx(4 / around, rel=0.03)


def test_blocking_transfers_stop_both_ends() -> None:
    """Stage 1 receives for 1.5 s, computes for 5 and sends for 0.25."""
    blocking = Options(transfers="blocking")
    alone = figures(run_chain(TWO, options=blocking))
    many = figures(run_chain(TWO, num_requests=6, options=blocking))
    assert alone.token_seconds == pytest.approx(ROUND_TRIP)
    assert many.steady_tokens_per_second == pytest.approx(1 / 6.75)


@pytest.mark.parametrize(
    ("shared", "num_hops", "cycle"), [("none", 2, 2.0), ("device", 2, 4.0), ("medium", 3, 6.0)]
)
def test_frames_compete_for_what_they_share(shared: Shared, num_hops: int, cycle: float) -> None:
    """Hops of 2 s: each alone; both at the device between; all in one medium."""
    chain = make_chain([1.0] * (num_hops + 1), 2.0)
    found = figures(run_chain(chain, num_requests=12, options=Options(shared=shared)))
    assert found.steady_tokens_per_second == pytest.approx(1 / cycle)


def test_a_prompt_in_chunks_overlaps_with_itself() -> None:
    """Whole: 8 + 8 s. Two chunks of 4: stage 1 works on the first while stage 0 has the second."""
    chain = make_chain([1.0, 1.0], prompt_tokens=8)
    whole = figures(run_chain(chain, new_tokens=1, prompt_tokens=8))
    chunks = figures(run_chain(chain, new_tokens=1, prompt_tokens=8, chunk_tokens=4))
    assert whole.first_token_seconds == pytest.approx(16)
    assert chunks.first_token_seconds == pytest.approx(12)


def test_beside_a_decode_a_token_and_a_chunk_take_turns_on_every_stage() -> None:
    """A token takes 1 s a stage, a chunk 4: one of each in 5 s, instead of a token in 2 s."""
    chain = make_chain([1.0, 1.0])
    limits = Limits(slots=2, context=100_000, window=2, chunk_tokens=4)
    arrivals = [Arrival(0.0, 1, 200), Arrival(20.0, 120, 1)]
    run = simulate(chain, limits, arrivals, None)
    (first_token,) = (token.seconds for token in run.tokens if token.request == 1)
    meanwhile = [one for one in run.tokens if not one.request and 20 < one.seconds < first_token]
    assert first_token - 20 == pytest.approx(30 * (1 + 4), rel=0.1)
    assert (first_token - 20) / len(meanwhile) == pytest.approx(1 + 4, rel=0.1)


def test_a_request_waits_for_a_slot() -> None:
    run = run_chain(make_chain([1.0]), num_requests=2, new_tokens=3, slots=1)
    assert [(token.request, token.seconds) for token in run.tokens] == [
        *((0, 1.0), (0, 2.0), (0, 3.0)),
        *((1, 4.0), (1, 5.0), (1, 6.0)),
    ]


def test_a_device_with_two_stages_does_one_thing_at_a_time() -> None:
    chain = make_chain([1.0, 2.0, 3.0])
    back = dataclasses.replace(chain.stages[2], device="a")
    found = figures(run_chain(dataclasses.replace(chain, stages=(*chain.stages[:2], back)), 5))
    assert found.steady_tokens_per_second == pytest.approx(1 / 4, rel=0.02)


def test_a_chain_that_comes_back_cannot_block() -> None:
    chain = make_chain([1.0, 2.0])
    again = dataclasses.replace(chain, stages=(*chain.stages, chain.stages[0]))
    with pytest.raises(InputError, match="comes back"):
        run_chain(again, options=Options(transfers="blocking"))


def test_what_the_schedule_refuses_is_an_error() -> None:
    limits = Limits(slots=1, context=4)
    with pytest.raises(InputError, match="the context holds 4"):
        simulate(TWO, limits, [Arrival(0.0, 5, 1)], None)


def test_jitter_repeats_with_its_seed_and_stays_around_the_mean() -> None:
    first, again, other = (
        run_chain(TWO, new_tokens=400, options=Options(jitter=0.2, seed=seed)) for seed in (1, 1, 2)
    )
    assert first.tokens == again.tokens
    assert first.tokens != other.tokens
    assert figures(first).tokens_per_second == pytest.approx(1 / ROUND_TRIP, rel=0.02)


def test_jitter_does_not_reorder_the_chunks_of_a_prompt() -> None:
    chain = make_chain([0.001, 0.001], 0.001, 9.0, prompt_tokens=64)
    run = run_chain(chain, 4, 3, 64, Options(jitter=0.9), chunk_tokens=3)
    assert len(run.tokens) == 12


def test_utilisation_is_busy_time_over_all_time() -> None:
    found = figures(run_chain(TWO))
    shares = {use.where: use.share for use in found.utilisation}
    expected = {"a": 3 / ROUND_TRIP, "a -> b": 1 / ROUND_TRIP, "b": 5 / ROUND_TRIP}
    assert shares == pytest.approx(expected)


@EXAMPLES
@given(cases(tight=False))
def test_one_request_equals_the_plan(case: Case) -> None:
    plan = plan_of(case)
    found = figures(run_chain(chain_of_plan(plan), new_tokens=5, prompt_tokens=9))
    assert found.token_seconds == pytest.approx(plan.token_seconds)
    assert found.first_token_seconds == pytest.approx(plan.first_token_seconds)


@EXAMPLES
@given(cases(tight=False))
def test_many_requests_approach_the_plans_throughput(case: Case) -> None:
    plan = plan_of(case, 16)
    found = figures(run_chain(chain_of_plan(plan), 16, new_tokens=30))
    assert found.steady_tokens_per_second == pytest.approx(plan.tokens_per_second, rel=0.03)


@EXAMPLES
@given(cases(tight=False), st.integers(1, 4))
def test_few_requests_reach_the_plans_throughput_too(case: Case, slots: int) -> None:
    plan = plan_of(case, slots)
    found = figures(run_chain(chain_of_plan(plan), slots, new_tokens=30))
    assert found.steady_tokens_per_second == pytest.approx(plan.tokens_per_second, rel=0.03)


@EXAMPLES
@given(cases(tight=False), st.sampled_from([1, 2, 3, 16]))
def test_blocking_transfers_reach_the_throughput_that_is_planned_for_them(
    case: Case, slots: int
) -> None:
    plan = plan_of(case, slots, "blocking")
    options = Options(transfers=plan.transfers)
    found = figures(run_chain(chain_of_plan(plan), slots, new_tokens=30, options=options))
    assert found.steady_tokens_per_second == pytest.approx(plan.tokens_per_second, rel=0.03)
    overlapped = plan_of(case, slots)
    assert plan.tokens_per_second <= overlapped.tokens_per_second * (1 + 1e-9)


@EXAMPLES
@given(cases(tight=True))
def test_spans_are_simulated_as_they_are_predicted(case: Case) -> None:
    try:
        costs = build_costs(case.model, case.profile, "a", Workload(case.context, 1, 9, 0))
        spans = best_partition(costs, "throughput").spans
    except PlanError:
        assume(False)
        raise
    chain = chain_of_spans(costs, spans)
    latency, bottleneck = latency_seconds(costs, spans), bottleneck_seconds(costs, spans)
    alone = figures(run_chain(chain, new_tokens=5))
    fill = 2 * math.ceil(latency / bottleneck)
    many = figures(run_chain(chain, fill, new_tokens=30))
    assert alone.token_seconds == pytest.approx(latency)
    assert many.steady_tokens_per_second == pytest.approx(1 / bottleneck, rel=0.03)
