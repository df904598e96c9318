"""Why a device is not in the plan."""

from __future__ import annotations

from edgeshard.planner.costs import build_costs
from edgeshard.planner.left_out import why_left_out
from edgeshard.planner.partition import best_partition
from edgeshard.planner.units import Workload
from edgeshard.schemas.common import Objective
from edgeshard.schemas.profile import Profile
from support.planner_cases import MIB, make_device, make_link, make_model, make_profile, measured

MODEL = make_model()
FAST = measured(MODEL, 0.010)
SLOW = measured(MODEL, 0.100)


def reasons(profile: Profile, objective: Objective = "latency") -> dict[str, str]:
    costs = build_costs(MODEL, profile, "a", Workload(64, 1, 1, 0))
    best = best_partition(costs, objective)
    return {left.device: left.reason for left in why_left_out(costs, best, objective)}


def test_a_slower_device_is_left_out_with_both_figures() -> None:
    profile = make_profile([make_device("a", FAST), make_device("b", SLOW)])
    hop_and_return = 1.456 + 1.0
    with_b = 5 * 10 + 100 + hop_and_return
    assert reasons(profile)["b"] == (
        f"with it a token takes {with_b:.2f} ms at best, without it 60.00 ms"
    )


def test_throughput_speaks_of_the_slowest_stage() -> None:
    profile = make_profile([make_device("a", FAST), make_device("b", SLOW)])
    assert reasons(profile, "throughput")["b"] == (
        "with it a token, with all slots in use, takes 100.00 ms at best, without it 60.00 ms"
    )


def test_a_device_that_changes_nothing_would_not_help() -> None:
    devices = [make_device("a", SLOW), make_device("b", FAST), make_device("c", FAST)]
    assert reasons(make_profile(devices), "throughput")["c"] == (
        "it would not help: a token, with all slots in use, takes 100.00 ms with it too"
    )


def test_a_full_device_is_left_out_with_need_and_limit() -> None:
    profile = make_profile([make_device("a", FAST), make_device("b", FAST, memory_bytes=MIB // 2)])
    assert reasons(profile)["b"] == "its smallest stage needs 1.0 MiB, it may hold 0.5 MiB"


def test_an_unlinked_device_is_left_out_by_the_missing_direction() -> None:
    devices = [make_device(name, FAST) for name in "abc"]
    links = [make_link("a", "b"), make_link("c", "a")]
    assert reasons(make_profile(devices, links)) == {
        "b": "no link from it was measured",
        "c": "no link to it was measured",
    }


def test_a_device_in_no_chain_that_fits_says_so() -> None:
    """Only b leads back, and it cannot hold what a and c leave."""
    devices = [
        make_device("a", FAST),
        make_device("b", FAST, memory_bytes=1),
        make_device("c", FAST),
    ]
    links = [make_link("a", "c"), make_link("c", "b"), make_link("b", "a")]
    assert reasons(make_profile(devices, links))["c"] == (
        "no chain through it has measured links and fits in memory"
    )


def test_an_unmeasured_device_says_what_its_profile_lacks() -> None:
    profile = make_profile([make_device("a", FAST), make_device("b", FAST[:2])])
    assert "1 of the 2 unit structures" in reasons(profile)["b"]
