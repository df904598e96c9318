"""Blocking transfers against every chain there is, and what a plan says of them."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest

from edgeshard.errors import InputError
from edgeshard.planner.blocking import best_blocking, least_transfers
from edgeshard.planner.cheapest import Effort
from edgeshard.planner.costs import build_costs
from edgeshard.planner.explain import explain
from edgeshard.planner.front import front
from edgeshard.planner.groups import DeviceTable
from edgeshard.planner.plan import make_plan
from edgeshard.planner.units import Workload
from edgeshard.schemas.common import Transfers
from edgeshard.schemas.plan import Plan
from support.chain_problems import every_chain, random_table, sum_of
from support.planner_cases import (
    digest,
    make_device,
    make_link,
    make_model,
    make_profile,
    measured,
)

ENTRY = 0.125
MODEL = make_model()
PROFILE = make_profile(
    [make_device(name, measured(MODEL, 0.010)) for name in "abc"],
    [make_link(x, y, 0.010, 912_000.0) for x in "abc" for y in "abc" if x != y],
)
Chain = tuple[tuple[int, int, int], ...]


def slowest(table: DeviceTable, chain: Chain) -> float:
    """The slowest stage with its hops, or the way back."""
    ways = [0.0, *(float(table.hop[a[0], b[0]]) for a, b in itertools.pairwise(chain))]
    ways.append(float(table.way_back[chain[-1][0]]))
    stages = [float(table.stage[table.class_of[d], i, j]) for d, i, j in chain]
    pairs = zip(stages, itertools.pairwise(ways), strict=True)
    return max(before + stage + behind for stage, (before, behind) in pairs)


def interval(table: DeviceTable, chain: Chain, groups: int | None) -> float:
    way = (ENTRY + sum_of(table, chain)) / groups if groups else 0.0
    return max(slowest(table, chain), way)


def drawn(seed: int, jitter: float) -> DeviceTable:
    generator = np.random.default_rng(seed)
    table = random_table(
        generator,
        int(generator.integers(3, 7)),
        generator.integers(1, 3, 2).tolist(),
        jitter,
        float(generator.uniform(0.9, 3.0)),
    )
    table.hop[generator.random(table.hop.shape) < generator.choice([0.0, 0.2])] = np.inf
    return replace(table, is_blocking=True)


@pytest.mark.parametrize("groups", [None, 1, 3])
@pytest.mark.parametrize("jitter", [0.0, 0.8])
@pytest.mark.parametrize("seed", range(12))
def test_the_interval_equals_the_best_of_every_chain(
    seed: int, jitter: float, groups: int | None
) -> None:
    table = drawn(seed, jitter)
    expected = min((interval(table, c, groups) for c in every_chain(table)), default=math.inf)
    found = best_blocking(table, ENTRY, groups, Effort())
    assert found.seconds == pytest.approx(expected, rel=1e-8)
    assert found.bound == found.seconds
    if found.chain is not None:
        assert interval(table, found.chain, groups) == pytest.approx(found.seconds, rel=1e-8)


@pytest.mark.parametrize("seed", range(6))
def test_least_transfers_make_no_chain_slower(seed: int) -> None:
    table = drawn(seed, 0.8)
    bounded = least_transfers(table)
    for chain in every_chain(table):
        assert bounded.slowest(chain) <= slowest(table, chain) * (1 + 1e-12)
        assert bounded.total(chain) == pytest.approx(table.total(chain))


def chain_of_three(transfers: Transfers, slots: int = 8, head_at_source: bool = False) -> Plan:
    """Six units of 10 ms over three devices, hops of 10.5 ms of which 0.5 keep the link."""
    return make_plan(
        MODEL,
        digest("m"),
        PROFILE,
        "a",
        "throughput",
        64,
        slots,
        32,
        transfers=transfers,
        head_at_source=head_at_source,
    )


def test_a_plan_names_the_stage_with_its_transfers() -> None:
    """Who receives and sends, 10.5 ms each, gets one unit; the source 3, the last one 2."""
    free, blocked = (chain_of_three(transfers) for transfers in get_args(Transfers))
    assert [stage.stop for stage in free.stages] == [2, 4, 6]
    assert free.tokens_per_second == pytest.approx(1 / 0.020)
    assert [stage.stop for stage in blocked.stages] == [3, 4, 6]
    assert blocked.tokens_per_second == pytest.approx(1 / 0.0405)
    assert blocked.bottleneck == "stage 0 on a with its transfers, 40.50 ms per token"
    assert blocked.certificate is not None
    assert blocked.certificate.is_optimal


def test_the_slack_of_a_stage_counts_its_transfers() -> None:
    plan = chain_of_three("blocking")
    stages = explain(plan, PROFILE, lambda _: plan).stages
    slack = [1e3 * stage.slack_seconds for stage in stages]
    assert slack == pytest.approx([0.0, 9.5, 0.0], abs=1e-9)


def test_the_front_counts_transfers_as_well() -> None:
    free, blocked = (
        front(build_costs(MODEL, PROFILE, "a", Workload(64, 1, 1, 0, transfers=transfers)))
        for transfers in get_args(Transfers)
    )
    assert free[0] == blocked[0]  # one device alone sends nothing
    assert min(one.slowest_seconds for one in free) == pytest.approx(0.020)
    assert min(one.slowest_seconds for one in blocked) == pytest.approx(0.0405)


def test_the_head_at_the_source_does_not_block() -> None:
    with pytest.raises(InputError, match="blocking transfers are not planned together"):
        chain_of_three("blocking", head_at_source=True)


def test_where_all_links_are_alike_nothing_is_lost() -> None:
    table = drawn(3, 0.0)
    hop = np.where(np.eye(len(table.hop), dtype=np.bool_), 0.0, 2.0)
    alike = replace(table, hop=hop, busy=hop, way_back=np.full(len(hop), 2.0))
    bounded = least_transfers(alike)
    for chain in every_chain(alike):
        assert bounded.slowest(chain) == pytest.approx(slowest(alike, chain))
