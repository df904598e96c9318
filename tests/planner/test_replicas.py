"""Chains side by side: disjoint, better where a split is worse, and no better than said."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest

from edgeshard.errors import PlanError
from edgeshard.planner.batches import CostTables, best_rate
from edgeshard.planner.costs import build_costs
from edgeshard.planner.hands import hand_of
from edgeshard.planner.plan import make_plan
from edgeshard.planner.replica_bound import replica_bound
from edgeshard.planner.replicas import Fleet, replicas
from edgeshard.planner.units import Workload
from edgeshard.schemas.common import changed
from edgeshard.schemas.profile import DecodePoint, Profile
from support.planner_cases import (
    MIB,
    digest,
    make_device,
    make_link,
    make_model,
    make_profile,
    measured,
    timing,
)

MODEL = make_model()
SLOTS = 8


def tables_of(profile: Profile, slots: int = SLOTS) -> CostTables:
    return CostTables(
        lambda rows: build_costs(MODEL, profile, "a", Workload(64, slots, 32, 64, batch=rows))
    )


def fleets_of(profile: Profile, slots: int = SLOTS) -> tuple[Fleet, ...]:
    return replicas(tables_of(profile, slots), slots)


def test_two_replicas_beat_a_split_over_slow_links_and_no_two_do_more() -> None:
    devices = [make_device(name, measured(MODEL, 0.010)) for name in "ab"]
    links = [make_link(a, b, 0.1, 4560.0) for a in "ab" for b in "ab" if a != b]
    found = fleets_of(make_profile(devices, links))
    assert [fleet.devices for fleet in found] == [(("a",),), (("a",), ("b",))]
    assert found[1].tokens_per_second == 2 * found[0].tokens_per_second
    assert found[1].bound_tokens_per_second == pytest.approx(found[1].tokens_per_second)


def test_a_model_that_fits_no_half_has_one_chain_only() -> None:
    devices = [make_device(name, measured(MODEL, 0.010), memory_bytes=4 * MIB) for name in "ab"]
    found = fleets_of(make_profile(devices))
    assert [len(fleet.devices) for fleet in found] == [1]


def test_no_device_is_in_two_chains() -> None:
    devices = [make_device(name, measured(MODEL, 0.010)) for name in "abcdef"]
    for fleet in fleets_of(make_profile(devices)):
        names = [name for chain in fleet.devices for name in chain]
        assert len(set(names)) == len(names)


def test_a_device_without_the_embedding_is_no_source() -> None:
    devices = [
        make_device("a", measured(MODEL, 0.010)),
        make_device("b", measured(MODEL, 0.010)[1:]),
    ]
    found = fleets_of(make_profile(devices))
    assert [len(fleet.devices) for fleet in found] == [1]


def test_a_source_runs_on_a_provider_that_has_the_embedding() -> None:
    """b's fast provider lacks it, so b alone is no faster than a."""
    fast = measured(MODEL, 0.001, "CUDAExecutionProvider")[1:]
    devices = [
        make_device("a", measured(MODEL, 0.010)),
        make_device("b", fast + measured(MODEL, 0.010)),
    ]
    found = fleets_of(make_profile(devices, []))
    assert found[1].tokens_per_second == pytest.approx(2 * found[0].tokens_per_second)


@pytest.mark.parametrize("slots", [1, 2, 6])
def test_one_chain_is_the_plan_with_its_rate_and_its_bound(slots: int) -> None:
    """Two more rows cost a third each, so it matters how slots are grouped."""
    batch = DecodePoint(context=64, batch=4, time=timing(0.020))
    units = tuple(changed(unit, decode=(*unit.decode, batch)) for unit in measured(MODEL, 0.010))
    profile = make_profile([make_device(name, units) for name in "abc"])
    plan = make_plan(MODEL, digest("m"), profile, "a", "throughput", 64, slots, 32, 64)
    one = fleets_of(profile, slots)[0]
    assert one.devices == (tuple(stage.device for stage in plan.stages),)
    assert one.tokens_per_second == pytest.approx(plan.tokens_per_second)
    assert one.bound_tokens_per_second == pytest.approx(plan.tokens_per_second)


def deals(num_devices: int, num_chains: int) -> Iterator[list[list[int]]]:
    """Every way to give devices to chains, the plan's source 0 in the first, any other source."""
    for owner in itertools.product(range(num_chains + 1), repeat=num_devices - 1):
        hands = [
            [device for device in range(1, num_devices) if owner[device - 1] == chain]
            for chain in range(num_chains)
        ]
        if all(hands[1:]):
            for sources in itertools.product(*hands[1:]):
                others = [
                    [source, *(device for device in hand if device != source)]
                    for source, hand in zip(sources, hands[1:], strict=True)
                ]
                yield [[0, *hands[0]], *others]


def drawn(seed: int) -> tuple[Profile, int]:
    """Three or four devices of unlike speed and memory, and one to three slots."""
    generator = np.random.default_rng(seed)
    names = "abcd"[: int(generator.integers(3, 5))]
    devices = [
        make_device(
            name,
            measured(MODEL, float(generator.uniform(0.005, 0.03))),
            memory_bytes=int(generator.uniform(2.2, 9) * MIB),
        )
        for name in names
    ]
    links = [
        make_link(a, b, float(generator.uniform(0, 0.01)), float(generator.uniform(2e4, 1e6)))
        for a in names
        for b in names
        if a != b
    ]
    return make_profile(devices, links), int(generator.integers(1, 4))


@pytest.mark.parametrize("seed", range(10))
def test_no_deal_does_more_than_the_bound(seed: int) -> None:
    profile, slots = drawn(seed)
    tables = tables_of(profile, slots)
    costs = tables.of(1)
    assert costs is not None
    bound = replica_bound(tables, slots, 1)
    rates: dict[tuple[int, ...], float] = {}

    def rate_of(hand: list[int]) -> float:
        key = (hand[0], *sorted(hand[1:]))
        if key not in rates:
            try:
                alone = hand_of(costs, hand)
                rates[key] = 1 / best_rate(CostTables(lambda _: alone), slots, 1).seconds
            except PlanError:
                rates[key] = 0.0
        return rates[key]

    for num_chains in range(1, len(costs.devices) + 1):
        each = [list(map(rate_of, deal)) for deal in deals(len(costs.devices), num_chains)]
        best = max((sum(one) for one in each if all(one)), default=0.0)
        assert best <= bound.of(num_chains) * (1 + 1e-9)
