"""The shortest interval of groups of requests against every chain there is."""

from __future__ import annotations

import numpy as np
import pytest

from edgeshard.planner.cheapest import Effort
from edgeshard.planner.groups import DeviceTable
from edgeshard.planner.paced import best_paced
from support.chain_problems import every_chain, linear_stage, random_table, slowest_of, sum_of
from support.referee import best_by_milp

ENTRY = 0.125


def interval(table: DeviceTable, chain: tuple[tuple[int, int, int], ...], groups: int) -> float:
    return max(slowest_of(table, chain), (ENTRY + sum_of(table, chain)) / groups)


@pytest.mark.parametrize("groups", [1, 2, 3, 5])
@pytest.mark.parametrize("seed", range(12))
def test_the_interval_equals_the_best_of_every_chain(seed: int, groups: int) -> None:
    generator = np.random.default_rng(seed)
    table = random_table(
        generator,
        int(generator.integers(3, 7)),
        generator.integers(1, 3, 2).tolist(),
        float(generator.choice([0.0, 0.5])),
        float(generator.uniform(0.9, 3.0)),
    )
    expected = min((interval(table, c, groups) for c in every_chain(table)), default=np.inf)
    found = best_paced(table, ENTRY, groups, Effort())
    assert found.seconds == pytest.approx(expected, rel=1e-8)
    assert found.bound == found.seconds
    if found.chain is not None:
        assert interval(table, found.chain, groups) == pytest.approx(found.seconds, rel=1e-8)


@pytest.mark.parametrize("seed", range(3))
def test_the_interval_equals_a_milp(seed: int) -> None:
    generator = np.random.default_rng(seed)
    table = random_table(generator, 8, [2, 2, 1], 0.3, 1.5)
    found = best_paced(table, ENTRY, 3, Effort())
    expected = best_by_milp(table, False, groups=3, entry_seconds=ENTRY).seconds
    assert found.seconds == found.bound == pytest.approx(expected)


def two_ways() -> DeviceTable:
    """Alone the source takes 12 for 3 units; two others take 1 for a unit, behind a hop of 9."""
    hop = np.full((3, 3), 9.0)
    way_back = np.array([0.0, 9.0, 9.0])
    busy = np.full((3, 3), 0.5)
    return DeviceTable(linear_stage([4.0, 1.0, 1.0], 3), np.arange(3), hop, busy, way_back, 0)


def test_one_group_takes_the_short_way_and_many_take_the_fast_stages() -> None:
    alone, filled = (best_paced(two_ways(), 0.0, groups, Effort()) for groups in (1, 8))
    assert alone.chain == ((0, 0, 3),)
    assert alone.seconds == 12.0
    assert filled.chain is not None
    assert [stop for _, _, stop in filled.chain] == [1, 3]
    assert filled.seconds == 4.0


def test_without_a_number_of_groups_the_slowest_alone_counts() -> None:
    found = best_paced(two_ways(), 0.0, None, Effort())
    assert (found.seconds, found.bound) == (4.0, 4.0)
