"""Chains side by side: disjoint, complete, and better where a split is worse."""

from __future__ import annotations

from edgeshard.planner.costs import build_costs
from edgeshard.planner.replicas import replicas
from edgeshard.planner.units import Workload
from support.planner_cases import MIB, make_device, make_link, make_model, make_profile, measured

MODEL = make_model()
WORKLOAD = Workload(64, 8, 1, 0)


def test_two_replicas_beat_a_split_over_slow_links() -> None:
    devices = [make_device(name, measured(MODEL, 0.010)) for name in "ab"]
    links = [make_link(a, b, 0.1, 4560.0) for a in "ab" for b in "ab" if a != b]
    found = replicas(build_costs(MODEL, make_profile(devices, links), "a", WORKLOAD))
    assert [fleet.devices for fleet in found] == [(("a",),), (("a",), ("b",))]
    assert found[1].tokens_per_second == 2 * found[0].tokens_per_second


def test_a_model_that_fits_no_half_has_one_chain_only() -> None:
    devices = [make_device(name, measured(MODEL, 0.010), memory_bytes=4 * MIB) for name in "ab"]
    found = replicas(build_costs(MODEL, make_profile(devices), "a", WORKLOAD))
    assert [len(fleet.devices) for fleet in found] == [1]


def test_no_device_is_in_two_chains() -> None:
    devices = [make_device(name, measured(MODEL, 0.010)) for name in "abcdef"]
    for fleet in replicas(build_costs(MODEL, make_profile(devices), "a", WORKLOAD)):
        names = [name for chain in fleet.devices for name in chain]
        assert len(set(names)) == len(names)


def test_a_device_without_the_embedding_is_no_source() -> None:
    devices = [
        make_device("a", measured(MODEL, 0.010)),
        make_device("b", measured(MODEL, 0.010)[1:]),
    ]
    found = replicas(build_costs(MODEL, make_profile(devices), "a", WORKLOAD))
    assert [len(fleet.devices) for fleet in found] == [1]
