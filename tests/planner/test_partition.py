"""The partitioner against every chain there is, and what it promises of a plan's shape."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from edgeshard.errors import PlanError
from edgeshard.planner.costs import CostTable, build_costs
from edgeshard.planner.hosts import Span
from edgeshard.planner.memory import missing_bytes, stage_memory
from edgeshard.planner.partition import Partition, best_partition
from edgeshard.planner.units import Workload
from edgeshard.schemas.common import Objective
from edgeshard.schemas.model import ModelManifest
from edgeshard.schemas.profile import Profile
from support.planner_brute_force import best_latency, best_throughput, every_chain
from support.planner_cases import (
    CPU,
    GPU,
    MIB,
    Case,
    cases,
    make_device,
    make_link,
    make_model,
    make_profile,
    measured,
)

EXAMPLES = settings(max_examples=150, deadline=None, derandomize=True)


def costs_of(
    model: ModelManifest, profile: Profile, source: str = "a", context: int = 64, slots: int = 1
) -> CostTable:
    return build_costs(model, profile, source, Workload(context, slots, 1, 0))


def check_against_every_chain(case: Case, objective: Objective) -> None:
    chains = list(every_chain(case.model, case.profile, "a", case.context, case.slots))
    fitting = [chain for chain in chains if chain.missing_bytes == 0]
    if not fitting:
        with pytest.raises(PlanError):
            best_partition(
                costs_of(case.model, case.profile, "a", case.context, case.slots), objective
            )
        return
    costs = costs_of(case.model, case.profile, "a", case.context, case.slots)
    best = best_partition(costs, objective)
    check_shape(costs, best)
    latency, bottleneck = seconds_of(costs, best)
    if objective == "latency":
        assert latency == pytest.approx(best_latency(fitting), rel=1e-9)
        assert best.seconds == pytest.approx(latency, rel=1e-9)
    else:
        assert (bottleneck, latency) == pytest.approx(best_throughput(fitting), rel=1e-8)
        assert best.seconds == pytest.approx(bottleneck, rel=1e-8)
    assert best.bound_seconds == best.seconds
    for index, device in enumerate(costs.devices):
        using = [chain for chain in fitting if device.name in chain.devices]
        attribute = "latency_seconds" if objective == "latency" else "bottleneck_seconds"
        expected = min((getattr(chain, attribute) for chain in using), default=float("inf"))
        assert best.seconds_with[index] <= expected * (1 + 1e-9)


def check_shape(costs: CostTable, best: Partition) -> None:
    devices = [span.device for span in best.spans]
    assert devices[0] == costs.source
    assert len(set(devices)) == len(devices)
    stops = [span.stop for span in best.spans]
    assert [span.start for span in best.spans] == [0, *stops[:-1]]
    assert stops[-1] == costs.num_units
    for span in best.spans:
        assert span.start < span.stop
        memory = stage_memory(costs, span.device, span.provider, span.start, span.stop)
        assert missing_bytes(memory) == 0


def seconds_of(costs: CostTable, best: Partition) -> tuple[float, float]:
    """Latency and bottleneck of a partition, term by term."""
    terms = [costs.entry_seconds, costs.return_seconds[best.spans[-1].device]]
    busy = []
    for index, span in enumerate(best.spans):
        device = costs.devices[span.device]
        units = device.providers[span.provider].decode_seconds[span.start : span.stop]
        busy.append(device.step_overhead_seconds + sum(units))
        terms.append(busy[-1])
        if index:
            previous = best.spans[index - 1].device
            busy.append(costs.hop_busy_seconds[previous][span.device])
            terms.append(costs.hop_seconds[previous][span.device])
    return sum(terms), max(busy)


@EXAMPLES
@given(cases(tight=False))
def test_latency_equals_the_best_of_every_chain(case: Case) -> None:
    check_against_every_chain(case, "latency")


@EXAMPLES
@given(cases(tight=True))
def test_latency_equals_the_best_of_every_chain_that_fits(case: Case) -> None:
    check_against_every_chain(case, "latency")


@EXAMPLES
@given(cases(tight=False))
def test_throughput_equals_the_best_of_every_chain(case: Case) -> None:
    check_against_every_chain(case, "throughput")


@EXAMPLES
@given(cases(tight=True))
def test_throughput_equals_the_best_of_every_chain_that_fits(case: Case) -> None:
    check_against_every_chain(case, "throughput")


def test_the_source_keeps_unit_0_though_another_device_is_faster() -> None:
    model = make_model()
    profile = make_profile(
        [make_device("a", measured(model, 1.0)), make_device("b", measured(model, 0.001))]
    )
    assert best_partition(costs_of(model, profile), "latency").spans == (
        Span(0, 0, 0, 1),
        Span(1, 0, 1, 6),
    )


def test_a_slow_link_is_relayed_around() -> None:
    model = make_model()
    fast, slow = measured(model, 0.001), measured(model, 1.0)
    devices = [make_device("a", slow), make_device("b", slow), make_device("c", fast)]
    links = [
        make_link("a", "b"),
        make_link("b", "c"),
        make_link("a", "c", bytes_per_second=10.0),
        make_link("c", "a"),
    ]
    best = best_partition(costs_of(model, make_profile(devices, links)), "latency")
    assert best.spans == (Span(0, 0, 0, 1), Span(1, 0, 1, 2), Span(2, 0, 2, 6))


def test_a_stage_takes_the_slower_provider_where_only_it_fits() -> None:
    model = make_model()
    units = measured(model, 0.001, GPU, resident_bytes=5 * MIB) + measured(model, 0.002, CPU)
    small = make_profile([make_device("a", units, memory_bytes=7 * MIB)])
    large = make_profile([make_device("a", units, memory_bytes=40 * MIB)])
    assert best_partition(costs_of(model, small), "latency").spans == (Span(0, 1, 0, 6),)
    assert best_partition(costs_of(model, large), "latency").spans == (Span(0, 0, 0, 6),)


def test_latency_of_a_link_does_not_count_against_throughput() -> None:
    model = make_model()
    devices = [make_device(name, measured(model, 0.01)) for name in "ab"]
    links = [make_link("a", "b", 0.5, 1e9), make_link("b", "a", 0.5, 1e9)]
    best = best_partition(costs_of(model, make_profile(devices, links)), "throughput")
    assert best.spans == (Span(0, 0, 0, 3), Span(1, 0, 3, 6))
    assert best.seconds == pytest.approx(0.03)


def test_throughput_takes_a_long_way_of_fast_links_rather_than_a_short_slow_one() -> None:
    """Breaking ties by latency must not bring back a link that is slower than the bottleneck."""
    model = make_model()
    devices = [
        make_device("a", measured(model, 0.010), memory_bytes=MIB),
        make_device("b", measured(model, 0.010)),
        make_device("c", measured(model, 0.001)),
    ]
    links = [
        make_link("a", "c", 0.0, 4560.0),
        make_link("a", "b", 1.0, 1e9),
        make_link("b", "c", 1.0, 1e9),
        make_link("c", "a"),
    ]
    best = best_partition(costs_of(model, make_profile(devices, links)), "throughput")
    assert best.spans == (Span(0, 0, 0, 1), Span(1, 0, 1, 2), Span(2, 0, 2, 6))


def test_equal_devices_give_the_same_partition_every_time() -> None:
    model = make_model(6)
    profile = make_profile([make_device(name, measured(model, 0.01)) for name in "abcd"])
    costs = costs_of(model, profile)
    for objective in ("latency", "throughput"):
        first = best_partition(costs, objective)
        assert all(best_partition(costs, objective) == first for _ in range(3))


def test_of_equal_chains_the_one_with_fewer_devices_is_taken() -> None:
    model = make_model()
    devices = [make_device(name, measured(model, 0.25)) for name in "abc"]
    links = [make_link(a, b, 0.0, 2.0**60) for a in "abc" for b in "abc"]
    best = best_partition(costs_of(model, make_profile(devices, links)), "latency")
    assert len(best.spans) == 1


def test_forty_equal_devices_are_planned_over_as_one_type() -> None:
    """Room for two blocks each: the best chain uses 16 of them, and that is proven."""
    model = make_model(32)
    units = measured(model, 0.01)
    devices = [make_device("source", units, memory_bytes=2 * MIB + MIB // 2)]
    devices += [make_device(f"d{index}", units, 2 * MIB + MIB // 2) for index in range(40)]
    costs = costs_of(model, make_profile(devices), "source")
    for objective in ("latency", "throughput"):
        best = best_partition(costs, objective)
        check_shape(costs, best)
        assert best.bound_seconds == best.seconds
        assert [span.device for span in best.spans] == list(range(len(best.spans)))
    assert len(best_partition(costs, "latency").spans) == 17


def test_devices_that_can_hold_nothing_are_passed_over() -> None:
    model = make_model()
    units = measured(model, 0.01)
    devices = [make_device("a", units)]
    devices += [make_device(f"full{index}", units, memory_bytes=1) for index in range(30)]
    assert len(best_partition(costs_of(model, make_profile(devices)), "latency").spans) == 1
