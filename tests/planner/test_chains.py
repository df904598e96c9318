"""The dynamic programming by itself, on costs small enough to add by hand."""

from __future__ import annotations

import math

import numpy as np

from edgeshard.planner.chains import (
    ChainProblem,
    Costs,
    Join,
    best_chain,
    chain_cost,
    solve_chains,
)

INF = math.inf


def stage(per_unit: list[float], source: int, num_units: int) -> Costs:
    """`[D, start, stop]` of devices that take equally long for every unit."""
    places = np.arange(num_units + 1)
    lengths = (places[None, :] - places[:, None]).astype(np.float64)
    lengths[lengths <= 0] = INF
    costs = np.stack([lengths * seconds for seconds in per_unit])
    for device in range(len(per_unit)):
        costs[device, 1:] += INF if device == source else 0.0
        costs[device, 0] += 0.0 if device == source else INF
    return costs


def problem(join: Join) -> ChainProblem:
    """Three units; the source takes 4 each, b 1, c 2; a link costs 2, but a to b 5."""
    hop = np.full((3, 3), 2.0)
    hop[0, 1] = 5.0
    return ChainProblem(stage([4.0, 1.0, 2.0], 0, 3), hop, np.array([0.0, 0.5, 0.5]), 0, join)


def test_sums_go_to_the_cheapest_chain() -> None:
    table = solve_chains(problem(np.add))
    assert best_chain(table) == ((0, 0, 1), (2, 1, 3))
    assert chain_cost(table) == 4 + 2 + 4 + 0.5


def test_maxima_go_to_the_smallest_bottleneck() -> None:
    table = solve_chains(problem(np.maximum))
    assert chain_cost(table) == 4
    assert best_chain(table) == ((0, 0, 1), (2, 1, 3))


def test_the_best_chain_with_a_device_costs_more() -> None:
    table = solve_chains(problem(np.add))
    assert chain_cost(table, 1) == 4 + 5 + 2 + 0.5
    assert chain_cost(table, 0) == chain_cost(table)


def test_a_single_device_takes_everything() -> None:
    alone = ChainProblem(stage([4.0], 0, 3), np.full((1, 1), INF), np.array([0.25]), 0, np.add)
    table = solve_chains(alone)
    assert best_chain(table) == ((0, 0, 3),)
    assert chain_cost(table) == 12.25


def test_no_way_back_means_no_chain() -> None:
    stuck = problem(np.add)
    nowhere = ChainProblem(stuck.stage, stuck.hop, np.full(3, INF), 0, np.add)
    assert chain_cost(solve_chains(nowhere)) == INF


def test_the_source_may_be_any_index() -> None:
    last = ChainProblem(
        stage([1.0, 4.0], 1, 3), np.full((2, 2), 2.0), np.array([0.5, 0.0]), 1, np.add
    )
    assert best_chain(solve_chains(last)) == ((1, 0, 1), (0, 1, 3))
