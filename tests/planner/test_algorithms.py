"""The paper's algorithms: by hand, against every path or chain, and where one is not exact."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings

from edgeshard.errors import PlanError
from edgeshard.planner.algorithm1 import algorithm1
from edgeshard.planner.algorithm2 import MAX_DEVICES, algorithm2
from edgeshard.planner.costs import CostTable, build_costs
from edgeshard.planner.hosts import Span
from edgeshard.planner.layers import layer_table
from edgeshard.planner.partition import best_partition
from edgeshard.planner.predict import bottleneck_seconds, latency_seconds
from edgeshard.planner.units import Workload
from edgeshard.schemas.model import KvSpec
from support.planner_brute_force import best_throughput, every_chain
from support.planner_cases import (
    MIB,
    Case,
    cases,
    make_device,
    make_link,
    make_model,
    make_profile,
    measured,
)

EXAMPLES = settings(max_examples=40, deadline=None, derandomize=True)


def costs_of(case: Case) -> CostTable:
    workload = Workload(case.context, case.slots, 1, 0)
    return build_costs(case.model, case.profile, "a", workload)


def best_path_seconds(costs: CostTable) -> float:
    """Latency of the best of all assignments of units to devices that fit."""
    table = layer_table(costs)
    devices = range(len(costs.devices))

    def rest(unit: int, host: int, room: tuple[int, ...]) -> float:
        if unit == costs.num_units:
            return float(table.way_back[host])
        return min(
            (
                table.enter[host, to]
                + table.seconds[to, unit]
                + rest(unit + 1, to, with_unit(room, to, unit))
                for to in devices
                if room[to] >= table.unit_bytes[to, unit]
            ),
            default=math.inf,
        )

    def with_unit(room: tuple[int, ...], host: int, unit: int) -> tuple[int, ...]:
        left = room[host] - int(table.unit_bytes[host, unit])
        return (*room[:host], left, *room[host + 1 :])

    room = with_unit(tuple(map(int, table.room_bytes)), costs.source, 0)
    if room[costs.source] < 0:
        return math.inf
    start = table.start_seconds + table.seconds[costs.source, 0]
    return float(start + rest(1, costs.source, room))


def by_hand(room: dict[str, int], seconds: dict[str, list[float]], weights: list[int]) -> CostTable:
    """Room in MiB and seconds of each unit by device, weights in MiB; every hop takes 0.1 s."""
    num_units = len(weights)
    model = make_model(
        num_units - 2,
        weights_bytes=[MIB * weight for weight in weights],
        structures=[f"structure.{unit}" for unit in range(num_units)],
        kv=KvSpec(layout="static", num_kv_heads=1, head_dim=1),
    )
    structures = [unit.structure for unit in model.units]
    devices = [
        make_device(
            name,
            measured(model, dict(zip(structures, seconds[name], strict=True))),
            memory_bytes=room[name] * MIB + 4096,
        )
        for name in room
    ]
    links = [make_link(a, b, 0.1, 1e12) for a in room for b in room if a != b]
    return build_costs(model, make_profile(devices, links), "a", Workload(1, 1, 1, 0))


def test_algorithm_1_takes_the_fast_device_as_soon_as_the_way_there_pays() -> None:
    model = make_model()
    profile = make_profile(
        [make_device("a", measured(model, 1.0)), make_device("b", measured(model, 0.001))]
    )
    costs = build_costs(model, profile, "a", Workload(64, 1, 1, 0))
    assert algorithm1(costs) == (Span(0, 0, 0, 1), Span(1, 0, 1, 6))


def test_algorithm_1_may_come_back_to_a_device() -> None:
    """Each device is slow at the other's units: no chain of intervals does what this path does."""
    costs = by_hand({"a": 4, "b": 4}, {"a": [1, 9, 1, 1], "b": [9, 1, 9, 9]}, [1, 1, 1, 1])
    spans = algorithm1(costs)
    hosts = [(span.device, span.start, span.stop) for span in spans]
    assert hosts == [(0, 0, 1), (1, 1, 2), (0, 2, 4)]
    assert latency_seconds(costs, spans) == pytest.approx(1 + 0.1 + 1 + 0.1 + 2)
    assert best_partition(costs, "latency").seconds == pytest.approx(12)


@EXAMPLES
@given(cases(tight=False, plain=True))
def test_algorithm_1_is_exact_over_all_paths_where_memory_is_plenty(case: Case) -> None:
    costs = costs_of(case)
    expected = best_path_seconds(costs)
    if math.isinf(expected):
        with pytest.raises(PlanError):
            algorithm1(costs)
        return
    assert latency_seconds(costs, algorithm1(costs)) == pytest.approx(expected, rel=1e-9)


@EXAMPLES
@given(cases(tight=True, plain=True))
def test_algorithm_1_keeps_within_memory_and_never_beats_the_best_path(case: Case) -> None:
    costs = costs_of(case)
    try:
        spans = algorithm1(costs)
    except PlanError:
        return
    table = layer_table(costs)
    held = [0] * len(costs.devices)
    for span in spans:
        held[span.device] += int(table.unit_bytes[span.device, span.start : span.stop].sum())
    used = {span.device for span in spans}
    assert all(held[device] <= table.room_bytes[device] for device in used)
    assert latency_seconds(costs, spans) >= best_path_seconds(costs) * (1 - 1e-9)


def test_algorithm_1_is_not_exact_with_tight_memory() -> None:
    """A label keeps its best path, here one that spent b's only place on unit 1 and not on unit 3.

    best  a [0, 2)  c [2, 3)  b [3, 4)     found  a [0, 1)  b [1, 2)  c [2, 4)
    """
    seconds = {"a": [1.0, 2, 50, 9], "b": [50.0, 1, 50, 1], "c": [50.0, 50, 1, 9]}
    costs = by_hand({"a": 4, "b": 1, "c": 4}, seconds, [1, 1, 1, 1])
    spans = algorithm1(costs)
    assert [(span.device, span.start, span.stop) for span in spans] == [
        (0, 0, 1),
        (1, 1, 2),
        (2, 2, 4),
    ]
    assert latency_seconds(costs, spans) == pytest.approx(1 + 0.1 + 1 + 0.1 + 10 + 0.1)
    best = best_partition(costs, "latency")
    assert [span.device for span in best.spans] == [0, 2, 1]
    assert best.seconds == pytest.approx(3 + 0.1 + 1 + 0.1 + 1 + 0.1)
    assert best_path_seconds(costs) == pytest.approx(best.seconds)


def test_algorithm_1_may_find_nothing_where_a_plan_exists() -> None:
    """The same flaw, with a last unit of two MiB that only fits where unit 1 must not go."""
    seconds = {"a": [1.0, 2, 50, 9], "b": [50.0, 1, 50, 1], "c": [50.0, 50, 1, 9]}
    costs = by_hand({"a": 2, "b": 2, "c": 1}, seconds, [1, 1, 1, 2])
    assert [span.device for span in best_partition(costs, "latency").spans] == [0, 2, 1]
    with pytest.raises(PlanError, match="algorithm-1 finds no plan"):
        algorithm1(costs)


@EXAMPLES
@given(cases(tight=True, plain=True))
def test_algorithm_2_finds_the_least_bottleneck_of_every_chain_that_fits(case: Case) -> None:
    chains = every_chain(case.model, case.profile, "a", case.context, case.slots)
    fitting = [chain for chain in chains if chain.missing_bytes == 0]
    costs = costs_of(case)
    if not fitting:
        with pytest.raises(PlanError):
            algorithm2(costs)
        return
    found = bottleneck_seconds(costs, algorithm2(costs))
    assert found == pytest.approx(best_throughput(fitting)[0], rel=1e-9)


def test_algorithm_2_weighs_a_link_against_what_it_relieves() -> None:
    model = make_model()
    devices = [make_device(name, measured(model, 1.0)) for name in "ab"]
    for bytes_per_second, stops in ((456 / 2.5, [3, 6]), (456 / 7, [6])):
        links = [make_link(a, b, 0.0, bytes_per_second) for a, b in ("ab", "ba")]
        costs = build_costs(model, make_profile(devices, links), "a", Workload(1, 1, 1, 0))
        assert [span.stop for span in algorithm2(costs)] == stops


def test_algorithm_2_refuses_more_devices_than_it_can_try() -> None:
    model = make_model()
    names = [f"device{index}" for index in range(MAX_DEVICES + 1)]
    profile = make_profile([make_device(name, measured(model, 0.01)) for name in names])
    costs = build_costs(model, profile, names[0], Workload(64, 1, 1, 0))
    with pytest.raises(PlanError, match=f"at most {MAX_DEVICES}, {MAX_DEVICES + 1} could host"):
        algorithm2(costs)
