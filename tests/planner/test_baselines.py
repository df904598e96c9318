"""Named plans: what each one chooses, and that none beats the best chain."""

from __future__ import annotations

from typing import get_args

import pytest

from edgeshard.errors import PlanError
from edgeshard.planner.baselines import Method, baseline, only
from edgeshard.planner.costs import CostTable, build_costs
from edgeshard.planner.hosts import Span
from edgeshard.planner.partition import best_partition
from edgeshard.planner.predict import bottleneck_seconds, latency_seconds
from edgeshard.planner.units import Workload
from edgeshard.schemas.common import Objective
from support.planner_cases import MIB, make_device, make_link, make_model, make_profile, measured

OBJECTIVES: tuple[Objective, Objective] = ("latency", "throughput")


def three_devices(memory_mib: int = 100, direct_bytes_per_second: float = 100.0) -> CostTable:
    """Source `a`, its equal `b` and the fast `c`, to which the source has a slow link."""
    model = make_model()
    devices = [
        make_device(name, measured(model, seconds), memory_bytes=memory_mib * MIB)
        for name, seconds in (("a", 1.0), ("b", 1.0), ("c", 0.01))
    ]
    links = [
        make_link(a, b, 0.0, direct_bytes_per_second if {a, b} == {"a", "c"} else 1e6)
        for a in "abc"
        for b in "abc"
        if a != b
    ]
    return build_costs(model, make_profile(devices, links), "a", Workload(1, 1, 1, 0))


def cuts(spans: tuple[Span, ...]) -> list[tuple[int, int, int]]:
    return [(span.device, span.start, span.stop) for span in spans]


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("edge-solo", [(0, 0, 6)]),
        ("cloud-edge-even", [(0, 0, 3), (2, 3, 6)]),
        ("cloud-edge-opt", [(0, 0, 1), (2, 1, 6)]),
        ("cloud-edge-opt-relay", [(0, 0, 1), (1, 1, 2), (2, 2, 6)]),
        ("edgeshard-even", [(0, 0, 2), (1, 2, 4), (2, 4, 6)]),
        ("algorithm-1", [(0, 0, 1), (1, 1, 2), (2, 2, 6)]),
    ],
)
def test_a_method_cuts_where_it_says(method: Method, expected: list[tuple[int, int, int]]) -> None:
    """A relay of one unit takes 1.01 s; the slow link takes 4.56 s, and all on the source 6 s."""
    assert cuts(baseline(three_devices(), method, "latency")) == expected


def test_the_cloud_may_be_named() -> None:
    assert cuts(baseline(three_devices(), "cloud-edge-even", "latency", cloud=1)) == [
        (0, 0, 3),
        (1, 3, 6),
    ]


def test_the_two_device_split_stays_at_home_behind_a_very_slow_link() -> None:
    costs = three_devices(direct_bytes_per_second=10.0)
    assert cuts(baseline(costs, "cloud-edge-opt", "latency")) == [(0, 0, 6)]


@pytest.mark.parametrize("method", ["edge-solo", "cloud-edge-even"])
def test_a_fixed_plan_that_does_not_fit_says_where_it_lacks_what(method: Method) -> None:
    with pytest.raises(PlanError, match=rf"{method} puts units \[0, \d\) on a, which lacks \d+"):
        baseline(three_devices(memory_mib=2), method, "latency")


def test_one_device_has_no_cloud() -> None:
    model = make_model()
    profile = make_profile([make_device("a", measured(model, 1.0))])
    costs = build_costs(model, profile, "a", Workload(1, 1, 1, 0))
    with pytest.raises(PlanError, match="needs a device beside the source"):
        baseline(costs, "cloud-edge-even", "latency")


@pytest.mark.parametrize("method", [one for one in get_args(Method) if one != "edge-solo"])
def test_no_method_beats_the_exact_planner(method: Method) -> None:
    costs = three_devices(memory_mib=5)
    spans = baseline(costs, method, "latency")
    latency, throughput = (best_partition(costs, one) for one in OBJECTIVES)
    assert latency_seconds(costs, spans) >= latency.seconds * (1 - 1e-9)
    assert bottleneck_seconds(costs, spans) >= throughput.seconds * (1 - 1e-9)


def test_what_is_predicted_of_spans_is_what_the_planner_made_small() -> None:
    costs = three_devices()
    latency, throughput = (best_partition(costs, one) for one in OBJECTIVES)
    assert latency_seconds(costs, latency.spans) == pytest.approx(latency.seconds)
    assert bottleneck_seconds(costs, throughput.spans) == pytest.approx(throughput.seconds)


def test_a_device_that_hosts_two_spans_works_for_both() -> None:
    costs = three_devices()
    there_and_back = (Span(0, 0, 0, 1), Span(1, 0, 1, 2), Span(0, 0, 2, 6))
    assert bottleneck_seconds(costs, there_and_back) == pytest.approx(5.0)


def test_a_part_of_the_cost_table_is_planned_like_the_whole_without_the_rest() -> None:
    costs = three_devices()
    part = only(costs, [1, 0])
    assert part.source == 1
    assert [device.name for device in part.devices] == ["b", "a"]
    assert part.hop_seconds[0][1] == costs.hop_seconds[1][0]
    assert best_partition(part, "latency").seconds == pytest.approx(6.0)
