"""Random fleets: drawn from a number, summed up as counted."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edgeshard.paper.fleets import COMPARED, Compared, compare, fleet, summarise, summary_markdown


def test_a_fleet_is_drawn_from_its_number_alone() -> None:
    first, again, other = fleet(3), fleet(3), fleet(4)
    assert first.devices == again.devices
    assert np.array_equal(first.hop_seconds, again.hop_seconds)
    assert first.devices != other.devices


def test_no_baseline_beats_the_exact_planner_but_one_that_comes_back() -> None:
    found = [one for number in range(8) for one in compare(number)]
    assert {(one.objective, one.method) for one in found} == {
        (objective, method) for objective, methods in COMPARED.items() for method in methods
    }
    assert all(one.ratio >= 1 - 1e-9 for one in found if one.method != "algorithm-1")


def test_a_summary_counts_worse_better_and_none() -> None:
    ratios = [1.0, 1.0, 2.0, 4.0, 0.9, math.inf]
    compared = [Compared(i, "latency", "algorithm-1", ratio) for i, ratio in enumerate(ratios)]
    (line,) = summarise(compared)
    assert (line.num_fleets, line.num_without, line.num_worse, line.num_better) == (6, 1, 2, 1)
    assert (line.median_ratio, line.ninth_ratio, line.worst_ratio) == pytest.approx((1.0, 4.0, 4.0))
    assert "| latency | algorithm-1 | 6 | 1 | 2 | 1 | 1.000 | 4.000 | 4.000 |" in summary_markdown(
        [line]
    )
