"""What one device alone would do."""

from __future__ import annotations

import pytest

from edgeshard.planner.alternatives import one_device
from edgeshard.planner.costs import build_costs
from edgeshard.planner.units import Workload
from support.planner_cases import (
    CPU,
    GPU,
    MIB,
    make_device,
    make_link,
    make_model,
    make_profile,
    measured,
)

MODEL = make_model()
WORKLOAD = Workload(64, 1, 1, 0)


def test_each_device_alone_is_listed_best_first_with_its_missing_bytes() -> None:
    devices = [
        make_device("a", measured(MODEL, 0.02), memory_bytes=5 * MIB, step_overhead_seconds=0.01),
        make_device("b", measured(MODEL, 0.01)),
    ]
    first, second = one_device(build_costs(MODEL, make_profile(devices), "a", WORKLOAD))
    assert (first.device, first.missing_bytes) == ("b", 0)
    assert first.decode_seconds == pytest.approx(6 * 0.01)
    assert second.device == "a"
    assert second.decode_seconds == pytest.approx(6 * 0.02 + 0.01)
    assert second.missing_bytes == MIB + 4 * 2 * 16 * 4 * 64


def test_the_fastest_provider_counts() -> None:
    units = measured(MODEL, 0.02, CPU) + measured(MODEL, 0.01, GPU)
    costs = build_costs(MODEL, make_profile([make_device("a", units)]), "a", WORKLOAD)
    assert one_device(costs)[0].decode_seconds == pytest.approx(6 * 0.01)


def test_a_loopback_is_passed_on_the_way_in_and_back() -> None:
    devices = [make_device("a", measured(MODEL, 0.01))]
    profile = make_profile(devices, [make_link("a", "a", 0.005)])
    costs = build_costs(MODEL, profile, "a", WORKLOAD)
    assert one_device(costs)[0].decode_seconds == pytest.approx(6 * 0.01 + 2 * 0.005)


def test_a_device_without_the_embedding_is_passed_over() -> None:
    devices = [make_device("a", measured(MODEL, 0.02)), make_device("b", measured(MODEL, 0.01)[1:])]
    costs = build_costs(MODEL, make_profile(devices), "a", WORKLOAD)
    assert [alternative.device for alternative in one_device(costs)] == ["a"]
