"""The exact solvers by themselves: against costs small enough to add, and against every chain."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edgeshard.planner.ascent import Ascent
from edgeshard.planner.bottleneck import any_chain, smallest_bottleneck
from edgeshard.planner.chains import chain_cost, is_within
from edgeshard.planner.cheapest import Effort, cheapest_chain
from edgeshard.planner.frontier import search
from edgeshard.planner.groups import DeviceTable, group, name_devices
from edgeshard.planner.polish import polish
from edgeshard.planner.relaxation import potentials, through, walk
from support.chain_problems import every_chain, linear_stage, random_table, slowest_of, sum_of
from support.referee import best_by_milp

EFFORT = Effort()


def by_hand() -> DeviceTable:
    """Three units; the source takes 4 each, b 1, c 2; a link costs 2, but a to b 5."""
    hop = np.full((3, 3), 2.0)
    hop[0, 1] = 5.0
    way_back = np.array([0.0, 0.5, 0.5])
    return DeviceTable(linear_stage([4.0, 1.0, 2.0], 3), np.arange(3), hop, hop, way_back, 0)


def small_tables(num_tables: int) -> list[DeviceTable]:
    generator = np.random.default_rng(7)
    return [
        random_table(
            generator,
            num_units=int(generator.integers(2, 7)),
            counts=generator.integers(1, 3, 2).tolist(),
            jitter=float(generator.choice([0.0, 0.5])),
            room=float(generator.uniform(1.0, 3.0)),
        )
        for _ in range(num_tables)
    ]


def test_the_cheapest_chain_goes_around_a_slow_link() -> None:
    table = by_hand()
    problem, members = group(table)
    best = cheapest_chain(problem, EFFORT)
    assert best.chain is not None
    assert name_devices(best.chain, members) == ((0, 0, 1), (2, 1, 3))
    assert best.cost == best.bound == 4 + 2 + 4 + 0.5


def test_the_smallest_bottleneck_is_that_of_the_slowest_stage() -> None:
    best = smallest_bottleneck(by_hand(), EFFORT)
    assert best.seconds == best.bound == 4
    assert best.chain is not None
    assert slowest_of(by_hand(), best.chain) == 4


def test_no_way_back_means_no_chain() -> None:
    table = replace(by_hand(), way_back=np.full(3, np.inf))
    best = cheapest_chain(group(table)[0], EFFORT)
    assert (best.chain, best.bound) == (None, np.inf)
    slowest = smallest_bottleneck(table, EFFORT)
    assert (slowest.chain, slowest.bound) == (None, np.inf)


def test_both_objectives_equal_every_chain_and_are_proven() -> None:
    for table in small_tables(60):
        chains = list(every_chain(table))
        problem, members = group(table)
        best, slowest = cheapest_chain(problem, EFFORT), smallest_bottleneck(table, EFFORT)
        if not chains:
            assert best.chain is slowest.chain is None
            assert best.bound == slowest.bound == np.inf
            continue
        assert best.chain is not None
        assert slowest.chain is not None
        expected = min(sum_of(table, chain) for chain in chains)
        assert sum_of(table, name_devices(best.chain, members)) == pytest.approx(expected)
        assert best.bound == best.cost
        expected = min(slowest_of(table, chain) for chain in chains)
        assert slowest_of(table, slowest.chain) == pytest.approx(expected)
        assert slowest.bound == slowest.seconds == pytest.approx(expected)


def test_with_no_effort_a_bound_still_holds() -> None:
    for table in small_tables(40):
        chains = list(every_chain(table))
        best = cheapest_chain(group(table)[0], Effort(num_values=0, num_rounds=0))
        expected = min((sum_of(table, chain) for chain in chains), default=np.inf)
        assert best.bound <= expected * (1 + 1e-9)
        assert best.cost >= expected * (1 - 1e-9)


def test_prices_raise_the_bound_and_never_above_the_best_chain() -> None:
    for table in small_tables(40):
        problem, _ = group(table)
        free = potentials(problem, np.zeros(problem.num_groups))
        least = min((sum_of(table, chain) for chain in every_chain(table)), default=np.inf)
        if np.isinf(free.root(problem)):
            continue
        ascent = Ascent(problem, free)
        ascent.climb(30, least)
        assert free.root(problem) <= ascent.bound <= least * (1 + 1e-9)


def test_the_relaxed_way_costs_what_its_potentials_say() -> None:
    table = random_table(np.random.default_rng(3), 12, [3, 2], jitter=0.3, room=3.0)
    problem, _ = group(table)
    free = potentials(problem, np.zeros(problem.num_groups))
    assert chain_cost(problem, walk(problem, free)) == pytest.approx(free.root(problem))


def test_no_chain_with_a_device_costs_less_than_its_bound() -> None:
    for table in small_tables(40):
        problem, members = group(table)
        chains = list(every_chain(table))
        least = through(problem, potentials(problem, np.zeros(problem.num_groups)))
        for devices, bound in zip(members, least, strict=True):
            using = [c for c in chains if any(link[0] in devices for link in c)]
            assert bound <= min((sum_of(table, c) for c in using), default=np.inf) + 1e-9


def test_what_a_narrow_search_drops_is_bounded() -> None:
    generator = np.random.default_rng(5)
    for _ in range(10):
        table = random_table(generator, 10, [3, 3], jitter=0.4, room=1.3)
        problem, _ = group(table)
        free = potentials(problem, np.zeros(problem.num_groups))
        narrow, wide = (search(problem, free, np.inf, width) for width in (2, 10**6))
        assert wide.dropped == np.inf
        assert min(narrow.dropped, narrow.cost) <= wide.cost * (1 + 1e-12) <= narrow.cost * 1.001


def test_polish_never_makes_a_chain_dearer_and_keeps_the_counts() -> None:
    table = random_table(np.random.default_rng(11), 12, [4, 4], jitter=0.4, room=1.5)
    problem, _ = group(table)
    free = potentials(problem, np.zeros(problem.num_groups))
    first = search(problem, free, np.inf, 1, first=True).chain
    assert first is not None
    better = polish(problem, first)
    assert chain_cost(problem, better) <= chain_cost(problem, first)
    assert is_within(problem, better)
    assert [start for _, start, _ in better[1:]] == [stop for _, _, stop in better[:-1]]


def test_any_chain_says_no_only_where_there_is_none() -> None:
    for table in small_tables(60):
        for limit in (4.0, 8.0, 16.0):
            kept = table.within(limit)
            answer = any_chain(kept, EFFORT)
            assert answer.is_certain
            assert (answer.chain is not None) == any(True for _ in every_chain(kept))


def test_devices_that_differ_a_little_do_not_cost_the_proof_of_a_bottleneck() -> None:
    """Forty devices whose links all differ: at a threshold above those they are types again."""
    table = random_table(np.random.default_rng(2), 40, [20, 20], jitter=0.2, room=1.3)
    table = replace(table, busy=table.busy / 10)
    best = smallest_bottleneck(table, EFFORT)
    assert best.chain is not None
    assert best.bound == best.seconds == pytest.approx(slowest_of(table, best.chain))


def test_forty_different_devices_are_within_two_percent() -> None:
    table = random_table(np.random.default_rng(2), 40, [20, 20], jitter=0.2, room=1.3)
    problem, _ = group(table)
    best = cheapest_chain(problem, Effort(num_values=1e7, num_rounds=4))
    assert best.chain is not None
    assert is_within(problem, best.chain)
    assert best.bound >= 0.98 * best.cost


@pytest.mark.parametrize("seed", range(6))
def test_medium_cases_equal_a_mixed_integer_program(seed: int) -> None:
    generator = np.random.default_rng(seed)
    counts = generator.integers(1, 4, 2).tolist()
    table = random_table(generator, int(generator.integers(7, 11)), counts, 0.3 * (seed % 2), 1.4)
    best, slowest = cheapest_chain(group(table)[0], EFFORT), smallest_bottleneck(table, EFFORT)
    assert best.cost == best.bound == pytest.approx(best_by_milp(table, True).seconds)
    assert slowest.seconds == slowest.bound == pytest.approx(best_by_milp(table, False).seconds)
