"""Which devices are one group, and how a chain over groups names devices again."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from edgeshard.planner.groups import DeviceTable, group, name_devices, name_groups
from support.chain_problems import linear_stage, random_table


def table(hop: list[list[float]], class_of: list[int]) -> DeviceTable:
    links = np.array(hop, np.float64)
    way_back = np.array([0.0, *np.ones(len(hop) - 1)])
    stage = linear_stage([1.0] * (max(class_of) + 1), 4)
    return DeviceTable(stage, np.array(class_of, np.intp), links, links, way_back, 0)


def test_equal_devices_with_equal_links_are_one_group() -> None:
    problem, members = group(table([[0, 2, 2], [3, 0, 5], [3, 5, 0]], [0, 1, 1]))
    assert members == ((0,), (1, 2))
    assert problem.count.tolist() == [1, 2]
    assert problem.hop[1, 1] == 5
    assert (problem.hop[0, 1], problem.hop[1, 0]) == (2, 3)


def test_a_device_alone_in_its_group_has_no_hop_to_itself() -> None:
    problem, _ = group(table([[0, 2], [3, 0]], [0, 1]))
    assert np.isinf(np.diagonal(problem.hop)).all()


def test_another_class_link_or_way_back_makes_another_group() -> None:
    equal = [[0.0, 2.0, 2.0], [3.0, 0.0, 5.0], [3.0, 5.0, 0.0]]
    assert len(group(table(equal, [0, 1, 2]))[1]) == 3
    assert len(group(table([[0, 2, 2], [3, 0, 5], [3, 6, 0]], [0, 1, 1]))[1]) == 3
    assert len(group(table([[0, 2, 4], [3, 0, 5], [3, 5, 0]], [0, 1, 1]))[1]) == 3
    way_back = np.array([0.0, 1.0, 2.0])
    assert len(group(replace(table(equal, [0, 1, 1]), way_back=way_back))[1]) == 3


def test_equal_sorted_links_are_not_enough() -> None:
    """A ring: every device has the same links, but to other devices."""
    ring = [[0, 1, 1, 1], [1, 0, 2, 3], [1, 2, 0, 4], [1, 3, 4, 0]]
    ring[1][2], ring[2][1] = 2, 2
    assert group(table([[float(x) for x in row] for row in ring], [0, 1, 1, 1]))[1] == (
        (0,),
        (1,),
        (2,),
        (3,),
    )


def test_types_are_found_in_a_fleet() -> None:
    fleet = random_table(np.random.default_rng(1), 6, [5, 4, 3])
    _, members = group(fleet)
    assert [len(devices) for devices in members] == [1, 5, 4, 3]


def test_stages_of_a_group_get_a_device_each() -> None:
    members = ((0,), (3, 1, 2))
    chain = ((0, 0, 1), (1, 1, 2), (1, 2, 3))
    named = name_devices(chain, members)
    assert named == ((0, 0, 1), (3, 1, 2), (1, 2, 3))
    assert name_groups(named, members) == chain
